"""From the predecessor's database to here and back: a made-up hostile database, what must come out of it, the way."""

from benchmarks.migration.maker import make_legacy
from benchmarks.migration.reckoning import Reckoning, reckon

__all__ = ["Reckoning", "make_legacy", "reckon"]
