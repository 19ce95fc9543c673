"""Searches in working sets over real files: never stale, never somebody else's, never what was forgotten."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from memory.backend import MemoryBackend
from memory.backends.in_memory import InMemoryBackend
from memory.backends.legacy import LegacyMemoryBackend
from memory.backends.sqlite import SQLiteMemoryBackend
from memory.backends.sqlite.index import Index
from memory.flag import MigrationFlag
from memory.flagged import FlaggedMemory
from memory.language import Language, load_language
from memory.model import MemoryEntry, Tombstone, content_hash, from_ms, visible
from memory.outbox import Outbox
from memory.ranking import WorkingSet
from memory.replica import Replica
from memory.revision import HybridLogicalClock
from memory.working_sets import Asked, HeldSet, WorkingSets
from tests.contract import NOW_MS, make_entry
from tests.memory.test_recovery import copy, files, healthy, locked, remove, until
from tests.memory.unify import BY_HAND, unify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memory.model import SearchResult
    from memory.unified import UnifiedMemoryBackend

alone = partial(files, names=("local",))
SECRET = "xylophonist"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def only_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search may take the long way: that would hide what is wrong with the short one."""

    def find(*_: Any) -> Any:
        raise AssertionError("a search took the long way")

    monkeypatch.setattr(MemoryBackend, "find", find)


async def found(memory: MemoryBackend, query: str = "", user_id: str = "u1", **how: Any) -> dict[str, str]:
    result = await memory.search(user_id, query, 1000, **how)
    return {entry.key: entry.value for entry in result}


