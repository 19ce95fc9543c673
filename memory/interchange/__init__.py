"""Memories as files: our own JSON Lines, and what other programs export. The format stands in docs/export.md."""

from memory.interchange.files import LINE_MAX, Refused, new_file
from memory.interchange.intake import Imported, take_in
from memory.interchange.ours import FORMAT, VERSION, Exported, Tally, export, scan_surely
from memory.interchange.source import Kind, Source, open_source

__all__ = [
    "FORMAT",
    "LINE_MAX",
    "VERSION",
    "Exported",
    "Imported",
    "Kind",
    "Refused",
    "Source",
    "Tally",
    "export",
    "new_file",
    "open_source",
    "scan_surely",
    "take_in",
]
