"""What stands in the outbox's file, and how: functions on an open database, within whatever transaction there is."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, NamedTuple

from memory.errors import MemoryRejectedError
from memory.model import Page, supersedes, user_hash_of
from memory.revision import NEVER, is_damaged
from memory.sqlite_schema import versioned
from memory.wire import record_from_text, record_to_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Sequence

    from memory.model import Position, Record

LAG_MAX = 100_000
"""Rows that a store may be behind before it no longer holds them back: it is compared in full when it returns."""

_BATCH_BYTES = 256 * 1024

_as_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each

# `log` holds the newest record of each slot that some store lacks, each with the highest revision there was up to it;
# `stores` those that count, each with the seq up to which it has everything durably, and as what it was last trusted;
# `parked` what a store refused; `meta` the ids, and of the newest row, if it is gone, its number and clock.
SCHEMA = versioned(
    """CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    user_hash TEXT NOT NULL,
    user_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    record TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    UNIQUE (user_id, slot)
);
CREATE INDEX log_by_user ON log (user_hash);
CREATE TABLE stores (
    name TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    store_id TEXT NOT NULL DEFAULT '',
    counter INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE parked (
    store TEXT NOT NULL,
    user_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    record TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    PRIMARY KEY (store, user_id, slot)
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    # It told whom a tombstone buries, which is rare and can look through the log; every write had to pay for it.
    "DROP INDEX log_by_user",
    # The highest number and the clock stood in rows of their own: a commit that changes two pages less is faster.
    f"""CREATE TABLE numbered (
    seq INTEGER PRIMARY KEY,
    user_hash TEXT NOT NULL,
    user_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    record TEXT NOT NULL,
    clock TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    UNIQUE (user_id, slot)
);
INSERT INTO numbered
SELECT seq, user_hash, user_id, slot, record, coalesce((SELECT value FROM meta WHERE name = 'clock'), '{NEVER}'), at_ms
FROM log;
INSERT OR REPLACE INTO meta SELECT 'seq', seq FROM sqlite_sequence WHERE name = 'log';
DROP TABLE log;
ALTER TABLE numbered RENAME TO log""",
)

_GONE_SEQ = "(SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'seq')"

HEAD_SEQ = f"max(coalesce((SELECT max(seq) FROM log), 0), {_GONE_SEQ})"
"""The number of the newest row there ever was."""

START = f"coalesce((SELECT min(seq) FROM log) - 1, {_GONE_SEQ})"
"""The place before the first row."""


class Head(NamedTuple):
    """The number of the newest row there ever was, and the highest revision up to it."""

    seq: int
    clock: str


class Row(NamedTuple):
    """A record of the log as it was written, and when it was acknowledged."""

    seq: int
    text: str
    at_ms: int

    @property
    def record(self) -> Record:
        """The record; MemoryRejectedError if the row is damaged."""
        return record_from_text(self.text)


class Parked(NamedTuple):
    """A record that *store* refused, and why."""

    store: str
    record: Record
    reason: str
    since_ms: int


def overlay_of_key(db: sqlite3.Connection, user_id: str, key: str, slots: Collection[str] | None) -> tuple[Record, ...]:
    """Return what the stores may lack in *slots*; None: under *key* anywhere, and each deletion: it names no key."""
    if slots is None:
        rows = _of_user(db, user_id, "instr(record, ?2) OR NOT instr(record, '\"key\": ')", [_text(key)])
    else:
        rows = _of_user(db, user_id, "slot IN (SELECT value FROM json_each(?2))", [json.dumps(list(slots))])
    return sound([*_graves_of(db, user_id), *rows])


def overlay_of_user(db: sqlite3.Connection, user_id: str, after: Position | None, limit: int) -> Page:
    """Return a page of what the stores may lack about one user, with the user's tombstone on every one."""
    rows = _of_user(db, user_id, "slot > ?2", [after[1] if after else ""], limit + 1)
    following = (user_id, rows[limit - 1][0]) if len(rows) > limit else None
    return Page(sound([*_graves_of(db, user_id), *rows[:limit]]), following)


def _of_user(
    db: sqlite3.Connection, user_id: str, where: str, given: Sequence[str], limit: int = -1
) -> list[tuple[str, str]]:
    """Return slot and record of what is in the log about one user, and of what a store refused, in order."""
    # One statement, within which nothing that is refused can leave the log unseen. Ordered, so that it ends early.
    arm = f"SELECT slot, record FROM {{}} WHERE user_id = ?1 AND ({where})"
    sql = f"{arm.format('log')} UNION {arm.format('parked')} ORDER BY slot, record LIMIT {limit}"
    return db.execute(sql, [user_id, *given]).fetchall()


def _graves_of(db: sqlite3.Connection, user_id: str) -> list[tuple[str, str]]:
    return _of_user(db, user_hash_of(user_id), "slot = ''", [])


def overlay_page(db: sqlite3.Connection, after: Position | None, limit: int) -> tuple[Page, tuple[Record, ...]]:
    """Return a page of the same about everybody, and with it every user's tombstone."""
    both = "SELECT {} FROM log WHERE {} UNION SELECT {} FROM parked WHERE {}"
    columns, behind = "user_id, slot, record", "(user_id, slot) > (?1, ?2)"
    sql = both.format(columns, behind, columns, behind) + " ORDER BY user_id, slot LIMIT ?3"
    rows = db.execute(sql, [*(after or ("", "")), limit + 1]).fetchall()
    graves = db.execute(both.format("record", "slot = ''", "record", "slot = ''")).fetchall()
    following = (rows[limit - 1][0], rows[limit - 1][1]) if len(rows) > limit else None
    return Page(sound([text] for _, _, text in rows[:limit]), following), sound(graves)


def rows_after(db: sqlite3.Connection, after: int, limit: int) -> list[Row]:
    """Return up to *limit* rows, or 256 KiB, that follow row *after*, damaged ones among them."""
    rows: list[Row] = []
    size = 0
    for seq, text, at_ms in db.execute("SELECT seq, record, at_ms FROM log WHERE seq > ? ORDER BY seq", [after]):
        size += len(text)
        if rows and (size > _BATCH_BYTES or len(rows) >= limit):
            break
        rows.append(Row(seq, text if isinstance(text, str) else "", at_ms))  # "": damaged, as it shows further on
    return rows


def park(db: sqlite3.Connection, name: str, record: Record, reason: str, at_ms: int) -> bool:
    """Note that the store *name* refused *record*, unless it refused that or a newer one there before."""
    there = [name, *record.position]
    rows = db.execute("SELECT record FROM parked WHERE (store, user_id, slot) = (?, ?, ?)", there).fetchall()
    if any(not supersedes(record, known) for known in sound(rows)):
        return False
    sql = "INSERT OR REPLACE INTO parked (store, user_id, slot, record, reason, since_ms) VALUES (?, ?, ?, ?, ?, ?)"
    db.execute(sql, [*there, record_to_text(record), reason, at_ms])
    return True


def unpark(db: sqlite3.Connection, name: str, records: Sequence[Record]) -> None:
    """The store *name* has *records*: strike off those that it refused, and what they replace, but nothing newer."""
    for record in records:
        there = [name, *record.position]
        rows = db.execute("SELECT record FROM parked WHERE (store, user_id, slot) = (?, ?, ?)", there).fetchall()
        if not any(supersedes(known, record) for known in sound(rows)):
            db.execute("DELETE FROM parked WHERE (store, user_id, slot) = (?, ?, ?)", there)
    trim(db)


def start(db: sqlite3.Connection) -> int:
    """Return the place before the first row."""
    return int(db.execute(f"SELECT {START}").fetchone()[0])


def trim(db: sqlite3.Connection) -> None:
    """Delete the rows that every store has; one that is too far behind waits no longer, if two others have them."""
    cursors = [cursor for (cursor,) in db.execute("SELECT cursor FROM stores ORDER BY cursor")]
    if not cursors:
        return
    last = head(db).seq
    near = [cursor for cursor in cursors if last - cursor <= LAG_MAX]
    everywhere = min(near) if len(near) >= min(2, len(cursors)) else cursors[0]
    # What a store refused stays, so that a store that loses its copy is given it again.
    refused = "EXISTS (SELECT 1 FROM parked WHERE (parked.user_id, parked.slot) = (log.user_id, log.slot))"
    if everywhere >= last:
        keep_head(db)
    db.execute(f"DELETE FROM log WHERE seq <= ? AND NOT {refused}", [everywhere])


def strike_out(db: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Delete the rows *seqs*, whatever they are; return how many there were."""
    keep_head(db)
    return db.executemany("DELETE FROM log WHERE seq = ?", [[seq] for seq in seqs]).rowcount


def head(db: sqlite3.Connection) -> Head:
    """Return the log's head: neither numbers nor revisions are used again when rows are gone."""
    (seq,) = db.execute(f"SELECT {HEAD_SEQ}").fetchone()
    here = db.execute("SELECT clock FROM log ORDER BY seq DESC LIMIT 1").fetchall()
    clocks = [clock for (clock,) in here if isinstance(clock, str) and not is_damaged(clock)]
    return Head(int(seq), max([meta(db, "clock"), *clocks]))


def keep_head(db: sqlite3.Connection) -> None:
    """Note the head apart from its row, which may go."""
    here = head(db)
    set_meta(db, "seq", str(here.seq))
    set_meta(db, "clock", here.clock)


def found_log(db: sqlite3.Connection, first: int) -> dict[str, str]:
    """Give a new log its id, and the number that it begins behind; return what `who_are_you` does."""
    new = "INSERT OR IGNORE INTO meta (name, value) VALUES ('outbox_id', ?)"
    if db.execute(new, [secrets.token_hex(16)]).rowcount:  # and not another process just before
        set_meta(db, "seq", str(first))
    return who_are_you(db)


def who_are_you(db: sqlite3.Connection) -> dict[str, str]:
    """Return the log's id, empty if it has none yet, and its clock."""
    outbox_id = meta(db, "outbox_id", "")
    return {"outbox_id": outbox_id, "clock": head(db).clock if outbox_id else NEVER}


def is_empty(db: sqlite3.Connection) -> bool:
    """Return whether no store lacks anything."""
    return not db.execute("SELECT EXISTS (SELECT 1 FROM log) OR EXISTS (SELECT 1 FROM parked)").fetchone()[0]


def is_quiet(db: sqlite3.Connection, seq: int) -> bool:
    """Return whether no row follows row *seq*, and nothing was refused."""
    sql = "SELECT EXISTS (SELECT 1 FROM log WHERE seq > ?) OR EXISTS (SELECT 1 FROM parked)"
    return not db.execute(sql, [seq]).fetchone()[0]


def data_version(db: sqlite3.Connection) -> int:
    """Return a number that is another one after anybody else has written."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    sql = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    db.execute(sql, [name, value])


def meta(db: sqlite3.Connection, name: str, default: str = NEVER) -> str:
    row = db.execute("SELECT value FROM meta WHERE name = ?", [name]).fetchone()
    return str(row[0]) if row else default


def parse(text: str) -> Record | None:
    """Return the record that *text* stands for; None if it is damaged."""
    try:
        return record_from_text(text)
    except MemoryRejectedError:
        return None


def _text(what: object) -> str:
    return _as_json(what)


def sound(rows: Iterable[Sequence[str]]) -> tuple[Record, ...]:
    """Return the records of *rows*, whose last column they are; without what is damaged."""
    return tuple(record for *_, text in rows if (record := parse(text)) is not None)