def reachable(root: object, text: str) -> bool:
    """Return whether any object that *root* leads to says *text*."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, ModuleType | type | Language):
            continue
        seen.add(id(one))
        if (isinstance(one, str) and text in one) or (isinstance(one, bytes) and text.encode() in one):
            return True
        # A function leads to its module and so to everything; what it was made with is what counts.
        waiting += [one.__closure__, one.__defaults__] if isinstance(one, FunctionType) else gc.get_referents(one)
    return False


def in_file(path: Path, text: str) -> bool:
    """Return whether any column of any row of the database says *text*, spelt out or as bytes."""
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        tables = [name.decode() for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return any(
            isinstance(cell, bytes) and text.encode() in cell
            for table in tables
            for row in db.execute(f"SELECT * FROM {table}")
            for cell in row
        )


# Own writes


@pytest.mark.usefixtures("only_short")
async def test_the_very_next_search_sees_what_was_stored_changed_and_forgotten(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "green tea")
        assert await found(memory, "tea") == {"drink": "green tea"}

        await memory.store("u1", "drink", "coffee")
        assert await found(memory, "tea") == {}
        assert await found(memory, "coffee") == {"drink": "coffee"}

        await memory.store("u1", "pet", "Rex")
        assert list(await found(memory)) == ["pet", "drink"]

        await memory.delete("u1", "drink")
        assert await found(memory) == {"pet": "Rex"}

        await memory.delete("u1")
        assert await found(memory) == {}

        await memory.store("u1", "drink", "tea again")
        assert await found(memory, "tea") == {"drink": "tea again"}


async def test_a_long_search_that_a_deletion_overtook_leaves_nothing_for_the_next_one(tmp_path: Path) -> None:
    async with files(tmp_path, names=("local",)) as memory:
        await until(lambda: healthy(memory))
        await memory.store("u1", "drink", "tea")
        await memory.store("u1", "pet", "Rex")
        assert await found(memory) == {"drink": "tea", "pet": "Rex"}

        before = [entry async for page in memory.pages("u1") for entry in visible(page.records, None)]
        await memory.delete("u1", "drink")
        assert await found(memory) == {"pet": "Rex"}
        await memory.sets.rank("u1", before, Asked("", 10, None, "", from_ms(NOW_MS)))  # as `find` without `Recall`

        assert await found(memory) == {"pet": "Rex"}


async def test_own_writes_are_applied_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await found(memory)

        def load(*_: Any) -> Any:
            raise AssertionError("everything was read anew")

        monkeypatch.setattr(Index, "load", load)
        for n in range(30):
            await memory.store("u1", f"pet{n}", "Rex")
        await memory.store("u1", "drink", "coffee")
        await memory.delete("u1", "pet7")

        everything = await found(memory)
        assert len(everything) == 30
        assert everything["drink"] == "coffee"


@pytest.mark.parametrize("forgotten", ["a key", "the user"])
@pytest.mark.parametrize("searched", ["before", "never after the store", "after"])
async def test_what_was_forgotten_is_nowhere_any_more(tmp_path: Path, forgotten: str, searched: str) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "pet", "Rex")
        await memory.store("u2", "pet", "Tom")
        if searched == "never after the store":
            await found(memory)
        await memory.store("u1", "job", f"a {SECRET} by day", {"session": "c", "at": 5})
        if searched != "never after the store":
            await found(memory, "pet")
        if searched == "after":
            await until(lambda: analysed(tmp_path / "local.db"))
            await memory.store("u1", "drink", "tea")
            await found(memory, SECRET)

        await memory.delete("u1", "job" if forgotten == "a key" else None)

        assert not reachable(memory.sets, SECRET)
        assert await found(memory, SECRET) == {}
        assert not reachable(memory.sets, SECRET)
        assert not in_file(tmp_path / "local.db", SECRET)
        assert await found(memory, user_id="u2") == {"pet": "Tom"}


async def test_what_came_ready_made_and_was_forgotten_is_nowhere_any_more(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        for n in range(60):
            await memory.store("u1", f"pet{n}", "Rex")
        await memory.store("u1", "job", f"a {SECRET} by day")
        await until(lambda: analysed(tmp_path / "local.db"))

    async with alone(tmp_path) as memory:
        assert await found(memory, SECRET) == {"job": f"a {SECRET} by day"}
        assert await found(memory, SECRET.replace("x", "z", 1)) == {"job": f"a {SECRET} by day"}  # by those spelt alike
        assert reachable(memory.sets, SECRET)

        await memory.delete("u1", "job")

        assert not reachable(memory.sets, SECRET)
        assert await found(memory, SECRET) == {}
        assert len(await found(memory, "Rex")) == 60


async def test_what_is_held_already_is_not_analysed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    analyse = Language.analyse

    def noted(self: Language, entry: MemoryEntry) -> Any:
        seen.append(entry.key)
        return analyse(self, entry)

    monkeypatch.setattr(Language, "analyse", noted)
    sets = WorkingSets()
    entries = [make_entry("u1", f"key{n}", "tea", revision=f"{n:032x}") for n in range(200)]
    asked = Asked("tea", 1000, None, "", from_ms(NOW_MS))
    kept: WorkingSet | None = None

    for begin, end, news in ((0, 100, 100), (0, 100, 0), (0, 110, 10), (5, 200, 90), (5, 200, 0)):
        seen.clear()
        hits, _ = await sets.rank("u1", entries[begin:end], asked)
        assert {hit.entry.key for hit in hits} == {entry.key for entry in entries[begin:end]}
        assert len(seen) == news
        held = sets.known("u1")
        assert held is not None
        kept, before = held._set, kept
        assert (kept is before) == (news in (0, 10))  # little is put in place
    changed = [replace(entry, value="milk", revision=f"{n + 500:032x}") for n, entry in enumerate(entries)]
    assert len((await sets.rank("u1", changed, asked._replace(query="milk")))[0]) == 200
    assert not (await sets.rank("u1", changed, asked))[0]


def analysed(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return not db.execute("SELECT count(*) FROM memories WHERE key NOTNULL AND analysis IS NULL").fetchone()[0]


async def test_a_set_that_was_let_go_of_leaves_no_news_behind(tmp_path: Path) -> None:
    async with alone(tmp_path, sets=WorkingSets(room=1)) as memory:
        await memory.store("u1", "pet", "Rex")
        await found(memory)
        await memory.store("u1", "job", SECRET)
        await found(memory, user_id="u2")

        assert memory.sets.known("u1") is None
        assert not reachable(memory.sets, SECRET)
        assert await found(memory, SECRET) == {"job": SECRET}


@pytest.mark.usefixtures("only_short")
async def test_tiny_room_changes_nothing(tmp_path: Path) -> None:
    async with alone(tmp_path, sets=WorkingSets(room=1)) as memory:
        for n in range(5):
            await memory.store(f"u{n}", "number", f"number {n}")
        for _ in range(3):
            for n in range(5):
                assert await found(memory, "number", f"u{n}") == {"number": f"number {n}"}
        await memory.delete("u3", "number")
        assert await found(memory, "number", "u3") == {}


async def test_a_set_takes_no_more_room_however_often_a_memory_changes(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "tea with milk")
        await found(memory)
        held = memory.sets.known("u1")
        assert held is not None
        before = held.size

        for _ in range(20):
            await memory.store("u1", "drink", "milk with tea")
            await found(memory)

        assert memory.sets.known("u1") is held
        assert held.size == before
        await memory.delete("u1", "drink")
        await found(memory)
        assert held.size < before


async def test_long_texts_that_were_written_do_not_wait_in_memory_for_a_search(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await found(memory)
        for n in range(30):
            await memory.store("u1", f"long{n}", "haystack " * 10_000)

        held = memory.sets.known("u1")

        assert held is None or not held.news
        assert len(await found(memory)) == 31


async def test_deletions_that_are_remembered_count_as_room(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        graves = [Tombstone("u1", f"{n:032x}", memory.clock.stamp()) for n in range(1000)]
        await memory.put(graves)
        await memory.store("u1", "drink", "tea")
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))
        await found(memory)
        await memory.store("u2", "drink", "tea")
        await found(memory, user_id="u2")

        one, other = [memory.sets.known(user_id) for user_id in ("u1", "u2")]

        assert one is not None
        assert other is not None
        assert one.size - other.size > 100 * 1000


# Others


async def test_what_another_memory_on_the_folder_does_is_seen_by_the_next_search(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory, alone(tmp_path) as other:
        await memory.store("u1", "drink", "tea")
        assert await found(memory, "tea") == await found(other, "tea") == {"drink": "tea"}

        await other.store("u1", "pet", "Rex")
        assert await found(memory, "Rex") == {"pet": "Rex"}

        await other.store("u1", "drink", "coffee")
        assert await found(memory, "tea coffee") == {"drink": "coffee"}

        await other.delete("u1", "drink")
        assert await found(memory) == {"pet": "Rex"}

        await other.delete("u1")
        assert await found(memory) == {}

        await other.store("u1", "pet", "Max")
        assert await found(memory) == {"pet": "Max"}


PROCESS = """
import asyncio, sys
from pathlib import Path
from tests.memory.test_recovery import files

