"""Vectors in the background, from a real endpoint on loopback into a store that may change and fail meanwhile."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from memory.embedding import EndpointEmbedder, EndpointSettings, Indexer, Lacking
from memory.errors import BackendUnavailableError
from tests.memory.embedding_server import EmbeddingServer, good, status, when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from typing import Any

    from aiohttp import web

    from memory.embedding import Embedded

PRIVATE = "the moon cake is poisoned"


class Shelf:
    """A VectorStore in memory: texts with their revisions, and vectors that stand beside one revision."""

    def __init__(self) -> None:
        self.texts: dict[str, tuple[str, str]] = {}
        self.vectors: dict[str, tuple[str, str, bytes]] = {}
        self.fail: list[Exception] = []
        self.looks = 0

    def write(self, slot: str, text: str, revision: str = "1") -> None:
        self.texts[slot] = (revision, text)

    def forget(self, slot: str) -> None:
        self.texts.pop(slot, None)
        self.vectors.pop(slot, None)

    async def without_vector(self, model_id: str, limit: int) -> Sequence[Lacking]:
        self.looks += 1
        if self.fail:
            raise self.fail.pop()
        lacking = [
            Lacking("ana", slot, revision, text)
            for slot, (revision, text) in self.texts.items()
            if self.vectors.get(slot, ("", ""))[:2] != (model_id, revision)
        ]
        return lacking[:limit]

    async def keep_vectors(self, model_id: str, vectors: Sequence[Embedded]) -> int:
        fitting = [one for one in vectors if self.texts.get(one.slot, ("",))[0] == one.revision]
        self.vectors.update((one.slot, (model_id, one.revision, one.vector)) for one in fitting)
        return len(fitting)


class Naps:
    """Takes the place of asyncio.sleep: notes for how long, and only lets others run."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, pause_s: float) -> None:
        self.taken.append(pause_s)
        await asyncio.sleep(0)


class Place:
    def __init__(self, server: EmbeddingServer) -> None:
        self.server = server
        self.shelf = Shelf()
        self.naps = Naps()

    def embedder(self, **options: Any) -> EndpointEmbedder:
        settings: dict[str, Any] = {"base_url": self.server.url, "model": "m", "retries": 0} | options
        return EndpointEmbedder(EndpointSettings(**settings))

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Indexer]:
        embedder = self.embedder(**options)
        indexer = Indexer(self.shelf, embedder, batch=8, sleep=self.naps, jitter=lambda: 0.0)
        task = asyncio.create_task(indexer.run())
        try:
            yield indexer
        finally:
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await embedder.close()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with EmbeddingServer() as server:
        yield Place(server)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.001)


async def test_everything_gets_a_vector_and_so_does_what_is_written_later(place: Place) -> None:
    for number in range(20):
        place.shelf.write(f"s{number}", f"tea {number}")

    async with place.running() as indexer:
        await until(lambda: indexer.caught_up)
        at_first = len(place.shelf.vectors)
        place.shelf.write("new", "coffee")
        indexer.wake()
        await until(lambda: "new" in place.shelf.vectors and indexer.caught_up)
        looks = place.shelf.looks
        for _ in range(100):
            await asyncio.sleep(0)

    assert place.shelf.looks == looks  # with nothing to do it waits
    assert at_first == 20
    assert indexer.embedded == 21
    assert all(len(vector) == 32 for _, _, vector in place.shelf.vectors.values())
    assert place.server.texts == ["memory", *(f"tea {number}" for number in range(20)), "coffee"]


async def test_it_rests_as_long_as_it_worked(place: Place) -> None:
    clock = iter(range(0, 10_000, 5))
    for number in range(20):
        place.shelf.write(f"s{number}", f"tea {number}")
    embedder = place.embedder()
    indexer = Indexer(place.shelf, embedder, batch=8, sleep=place.naps, now=lambda: float(next(clock)))
    task = asyncio.create_task(indexer.run())

    await until(lambda: indexer.caught_up)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await embedder.close()

    assert place.naps.taken[:3] == [5.0, 5.0, 5.0]


