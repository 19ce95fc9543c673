"""Schedules on real processes: bots that are killed and stopped, real MCP servers, real files."""

from __future__ import annotations

from benchmarks.chaos.hindrances import Hindrances
from benchmarks.chaos.losses import Losses


class RealWorld(Hindrances, Losses):
    """A folder with one bot or two, to which every fault of real schedules can happen."""