async def main():
    async with files(Path(sys.argv[1]), names=("local",)) as memory:
        for line in sys.stdin:
            await eval(line)
            print("done", flush=True)

asyncio.run(main())
"""


async def test_what_another_process_does_is_seen_by_the_next_search(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await memory.store("u1", "team", "Eagles")
        assert len(await found(memory)) == 2
        with subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process:

            async def there(what: str) -> None:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"memory.{what}\n")
                process.stdin.flush()
                assert await asyncio.to_thread(process.stdout.readline) == "done\n"

            await there("store('u1', 'pet', 'Rex')")
            assert await found(memory, "Rex") == {"pet": "Rex"}
            await there("store('u1', 'drink', 'coffee')")
            assert await found(memory, "tea coffee") == {"drink": "coffee"}
            await there("delete('u1', 'team')")
            assert await found(memory) == {"pet": "Rex", "drink": "coffee"}
            await there("delete('u1')")
            assert await found(memory) == {}
            assert process.stdin is not None
            process.stdin.close()


async def test_what_a_comparison_brings_in_is_found(tmp_path: Path) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))
        assert await found(memory) == {"drink": "tea"}
        newer = make_entry("u1", "pet", "Rex", revision=memory.clock.stamp())

        await memory.replicas[0].store.put([newer])
        await memory.compare()

        for _ in range(4):
            assert await found(memory) == {"drink": "tea", "pet": "Rex"}


async def test_a_locked_store_is_searched_with_the_outbox_over_it(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "green tea")
        await memory.store("u1", "team", "Eagles")
        await until(lambda: healthy(memory))
        assert await found(memory)

        with locked(tmp_path / "local.db"):
            await memory.store("u1", "pet", "a cat that drinks tea")
            await memory.delete("u1", "team")

            result = await memory.search("u1", "tea")

            assert {hit.entry.key: hit.store for hit in result.hits} == {"drink": "local", "pet": "outbox"}
            assert await found(memory, "Eagles") == {}
            assert len(await found(memory)) == 2
            await memory.delete("u1")
            assert await found(memory) == {}

        await until(lambda: healthy(memory))
        assert await found(memory) == {}


async def test_what_the_outbox_lost_before_the_store_had_it_is_not_found_either(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory, alone(tmp_path) as other:
        await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))
        await until(lambda: healthy(other))
        assert await found(memory) == {"drink": "tea"}
        with locked(tmp_path / "local.db"):
            await other.store("u1", "pet", "Rex")
            assert await found(memory) == {"drink": "tea", "pet": "Rex"}
            with closing(sqlite3.connect(tmp_path / "outbox.db")) as db:
                db.execute("DELETE FROM log")
                db.commit()

            assert await found(memory) == await memory.get_all("u1") == {"drink": "tea"}


@pytest.mark.usefixtures("only_short")
async def test_a_hit_says_the_store_once_that_has_it(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await found(memory)
        await memory.store("u1", "pet", "Rex")

        result = await memory.search("u1", "Rex")

        assert [hit.store for hit in result.hits] == ["local"]
        assert (result.answered, result.missing) == (("local",), ())


async def test_a_search_says_whom_it_speaks_for(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    local = SQLiteMemoryBackend(tmp_path / "local.db", name="local", clock=clock)
    away = InMemoryBackend("away", clock=clock)
    async with unify(tmp_path, local, away, plan=BY_HAND) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: all(replica.in_step for replica in memory.replicas))
        result = await memory.search("u1", "tea")
        assert (result.answered, result.missing) == (("local", "away"), ())

        memory.replicas[1].give_up("gone")
        result = await memory.search("u1", "tea")
        assert (result.answered, result.missing) == (("local",), ("away",))
        assert [hit.store for hit in result.hits] == ["local"]


@pytest.mark.parametrize("fate", ["removed", "an old copy"])
async def test_a_file_swapped_under_a_running_memory_makes_no_hit_stale(tmp_path: Path, fate: str) -> None:
    async with files(tmp_path) as memory:
        await memory.store("u1", "drink", "green tea")
        await memory.store("u1", "team", "Eagles")
        copy(tmp_path / "local.db", tmp_path / "old.db")
        await memory.store("u1", "drink", "black tea")
        await memory.delete("u1", "team")
        await memory.store("u1", "pet", "Rex")
        await until(lambda: healthy(memory))
        memory.prefer(next(replica for replica in memory.replicas if replica.name == "local"))
        expected = {"drink": "black tea", "pet": "Rex"}
        assert await found(memory) == expected

        remove(tmp_path / "local.db")
        if fate == "an old copy":
            shutil.copy(tmp_path / "old.db", tmp_path / "local.db")

        for _ in range(30):
            assert await found(memory) == expected
            assert await found(memory, "Eagles") == {}
            await asyncio.sleep(0)
        await until(lambda: healthy(memory))
        assert await found(memory) == expected


async def test_a_store_that_went_back_in_time_unnoticed_makes_no_hit_stale(tmp_path: Path) -> None:
    async with files(tmp_path, plan=BY_HAND) as memory:
        await until(lambda: all(replica.in_step for replica in memory.replicas))
        await memory.store("u1", "drink", "green tea")
        await memory.store("u1", "team", "Eagles")
        copy(tmp_path / "local.db", tmp_path / "old.db")
        await memory.store("u1", "drink", "black tea")
        await memory.delete("u1", "team")
        await memory.store("u1", "pet", "Rex")
        memory.prefer(next(replica for replica in memory.replicas if replica.name == "local"))
        assert len(await found(memory)) == 2
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))

        with (
            closing(sqlite3.connect(tmp_path / "old.db")) as old,
            closing(sqlite3.connect(tmp_path / "local.db")) as db,
        ):
            old.backup(db)  # into the very file that is open

        assert await found(memory) == {"drink": "black tea", "pet": "Rex"}
        assert await found(memory, "Eagles") == {}


def nothing_waits(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return not db.execute("SELECT count(*) FROM log").fetchone()[0]


# Audiences


async def test_scopes_do_not_influence_each_other(tmp_path: Path) -> None:
    here, there = frozenset({"here"}), frozenset({"there"})
    async with alone(tmp_path / "both") as both, alone(tmp_path / "one") as one:
        for memory in (both, one):
            for n in range(12):
                await memory.store(
                    "u1", f"note{n}", f"tea number {n} with cake", {"session": "s", "at": n}, scope="here"
                )
        await found(both, "tea", audience=here)
        for n in range(60):
            value = f"tea {SECRET} cake {n}"
            await both.store("u1", f"note{n}", value, {"session": "s", "at": n + 0.5}, scope="there")

        for query in ("tea", "cake number 3", SECRET, "", "..."):
            got, wanted = [await memory.search("u1", query, 5, audience=here) for memory in (both, one)]
            assert [(h.entry.key, h.entry.value, h.why, h.details) for h in got.hits] == [
                (h.entry.key, h.entry.value, h.why, h.details) for h in wanted.hits
            ]
            assert [h.score for h in got.hits] == pytest.approx([h.score for h in wanted.hits])
            assert got.cut == wanted.cut
        assert {e.scope for e in await both.search("u1", "tea", 1000, audience=there)} == {"there"}
        assert not (await both.search("u1", "tea", audience=frozenset())).hits
        assert len(await both.search("u1", "tea", 1000)) == 72

        await both.delete("u1", "note3", scope="here")
        assert (await both.search("u1", "", 1000, audience=here)).cut == 0
        assert len(await both.search("u1", "", 1000, audience=here)) == 11
        assert len(await both.search("u1", "", 1000, audience=there)) == 60


# What is damaged, and what is odd


DAMAGES = {
    "value": "UPDATE memories SET value = x'ff00' WHERE key = 'pet'",
    "metadata": "UPDATE memories SET metadata = '{' WHERE key = 'pet'",
    "times": "UPDATE memories SET created_ms = 'never' WHERE key = 'pet'",
    "revision": "UPDATE memories SET revision = 'zz' WHERE key = 'pet'",
    "revision, a number": "UPDATE memories SET revision = x'00' WHERE key = 'pet'",
    "scope": "UPDATE memories SET scope = NULL WHERE key = 'pet'",
    "hash": "UPDATE memories SET hash = x'00' WHERE key = 'pet'",
    "analysis": "UPDATE memories SET analysis = substr(analysis, 1, 20) || x'ff' WHERE key = 'pet'",
    "analysis, a text": "UPDATE memories SET analysis = 'tea' WHERE key = 'pet'",
    "vector": "UPDATE memories SET vector = 7 WHERE key = 'pet'",
    "analysis and value": "UPDATE memories SET analysis = NULL, value = 5 + x'00' WHERE key = 'pet'",
}


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_row_that_was_damaged_after_it_was_analysed_costs_nobody_else(tmp_path: Path, what: str) -> None:
    async with alone(tmp_path) as memory:
        for key, value in {"drink": "tea", "pet": "a cat that likes tea", "team": "Eagles"}.items():
            await memory.store("u1", key, value)
        await until(lambda: analysed(tmp_path / "local.db"))
    with closing(sqlite3.connect(tmp_path / "local.db")) as db:
        db.execute(DAMAGES[what])
        db.commit()

    async with alone(tmp_path) as memory:
        for _ in range(2):
            hits = await found(memory, "tea")
            assert hits["drink"] == "tea"
            assert hits.get("pet", "a cat that likes tea") == "a cat that likes tea"
            everything = await found(memory)
            assert {"drink", "team"} <= everything.keys() <= {"drink", "team", "pet"}
            if what.startswith(("analysis,", "vector")) or what == "analysis":
                assert len(everything) == 3
        await memory.store("u1", "music", "jazz")
        assert await found(memory, "jazz") == {"music": "jazz"}


async def test_equal_revisions_with_different_content_agree_with_every_other_read(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        revision = memory.clock.stamp()
        twins = [make_entry("u1", "drink", value, revision=revision) for value in ("tea", "coffee", "milk")]
        small, middle, great = sorted(twins, key=content_hash)
        for twin in (middle, small):
            await memory.replicas[0].store.put([twin])
            await until(lambda: healthy(memory))
            assert await found(memory) == await memory.get_all("u1") == {"drink": middle.value}
        with locked(tmp_path / "local.db"):
            await memory.put([great])
            assert await found(memory) == await memory.get_all("u1") == {"drink": great.value}


@pytest.mark.usefixtures("only_short")
async def test_odd_texts_are_found(tmp_path: Path) -> None:
    values = {
        "nul": "tea\0cup",
        "emoji": "I ♥ 🦊 and 🎉",
        "long": "needle " + "haystack " * 11_000,
        "cjk": "我喜欢喝绿茶",
        "accents": "crème brûlée",
        "nothing": "",
        "signs": "%_*\"'--;",
    }
    async with alone(tmp_path) as memory:
        for key, value in values.items():
            await memory.store("u1", key, value, {"session": "a\nb\0c", "at": 10**15})
        for _ in range(2):
            for query, key in {
                "🦊": "emoji",
                "needle": "long",
                "绿茶": "cjk",
                "creme": "accents",
                "cup": "nul",
            }.items():
                assert (await found(memory, query)).get(key) == values[key], query
            assert await found(memory, "%_") == {"signs": values["signs"]}
            assert await found(memory) == values
            await until(lambda: analysed(tmp_path / "local.db"))
            memory.sets.drop("u1")


async def test_a_long_text_is_not_analysed_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    analyse = Language.analyse

    def noted(self: Language, entry: MemoryEntry) -> Any:
        if len(entry.value) > 1000:
            threads.add(threading.get_ident())
        return analyse(self, entry)

    monkeypatch.setattr(Language, "analyse", noted)
    async with alone(tmp_path) as memory:
        await memory.store("u1", "long", "haystack " * 11_000)
        assert await found(memory, "haystack")
        for most in (1_500, 11_000):
            await memory.store("u1", "longer", "haystack " * most)
            assert len(await found(memory, "haystack")) == 2
        await until(lambda: analysed(tmp_path / "local.db"))
        memory.sets.language = load_language("german")  # what was analysed says nothing to it
        memory.sets.drop("u1")
        assert len(await found(memory, "haystack")) == 2
        await memory.store("u1", "long", "needle " * 11_000)
        await memory.delete("u1", "long")

    assert threads
    assert threading.get_ident() not in threads


async def test_signs_are_looked_for_in_all_texts_off_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    rank = WorkingSet.rank

    def noted(self: WorkingSet, *given: Any, **how: Any) -> Any:
        threads.append(threading.get_ident())
        return rank(self, *given, **how)

    async with alone(tmp_path) as memory:
        for n in range(60):
            await memory.store("u1", f"key{n}", f"tea % {n}")
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))
        await found(memory, "tea")
        monkeypatch.setattr(WorkingSet, "rank", noted)

        assert len(await found(memory, " %")) == 60
        assert len(await found(memory, "tea")) == 60

    assert [thread == threading.get_ident() for thread in threads] == [False, True]


# At once, cut off, too late


async def test_only_one_search_begins_in_one_turn_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    turn = 0
    rank = WorkingSet.rank

    def noted(self: WorkingSet, *given: Any, **how: Any) -> Any:
        turns.append(turn)
        return rank(self, *given, **how)

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    async with alone(tmp_path) as memory:
        for n in range(20):
            await memory.store(f"u{n}", "drink", "tea")
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))
        await until(lambda: analysed(tmp_path / "local.db"))
        for _ in range(2):
            turns.clear()
            monkeypatch.setattr(WorkingSet, "rank", noted)
            count()
            everything = await asyncio.gather(*(found(memory, "tea", f"u{n}") for n in range(20)))

            assert everything == [{"drink": "tea"}] * 20
        assert len(turns) == len(set(turns)) == 20


async def test_nothing_is_read_of_a_log_that_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    overlay = Outbox.overlay_of_user

    def noted(self: Outbox, user_id: str, *given: Any) -> Any:
        asked.append(user_id)
        return overlay(self, user_id, *given)

    monkeypatch.setattr(Outbox, "overlay_of_user", noted)
    async with alone(tmp_path) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))
        assert await found(memory, "tea") == {"drink": "tea"}
        assert not asked
        with locked(tmp_path / "local.db"):
            await memory.put([make_entry("u1", "pet", "Rex", revision=memory.clock.stamp())])
            assert await found(memory) == {"drink": "tea", "pet": "Rex"}
        assert asked


async def test_searches_and_writes_of_one_user_at_once_end_in_agreement(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "key0", "tea")

        async def write(n: int) -> None:
            await memory.store("u1", f"key{n % 20}", f"tea {n}")
            everything = await found(memory)
            if n % 5:
                assert everything[f"key{n % 20}"].startswith("tea")
            else:
                await memory.delete("u1", f"key{n % 20}")

        await asyncio.gather(*(write(n) for n in range(200)), *(memory.search("u1", "tea") for _ in range(100)))

        assert await found(memory, "tea") == await found(memory) == await memory.get_all("u1")


@pytest.mark.parametrize("how", ["cancelled", "too late"])
async def test_a_search_cut_off_while_a_thread_reads_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    rank = WorkingSet.rank

    def slow(self: WorkingSet, *given: Any, **how: Any) -> Any:
        if began.is_set():
            return rank(self, *given, **how)
        began.set()
        go_on.wait(10)
        try:
            return rank(self, *given, **how)
        finally:
            ended.set()

    monkeypatch.setattr(WorkingSet, "rank", slow)
    async with alone(tmp_path, deadline_s=0.3 if how == "too late" else 10.0) as memory:
        entries = [make_entry("u1", f"key{n}", f"tea {n}", revision=memory.clock.stamp()) for n in range(200)]
        await memory.put(entries)
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))
        first = asyncio.create_task(memory.search("u1", "tea", 1000))
        await until(began.is_set)
        second = asyncio.create_task(memory.search("u1", "tea", 1000))
        if how == "cancelled":
            first.cancel()
        await asyncio.wait({first})
        memory.deadline_s = 10.0
        await memory.store("u1", "key7", "milk")

        third = await memory.search("u1", "tea", 1000)
        go_on.set()
        await asyncio.to_thread(ended.wait, 10)
        await until(lambda: nothing_waits(tmp_path / "outbox.db"))
        await asyncio.gather(first, second, return_exceptions=True)
        fourth = await memory.search("u1", "tea", 1000)

        assert len(third) == len(fourth) == 199
        assert "key7" not in {entry.key for entry in third} | {entry.key for entry in fourth}
        assert await found(memory, "milk") == {"key7": "milk"}


async def test_whoever_waited_for_a_set_that_was_let_go_of_gets_a_new_one() -> None:
    sets = WorkingSets()

    async def waits() -> HeldSet:
        async with sets.held("u1") as held:
            return held

    async with sets.held("u1") as first:
        waiting = asyncio.create_task(waits())
        await asyncio.sleep(0)
        sets.drop("u1")

    assert await waiting is not first
    assert sets.known("u1") is await waiting


async def test_patience_does_not_begin_anew_with_each_set_that_was_let_go_of() -> None:
    sets = WorkingSets()
    has_it = asyncio.Event()

    async def keep_it() -> None:
        """Have one set after the other, each before the last is let go of."""
        async with AsyncExitStack() as last:
            await last.enter_async_context(sets.held("u1"))
            has_it.set()
            for _ in range(20):
                await asyncio.sleep(0.02)
                sets.drop("u1")
                async with AsyncExitStack() as following:
                    await following.enter_async_context(sets.held("u1"))
                    await last.aclose()
                    last.push_async_exit(following.pop_all())

    keeping = asyncio.create_task(keep_it())
    await has_it.wait()

    with pytest.raises(TimeoutError):
        await sets.held("u1", 0.1).__aenter__()

    await keeping


@pytest.mark.real
async def test_a_user_with_12_000_memories_is_searched_off_the_loop(tmp_path: Path) -> None:
    async with alone(tmp_path, deadline_s=10.0) as memory:
        for at in range(0, 12_000, 1000):
            revision = memory.clock.stamp
            await memory.put(
                [make_entry("u1", f"key{n}", f"cup {n} of tea", revision=revision()) for n in range(at, at + 1000)]
            )
        await until(lambda: memory.replicas[0].in_step)
        cut_off = asyncio.create_task(memory.search("u1", "tea"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cut_off.cancel()

        result = await memory.search("u1", "cup 11999")
        await memory.store("u1", "key11999", "cup of milk")
        await memory.delete("u1", "key11998")

        assert result[0].key == "key11999"
        assert await found(memory, "milk") == {"key11999": "cup of milk"}
        result = await memory.search("u1", "tea", 1)
        assert len(result) + result.cut == 11_998


async def test_a_store_that_hangs_leaves_time_to_ask_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(Index, "load", hang)
    async with files(tmp_path, deadline_s=1.0) as memory:
        await memory.store("u1", "drink", "tea")
        await until(lambda: healthy(memory))

        results = await asyncio.gather(*(found(memory, "tea") for _ in range(12)))

        assert results == [{"drink": "tea"}] * 12


# The long way


async def test_stores_without_an_index_find_the_same(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    async with unify(tmp_path / "plain", InMemoryBackend("one", clock=clock)) as plain, alone(tmp_path) as memory:
        entries = [
            make_entry("u1", f"key{n}", value, revision=clock.stamp(), metadata={"session": "s", "at": n})
            for n, value in enumerate(["green tea", "black tea", "I drink milk", "a cat", "what do you drink?"])
        ]
        for one in (plain, memory):
            await one.put(entries)
        for query in ("tea", "drink", "cat", "", "nothing of that"):
            short, long = await memory.search("u1", query, 2), await plain.search("u1", query, 2)
            assert [(h.entry, h.why, h.details) for h in short.hits] == [(h.entry, h.why, h.details) for h in long.hits]
            assert short.cut == long.cut
        await plain.delete("u1", "key0")
        assert "key0" not in await found(plain, "tea")


async def test_with_the_flag_off_a_search_finds_what_legacy_has(tmp_path: Path) -> None:
    clock = HybridLogicalClock()
    unified = unify(tmp_path, SQLiteMemoryBackend(tmp_path / "local.db", name="local", clock=clock))
    flag, jakey = MigrationFlag(tmp_path / ".flag"), tmp_path / "jakey.db"
    store = LegacyMemoryBackend(jakey, clock=clock, may_make=lambda: not flag.is_on())
    legacy = Replica(store, unified.outbox, priority=99, counted=False)
    async with unified, FlaggedMemory(unified, legacy, jakey, flag) as memory:
        await memory.store("u1", "drink", "green tea")
        assert await found(memory, "tea") == {"drink": "green tea"}
        await memory.store("u1", "drink", "coffee")
        assert await found(memory, "tea") == {}
        assert await found(memory, "coffee") == {"drink": "coffee"}
        await memory.delete("u1")
        assert await found(memory) == {}
        assert not reachable(unified.sets, "coffee")


# Anything, in any order


async def agrees(memory: UnifiedMemoryBackend, user_id: str, query: str, wanted: dict[str, str]) -> None:
    """Check that a search finds what a scan by the same rules, ranked by a new working set, does."""
    got: SearchResult = await memory.search(user_id, query, 1000)
    records = [record async for page in memory.pages(user_id) for record in page.records]
    entries = visible(records, None)
    assert {entry.key: entry.value for entry in entries} == wanted
    asked = Asked(query, 1000, None, "", from_ms(NOW_MS))
    hits, cut = await WorkingSets().rank(user_id, entries, asked)
    assert by_worth(got.hits) == by_worth(hits)
    assert got.cut == cut


def by_worth(hits: Iterable[Any]) -> list[tuple[float, str, str, str]]:
    return sorted((round(hit.score, 6), hit.entry.revision, hit.entry.key, hit.entry.value) for hit in hits)


WORDS = ["tea", "cup", "milk", "cat", "dog", "Rex", "drink", "likes", "hates", "red", "green", "jazz", "chess"]


@pytest.mark.real
@pytest.mark.parametrize("seed", range(3))
async def test_any_order_of_anything_by_two_memories_on_one_folder(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    model: dict[str, dict[str, str]] = {f"u{n}": {} for n in range(4)}
    async with alone(tmp_path, sets=WorkingSets(room=60_000)) as one, alone(tmp_path) as other:
        await until(lambda: healthy(one) and healthy(other))  # one that is still coming up may say that it cannot tell
        for _ in range(1500):
            memory, user_id = dice.choice([one, other]), dice.choice(list(model))
            key = f"key{dice.randrange(12)}"
            match dice.random():
                case x if x < 0.45:
                    value = " ".join(dice.choices(WORDS, k=dice.randint(1, 8)))
                    await memory.store(user_id, key, value, {"session": dice.choice("ab"), "at": dice.randrange(50)})
                    model[user_id][key] = value
                case x if x < 0.6:
                    assert await memory.delete(user_id, key) == (model[user_id].pop(key, None) is not None)
                case x if x < 0.62:
                    await memory.delete(user_id)
                    model[user_id].clear()
                case _:
                    await agrees(memory, user_id, " ".join(dice.choices(WORDS, k=dice.randrange(3))), model[user_id])
        for memory in (one, other):
            for user_id, entries in model.items():
                await agrees(memory, user_id, "tea", entries)
                assert await found(memory, user_id=user_id) == entries


async def test_a_language_is_what_the_settings_say(tmp_path: Path) -> None:
    async with alone(tmp_path, sets=WorkingSets("german")) as memory:
        await memory.store("u1", "tier", "zwei Katzen")
        assert memory.sets.language is load_language("german")
        assert await found(memory, "Katze") == {"tier": "zwei Katzen"}
