"""Copies of the whole memory: made by hand and daily, listed, and put back."""

from __future__ import annotations

from memory.backups.keeping import BackupKeeper, DiskWatch, OwnCopy, own_copies
from memory.backups.making import Backup, Manner, back_up, check_target
from memory.backups.restoring import Restored, restore
from memory.backups.taking import LeftOut

__all__ = [
    "Backup",
    "BackupKeeper",
    "DiskWatch",
    "LeftOut",
    "Manner",
    "OwnCopy",
    "Restored",
    "back_up",
    "check_target",
    "own_copies",
    "restore",
]
