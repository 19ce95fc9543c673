"""Migrating and verifying, on real files: what comes in, what stays, what is found, and how it goes on."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import re
import sqlite3
import threading
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from memory import migration
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.errors import BackendUnavailableError, ConfigError, MemoryRejectedError
from memory.flag import MigrationFlag, in_words
from memory.migration import journal, source
from memory.migration.threads import in_thread
from memory.model import MemoryEntry, Tombstone, slot_of, user_hash_of
from memory.revision import HybridLogicalClock
from tests.memory.unify import unify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from memory.migration import Migration, Verification
    from memory.model import Record
    from memory.unified import UnifiedMemoryBackend

SCHEMA = """
CREATE TABLE memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, key TEXT, value TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE conversations (id INTEGER PRIMARY KEY, messages TEXT);
INSERT INTO conversations (messages) VALUES ('hello')
"""
ROWS = [
    (1, "u1", "drink", "water", "2024-01-01 00:00:00"),
    (2, "u1", "drink", "tea", "2024-02-01 00:00:00"),
    (3, "u1", "team", "Eagles", "2024-01-01 00:00:00"),
    (4, "u2", "drink", "milk", "2024-01-01 00:00:00"),
    (5, "u2", None, "no key", "2024-01-01 00:00:00"),
    (6, None, "drink", "nobody's", "2024-01-01 00:00:00"),
    (7, "u3", "note", None, "2024-01-01 00:00:00"),
]
JANUARY_MS, FEBRUARY_MS = 1_704_067_200_000, 1_706_745_600_000


def made_by(ms: int, row: int) -> str:
    return f"{ms:012x}{0:04x}{row:016x}"


def make(path: Path, rows: list[tuple[Any, ...]] = ROWS) -> Path:
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(SCHEMA)
        db.executemany("INSERT INTO memories (id, user_id, key, value, updated_at) VALUES (?, ?, ?, ?, ?)", rows)
    return path


def change(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(sql, values).rowcount == 1


def with_sync(path: Path, sql: str, user_id: str, revision: str, *, hashed: bool = True) -> None:
    """Let *path* be one that our own legacy functions have written into."""
    with closing(source.open_passing_copy(path, lambda *_: None)) as ours, closing(sqlite3.connect(path)) as db, db:
        for (statement,) in ours.execute("SELECT sql FROM sqlite_master WHERE sql LIKE '%memory_sync (%'"):
            db.execute(statement)
        db.execute(sql, [user_hash_of(user_id) if hashed else user_id, revision])


def many(users: int, each: int) -> list[tuple[Any, ...]]:
    keys = [(user, key) for user in range(users) for key in range(each)]
    return [(n, f"u{user:04}", f"key {key}", "x" * 50, "2024-01-01 00:00:00") for n, (user, key) in enumerate(keys, 1)]


class Home(NamedTuple):
    """Two stores in a folder, and a predecessor's database."""

    unified: UnifiedMemoryBackend
    folder: Path
    jakey: Path

    async def migrate(self, progress: Any = None) -> Migration:
        told = progress or (lambda *_: None)
        return await migration.migrate(self.unified, self.folder / "backups", self.jakey, told)

    async def verify(self, path: Path | None = None, *, legacy: Path | None = None) -> Verification:
        nowhere = self.folder / "nowhere.db"
        return await migration.verify_if_any(
            self.unified, self.folder / "backups", legacy or nowhere, path, lambda *_: None
        )

    async def found(self, path: Path | None = None, *, legacy: Path | None = None) -> list[tuple[Any, ...]]:
        """What a verification finds: kind, row, user, key, store."""
        verification = await self.verify(path, legacy=legacy)
        assert verification.clean == (not verification.differences)
        found = [(one.kind, one.row_id, one.user_id, one.key, one.store) for one in verification.differences]
        return sorted(found, key=repr)


