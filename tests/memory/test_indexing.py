"""What is made of entries in the background: of every entry, of its present text alone, and in no file but ours."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from memory.backends.sqlite import SQLiteMemoryBackend
from memory.embedding import Embedded, EndpointEmbedder, EndpointSettings
from memory.errors import BackendUnavailableError
from memory.indexing import Vectors, _noted, _writable, analyse, mark_of
from memory.language import load_language
from memory.model import Tombstone, slot_of
from memory.revision import HybridLogicalClock
from memory.store import Derived
from memory.unified import Batch
from memory.working_sets import WorkingSets
from tests.contract import make_entry
from tests.memory.embedding_server import EmbeddingServer
from tests.memory.test_recall import SECRET, found, in_file
from tests.memory.test_recovery import copy, files, healthy, locked, remove, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web

    from memory.backends.sqlite.index import Index
    from memory.unified import UnifiedMemoryBackend

ENGLISH = load_language("english")
alone = partial(files, names=("local",))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteMemoryBackend]:
    async with SQLiteMemoryBackend(tmp_path / "local.db", name="local") as store:
        yield store


@pytest.fixture
def index(store: SQLiteMemoryBackend) -> Index:
    index = store.index()
    assert index is not None
    return index  # type: ignore[return-value]


def rows(path: Path, sql: str, *given: object) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(sql, given).fetchall()
        db.commit()
        return found


def lacking(path: Path) -> int:
    """Return how many live entries have no analysis of today's."""
    found = rows(path, "SELECT analysis FROM memories WHERE key NOTNULL")
    return sum(blob is None or ENGLISH.unpack(blob) is None for (blob,) in found)


# Analyses


@pytest.mark.parametrize("way", ["stored", "loaded", "put into the store"])
async def test_everything_is_analysed_some_time_after_it_came(tmp_path: Path, way: str) -> None:
    async with alone(tmp_path, compare_s=0.1) as memory:
        entries = [make_entry(f"u{n % 9}", f"key{n}", "tea", revision=memory.clock.stamp()) for n in range(120)]
        if way == "stored":
            for entry in entries:
                await memory.store(entry.user_id, entry.key, entry.value)
        elif way == "loaded":
            await memory.load(batches(entries))
        else:
            await memory.replicas[0].store.put(entries)
            await memory.store("somebody", "else", "writes")

        await until(lambda: rows(tmp_path / "local.db", "SELECT count(*) FROM memories")[0][0] >= 120)
        await until(lambda: lacking(tmp_path / "local.db") == 0)


async def batches(entries: Any) -> AsyncIterator[Any]:
    yield Batch(entries)


async def test_another_language_makes_all_analyses_anew_and_searches_go_on(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "tier", "zwei Katzen")
        await until(lambda: lacking(tmp_path / "local.db") == 0)

    async with alone(tmp_path, sets=WorkingSets("german")) as memory:
        assert await found(memory, "Katze") == {"tier": "zwei Katzen"}
        await until(lambda: lacking(tmp_path / "local.db") == 1)
        assert await found(memory, "Katze") == {"tier": "zwei Katzen"}


async def test_what_was_made_is_kept_beside_the_revision_it_was_made_of_alone(
    store: SQLiteMemoryBackend, index: Index, tmp_path: Path
) -> None:
    revisions = [store.clock.stamp() for _ in range(4)]
    for key, revision in zip(("changed", "forgotten", "kept"), revisions, strict=False):
        await store.put([make_entry("u1", key, SECRET, revision=revision)])
    shelf = await index.load("u1")
    made = {slot: Derived("u1", slot, revision, SECRET.encode()) for slot, revision in shelf.stock.revisions.items()}
    await store.store("u1", "changed", "something else")
    await store.delete("u1", "forgotten")

    for kind in ("analysis", "vector"):
        assert await index.keep(kind, list(made.values())) == 1

    assert rows(tmp_path / "local.db", "SELECT key FROM memories WHERE analysis NOTNULL OR vector NOTNULL") == [
        ("kept",)
    ]
    await store.delete("u1")
    assert await index.keep("analysis", list(made.values())) == 0
    assert not in_file(tmp_path / "local.db", SECRET)


