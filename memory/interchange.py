"""Memories as files: our JSON Lines, and what other programs export."""
