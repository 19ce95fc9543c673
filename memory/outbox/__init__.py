"""The outbox of a data folder: where writes are acknowledged, and from where every store is fed."""

from __future__ import annotations

from memory.outbox.appending import Kept
from memory.outbox.outbox import Outbox
from memory.outbox.tables import LAG_MAX, Parked, Row

__all__ = ["LAG_MAX", "Kept", "Outbox", "Parked", "Row"]