@pytest.mark.parametrize("end", ["changed", "forgotten", "buried", "fed a deletion"])
async def test_analysis_and_vector_go_with_the_text(
    store: SQLiteMemoryBackend, index: Index, tmp_path: Path, end: str
) -> None:
    await store.store("u1", "job", SECRET)
    ((slot, revision),) = (await index.load("u1")).stock.revisions.items()
    for kind in ("analysis", "vector"):
        assert await index.keep(kind, [Derived("u1", slot, revision, SECRET.encode())]) == 1

    match end:
        case "changed":
            await store.store("u1", "job", "cook")
            rows(tmp_path / "local.db", "DELETE FROM history")
        case "forgotten":
            await store.delete("u1", "job")
        case "buried":
            await store.delete("u1")
        case _:
            await store.put([Tombstone("u1", slot_of("u1", "", "job"), store.clock.stamp())])

    assert not in_file(tmp_path / "local.db", SECRET)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE digests SET count = 'many'",
        "UPDATE digests SET xor = x'00'",
        "UPDATE digests SET user_id = 'somebody'",
        "UPDATE digests SET count = count + 1",
        "UPDATE memories SET value = x'ff'",
        "UPDATE memories SET metadata = 'x', analysis = 7",
        "UPDATE memories SET revision = 'zz', scope = 5",
        "UPDATE memories SET vector = 7",
        "UPDATE memories SET slot = x'00' WHERE key = 'pet'",
    ],
)
async def test_damage_ends_no_search_for_what_is_not_finished(
    store: SQLiteMemoryBackend, index: Index, tmp_path: Path, damage: str
) -> None:
    await store.store("u1", "drink", "tea")
    await store.store("u1", "pet", "Rex")
    rows(tmp_path / "local.db", damage)

    async with asyncio.timeout(5):
        await analyse(index, ENGLISH)
        digest = await index.digest("u1")
        shelf = await index.load("u1")
        await Vectors([_Always(store)], lambda _: None).without_vector("m", 3)  # type: ignore[list-item]

    columns = (shelf.stock.slots, shelf.stock.revision, shelf.stock.scopes)
    assert all(type(cell) is str for column in columns for cell in column)
    assert type(digest.count) is int


async def test_a_file_in_the_place_of_ours_is_neither_read_nor_written(
    store: SQLiteMemoryBackend, index: Index, tmp_path: Path
) -> None:
    path = tmp_path / "local.db"
    await store.store("u1", "drink", "tea")
    ((slot, revision),) = (await index.load("u1")).stock.revisions.items()
    copy(path, tmp_path / "theirs.db")
    before = (tmp_path / "theirs.db").read_bytes()

    remove(path)
    (tmp_path / "theirs.db").rename(path)
    assert index.peek("u1") is None
    with pytest.raises(BackendUnavailableError):
        await index.keep("analysis", [Derived("u1", slot, revision, b"made")])
    await store.open()  # it is another now: whose it is, somebody has to look first

    assert index.peek("u1") is None
    for ask in (partial(index.load, "u1"), partial(index.digest, "u1"), partial(index.unfinished, "analysis", "", 5)):
        with pytest.raises(BackendUnavailableError):
            await ask()
    with pytest.raises(BackendUnavailableError):
        await index.keep("analysis", [Derived("u1", slot, revision, b"made")])
    assert path.read_bytes() == before
    assert rows(path, "SELECT count(*) FROM memories WHERE analysis NOTNULL") == [(0,)]


