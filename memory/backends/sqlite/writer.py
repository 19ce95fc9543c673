"""The second way into the SQLite store: from another thread, without a hop."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from memory.backends.sqlite.putting import Known, creation_of, put_all, read_creation, read_rows
from memory.errors import BackendUnavailableError
from memory.sqlite_file import identity_of, in_transaction, is_refusal, overwrite_deleted, reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from memory.model import Position, Record
    from memory.scrubbing import Scrubber
    from memory.sqlite_file import FileIdentity, SQLiteFile

_BUSY_S = 0.1
"""A LocalWriter waits for nobody; this only outlasts another's commit, whose thread may wait for the interpreter."""


class Writer:
    """Writes from the thread that calls it, over a connection of its own; see LocalWriter.

    It commits without fsync and never checkpoints, which would take long; `SQLiteMemoryBackend.sync` does both.
    What it is given was checked where it came in: by `write` or `put` of the memory that keeps the outbox. What it has
    read it believes until anybody else writes to the file; only its own thread calls it, so nothing comes in between.

    It is for the file that the backend had open when it was made, and for no other: whose a file is that came in its
    place, somebody has to look first.
    """

    def __init__(self, file: SQLiteFile, name: str, scrubber: Scrubber) -> None:
        self._file = file
        self._name = name
        self._scrubber = scrubber
        self._cursor: sqlite3.Cursor | None = None  # made once: each statement would make one of its own
        self._identity: FileIdentity | None = file.identity
        self._known = Known()
        self._as_of: tuple[sqlite3.Connection, int] | None = None

    def apply(self, records: Sequence[Record]) -> int:
        known, self._known = self._known, Known()

        def job(db: sqlite3.Connection) -> int:
            as_of = (db, db.execute("PRAGMA data_version").fetchone()[0])
            if as_of != self._as_of:  # somebody else has written since the last time
                known.forget()
                self._as_of = as_of
            return put_all(db, records, known)

        try:
            changed = in_transaction(self._opened().connection, job)
        except sqlite3.Error as exc:
            self._check_place()
            readable = is_refusal(exc)
            if not readable:
                self.close()
            reason = reason_of(self._file.path, exc)
            raise BackendUnavailableError(self._name, "store", reason, readable=readable) from exc
        self._known = known  # believed again only now that it is committed
        self._scrubber.note(records)
        self._check_place()
        return changed

    def creations(self, positions: Sequence[Position]) -> dict[Position, datetime]:
        try:
            cursor = self._opened()
            if len(positions) == 1:  # somebody waits for this one alone: the rest of the row is read in `apply`
                moment = read_creation(cursor, positions[0])
                return {} if moment is None else {positions[0]: moment}
            rows = self._known.rows = read_rows(cursor.connection, positions)
        except sqlite3.Error as exc:
            reason = reason_of(self._file.path, exc)
            raise BackendUnavailableError(self._name, "store", reason, readable=is_refusal(exc)) from exc
        return {position: moment for position, row in rows.items() if (moment := creation_of(row)) is not None}

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        self._known, self._as_of = Known(), None
        if cursor is not None:
            with suppress(sqlite3.Error):
                cursor.connection.close()

    def _opened(self) -> sqlite3.Cursor:
        if self._cursor is None or self._identity is not self._file.identity:
            self._check_place()
        if self._cursor is None:
            # mode=rw: a file that was just taken away must not be made again, empty.
            uri = f"{self._file.path.absolute().as_uri()}?mode=rw"
            # One thread at a time, but the outbox's thread is a new one after its own file was lost.
            db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S, check_same_thread=False)
            self._cursor = db.cursor()
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            overwrite_deleted(db)
        return self._cursor

    def _check_place(self) -> None:
        # The very object, not only an equal one: a file system gives a new file the number of one that is gone.
        same_opening = self._identity is not None and self._identity is self._file.identity
        if not same_opening or self._identity != identity_of(self._file.path):
            self.close()
            reason = "not open" if self._identity is None else "the file was removed or replaced while it was in use"
            raise BackendUnavailableError(self._name, "store", f"{self._file.path.name}: {reason}")
