"""What a language model may do, and the MCP memory server."""
