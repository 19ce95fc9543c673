"""The schema of one of our SQLite files, in numbered steps: files in the field are copied, then brought up to date."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memory.sqlite_copy import keep_before_upgrade
from memory.sqlite_file import in_transaction, is_damage

if TYPE_CHECKING:
    from memory.sqlite_file import Schema


class versioned:  # noqa: N801 - called like the function that it stands for
    """A schema in numbered steps: step n (from 1), a script or a function, takes a file from n - 1 to n.

    Each step is kept as a whole or not at all. Before the first that changes a file with content, a copy of it is
    kept beside it, as NAME.schema-VERSION-TIME; where that cannot be, the file is left as it is, and so is a file
    that is newer than the steps.
    """

    def __init__(self, *steps: str | Schema) -> None:
        self._steps = steps

    @property
    def latest(self) -> int:
        """The newest version that this program knows."""
        return len(self._steps)

    def __call__(self, db: sqlite3.Connection) -> None:
        version = version_of(db)
        if version > self.latest:
            raise sqlite3.NotSupportedError(
                f"the file has schema {version}, this program knows {self.latest}: update the program"
            )
        theirs = version == 0 and db.execute("SELECT 1 FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchone()
        if theirs and version_of(db) == 0:  # and no other process of ours has made them just now
            raise sqlite3.NotSupportedError("the file is another program's: give the store a file of its own")
        for number, step in enumerate(self._steps[version:], start=version + 1):
            keep_copy = number == version + 1 and version > 0
            in_transaction(db, partial(_step, number, step, keep_copy=keep_copy))


def version_of(db: sqlite3.Connection) -> int:
    """Return the number of a file's schema; 0 of one that has none of ours."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def run_script(db: sqlite3.Connection, script: str) -> None:
    """Run the statements of *script*, each ended by a semicolon at the end of its line, in the open transaction."""
    for statement in script.split(";\n"):
        db.execute(statement)


def _step(number: int, step: str | Schema, db: sqlite3.Connection, *, keep_copy: bool) -> None:
    if version_of(db) >= number:
        return  # another process was faster
    if keep_copy:
        try:  # within the transaction, so that nobody writes, and only one of several processes does it
            keep_before_upgrade(Path(db.execute("PRAGMA database_list").fetchone()[2]), number - 1)
        except (sqlite3.Error, OSError) as exc:
            if is_damage(exc):
                raise
            why = exc.strerror if isinstance(exc, OSError) else exc
            text = f"it has schema {number - 1} and is not upgraded, for no copy of it could be kept before: {why}"
            raise sqlite3.NotSupportedError(text) from exc
    if callable(step):
        step(db)
    else:
        run_script(db, step)
    db.execute(f"PRAGMA user_version = {number}")
