"""Our MCP server, broken in one way: `python -m benchmarks.chaos.server MUTANT --db FILE`."""

from __future__ import annotations

import sys

from benchmarks.chaos import mutants
from tools.mcp_server.__main__ import main

if __name__ == "__main__":
    mutants.apply(sys.argv.pop(1))
    main()