async def test_what_changes_meanwhile_gets_the_vector_of_what_it_became(place: Place) -> None:
    place.shelf.write("drink", "tea")

    def change(server: EmbeddingServer, body: dict[str, Any]) -> web.StreamResponse:
        place.shelf.write("drink", "coffee", revision="2")
        return good(server, body)

    place.server.script.extend([good, change])
    async with place.running() as indexer:
        await until(lambda: indexer.caught_up)

    assert place.shelf.vectors["drink"][1] == "2"
    assert place.server.texts == ["memory", "tea", "coffee"]
    assert indexer.embedded == 1


async def test_what_is_forgotten_meanwhile_leaves_no_vector_and_is_not_sent_again(place: Place) -> None:
    place.shelf.write("secret", PRIVATE)

    def forget(server: EmbeddingServer, body: dict[str, Any]) -> web.StreamResponse:
        place.shelf.forget("secret")
        return good(server, body)

    place.server.script.extend([good, forget])
    async with place.running() as indexer:
        await until(lambda: indexer.caught_up)

    assert place.shelf.vectors == {}
    assert place.server.texts.count(PRIVATE) == 1


@pytest.mark.parametrize("change", [{"model": "n"}, {"text_prefix": "passage: "}])
async def test_another_model_embeds_everything_anew(place: Place, change: dict[str, str]) -> None:
    for number in range(10):
        place.shelf.write(f"s{number}", f"tea {number}")
    async with place.running() as indexer:
        await until(lambda: indexer.caught_up)
    before = {model for model, _, _ in place.shelf.vectors.values()}

    async with place.running(**change) as indexer:
        await until(lambda: indexer.caught_up)

    after = {model for model, _, _ in place.shelf.vectors.values()}
    assert len(before) == len(after) == 1
    assert before != after


async def test_an_endpoint_that_is_away_is_left_alone_for_longer_and_longer_and_then_all_is_made_up_for(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "memory")
    place.server.always = status(500)
    place.shelf.write("secret", PRIVATE)

    async with place.running() as indexer:
        await until(lambda: len(place.naps.taken) >= 9)
        trouble, naps = indexer.trouble, place.naps.taken[:9]
        place.server.always = None
        await until(lambda: indexer.caught_up)

    assert naps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert "status 500" in trouble
    assert indexer.trouble == ""
    assert [record.event for record in caplog.records] == ["embedding_stopped", "embedding_resumed"]  # type: ignore[attr-defined]
    assert PRIVATE not in caplog.text


async def test_wrong_settings_are_an_error_and_tried_rarely(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.server.always = status(401)

    async with place.running():
        await until(lambda: len(place.naps.taken) >= 2)

    assert place.naps.taken[0] == 300
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_text_that_no_model_takes_stops_nobody_and_is_not_sent_for_ever(place: Place) -> None:
    for number in range(4):
        place.shelf.write(f"s{number}", f"tea {number}")
    place.shelf.write("bad", PRIVATE)
    place.server.always = when(lambda body: PRIVATE in body["input"], status(400))

    async with place.running() as indexer:
        await until(lambda: indexer.caught_up)
        asked, looks = len(place.server.requests), place.shelf.looks
        indexer.wake()
        await until(lambda: place.shelf.looks > looks)

    assert place.shelf.vectors["bad"][2] == b""
    assert all(place.shelf.vectors[f"s{number}"][2] for number in range(4))
    assert len(place.server.requests) == asked


async def test_a_store_that_fails_is_asked_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.shelf.write("secret", PRIVATE)
    place.shelf.fail = [RuntimeError(PRIVATE), BackendUnavailableError("shelf", "read")]

    async with place.running() as indexer:
        await until(lambda: indexer.caught_up)

    assert place.shelf.vectors["secret"][2]
    assert PRIVATE not in caplog.text
    assert "RuntimeError" in caplog.text


async def test_a_store_that_takes_nothing_is_not_asked_without_a_pause(place: Place) -> None:
    class Full(Shelf):
        async def keep_vectors(self, model_id: str, vectors: Sequence[Embedded]) -> int:  # noqa: ARG002
            return 0

    place.shelf = Full()
    place.shelf.write("drink", "tea")

    async with place.running():
        await until(lambda: len(place.naps.taken) >= 3)

    assert place.naps.taken[:3] == [1.0, 1.0, 1.0]
