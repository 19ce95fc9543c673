"""The outbox of a data folder: where writes are acknowledged, and from where every store is fed."""

from __future__ import annotations

from memory.outbox.outbox import Outbox
from memory.outbox.tables import LAG_MAX, Kept, Parked, Row

__all__ = ["LAG_MAX", "Kept", "Outbox", "Parked", "Row"]
