"""Migrating from the predecessor: a copy of its file, a load, and a verification, which is the flag's evidence."""

from memory.migration.evidence import (
    disable,
    enable,
    refusal,
    source_to_verify,
    verify_if_any,
)
from memory.migration.findings import Finding
from memory.migration.forgetting import forget
from memory.migration.move import Migration, Preview, follow, migrate, preview
from memory.migration.verify import Progress, Verification

__all__ = [
    "Finding",
    "Migration",
    "Preview",
    "Progress",
    "Verification",
    "disable",
    "enable",
    "follow",
    "forget",
    "migrate",
    "preview",
    "refusal",
    "source_to_verify",
    "verify_if_any",
]