async def test_a_foreign_file_put_in_the_place_of_ours_is_not_indexed(tmp_path: Path) -> None:
    async with alone(tmp_path / "theirs") as theirs:
        await theirs.store("u1", "drink", "tea")
        await until(lambda: lacking(tmp_path / "theirs" / "local.db") == 0)
    foreign = tmp_path / "theirs" / "local.db"
    rows(foreign, "UPDATE memories SET analysis = NULL")
    rows(foreign, "DELETE FROM indexed")

    async with alone(tmp_path / "ours") as memory:
        await memory.store("u1", "pet", "Rex")
        await until(lambda: healthy(memory))
        copy(foreign, tmp_path / "ours" / "foreign.db")
        remove(tmp_path / "ours" / "local.db")
        (tmp_path / "ours" / "foreign.db").rename(tmp_path / "ours" / "local.db")
        await until(lambda: "another installation" in memory.report()["local"].detail)
        await memory.store("u1", "team", "Eagles")
        for _ in range(5):
            await analyse_all(memory)

        assert lacking(tmp_path / "ours" / "local.db") == 1
        assert rows(tmp_path / "ours" / "local.db", "SELECT * FROM indexed") == []


async def analyse_all(memory: UnifiedMemoryBackend) -> None:
    """Do at once what the background would do."""
    for store, index in _writable(memory.members):
        with _noted(store):
            await analyse(index, ENGLISH)


async def test_a_locked_store_is_indexed_later(tmp_path: Path) -> None:
    async with alone(tmp_path) as memory:
        await until(lambda: healthy(memory))
        with locked(tmp_path / "local.db"):
            await memory.store("u1", "drink", "tea")
            await analyse_all(memory)
            assert await found(memory, "tea") == {"drink": "tea"}
        await until(lambda: healthy(memory))
        await memory.store("u1", "pet", "Rex")
        await until(lambda: lacking(tmp_path / "local.db") == 0)


# Vectors


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingServer]:
    async with EmbeddingServer() as server:
        yield server


def embedder(server: EmbeddingServer, **options: Any) -> EndpointEmbedder:
    settings: dict[str, Any] = {"base_url": server.url, "model": "m", "retries": 0} | options
    return EndpointEmbedder(EndpointSettings(**settings))


def with_vectors(path: Path) -> set[str]:
    return {key for (key,) in rows(path, "SELECT key FROM memories WHERE length(vector) > 8")}


@pytest.mark.real
async def test_an_endpoint_gives_vectors_and_a_search_finds_by_meaning(tmp_path: Path, server: EmbeddingServer) -> None:
    said = server.vector

    def vector(text: str) -> Any:  # what has another word for it lies close
        return said(text.lower().replace("automobile", "motorcar wheels").replace("vehicle", "motorcar wheels"))

    server.vector = vector  # type: ignore[method-assign]
    async with alone(tmp_path, embedder=embedder(server), query_timeout_s=2.0) as memory:
        await memory.store("u1", "owns", "automobile")
        await memory.store("u1", "drink", "tea")
        await until(lambda: with_vectors(tmp_path / "local.db") == {"owns", "drink"})

        result = await memory.search("u1", "vehicle", 1)

        assert [entry.key for entry in result] == ["owns"]
        finished = "SELECT 1 FROM indexed WHERE kind = 'vector'"
        await until(lambda: rows(tmp_path / "local.db", finished))  # now it waits until something is written
        await memory.store("u1", "sold", "automobile")
        await until(lambda: "sold" in with_vectors(tmp_path / "local.db"))
        assert [entry.key for entry in await memory.search("u1", "vehicle", 2)] != ["drink"]


async def test_another_model_embeds_anew_and_searches_go_on_meanwhile(tmp_path: Path, server: EmbeddingServer) -> None:
    async with alone(tmp_path, embedder=embedder(server)) as memory:
        await memory.store("u1", "drink", "green tea")
        await until(lambda: with_vectors(tmp_path / "local.db") == {"drink"})
        ((before,),) = rows(tmp_path / "local.db", "SELECT vector FROM memories WHERE key = 'drink'")

    async with alone(tmp_path, embedder=embedder(server, model="another")) as memory:
        assert await found(memory, "tea") == {"drink": "green tea"}
        await until(
            lambda: rows(tmp_path / "local.db", "SELECT vector FROM memories WHERE key = 'drink'") != [(before,)]
        )
        ((after,),) = rows(tmp_path / "local.db", "SELECT vector FROM memories WHERE key = 'drink'")
        assert after[:8] != before[:8]
        assert await found(memory, "tea") == {"drink": "green tea"}


