"""Made-up databases of the predecessor: mostly what people said in a year, and some of all that can go wrong."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

REPEATED = 0.07
"""How many rows have the user and the key of an earlier one."""

MEMORIES = """CREATE TABLE memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT,
    key TEXT,
    value TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
)"""

_OTHERS = """
CREATE TABLE users (
    user_id TEXT PRIMARY KEY, username TEXT, preferences TEXT, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, channel_id TEXT, messages TEXT,
    timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX conversations_by_user ON conversations (user_id);
"""

_PUT = "INSERT INTO memories (user_id, key, value, created_at, updated_at) VALUES (?, ?, ?, ?, ?)"
_PUT_RAW = """
INSERT INTO memories (user_id, key, value, created_at, updated_at)
VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)
"""
"""Text from bytes, whatever they are: the only way to have text that is no UTF-8."""

_FIRST = datetime(2022, 1, 1, tzinfo=UTC)
_YEAR_S = 365 * 86_400
_EACH = 5_000
"""Of so many rows, one is of each hostile kind."""

_DEEP = 25
_KEYS = ("favorite", "birthday", "pet", "city", "job", "food", "music", "game", "color", "hobby", "car", "team")
_WORDS = (
    "blue",
    "tea",
    "cat",
    "york",
    "likes",
    "plays",
    "since",
    "often",
    "never",
    "guitar",
    "river",
    "pizza",
    "chess",
)
_LIMIT = 102_400


class _Row(NamedTuple):
    user_id: object
    key: object
    value: object
    created_at: object
    updated_at: object


def make_legacy(path: Path, rows: int, users: int, seed: int) -> None:
    """Make a database as the predecessor left them, the same for the same arguments.

    A few hundredths of the rows are hostile in each column. See `reckon` for what must come out.

    Args:
        path: where; nothing may be there yet.
        rows: of the table `memories`; 200 at the least, or there is no room for each kind of hostile row.
        users: of whom most have said little and some very much.
    """
    if rows < len(_hostile(random.Random(seed), ["u"])) + _DEEP:
        raise ValueError(f"{rows} rows are too few for each kind of hostile one (limit: 200)")
    chance = random.Random(seed)
    names = [_user(chance, number) for number in range(users)]
    made = _rows(chance, rows, names)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(MEMORIES)
        db.executescript(_OTHERS)
        _fill_others(db, chance, names)
        for row in made:
            db.execute(_PUT_RAW if isinstance(row, _Raw) else _PUT, row)


class _Raw(_Row):
    """A row whose texts are bytes."""


def _rows(chance: random.Random, count: int, names: Sequence[object]) -> list[_Row]:
    hostile = [row for _ in range(max(1, count // _EACH)) for row in _hostile(chance, names)]
    deep = list(_deep(chance, names[0]))
    ordinary: list[_Row] = []
    while len(ordinary) < count - len(hostile) - len(deep):
        if ordinary and chance.random() < REPEATED:
            ordinary.append(_said_again(chance, chance.choice(ordinary)))
        else:
            # The square: the first tenth of the users has a third of the rows.
            user = names[int(len(names) * chance.random() ** 2)]
            ordinary.append(_ordinary(chance, user, len(ordinary)))
    rows = [*ordinary, *deep, *hostile]
    chance.shuffle(rows)
    return rows


def _user(chance: random.Random, number: int) -> object:
    """Return an id as Discord gives them; a number, which SQLite keeps as text, for some."""
    snowflake = 10**17 + chance.randrange(10**18)
    return snowflake if number % 50 == 1 else str(snowflake)


def _ordinary(chance: random.Random, user: object, number: int) -> _Row:
    key = f"{chance.choice(_KEYS)}_{chance.choice(_WORDS)}_{number}"
    at = _moment(chance)
    later = at if chance.random() < 0.8 else at + timedelta(seconds=chance.randrange(1, _YEAR_S))
    return _Row(user, key, _text(chance), _as_sqlite(at), _as_sqlite(later))


def _said_again(chance: random.Random, row: _Row) -> _Row:
    """Return another row of the same key: mostly later, sometimes earlier or in the same second."""
    before = datetime.fromisoformat(str(row.updated_at)).replace(tzinfo=UTC)
    at = before + timedelta(seconds=chance.choice((0, 1, 86_400, chance.randrange(_YEAR_S), -3_600)))
    return row._replace(value=_text(chance), created_at=_as_sqlite(at), updated_at=_as_sqlite(at))


def _deep(chance: random.Random, user: object) -> Iterator[_Row]:
    """Give more rows of one key than earlier values are kept of it."""
    for number in range(_DEEP):
        at = _as_sqlite(_FIRST + timedelta(days=number))
        yield _Row(user, "mood", f"mood number {number} {_text(chance)}", at, at)


def _hostile(chance: random.Random, names: Sequence[object]) -> list[_Row]:
    """Return a row of each kind that is not as it should be, or that takes care to be kept as it is."""
    plain = _Row("", "", "", _as_sqlite(_moment(chance)), _as_sqlite(_moment(chance)))

    def row(**changes: object) -> _Row:
        mark = chance.randrange(10**9)
        return plain._replace(**{"user_id": chance.choice(names), "key": f"k{mark}", "value": f"v{mark}"} | changes)

    def raw(**changes: bytes) -> _Row:
        texts = {"user_id": str(chance.choice(names)).encode(), "key": b"raw", "value": b"raw"} | changes
        return _Raw(**plain._asdict() | texts)

    mark = chance.randrange(10**9)
    values: tuple[Any, ...] = (None, "", 42, 1.5, b"\x00\xff blob", b"text in a blob", "nul \0 inside", "🦊" * 40)
    values += (
        "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
        'it\'s "quoted"',
        "'); DROP TABLE memories; --",
        "a\nb\r\n",
    )
    values += ("x" * _LIMIT, "x" * (_LIMIT + 1), "é" * (_LIMIT // 2), "é" * (_LIMIT // 2 + 1), "x" * 1_000_000)
    keys: tuple[Any, ...] = (None, "", "k" * 256, "k" * 257, "é" * 256, b"key in a blob", 7, "a.b[c] 'd' \0 \n e", "🦊")
    users: tuple[Any, ...] = (
        None,
        "",
        b"a blob",
        "u" * 128,
        "u" * 129,
        f"o'brien {mark}",
        f"🦊{mark}",
        f"\u05d0{mark}",
        mark,
    )
    days: tuple[Any, ...] = (None, "yesterday", "", 1_650_000_000, 1_650_000_000_123, 1_650_000_000.5, -5)
    days += ("9999-12-31 23:59:59", "2023-05-06T07:08:09Z", "2023-05-06 07:08:09.123", "2023-05-06 07:08:09+02:00", b"")
    return [
        *(row(value=value) for value in values),
        *(row(key=key) for key in keys),
        *(row(user_id=user) for user in users),
        *(row(updated_at=day) for day in days),
        *(row(created_at=day) for day in days),
        *(row(created_at=day, updated_at=day) for day in days),
        *(row(user_id=names[-1], key="of many times", updated_at=day) for day in days),
        raw(value=b"caf\xe9 %d" % mark, key=b"raw value %d" % mark),
        raw(value=b"\xff" * (_LIMIT // 2 + 1), key=b"raw huge %d" % mark),
        raw(key=b"cl\xe9 %d" % mark),
        raw(key=b"half \xed\xa0\xbd %d" % mark),
        raw(user_id=b"jos\xe9 %d" % mark),
    ]


def _fill_others(db: sqlite3.Connection, chance: random.Random, names: Sequence[object]) -> None:
    for name in names:
        likes = json.dumps({"likes": chance.choice(_WORDS)})
        db.execute(
            "INSERT OR IGNORE INTO users VALUES (?, ?, ?, ?)", (name, f"name of {name}", likes, _as_sqlite(_FIRST))
        )
        talk = json.dumps([{"role": "user", "content": _text(chance)}, {"role": "assistant", "content": _text(chance)}])
        said = (name, str(chance.randrange(10**18)), talk, _as_sqlite(_moment(chance)))
        db.execute("INSERT INTO conversations (user_id, channel_id, messages, timestamp) VALUES (?, ?, ?, ?)", said)


def _text(chance: random.Random) -> str:
    """Return 40 to 170 characters."""
    return " ".join(chance.choices(_WORDS, k=chance.randrange(8, 29)))[:170]


def _moment(chance: random.Random) -> datetime:
    return _FIRST + timedelta(seconds=chance.randrange(_YEAR_S))


def _as_sqlite(moment: datetime) -> str:
    """Return *moment* as CURRENT_TIMESTAMP would have written it."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")
