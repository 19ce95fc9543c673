"""Copies of the whole memory: made by hand and daily, listed, and put back."""

from __future__ import annotations

from memory.backups.keeping import BackupKeeper, DiskWatch, OwnCopy, own_copies
from memory.backups.making import Backup, Manner, back_up, check_target
from memory.backups.purging import Purged, purge
from memory.backups.restoring import Restored, restore
from memory.backups.taking import LeftOut
from memory.backups.work import only_one

__all__ = [
    "Backup",
    "BackupKeeper",
    "DiskWatch",
    "LeftOut",
    "Manner",
    "OwnCopy",
    "Purged",
    "Restored",
    "back_up",
    "check_target",
    "only_one",
    "own_copies",
    "purge",
    "restore",
]