@asynccontextmanager
async def home_in(folder: Path) -> AsyncIterator[Home]:
    clock = HybridLogicalClock()
    first = SQLiteMemoryBackend(folder / "memory.db", name="first", clock=clock)
    second = SQLiteMemoryBackend(folder / "second.db", name="second", clock=clock)
    async with unify(folder, first, second) as unified:
        yield Home(unified, folder, folder / "jakey.db")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    make(tmp_path / "jakey.db")
    async with home_in(tmp_path) as home:
        yield home


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again without waiting: nobody else writes here."""
    monkeypatch.setattr("memory.migration.comparison._LOOK_AGAIN_S", 0.0)


# Coming in.


async def test_the_newest_row_wins_and_the_older_are_its_past(home: Home) -> None:
    done = await home.migrate()

    assert await home.unified.get_all("u1") == {"drink": "tea", "team": "Eagles"}
    assert await home.unified.get_all("u3") == {"note": ""}
    assert [(entry.key, entry.value) for entry in await home.unified.past("u1")] == [("drink", "water")]
    assert done.counts.as_json() == {
        "rows": 7,
        "users": 3,
        "entries": 4,
        "past": 1,
        "past_left_out": 0,
        "deletions": 0,
        "refused": 2,
        "altered": 1,
    }
    assert (done.news, done.resumed, done.again, done.changed, done.following) == (4, False, False, False, {})


async def test_rows_of_one_key_that_were_made_at_different_times_are_one_entry(tmp_path: Path) -> None:
    days = [(n, "u1", "mood", f"mood {n}", f"2024-01-{n:02} 00:00:00") for n in range(1, 4)]
    path = make(tmp_path / "jakey.db", days)
    for number, *_, day in days:
        change(path, "UPDATE memories SET created_at = ? WHERE id = ?", day, number)
    async with home_in(tmp_path) as home:
        await home.migrate()

        assert [entry.value for entry in await home.unified.past("u1")] == ["mood 1", "mood 2"]


async def test_every_store_has_it_when_the_command_ends(home: Home) -> None:
    await home.migrate()

    for replica in home.unified.replicas:
        assert await replica.store.get_all("u2") == {"drink": "milk"}


async def test_what_is_refused_or_altered_is_in_the_report_with_its_row_and_reason(home: Home) -> None:
    done = await home.migrate()

    noted = [json.loads(line) for line in done.report.read_text().splitlines()]
    assert sorted((note["kind"], note["row"], note["user"], note["reason"]) for note in noted) == [
        ("altered", 7, "u3", "value was NULL and is taken as empty"),
        ("refused", 5, "u2", "key is NULL (limit: 1 to 256 characters)"),
        ("refused", 6, None, "user_id is missing"),
    ]
    assert sum(done.reasons.values()) == 3
    assert {kind: len(notes) for kind, notes in done.first.items()} == {"refused": 2, "altered": 1}


async def test_the_file_itself_is_never_written_and_the_copy_is_whole_and_ours_alone(home: Home) -> None:
    before = hashlib.sha256(home.jakey.read_bytes()).hexdigest()

    done = await home.migrate()
    await home.verify()

    assert hashlib.sha256(home.jakey.read_bytes()).hexdigest() == before
    assert sorted(path.name for path in home.folder.glob("jakey.db*")) == ["jakey.db"]
    for path in (done.copy, done.report, done.copy.parent / journal.STATE):
        assert path.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(done.copy)) as db:
        assert db.execute("SELECT count(*) FROM memories").fetchone() == (7,)
        assert db.execute("SELECT messages FROM conversations").fetchall() == [("hello",)]


async def test_earlier_values_beyond_those_that_are_kept_are_listed(tmp_path: Path) -> None:
    days = [(n, "u1", "mood", f"mood {n}", f"2024-01-{n:02} 00:00:00") for n in range(1, 14)]
    make(tmp_path / "jakey.db", days)
    async with home_in(tmp_path) as home:
        done = await home.migrate()

        assert (done.counts.past, done.counts.past_left_out) == (12, 2)
        assert [entry.value for entry in await home.unified.past("u1")] == [f"mood {n}" for n in range(3, 13)]
        noted = [json.loads(line) for line in done.report.read_text().splitlines()]
        assert [(note["kind"], note["row"]) for note in noted] == [("past", 1), ("past", 2)]


async def test_to_migrate_again_changes_nothing_and_says_so(home: Home) -> None:
    first = await home.migrate()
    again = await home.migrate()

    assert (again.again, again.news, again.resumed) == (True, 0, False)
    assert again.counts == first.counts
    assert again.copy != first.copy
    assert (await home.verify()).clean


async def test_what_was_said_or_forgotten_here_since_stays_so(home: Home) -> None:
    await home.migrate()
    await home.unified.store("u1", "drink", "coffee")
    await home.unified.delete("u1", "team")
    await home.unified.delete("u2")
    await home.unified.store("u3", "pet", "cat")

    again = await home.migrate()

    assert again.news == 0
    assert await home.unified.get_all("u1") == {"drink": "coffee"}
    assert await home.unified.get_all("u2") == {}
    found = await home.verify()
    assert found.clean
    assert {verdict.value: number for verdict, number in found.verdicts.items()} == {
        "same": 1,
        "newer": 1,
        "forgotten": 2,
        "added": 1,
    }


async def test_a_source_that_changed_meanwhile_is_said_to_have(home: Home) -> None:
    def meddle(what: str, _done: int, _total: int) -> None:
        if what == "Loading":
            change(home.jakey, "UPDATE memories SET value = 'cocoa', updated_at = '2024-03-01' WHERE id = 2")

    assert (await home.migrate(meddle)).changed
    assert not (await home.migrate()).changed
    assert (await home.unified.get_all("u1"))["drink"] == "cocoa"


async def test_an_edit_of_equal_length_and_time_is_a_change(home: Home) -> None:
    await home.migrate()

    change(home.jakey, "UPDATE memories SET value = 'rum' WHERE id = 2")

    assert not (await home.migrate()).again


async def test_a_database_in_wal_mode_is_read_with_what_is_not_in_its_file_yet(tmp_path: Path) -> None:
    make(tmp_path / "jakey.db")
    with closing(sqlite3.connect(tmp_path / "jakey.db")) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(
            "INSERT INTO memories (user_id, key, value, updated_at) VALUES ('u9', 'pet', 'dog', '2024-01-01')"
        )
        writer.commit()
        async with home_in(tmp_path) as home:
            await home.migrate()

            assert await home.unified.get_all("u9") == {"pet": "dog"}
            assert (await home.verify()).clean


async def test_one_user_with_very_much_comes_in_in_pieces(tmp_path: Path) -> None:
    big = [(n, "u1", f"key {n}", chr(97 + n % 26) * 100_000, "2024-01-01 00:00:00") for n in range(1, 41)]
    make(tmp_path / "jakey.db", big)
    async with home_in(tmp_path) as home:
        sizes = []
        load = home.unified.load

        async def weighed(batches: Any) -> int:
            async def through() -> AsyncIterator[Any]:
                async for batch in batches:
                    sizes.append(sum(len(record.value) for record in batch.records))
                    yield batch

            return await load(through())

        home.unified.load = weighed  # type: ignore[method-assign]
        await home.migrate()

        assert len(sizes) >= 4
        assert max(sizes) < 2 * 2**20
        assert (await home.verify()).clean


async def test_a_record_that_a_store_would_refuse_is_noted_and_the_others_come_in(tmp_path: Path) -> None:
    jakey = make(tmp_path / "jakey.db")
    with_sync(
        jakey,
        "INSERT INTO memory_sync (user_id, slot, revision, deleted) VALUES (?, 'no slot', ?, 1)",
        "u2",
        made_by(JANUARY_MS, 1),
        hashed=False,
    )
    async with home_in(tmp_path) as home:
        done = await home.migrate()

        assert await home.unified.get_all("u2") == {"drink": "milk"}
        assert (done.counts.refused, done.counts.deletions) == (3, 0)
        assert "refused: slot is malformed (limit: 32 lower-case hex digits)" in done.reasons


# Going on.


class Killed(BaseException):  # as a kill is: nobody handles it
    pass


async def test_it_goes_on_where_it_was_interrupted_and_counts_everything_once(tmp_path: Path) -> None:
    rows = many(users=60, each=100)
    rows += [(10_000 + n, f"u{n:04}", None, "no key", "2024-01-01 00:00:00") for n in range(60)]
    make(tmp_path / "jakey.db", rows)
    copies = set()
    async with home_in(tmp_path) as home:

        def kill(what: str, done: int, _total: int) -> None:
            if what == "Loading" and done > reached[-1]:
                reached.append(done)
                raise Killed

        reached = [0]
        while True:
            try:
                done = await home.migrate(kill)
                break
            except Killed:
                state = journal.read_state(tmp_path / "backups")
                assert state is not None
                assert (state.complete, state.counts.rows) == (False, reached[-1])
                copies.add(state.copy)
                with (tmp_path / "backups" / done_report(state.copy)).open("a") as report:
                    report.write('{"half a li')  # a kill in the middle of what was being noted

        assert len(reached) > 4
        assert copies == {done.copy.name}
        assert done.resumed
        assert (done.counts.rows, done.counts.entries, done.counts.refused) == (6_060, 6_000, 60)
        assert len(done.report.read_text().splitlines()) == 60
        assert (await home.verify()).clean


def done_report(copy: str) -> str:
    return copy.replace(".db", ".report.jsonl")


async def test_without_the_copy_it_begins_anew(home: Home) -> None:
    def kill(what: str, _done: int, _total: int) -> None:
        if what == "Loading":
            raise Killed

    with pytest.raises(Killed):
        await home.migrate(kill)
    state = journal.read_state(home.folder / "backups")
    assert state is not None
    (home.folder / "backups" / state.copy).write_bytes(b"damaged" * 1000)
    (home.folder / "backups" / "jakey-20240101T000000Z.db.part").write_bytes(b"half")

    done = await home.migrate()

    assert not done.resumed
    assert (done.counts.rows, done.counts.refused) == (7, 2)
    assert not list((home.folder / "backups").glob("*.part*"))


async def interrupted(home: Home) -> Path:
    """Begin a migration of which nothing is counted yet; return the file of its state."""

    def kill(what: str, _done: int, _total: int) -> None:
        if what == "Loading":
            raise Killed

    with pytest.raises(Killed):
        await home.migrate(kill)
    state = home.folder / "backups" / journal.STATE
    state.write_text(json.dumps({**json.loads(state.read_text()), "complete": False}))
    return state


async def test_another_file_in_the_place_of_the_copy_is_not_gone_on_with(home: Home) -> None:
    state = json.loads((await interrupted(home)).read_text())
    copy = home.folder / "backups" / state["copy"]
    copy.unlink()
    make(copy, [(1, "u2", "drink", "forged", "2024-09-01 00:00:00")])

    done = await home.migrate()

    assert (done.resumed, done.again, done.counts.rows) == (False, False, 7)
    assert await home.unified.get_all("u2") == {"drink": "milk"}


async def test_without_what_was_noted_it_begins_anew(home: Home) -> None:
    state = json.loads((await interrupted(home)).read_text())
    (home.folder / "backups" / done_report(state["copy"])).write_bytes(b"")

    done = await home.migrate()

    assert not done.resumed
    assert len([json.loads(line) for line in done.report.read_text().splitlines()]) == 3


async def test_while_a_migration_is_interrupted_nothing_is_verified(home: Home) -> None:
    state = await interrupted(home)

    with pytest.raises(ConfigError, match=r"the migration of jakey\.db was interrupted: run it again"):
        await home.verify()
    copy = home.folder / "backups" / json.loads(state.read_text())["copy"]
    for path in (home.jakey, copy):
        path.rename(path.with_suffix(".away"))
    with pytest.raises(ConfigError, match=r"the migration of jakey\.db was interrupted: run it again"):
        await home.verify()

    home.jakey.with_suffix(".away").rename(home.jakey)
    await home.migrate()
    assert (await home.verify()).clean


async def test_one_of_two_files_that_was_interrupted_is_not_forgotten_over_the_other(home: Home) -> None:
    other = make(home.folder / "other.db", ROWS[:1])
    await interrupted(home)

    await home._replace(jakey=other).migrate()
    with pytest.raises(ConfigError, match=r"the migration of jakey\.db was interrupted: run it again"):
        await home.verify()

    await home.migrate()
    assert (await home.verify()).clean
    state = journal.read_state(home.folder / "backups")
    assert state is not None
    assert (state.source, state.earlier) == (str(home.jakey), {str(other): True})


@pytest.mark.parametrize(
    "damage",
    [
        lambda _said: "",
        lambda said: json.dumps(said)[:100],
        lambda _said: '"x"',
        lambda _said: "[]",
        lambda _said: "[" * 100_000,
        lambda _said: '{"format": 1}',
        lambda said: json.dumps({**said, "format": 2}),
        lambda said: json.dumps({**said, "at": "never"}),
        lambda said: json.dumps({**said, "copy": 5}),
        lambda said: json.dumps({**said, "copy": "../jakey.db"}),
        lambda said: json.dumps({**said, "complete": "no"}),
        lambda said: json.dumps({**said, "report_bytes": -1}),
        lambda said: json.dumps({**said, "counts": {"rows": "many"}}),
        lambda said: json.dumps({**said, "earlier": ["x"]}),
        lambda said: json.dumps({**said, "print": None}),
    ],
)
async def test_a_state_that_makes_no_sense_is_said_to(home: Home, damage: Callable[[Any], str]) -> None:
    await home.migrate()
    state = home.folder / "backups" / journal.STATE
    state.write_text(damage(json.loads(state.read_text())))

    with pytest.raises(ConfigError, match="state of the last migration cannot be read: run migrate again"):
        await home.verify()

    await home.migrate()
    assert (await home.verify()).clean


async def test_a_legacy_file_that_we_made_is_no_evidence(home: Home) -> None:
    assert (await home.verify(legacy=home.jakey)).source == str(home.jakey)

    with closing(sqlite3.connect(home.jakey)) as db, db:
        db.execute("CREATE TABLE memory_sync_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO memory_sync_meta VALUES ('made_here', '1')")

    assert (await home.verify(legacy=home.jakey)).source == ""


async def test_two_migrations_at_once_are_one_too_many(home: Home) -> None:
    with (
        journal.Journal(home.folder / "backups"),
        pytest.raises(BackendUnavailableError, match="another one is under way"),
    ):
        await home.migrate()

    await home.migrate()


# A look before.


async def test_a_preview_says_what_would_happen_and_changes_nothing(home: Home) -> None:
    await home.unified.store("u2", "drink", "juice")
    await home.unified.put([Tombstone("u1", slot_of("u1", "", "team"), home.unified.clock.stamp())])

    found = await migration.preview(home.unified, home.jakey, lambda *_: None)

    assert {verdict.value: number for verdict, number in found.verdicts.items()} == {
        "missing": 2,
        "newer": 1,
        "forgotten": 1,
    }
    assert (found.counts.rows, found.counts.past, found.counts.refused) == (7, 1, 2)
    assert {note.row_id for note in found.notes} == {5, 6, 7}
    assert not (home.folder / "backups").exists()
    assert await home.unified.get_all("u1") == {}


# Verifying.


async def test_a_row_of_the_source_that_is_not_as_here_is_found(home: Home) -> None:
    await home.migrate()

    change(home.jakey, "UPDATE memories SET value = 'cola' WHERE id = 2")
    assert await home.found() == [("changed", 2, "u1", "drink", "")]
    change(home.jakey, "UPDATE memories SET value = 'tea' WHERE id = 2")
    assert await home.found() == []

    change(home.jakey, "INSERT INTO memories (id, user_id, key, value) VALUES (99, 'u4', 'pet', 'dog')")
    assert await home.found() == [("missing", 99, "u4", "pet", "")]
    change(home.jakey, "DELETE FROM memories WHERE id = 99")
    assert await home.found() == []

    change(home.jakey, "DELETE FROM memories WHERE id = 4")
    await home.unified.store("u2", "pet", "cat")  # this was added here, the other has gone from there
    assert await home.found() == [("extra", None, "u2", "drink", "")]


async def test_what_was_said_there_after_the_migration_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(home.jakey)) as db, db:
        db.execute("UPDATE memories SET created_at = '2024-01-01'")
    await home.migrate()
    days_later_ms = home.unified.clock.now_ms() + 3 * 86_400_000
    monkeypatch.setattr(home.unified.clock, "now_ms", lambda: days_later_ms)

    change(home.jakey, "UPDATE memories SET value = 'cola', updated_at = datetime('now', '+1 day') WHERE id = 2")
    juice = "INSERT INTO memories SELECT 99, user_id, key, 'juice', created_at, datetime('now', '+1 day')"
    change(home.jakey, f"{juice} FROM memories WHERE id = 4")

    assert await home.found() == [("changed", 2, "u1", "drink", ""), ("changed", 99, "u2", "drink", "")]


async def test_what_is_another_there_now_is_found_also_with_an_older_time(home: Home) -> None:
    await home.migrate()

    change(home.jakey, "UPDATE memories SET value = 'cola', updated_at = '2024-01-15' WHERE id = 2")
    assert await home.found() == [("changed", 2, "u1", "drink", "")]

    await home.unified.store("u1", "drink", "coffee")  # what is newer here was not what came from there
    assert await home.found() == []


@pytest.mark.parametrize(
    ("sql", "kind", "row", "key"),
    [
        ("UPDATE memories SET value = 'cola' WHERE user_id = 'u1' AND key = 'drink'", "changed", 2, "drink"),
        ("UPDATE memories SET metadata = '{}' WHERE user_id = 'u1' AND key = 'drink'", "changed", 2, "drink"),
        ("UPDATE memories SET created_ms = 5 WHERE user_id = 'u1' AND key = 'drink'", "changed", 2, "drink"),
        ("DELETE FROM memories WHERE user_id = 'u1' AND key = 'team'", "missing", 3, "team"),
        (
            "INSERT INTO memories (user_id, slot, revision, hash, scope, key, value, metadata, created_ms, updated_ms) "
            f"VALUES ('u1', '{slot_of('u1', '', 'pet')}', '{made_by(JANUARY_MS, 9)}', 'h', '', 'pet', 'cat', "
            "'{}', 1, 1)",
            "extra",
            None,
            "pet",
        ),
    ],
)
@pytest.mark.parametrize(("file", "store"), [("memory.db", "first"), ("second.db", "second")])
async def test_a_row_that_is_wrong_in_one_store_is_found_and_the_store_named(
    home: Home, file: str, store: str, sql: str, kind: str, row: int | None, key: str
) -> None:
    await home.migrate()

    change(home.folder / file, sql)

    assert await home.found() == [(kind, row, "u1", key, store)]


async def test_what_a_store_is_compared_by_must_be_what_it_says(home: Home) -> None:
    await home.migrate()
    await home.unified.store("u5", "pet", "cat")
    await home.unified.compare()
    for file in ("memory.db", "second.db"):  # in both alike, and not from the source: only the digests tell
        change(home.folder / file, "UPDATE memories SET value = 'dog' WHERE user_id = 'u5'")

    assert await home.found() == [("changed", None, "u5", None, "first"), ("changed", None, "u5", None, "second")]


@pytest.mark.parametrize(("file", "store"), [("memory.db", "first"), ("second.db", "second")])
@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("DELETE FROM memories WHERE slot = ''", "missing"),
        ("UPDATE memories SET revision = '000000000001' || substr(revision, 13) WHERE slot = ''", "changed"),
    ],
)
@pytest.mark.parametrize("user_id", ["u2", "u8"])  # in the source, and not
async def test_that_somebody_was_forgotten_must_be_known_to_each_store(
    home: Home, user_id: str, sql: str, kind: str, file: str, store: str
) -> None:
    await home.migrate()
    await home.unified.store(user_id, "pet", "cat")
    await home.unified.delete(user_id)
    await home.unified.compare()
    assert await home.found() == []

    change(home.folder / file, sql)

    assert (kind, None, user_hash_of(user_id), None, store) in await home.found()


@pytest.mark.parametrize(("file", "store"), [("memory.db", "first"), ("second.db", "second")])
async def test_a_store_that_lost_what_it_is_compared_by_is_found(home: Home, file: str, store: str) -> None:
    await home.migrate()

    change(home.folder / file, "DELETE FROM digests WHERE user_id = 'u3'")

    assert await home.found() == [("changed", None, "u3", None, store)]


async def test_what_is_read_on_another_thread_ends_before_its_caller_however_often_that_is_cancelled() -> None:
    go_on, reading, ended = threading.Event(), threading.Event(), []

    def read() -> None:
        reading.set()
        go_on.wait(10)
        ended.append(True)

    task = asyncio.create_task(in_thread(read))
    assert await asyncio.to_thread(reading.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.wait({task}, timeout=0.01)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_a_store_that_cannot_be_asked_is_named(home: Home) -> None:
    await home.migrate()
    home.unified.replicas[1].give_up("it is gone")

    found = await home.verify()

    assert not found.clean
    assert found.unasked == {"second": "it is gone"}
    assert migration.refusal(found) == "second could not be asked: it is gone"


async def test_what_a_store_refused_is_parked_and_no_difference(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    second = home.unified.replicas[1].store
    put = second.put

    async def picky(records: Sequence[Record]) -> int:
        if any(isinstance(record, MemoryEntry) and record.value == "milk" for record in records):
            raise MemoryRejectedError("value", "is milk")
        return await put(records)

    monkeypatch.setattr(second, "put", picky)
    await home.migrate()

    found = await home.verify()

    assert (found.clean, found.parked) == (True, 1)


async def test_a_source_that_is_kept_up_to_date_must_have_all_that_is_here(home: Home) -> None:
    await home.migrate()
    await home.unified.store("u1", "pet", "cat")

    assert await home.found() == []
    assert await home.found(legacy=home.jakey) == [("extra", None, "u1", "pet", "")]

    dog = "INSERT INTO memories (user_id, key, value, updated_at) VALUES ('u1', 'pet', 'dog', '2024-05-01')"
    change(home.jakey, dog)  # newer here
    assert await home.found(legacy=home.jakey) == []


async def test_whom_the_source_has_forgotten_must_be_forgotten_here(tmp_path: Path) -> None:
    jakey = make(tmp_path / "jakey.db")
    grave = made_by(FEBRUARY_MS, 1)
    with_sync(jakey, "INSERT INTO memory_sync (user_id, slot, revision, deleted) VALUES (?, '', ?, 1)", "u8", grave)
    async with home_in(tmp_path) as home:
        assert ("missing", None, user_hash_of("u8"), None, "first") in await home.found(jakey)

        await home.migrate()

        assert await home.found() == []
        assert await home.unified.put([MemoryEntry("u8", "pet", "cat", revision=made_by(JANUARY_MS, 9))]) == 0


async def test_a_difference_that_is_gone_at_the_second_look_is_none(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.migrate()
    change(home.folder / "second.db", "UPDATE memories SET user_id = 'u7' WHERE user_id = 'u2'")
    looks = 0

    async def catch_up() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            change(home.folder / "second.db", "UPDATE memories SET user_id = 'u2' WHERE user_id = 'u7'")

    monkeypatch.setattr("memory.migration.comparison._pause", catch_up)

    assert await home.found() == []
    assert looks == 2


async def test_many_differences_are_counted_beyond_those_that_are_listed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory.migration.comparison.LISTED_MAX", 2)

    found = await home.verify(home.jakey)

    assert (len(found.differences), found.beyond) == (2, 2)
    assert migration.refusal(found) == "4 differences from jakey.db"


async def test_the_digests_are_those_that_stores_are_compared_by(home: Home) -> None:
    await home.migrate()

    found = await home.verify()

    for user in ("u1", "u2", "u3"):
        (digest,) = (
            digest
            for digest in await home.unified.replicas[0].store.digests(user_hash_of(user)[:2])
            if digest.user_id == user
        )
        assert found.digests[user] == (digest.count, digest.xor)
    assert found.digest != (await home.verify(make(home.folder / "other.db", ROWS[:3]))).digest


# What is compared with.


async def test_without_a_file_it_is_what_was_migrated_last_then_the_legacy_file(home: Home) -> None:
    backups, nowhere = home.folder / "backups", home.folder / "nowhere.db"

    assert migration.source_to_verify(backups, nowhere).path is None
    assert migration.source_to_verify(backups, home.jakey).path == home.jakey
    assert (await home.verify()).clean
    done = await home.migrate()
    assert migration.source_to_verify(backups, nowhere).path == home.jakey
    other = make(home.folder / "other.db")
    assert migration.source_to_verify(backups, nowhere, other).path == other
    home.jakey.unlink()
    chosen = migration.source_to_verify(backups, nowhere)
    assert chosen.path == done.copy
    assert "jakey.db is not there any more" in chosen.note
    assert (await home.verify()).clean


async def test_a_row_from_the_future_stays_what_it_was_when_it_was_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "jakey.db", [(1, "u1", "drink", "tea", "2999-01-01 00:00:00")])
    async with home_in(tmp_path) as home:
        await home.migrate()
        long_after_ms = 32_503_680_000_000
        monkeypatch.setattr(home.unified.clock, "now_ms", lambda: long_after_ms)

        assert await home.found() == []


# The flag.


async def test_the_flag_has_the_verification_inside(home: Home, tmp_path: Path) -> None:
    flag = MigrationFlag(tmp_path / ".flag")
    await home.migrate()

    migration.enable(flag, await home.verify(), "owner")

    evidence = flag.evidence()
    assert {**evidence, "at": "", "version": "", "digest": ""} == {
        "verified": True,
        "at": "",
        "version": "",
        "enabled_by": "owner",
        "source": "jakey.db",
        "rows": 7,
        "users": 3,
        "entries": 4,
        "refused": 2,
        "digest": "",
    }
    assert len(evidence["digest"]) == 64
    assert in_words(evidence) == f"verified {evidence['at'][:10]}: 4 memories of 3 users from jakey.db"
    assert migration.disable(flag)
    assert not migration.disable(flag)
    assert not flag.is_on()


def test_a_flag_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("memory.flag.os.fsync", full)

    with pytest.raises(OSError, match="No space left"):
        MigrationFlag(tmp_path / ".flag").enable({})

    assert list(tmp_path.iterdir()) == []


async def test_what_somebody_wrote_into_the_report_is_passed_over(home: Home) -> None:
    def edit(what: str, _done: int, _total: int) -> None:
        if what == "Loading":
            (report,) = (home.folder / "backups").glob("*.report.jsonl")
            report.write_text("by hand\n" + report.read_text())

    assert (await home.migrate(edit)).first == {}


async def test_differences_are_no_evidence(home: Home, tmp_path: Path) -> None:
    flag = MigrationFlag(tmp_path / ".flag")

    with pytest.raises(ValueError, match="not clean"):
        migration.enable(flag, await home.verify(home.jakey), "owner")

    assert not flag.is_on()


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        ({}, "no evidence: the file is empty"),
        ({"fresh": True}, "fresh install"),
        ({"verified": False, "enabled_by": "owner"}, "no evidence: it was set without a verification"),
        ({"verified": True, "at": "2026-11-23T03:00:00+00:00"}, "verified 2026-11-23"),
    ],
)
def test_evidence_in_words(evidence: dict[str, Any], says: str) -> None:
    assert in_words(evidence) == says


# Files that are none.


def of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE memories (user_id, slot)")


@pytest.mark.parametrize(
    ("make_it", "says"),
    [
        (lambda _path: None, "jakey.db: there is no such file"),
        (lambda path: path.mkdir(), "jakey.db: there is no such file"),
        (lambda path: path.write_text("no database" * 1000), "jakey.db: it is no SQLite database"),
        (lambda path: path.write_bytes(b""), "jakey.db: it has no table `memories`"),
        (of_another_program, "jakey.db: its table `memories` has no column id, key, value, created_at, updated_at"),
    ],
)
async def test_a_file_that_is_not_the_predecessors_is_refused_in_words(
    tmp_path: Path, make_it: Callable[[Path], object], says: str
) -> None:
    make_it(tmp_path / "jakey.db")
    async with home_in(tmp_path) as home:
        for work in (home.migrate(), home.verify(home.jakey), migration.preview(home.unified, home.jakey, print)):
            with pytest.raises(ConfigError, match=re.escape(says)):
                await work

        assert journal.read_state(tmp_path / "backups") is None


async def test_a_damaged_file_is_refused_and_leaves_no_copy(tmp_path: Path) -> None:
    jakey = make(tmp_path / "jakey.db", many(users=20, each=100))
    raw = bytearray(jakey.read_bytes())
    raw[5 * 4096 : 12 * 4096] = b"\xff" * (7 * 4096)
    jakey.write_bytes(raw)
    async with home_in(tmp_path) as home:
        with pytest.raises(ConfigError, match=r"jakey\.db: it (is damaged|cannot be read)"):
            await home.migrate()

        assert [path.name for path in (tmp_path / "backups").iterdir()] == ["migration.lock"]


async def test_without_room_for_the_copy_nothing_is_begun(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1_000_000))

    with pytest.raises(BackendUnavailableError, match=r"it needs 3\d MiB of room in .*, where 1 MiB are left"):
        await home.migrate()

    assert journal.read_state(home.folder / "backups") is None
    assert await home.unified.get_all("u1") == {}


async def test_a_folder_that_cannot_be_written_is_said_in_words(home: Home) -> None:
    (home.folder / "backups").write_text("a file")

    with pytest.raises(BackendUnavailableError, match="note how far it has come: backups: File exists"):
        await home.migrate()


async def test_a_copy_is_of_one_moment_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jakey = make(tmp_path / "jakey.db", many(users=30, each=100))
    monkeypatch.setattr(source, "_STEP_PAGES", 2)
    steps = 0

    def write(_done: int, _total: int) -> None:  # at every step: in steps it would never end
        nonlocal steps
        steps += 1
        with closing(sqlite3.connect(jakey)) as db, db:
            db.execute("UPDATE memories SET value = ?", [f"step {steps}"])

    with closing(await asyncio.to_thread(source.open_passing_copy, jakey, write)) as db:
        assert len(db.execute("SELECT DISTINCT value FROM memories").fetchall()) == 1
        assert db.execute("SELECT count(*) FROM memories").fetchone() == (3_000,)
    assert steps > 3