async def test_what_was_forgotten_is_not_sent_and_its_vector_is_gone(tmp_path: Path, server: EmbeddingServer) -> None:
    async with alone(tmp_path) as memory:
        await memory.store("u1", "job", SECRET)
        await memory.store("u1", "drink", "tea")
        await memory.store("u2", "job", SECRET)
        await memory.delete("u1", "job")
        await memory.delete("u2")

    async with alone(tmp_path, embedder=embedder(server)) as memory:
        await until(lambda: with_vectors(tmp_path / "local.db") == {"drink"})
        assert SECRET not in "".join(server.texts)
        await memory.delete("u1", "drink")
        assert rows(tmp_path / "local.db", "SELECT count(*) FROM memories WHERE vector NOTNULL") == [(0,)]


async def test_an_endpoint_that_hangs_costs_a_search_no_more_than_its_patience(
    tmp_path: Path, server: EmbeddingServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(*_: Any) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.always = hang
    async with alone(tmp_path, embedder=embedder(server, timeout_s=1.0), query_timeout_s=0.1) as memory:
        await memory.store("u1", "drink", SECRET)
        with caplog.at_level(logging.DEBUG):
            for _ in range(3):  # each within its deadline, though the endpoint never answers
                assert await found(memory, SECRET) == {"drink": SECRET}
            await until(lambda: "words alone" in caplog.text)
    assert SECRET not in caplog.text


async def test_damaged_rows_keep_no_other_from_its_vector(
    store: SQLiteMemoryBackend, index: Index, tmp_path: Path
) -> None:
    await store.put([make_entry("u1", f"key{n}", "tea", revision=store.clock.stamp()) for n in range(10)])
    await analyse(index, ENGLISH)
    last = max((await index.load("u1")).stock.slots)
    rows(tmp_path / "local.db", "UPDATE memories SET value = x'ff' WHERE slot <> ?", last)

    found = await Vectors([_Always(store)], lambda _: None).without_vector("m", 3)  # type: ignore[list-item]

    assert [one.slot for one in found] == [last]


class _Always:
    """A replica that is never down."""

    writable = True
    name = "local"

    def __init__(self, store: SQLiteMemoryBackend) -> None:
        self.store = store

    def note_failure(self, error: BackendUnavailableError) -> None:
        raise error


async def test_two_local_stores_get_their_vectors_each(tmp_path: Path, server: EmbeddingServer) -> None:
    clock = HybridLogicalClock()
    model = embedder(server)
    async with (
        SQLiteMemoryBackend(tmp_path / "one.db", clock=clock) as one,
        SQLiteMemoryBackend(tmp_path / "two.db", clock=clock) as two,
        closed(model),
    ):
        entry = make_entry("u1", "drink", "tea", revision=clock.stamp())
        dropped: list[str] = []
        both = Vectors([_Always(one), _Always(two)], dropped.append)  # type: ignore[list-item]
        for each in (one, two):
            await each.put([entry])
            (wanted,) = await both.without_vector("m", 5)
            (vector,) = await model.texts([wanted.text])
            assert await both.keep_vectors("m", [Embedded(*wanted[:3], vector)]) == 1
            assert await both.without_vector("m", 5) == []
    assert dropped == ["u1", "u1"]
    for name in ("one", "two"):
        assert rows(tmp_path / f"{name}.db", "SELECT substr(vector, 1, 8) FROM memories WHERE key NOTNULL") == [
            (mark_of("m"),)
        ]


@asynccontextmanager
async def closed(model: EndpointEmbedder) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await model.close()


async def test_what_soon_ends_leaves_it_to_others_and_searches_all_the_same(tmp_path: Path) -> None:
    async with alone(tmp_path, indexes=False) as memory:
        await memory.store("u1", "drink", "tea")

        assert not [task for task in asyncio.all_tasks() if task.get_name() == "analyse"]
        assert await found(memory, "tea") == {"drink": "tea"}
    async with alone(tmp_path) as memory:
        assert [task for task in asyncio.all_tasks() if task.get_name() == "analyse"]
