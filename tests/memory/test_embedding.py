"""Vectors of texts from a real endpoint on loopback: good, slow, hostile and away."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiohttp import web

from memory.config import MemoryFileSettings, RecallTable, load_settings
from memory.embedding import EndpointEmbedder, EndpointSettings, embedding_of, endpoint, text_of
from memory.errors import BackendUnavailableError, ConfigError
from tests.memory.embedding_server import EmbeddingServer, good, raw, status, vectors, when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


SECRET, PRIVATE = "sk-very-secret", "the moon cake is poisoned"
SOON = {"retry-after-ms": "1"}


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingServer]:
    async with EmbeddingServer() as server:
        yield server


class Made:
    """Embedders of a test, closed after it."""

    def __init__(self, server: EmbeddingServer) -> None:
        self.server = server
        self.all: list[EndpointEmbedder] = []

    def __call__(self, *, now: Callable[[], float] = lambda: 0.0, **options: Any) -> EndpointEmbedder:
        settings: dict[str, Any] = {
            "base_url": self.server.url,
            "model": "m",
            "key": SECRET,
            "timeout_s": 5.0,
        } | options
        self.all.append(EndpointEmbedder(EndpointSettings(**settings), now=now))
        return self.all[-1]


@pytest.fixture
async def make(server: EmbeddingServer) -> AsyncIterator[Made]:
    made = Made(server)
    yield made
    for embedder in made.all:
        await embedder.close()


def numbers(vector: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(vector, "<f2").astype(np.float32)


async def test_texts_come_back_as_unit_vectors_in_their_order_and_in_batches(
    server: EmbeddingServer, make: Made
) -> None:
    texts = [f"word{number} tea" for number in range(70)]

    found = await make(batch=32).texts(texts)

    assert [len(body["input"]) for body in server.requests] == [32, 32, 6]
    assert server.texts == texts
    for text, vector in zip(texts, found, strict=True):
        expected = server.vector(text) / np.linalg.norm(server.vector(text))
        assert np.allclose(numbers(vector), expected, atol=1e-3)


async def test_the_key_the_model_and_the_dimension_are_sent(server: EmbeddingServer, make: Made) -> None:
    await make(dimensions=16, text_prefix="passage: ").texts(["tea"])

    assert server.authorizations == [f"Bearer {SECRET}"]
    assert server.requests == [{"model": "m", "input": ["passage: tea"], "dimensions": 16, "encoding_format": "base64"}]


async def test_a_server_that_knows_numbers_only_is_asked_for_numbers(server: EmbeddingServer, make: Made) -> None:
    server.always = when(lambda body: body["encoding_format"] == "base64", status(400))
    embedder = make()

    first = await embedder.texts(["tea", "coffee"])
    second = await embedder.texts(["tea"])

    assert second[0] == first[0] != first[1]
    assert [body["encoding_format"] for body in server.requests] == ["base64", "float", "float"]


async def test_numbers_come_in_small_batches_because_reading_them_holds_up_everybody(
    server: EmbeddingServer, make: Made
) -> None:
    server.dimension = 4_000
    server.always = when(lambda body: body["encoding_format"] == "base64", status(400))
    embedder = make()
    await embedder.texts(["tea"])

    await embedder.texts([f"tea {number}" for number in range(7)])

    assert [len(body["input"]) for body in server.requests] == [1, 1, 3, 3, 1]


@pytest.mark.parametrize("number", [429, 500, 503])
async def test_a_busy_server_is_asked_again(server: EmbeddingServer, make: Made, number: int) -> None:
    server.script.extend([status(number, **SOON), status(number, **SOON)])

    assert all(await make(retries=2).texts(["tea"]))


@pytest.mark.parametrize(("number", "says"), [(429, "had enough of us"), (500, "status 500"), (302, "status 302")])
async def test_a_server_that_stays_busy_is_unavailable(
    server: EmbeddingServer, make: Made, number: int, says: str
) -> None:
    server.always = status(number, location="/v1/elsewhere", **SOON)
    embedder = make(retries=1)

    with pytest.raises(BackendUnavailableError, match=says):
        await embedder.texts(["tea"])

    assert says in embedder.trouble
    assert len(server.requests) == (1 if number == 302 else 2)


async def test_a_server_that_hangs_is_given_up(server: EmbeddingServer, make: Made) -> None:
    server.always = hang

    with pytest.raises(BackendUnavailableError, match=r"did not answer within 0\.2 s"):
        await make(timeout_s=0.2).texts(["tea"])


async def hang(*_: object) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_server_that_is_not_there_is_unavailable(make: Made) -> None:
    embedder = make(base_url="http://user:password@127.0.0.1:9/v1", retries=0)

    with pytest.raises(BackendUnavailableError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached") as caught:
        await embedder.texts(["tea"])

    assert "password" not in str(caught.value)


@pytest.mark.parametrize(("number", "says"), [(401, "api_key_env"), (403, "api_key_env"), (404, "model.*knows no")])
async def test_wrong_settings_are_told_from_a_bad_day(
    server: EmbeddingServer, make: Made, number: int, says: str
) -> None:
    server.always = status(number)

    with pytest.raises(ConfigError, match=says) as caught:
        await make().texts(["tea"])

    assert SECRET not in str(caught.value)


def rows(*found: object) -> str:
    return json.dumps({"data": [{"embedding": row} for row in found]})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<html>",
        "[]",
        "{}",
        '{"data": null}',
        rows(),
        rows([1.0]),
        rows([1.0], [2.0], [3.0]),
        rows([1.0, 2.0], [1.0]),
        rows(["a"], ["b"]),
        rows([[1.0]], [[1.0]]),
        rows([], []),
        rows(3, 4),
        rows("####", "####"),
        rows("AAA=", "AAA="),
        rows(None, None),
        rows([0.0, 0.0], [0.0, 0.0]),
        '{"data": [{"embedding": [NaN]}, {"embedding": [NaN]}]}',
        rows([1e300], [1e300]),
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}',
        '{"data": [{"index": [], "embedding": [1]}, {"index": {}, "embedding": [1]}]}',
        rows([1.0] * 9_000, [1.0] * 9_000),
        "[" * 100_000,
        " " * 2_000_000,
    ],
)
async def test_an_answer_that_makes_no_sense_is_no_answer(server: EmbeddingServer, make: Made, answer: str) -> None:
    server.always = raw(answer)
    embedder = make()

    with pytest.raises(BackendUnavailableError):
        await embedder.texts(["tea", "coffee"])

    assert embedder.model_id == ""


@pytest.mark.parametrize("answer", ["{}", rows([0.0]), rows([1.0], [1.0])])
async def test_a_question_with_an_answer_that_makes_no_sense_has_no_vector(
    server: EmbeddingServer, make: Made, answer: str
) -> None:
    server.always = raw(answer)
    embedder = make()

    assert await embedder.query("tea", 5.0) == b""
    assert server.url in embedder.trouble


async def test_an_answer_is_read_up_to_a_limit(server: EmbeddingServer, make: Made) -> None:
    server.always = raw(" " * 2_000_000)

    with pytest.raises(BackendUnavailableError, match=r"too long \(limit: [\d,]+ bytes"):
        await make().texts(["tea"])


async def test_a_changed_dimension_is_refused(server: EmbeddingServer, make: Made) -> None:
    embedder = make()
    await embedder.texts(["tea"])
    server.dimension = 8

    with pytest.raises(BackendUnavailableError, match="vectors of 8 numbers where 16 were expected"):
        await embedder.texts(["tea"])
    with pytest.raises(BackendUnavailableError, match="vectors of 8 numbers where 32 were expected"):
        await make(dimensions=32).texts(["tea"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
async def test_one_text_without_a_direction_harms_no_other(server: EmbeddingServer, make: Made, bad: float) -> None:
    def spoil(server: EmbeddingServer, body: dict[str, Any]) -> web.Response:
        return vectors(body, [server.vector(text) * (bad if text == PRIVATE else 1) for text in body["input"]])

    server.always = spoil

    first, spoilt, last = await make().texts(["tea", PRIVATE, "coffee"])

    assert len(first) == len(last) == 32
    assert spoilt == b""


async def test_one_text_that_is_refused_harms_no_other(server: EmbeddingServer, make: Made) -> None:
    server.always = when(lambda body: PRIVATE in body["input"], status(400))
    texts = [f"tea {number}" for number in range(9)]

    found = await make().texts([*texts[:5], PRIVATE, *texts[5:]])

    assert found[5] == b""
    assert all(found[:5] + found[6:])


async def test_a_refused_text_does_not_change_what_the_server_is_taken_for(server: EmbeddingServer, make: Made) -> None:
    server.always = when(lambda body: PRIVATE in body["input"], status(400))
    embedder = make()
    await embedder.texts(["tea"])

    found = await embedder.texts([PRIVATE])

    assert found == [b""]
    assert {body["encoding_format"] for body in server.requests} == {"base64"}


async def test_a_text_that_is_too_long_for_the_model_is_embedded_as_far_as_it_goes(
    server: EmbeddingServer, make: Made
) -> None:
    server.always = when(lambda body: any(len(text) > 2_500 for text in body["input"]), status(413))

    short, long = await make().texts(["tea", "coffee " * 1_000])

    assert short
    assert long
    assert len(server.texts[-1]) == 2_000


async def test_a_server_that_refuses_everything_is_unavailable_and_marks_nothing(
    server: EmbeddingServer, make: Made
) -> None:
    server.always = status(400)

    with pytest.raises(BackendUnavailableError, match=r"refused what it was asked \(400\)"):
        await make().texts([f"tea {number}" for number in range(32)])

    assert len(server.requests) < 10


@pytest.mark.parametrize("number", [302, 400, 401, 404, 429, 500])
async def test_neither_secrets_nor_memories_reach_logs_and_errors(
    server: EmbeddingServer, make: Made, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    caplog.set_level(logging.DEBUG)
    server.always = status(number, **SOON)
    embedder = make(retries=1)

    with pytest.raises((BackendUnavailableError, ConfigError)) as caught:
        await embedder.texts([PRIVATE])
    await embedder.query(PRIVATE, 5.0)
    server.always = None
    await embedder.texts([PRIVATE])

    said = caplog.text + "".join(traceback.format_exception(caught.value)) + embedder.trouble + repr(embedder.settings)
    assert PRIVATE not in said
    assert SECRET not in said


async def test_memories_go_to_no_other_address(server: EmbeddingServer, make: Made) -> None:
    async with EmbeddingServer() as other:
        server.always = lambda _, __: web.Response(status=307, headers={"Location": f"{other.url}/embeddings"})

        with pytest.raises(BackendUnavailableError):
            await make().texts([PRIVATE])

        assert other.requests == []


async def test_unencrypted_to_another_machine_is_warned_of(make: Made, caplog: pytest.LogCaptureFixture) -> None:
    await make(base_url="http://user:password@192.0.2.1/v1").open()
    await make().open()

    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["embedding_in_the_clear"]
    assert "password" not in caplog.text


async def test_text_that_is_no_unicode_is_embedded_all_the_same(make: Made) -> None:
    assert all(await make().texts(["half \ud83d of it"]))


async def test_a_key_that_is_none_is_an_error(make: Made) -> None:
    with pytest.raises(ConfigError, match="characters that no key has"):
        await make(key="clé").texts(["tea"])


async def test_vectors_are_comparable_where_the_model_the_dimension_and_the_prefix_are_the_same(
    server: EmbeddingServer, make: Made
) -> None:
    one = make(base_url=server.url.replace("http://", "http://user:password@"))
    others = [make(), make(model="n"), make(text_prefix="passage: ")]
    before = one.model_id
    for embedder in (one, *others):
        await embedder.texts(["tea"])
    server.dimension = 8
    await (smaller := make()).texts(["tea"])

    assert before == ""
    assert one.model_id == others[0].model_id == f"{server.url} m 16"
    assert len({embedder.model_id for embedder in (*others, smaller)}) == 4


async def test_a_question_is_asked_once_with_its_prefix(server: EmbeddingServer, make: Made) -> None:
    embedder = make(query_prefix="query: ")

    first, again = await embedder.query("tea?", 5.0), await embedder.query("tea?", 5.0)

    assert first == again
    assert first
    assert server.texts == ["query: tea?"]
    assert await embedder.query("  ", 5.0) == b""


async def test_the_latest_questions_are_kept_and_no_more(
    server: EmbeddingServer, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "_QUERIES_KEPT", 2)
    embedder = make()

    for question in ("tea?", "coffee?", "tea?", "cake?", "tea?", "coffee?"):
        await embedder.query(question, 5.0)

    assert server.texts == ["tea?", "coffee?", "cake?", "coffee?"]


async def test_a_slow_question_is_given_up_and_serves_the_next_one(server: EmbeddingServer, make: Made) -> None:
    may_answer = asyncio.Event()

    async def slow(server: EmbeddingServer, body: dict[str, Any]) -> web.StreamResponse:
        await may_answer.wait()
        return good(server, body)

    server.script.append(slow)
    embedder = make()

    early = await embedder.query("tea?", 0.05)
    trouble = embedder.trouble
    may_answer.set()
    late = await embedder.query("tea?", 5.0)

    assert early == b""
    assert "is slow" in trouble
    assert late
    assert embedder.trouble == ""
    assert server.texts == ["tea?"]


async def test_few_slow_questions_are_under_way_at_once(server: EmbeddingServer, make: Made) -> None:
    server.always = hang
    embedder = make()

    found = [await embedder.query(f"tea {number}?", 0.02) for number in range(10)]

    assert found == [b""] * 10
    assert len(server.requests) <= 4


async def test_a_server_that_failed_is_not_waited_for_by_the_next_questions(
    server: EmbeddingServer, make: Made
) -> None:
    clock = [0.0]
    server.script.append(status(500))
    embedder = make(now=lambda: clock[0])

    found = [await embedder.query("tea?", 5.0), await embedder.query("coffee?", 5.0)]
    trouble = embedder.trouble
    clock[0] = 60.0

    assert found == [b"", b""]
    assert "status 500" in trouble
    assert len(server.requests) == 1
    assert await embedder.query("coffee?", 5.0)


async def test_closing_ends_what_is_under_way(server: EmbeddingServer, make: Made) -> None:
    server.always = hang
    embedder = make(timeout_s=60.0)
    waiting = asyncio.create_task(embedder.query("tea?", 60.0))
    while not server.requests:  # noqa: ASYNC110 - it comes over a socket
        await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await embedder.close()

    assert await waiting == b""


def test_a_memory_is_embedded_with_its_key_in_words_and_not_beyond_a_limit() -> None:
    assert text_of("favorite_color", "blue") == "favorite color: blue"
    assert len(text_of("k", "x" * 100_000)) == 8_000


def test_settings_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    table = RecallTable(embedder="endpoint", base_url="http://h/v1", model="m", api_key_env="A_KEY", batch=7)

    chosen = embedding_of(table, tmp_path)

    assert embedding_of(RecallTable(), tmp_path) is None
    assert isinstance(chosen, EndpointEmbedder)
    assert (chosen.settings.key, chosen.settings.batch) == (SECRET, 7)


def test_a_key_that_is_not_set_is_an_error_that_does_not_tell_what_stands_there(tmp_path: Path) -> None:
    table = RecallTable(embedder="endpoint", base_url="http://h/v1", model="m", api_key_env="ABCDEF")

    with pytest.raises(ConfigError, match=r"memory\.recall\.api_key_env: the variable .* is not set") as caught:
        embedding_of(table, tmp_path)

    assert "ABCDEF" not in str(caught.value)


def test_what_the_documentation_says_to_copy_is_a_setting(tmp_path: Path) -> None:
    said = (Path(__file__).resolve().parents[2] / "docs" / "semantic.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```$", said, re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        (tmp_path / "config.toml").write_text(block)
        found.append(load_settings(MemoryFileSettings, tmp_path / "config.toml").memory.recall)

    defaults = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", said, re.MULTILINE))

    assert [table.embedder for table in found] == ["static", "static", "endpoint"]
    assert {name: float(number) for name, number in defaults.items()} == {
        name: getattr(RecallTable(), name)
        for name in ("dimensions", "batch", "timeout_s", "retries", "query_timeout_s")
    }
