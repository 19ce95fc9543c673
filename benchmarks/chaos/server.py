"""Our MCP server, broken in one way: `python -m benchmarks.chaos.server MUTANT --db FILE`."""

from __future__ import annotations

import sys

from benchmarks.chaos import mutants
from tools import mcp_server

if __name__ == "__main__":
    mutants.apply(sys.argv.pop(1))
    mcp_server.main()
