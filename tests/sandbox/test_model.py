"""The loopback model, as OpenAI's own client sees it: streams, tool calls, refusals, and everything that goes wrong."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from sandbox import (
    LoopbackModel,
    call,
    disconnect_after,
    forever,
    hang,
    hang_after,
    model_hostile,
    raw,
    refuse,
    say,
    slow,
    turn,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandbox import Behaviour

KEY = "sk-loopback"
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
BODY = {"model": "loopback", "messages": [{"role": "user", "content": "hello"}]}


def tool(name: str, *arguments: str) -> dict[str, Any]:
    properties = {each: {"type": "string"} for each in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TOOLS = [
    tool("remember_user_info", "information_type", "information"),
    tool("search_user_memory", "query"),
    tool("forget_user_info", "information_type"),
    tool("list_user_memories"),
]


@dataclass
class Heard:
    """A stream, put together the way that a careful client would."""

    deltas: list[Any] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=lambda: defaultdict(lambda: {"id": "", "arguments": ""}))
    finish_reason: str | None = None
    usage: Any = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def take(self, chunk: Any) -> None:
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self.deltas.append(choice.delta)
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta.content:
                self.texts.append(choice.delta.content)
            for each in choice.delta.tool_calls or ():
                heard = self.calls[each.index]
                heard["id"] = each.id or heard["id"]
                heard["name"] = each.function.name or heard.get("name", "")
                heard["arguments"] += each.function.arguments


@pytest.fixture
async def model() -> AsyncIterator[LoopbackModel]:
    async with LoopbackModel(api_key=KEY) as model:
        yield model


@pytest.fixture
async def client(model: LoopbackModel) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(model) as client:
        yield client


def client_of(model: LoopbackModel, *, api_key: str = KEY, **options: Any) -> AsyncOpenAI:
    # The environment's proxies are not for the loopback, and one TLS context that nobody uses is enough for all tests.
    http = DefaultAsyncHttpxClient(verify=TLS, trust_env=False)
    return AsyncOpenAI(
        base_url=model.url, api_key=api_key, http_client=http, **{"max_retries": 0, "timeout": 5.0} | options
    )


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def stream(client: AsyncOpenAI, messages: Any = None, **options: Any) -> Heard:
    heard = Heard()
    await hear(heard, client, messages, **options)
    return heard


async def hear(heard: Heard, client: AsyncOpenAI, messages: Any = None, **options: Any) -> None:
    async for chunk in await open_stream(client, messages, **options):
        heard.take(chunk)


async def open_stream(client: AsyncOpenAI, messages: Any = None, **options: Any) -> Any:
    create: Any = client.chat.completions.create  # its overloads want literal dicts
    return await create(model="loopback", messages=messages or said("hello"), stream=True, **options)


async def whole(client: AsyncOpenAI, messages: Any = None, **options: Any) -> Any:
    create: Any = client.chat.completions.create
    return await create(model="loopback", messages=messages or said("hello"), **options)


async def post(model: LoopbackModel, body: Any, *, key: str = KEY) -> tuple[int, str, str]:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        ClientSession() as session,
        session.post(f"{model.url}/chat/completions", json=body, headers=headers) as response,
    ):
        return response.status, response.content_type, await response.text(errors="replace")


# Text


async def test_text_comes_in_several_chunks_and_an_end(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(say("The quick brown fox jumps."))

    heard = await stream(client)

    assert heard.text == "The quick brown fox jumps."
    assert len(heard.texts) > 2
    assert heard.deltas[0].role == "assistant"
    assert heard.finish_reason == "stop"
    assert heard.usage is None


@pytest.mark.parametrize(
    ("chunks", "expected"), [(2, ["abc", "def"]), (["a", "", "bc"], ["a", "bc"]), (99, list("abcdef"))]
)
async def test_the_script_says_how_text_is_cut(
    model: LoopbackModel, client: AsyncOpenAI, chunks: Any, expected: list[str]
) -> None:
    model.script(say("abcdef", chunks=chunks, finish_reason="length"))

    heard = await stream(client)

    assert heard.texts == expected
    assert heard.finish_reason == "length"


async def test_without_a_stream_the_same_comes_at_once(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(turn(say("Let me see."), call("search_user_memory", {"query": "city"})))

    answered = await whole(client)

    [choice] = answered.choices
    assert choice.message.content == "Let me see."
    assert choice.message.tool_calls[0].function.arguments == '{"query": "city"}'
    assert choice.finish_reason == "tool_calls"
    assert answered.usage.total_tokens == answered.usage.prompt_tokens + answered.usage.completion_tokens


async def test_the_wire_is_server_sent_events(model: LoopbackModel) -> None:
    model.script(say("hi"))

    status, content_type, text = await post(model, {**BODY, "stream": True})

    events = text.removesuffix("\n\n").split("\n\n")
    assert (status, content_type) == (200, "text/event-stream")
    assert all(each.startswith("data: ") for each in events)
    assert events[-1] == "data: [DONE]"
    assert "usage" not in text


async def test_usage_comes_last_if_it_is_asked_for(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(say("four"), say("four"))
    long = said("x" * 4_000)

    short_usage = (await stream(client, stream_options={"include_usage": True})).usage
    long_usage = (await stream(client, long, stream_options={"include_usage": True})).usage

    assert 990 <= long_usage.prompt_tokens - short_usage.prompt_tokens <= 1_010
    assert long_usage.completion_tokens == short_usage.completion_tokens > 0


async def test_tools_count_as_prompt(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(say("a"), say("a"))

    without, having = await whole(client), await whole(client, tools=TOOLS)

    assert having.usage.prompt_tokens > without.usage.prompt_tokens + 50


# Tool calls


async def test_a_call_streams_its_name_first_and_its_arguments_in_fragments(
    model: LoopbackModel, client: AsyncOpenAI
) -> None:
    model.script(call("search_user_memory", {"query": "where does this person live"}, id="call_x"))

    heard = await stream(client)

    parts = [each.tool_calls[0] for each in heard.deltas if each.tool_calls]
    assert (parts[0].id, parts[0].function.name, parts[0].function.arguments) == ("call_x", "search_user_memory", "")
    assert len(parts) > 3
    assert all(part.id is None and part.function.name is None for part in parts[1:])
    assert json.loads(heard.calls[0]["arguments"]) == {"query": "where does this person live"}
    assert heard.finish_reason == "tool_calls"


@pytest.mark.parametrize("interleaved", [False, True])
async def test_parallel_calls_share_a_turn(model: LoopbackModel, client: AsyncOpenAI, interleaved: bool) -> None:
    calls = [call("search_user_memory", {"query": f"a rather long query {n}"}) for n in range(3)]
    model.script(turn(say("Let me see. "), *calls, interleaved=interleaved))

    heard = await stream(client)

    assert heard.text == "Let me see. "
    assert [json.loads(each["arguments"])["query"][-1] for each in heard.calls.values()] == ["0", "1", "2"]
    assert len({each["id"] for each in heard.calls.values()}) == 3
    order = [each.tool_calls[0].index for each in heard.deltas if each.tool_calls]
    assert (order == sorted(order)) is not interleaved


async def test_made_up_ids_are_new_in_each_request(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(call("a", {}), call("a", {}))

    first = await stream(client, said("one"))
    second = await stream(client, said("two"))

    assert first.calls[0]["id"] != second.calls[0]["id"]


async def test_arguments_that_are_text_are_sent_as_they_are(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(call("search_user_memory", '{"query": "cit'))

    assert (await stream(client)).calls[0]["arguments"] == '{"query": "cit'


async def test_a_conversation_of_two_rounds(model: LoopbackModel, client: AsyncOpenAI) -> None:
    def from_the_result(body: dict[str, Any]) -> Behaviour:
        assert body["messages"][-1]["role"] == "tool"
        return say(f"You live in {body['messages'][-1]['content'].removeprefix('city: ')}.")

    model.script(call("search_user_memory", {"query": "city live"}, id="call_1"), from_the_result)
    messages = said("where do I live?")

    first = await whole(client, messages, tools=TOOLS)
    messages.append(first.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "city: Oslo"})
    second = await stream(client, messages, tools=TOOLS)

    assert second.text == "You live in Oslo."
    assert [len(body["messages"]) for body in model.requests] == [1, 3]
    assert model.unplayed == 0


# The server


async def test_requests_are_kept_in_order_with_their_keys(model: LoopbackModel, client: AsyncOpenAI) -> None:
    await asyncio.gather(model.wait_for_requests(2), stream(client, said("one")), stream(client, said("two")))

    assert sorted(body["messages"][0]["content"] for body in model.requests) == ["one", "two"]
    assert model.requests[0]["stream"] is True
    assert model.authorizations == [f"Bearer {KEY}"] * 2


async def test_requests_that_do_not_come_are_a_timeout(model: LoopbackModel) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 requests"):
        await model.wait_for_requests(1, timeout_s=0.01)


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    listed = [each.id async for each in client.models.list()]

    assert listed == ["loopback"]
    assert (await client.models.retrieve("loopback")).id == "loopback"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-12")


async def test_a_wrong_key_is_refused_and_costs_no_script(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(say("for the right one"))

    async with client_of(model, api_key="sk-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stream(stranger)
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()

    assert refused.value.code == "invalid_api_key"
    assert "sk-" not in str(refused.value)
    assert model.authorizations == ["Bearer sk-wrong"]
    assert (await stream(client)).text == "for the right one"


async def test_no_key_is_refused_where_one_is_set_and_taken_where_none_is(model: LoopbackModel) -> None:
    assert (await post(model, BODY, key=""))[0] == 401
    async with LoopbackModel() as open_model:
        assert (await post(open_model, BODY, key=""))[0] == 200


async def test_an_unknown_model_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-12", messages=[{"role": "user", "content": "hi"}])

    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"messages": []}, "too short - 'messages'"),
        ({"messages": [{"role": "owner", "content": "hi"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "x"}]}, "must be a response"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]}, "too short"),
        ({"tools": []}, "too short - 'tools'"),
        ({"tool_choice": "none"}, "only allowed when 'tools'"),
        ({"tools": [tool("rm -rf")]}, "does not match pattern"),
    ],
)
async def test_what_openai_would_refuse_is_refused(
    model: LoopbackModel, change: dict[str, Any], complaint: str
) -> None:
    status, _, text = await post(model, {**BODY, **change})

    assert status == 400
    assert json.loads(text)["error"]["type"] == "invalid_request_error"
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(model.complaints[0])


@pytest.mark.parametrize(
    ("calls", "results"),
    [
        ([{"id": "a", "type": "function", "function": {"name": "x", "arguments": "{}"}}], []),
        ([{"id": None, "type": "function", "function": {"name": "x", "arguments": "{}"}}], []),
        ([{"id": "a", "type": "function", "function": {"name": "x y", "arguments": "{}"}}], ["a"]),
        ([{"id": "a", "type": "function", "function": {"name": "x", "arguments": {}}}], ["a"]),
        ([{"id": "a", "type": "function"}], []),
        ([None], []),
        ([{"id": "a", "type": "function", "function": {"name": "x", "arguments": "{}"}}] * 2, ["a"]),
        ([{"id": "a", "type": "function", "function": {"name": "x", "arguments": "{}"}}], ["a", "a"]),
    ],
)
async def test_calls_are_refused_if_they_are_sent_back_wrong(
    model: LoopbackModel, calls: list[Any], results: list[str]
) -> None:
    answered = [{"role": "tool", "tool_call_id": each, "content": "x"} for each in results]
    messages = [*said("hi"), {"role": "assistant", "tool_calls": calls}, *answered]

    assert (await post(model, {**BODY, "messages": messages}))[0] == 400
    assert model.complaints


async def test_a_lenient_model_takes_it_all() -> None:
    async with LoopbackModel(strict=False) as model:
        assert (await post(model, {"model": "loopback", "messages": []}))[0] == 200


@pytest.mark.parametrize("body", ["text", [1], None])
async def test_a_body_that_is_no_object_is_refused(model: LoopbackModel, body: Any) -> None:
    assert (await post(model, body))[0] == 400
    assert not model.requests


async def test_what_a_scripted_function_raises_comes_out_at_the_end() -> None:
    def disappointed(_: dict[str, Any]) -> Behaviour:
        raise AssertionError("the request was not what the test expects")

    async def the_test() -> None:
        async with LoopbackModel() as model, client_of(model) as client:
            model.script(disappointed)
            with pytest.raises(openai.InternalServerError):
                await stream(client)

    with pytest.raises(AssertionError, match="not what the test expects"):
        await the_test()


# Refusals and silence


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_refusal_has_a_status_and_a_reason(
    model: LoopbackModel, client: AsyncOpenAI, status: int, error: type[openai.APIStatusError]
) -> None:
    model.script(refuse(status))

    with pytest.raises(error) as refused:
        await stream(client)

    assert refused.value.status_code == status
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["message"]


async def test_a_429_says_when_to_come_back(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(refuse(429, retry_after_s=1.5, code="insufficient_quota"))

    with pytest.raises(openai.RateLimitError) as refused:
        await stream(client)

    assert refused.value.response.headers["Retry-After"] == "1.5"
    assert refused.value.code == "insufficient_quota"


async def test_a_client_that_retries_gets_the_next_of_the_script(model: LoopbackModel) -> None:
    model.script(refuse(429, retry_after_s=0.01), refuse(503, retry_after_s=0.01), say("at last"))

    async with client_of(model, max_retries=2) as client:
        assert (await stream(client)).text == "at last"

    assert len(model.requests) == 3


async def test_a_refusal_may_have_any_body(model: LoopbackModel) -> None:
    model.script(refuse(502, body="<h1>Bad gateway</h1>"), refuse(400, body={"detail": "no"}))

    assert await post(model, BODY) == (502, "text/html", "<h1>Bad gateway</h1>")
    assert await post(model, BODY) == (400, "application/json", '{"detail": "no"}')


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_model_that_hangs_is_given_up_by_its_client(model: LoopbackModel, streaming: bool) -> None:
    model.script(hang())

    async with client_of(model, timeout=0.05) as client:
        with pytest.raises(openai.APITimeoutError):
            await (stream(client) if streaming else whole(client))

    await model.wait_until_idle()


async def test_who_waits_can_see_that_it_still_hangs(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(hang())
    waiting = asyncio.create_task(stream(client))
    await model.wait_for_requests(1)

    with pytest.raises(TimeoutError, match="1 answers"):
        await model.wait_until_idle(timeout_s=0.01)

    assert model.answering == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await model.wait_until_idle()


async def test_a_hang_does_not_hold_up_the_end() -> None:
    async with asyncio.timeout(2), LoopbackModel() as model, client_of(model) as client:
        model.script(hang())
        waiting = asyncio.create_task(stream(client))
        await model.wait_for_requests(1)
        await model.__aexit__(None, None, None)

        with pytest.raises(openai.APIConnectionError):
            await waiting


@pytest.mark.parametrize("behaviour", [say("A long enough sentence."), call("search_user_memory", {"query": "city"})])
async def test_a_stream_may_hang_in_its_midst(model: LoopbackModel, client: AsyncOpenAI, behaviour: Behaviour) -> None:
    model.script(hang_after(behaviour, after=3))
    chunks = await open_stream(client)
    for _ in range(3):
        await anext(chunks)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(chunks), 0.02)

    await chunks.close()
    await model.wait_until_idle()


async def test_a_whole_answer_may_hang_in_its_midst(model: LoopbackModel) -> None:
    model.script(hang_after(say("never seen")))

    async with client_of(model, timeout=0.05) as client:
        with pytest.raises(openai.APITimeoutError):
            await whole(client)


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_connection_may_drop(model: LoopbackModel, client: AsyncOpenAI, after: int, streaming: bool) -> None:
    model.script(disconnect_after(say("A long enough sentence."), after=after), say("again"))
    heard = Heard()

    with pytest.raises(openai.APIConnectionError):
        await (hear(heard, client) if streaming else whole(client))

    assert len(heard.deltas) == (after if streaming else 0)
    assert (await stream(client)).text == "again"


async def test_a_slow_stream_waits_for_the_test(model: LoopbackModel, client: AsyncOpenAI) -> None:
    gate = asyncio.Event()
    model.script(slow(say("one two three"), gate, after=2))
    heard = Heard()
    chunks = await open_stream(client)

    heard.take(await anext(chunks))
    heard.take(await anext(chunks))
    third = asyncio.create_task(anext(chunks))
    await asyncio.wait({third}, timeout=0.02)
    assert not third.done()
    gate.set()
    heard.take(await third)
    async for chunk in chunks:
        heard.take(chunk)

    assert heard.text == "one two three"


async def test_behaviours_may_be_wrapped_in_each_other(model: LoopbackModel, client: AsyncOpenAI) -> None:
    gate = asyncio.Event()
    gate.set()
    model.script(disconnect_after(slow(lambda body: say(body["messages"][0]["content"]), gate, after=1), after=3))
    heard = Heard()

    with pytest.raises(openai.APIConnectionError):
        await hear(heard, client, said("echo this, please"))

    assert heard.text == "echo this, p"


# Bad models


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", model_hostile.GARBAGE)
async def test_garbage_arrives(model: LoopbackModel, name: str, streaming: bool) -> None:
    model.script(model_hostile.GARBAGE[name])

    status, _, _ = await post(model, {**BODY, "stream": streaming})

    assert status == 200
    assert model.unplayed == 0


@pytest.mark.parametrize("name", ["not JSON in SSE", "not UTF-8", "HTML", "choices empty", "delta null", "only DONE"])
async def test_garbage_is_no_answer_for_the_real_client(model: LoopbackModel, client: AsyncOpenAI, name: str) -> None:
    model.script(model_hostile.GARBAGE[name])
    heard = Heard()

    # The client hands through what its JSON parser and its reader raise.
    with suppress(ValueError, AttributeError):
        await hear(heard, client)

    assert heard.text == ""


async def test_an_error_may_come_in_the_stream(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(model_hostile.GARBAGE["error in the stream"])

    with pytest.raises(openai.APIError, match="upstream died"):
        await stream(client)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", model_hostile.malformed_calls("x", {}))
async def test_malformed_calls_get_through_the_real_client(
    model: LoopbackModel, client: AsyncOpenAI, name: str, streaming: bool
) -> None:
    model.script(model_hostile.malformed_calls("search_user_memory", {"query": "city"})[name])

    if streaming:
        chunks = [chunk async for chunk in await open_stream(client)]
        assert chunks[-1].choices[0].finish_reason in ("tool_calls", "stop", "function_call")
    else:
        assert (await whole(client)).choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    ("name", "first_call"),
    [
        ("no id", {"index": 0, "type": "function", "function": {"name": "x", "arguments": "{}"}}),
        ("no index", {"id": "call_malformed", "type": "function", "function": {"name": "x", "arguments": "{}"}}),
        (
            "arguments an object",
            {"index": 0, "id": "call_malformed", "type": "function", "function": {"name": "x", "arguments": {}}},
        ),
        ("a call null", None),
    ],
)
async def test_a_malformed_call_is_wrong_in_one_way(model: LoopbackModel, name: str, first_call: Any) -> None:
    model.script(model_hostile.malformed_calls("x", {})[name])

    _, _, text = await post(model, {**BODY, "stream": True})

    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")]
    assert [delta["tool_calls"] for delta in deltas_of(chunks) if "tool_calls" in delta] == [[first_call]]


def deltas_of(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


@pytest.mark.parametrize("style", model_hostile.TEXT_STYLES)
async def test_a_call_may_be_written_as_text(model: LoopbackModel, client: AsyncOpenAI, style: str) -> None:
    model.script(model_hostile.call_as_text("search_user_memory", {"query": "city"}, style))

    heard = await stream(client)

    assert "search_user_memory" in heard.text
    assert "city" in heard.text
    assert not heard.calls
    assert heard.finish_reason == "stop"


async def test_a_call_for_somebody_else(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(model_hostile.for_other_user("42", "search_user_memory", {"query": ""}))

    assert json.loads((await stream(client)).calls[0]["arguments"]) == {"user_id": "42", "query": ""}


async def test_broken_arguments_and_invented_tools(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(model_hostile.broken_arguments("search_user_memory"), model_hostile.invented_tool())

    with pytest.raises(ValueError, match="Unterminated"):
        json.loads((await stream(client)).calls[0]["arguments"])
    assert (await stream(client)).calls[0]["name"] == "export_all_users"


async def test_a_model_may_loop_with_the_same_call(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(model_hostile.same_call_forever("search_user_memory", {"query": "city"}))

    heard = [await stream(client) for _ in range(5)]

    assert {each.calls[0]["arguments"] for each in heard} == {'{"query": "city"}'}
    model.clear_script()
    assert not (await stream(client)).calls


async def test_a_model_may_loop_with_new_calls(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(model_hostile.new_calls_forever("search_user_memory", lambda n: {"query": f"q{n}"}))

    heard = [await stream(client, said("more") * n) for n in (1, 2, 3)]

    assert [each.calls[0]["arguments"] for each in heard] == ['{"query": "q1"}', '{"query": "q2"}', '{"query": "q3"}']


async def test_a_model_may_call_fifty_times_at_once(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(model_hostile.many_calls("search_user_memory", lambda n: {"query": f"q{n}"}))

    heard = await stream(client)

    assert [json.loads(heard.calls[n]["arguments"])["query"] for n in range(50)] == [f"q{n}" for n in range(50)]


async def test_long_empty_and_unkind_text(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(
        model_hostile.long_text(), model_hostile.empty_text(), model_hostile.pings(), model_hostile.as_command()
    )

    long, empty, pings, command = [await stream(client) for _ in range(4)]

    assert len(long.text) == 20_000
    assert (empty.text, empty.finish_reason) == ("", "stop")
    assert "@everyone" in pings.text
    assert "<@123>" in pings.text
    assert command.text.startswith("%forget all")


async def test_anything_may_be_said_raw_and_for_ever(model: LoopbackModel, client: AsyncOpenAI) -> None:
    model.script(forever(raw('data: {"choices": [{"delta": {"content": "bare"}}]}\n\ndata: [DONE]\n\n')))

    answers = [[chunk.choices[0].delta.content async for chunk in await open_stream(client)] for _ in range(2)]

    assert answers == [["bare"], ["bare"]]


# The small model


class Person:
    """Somebody whose client runs the tools on a dict, as `key: value` lines."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self.client = client
        self.memory: dict[str, str] = {}
        self.called: list[tuple[str, dict[str, str]]] = []
        self.messages: list[dict[str, Any]] = []

    async def say(self, text: str) -> str:
        self.messages += said(text)
        while (heard := await stream(self.client, self.messages, tools=TOOLS)).calls:
            calls = [
                {
                    "id": each["id"],
                    "type": "function",
                    "function": {"name": each["name"], "arguments": each["arguments"]},
                }
                for each in heard.calls.values()
            ]
            self.messages.append({"role": "assistant", "tool_calls": calls})
            for each in heard.calls.values():
                result = self.run(each["name"], json.loads(each["arguments"]))
                self.messages.append({"role": "tool", "tool_call_id": each["id"], "content": result})
        self.messages.append({"role": "assistant", "content": heard.text})
        return heard.text

    def run(self, name: str, arguments: dict[str, str]) -> str:
        self.called.append((name, arguments))
        if name == "remember_user_info":
            self.memory[arguments["information_type"]] = arguments["information"]
            return "Got it! I'll remember that {information_type}: {information}".format(**arguments)
        if name == "forget_user_info":
            return "Forgotten." if self.memory.pop(arguments["information_type"], None) else "There was nothing."
        words = arguments.get("query", "").split()
        found = [
            f"{key}: {value}" for key, value in self.memory.items() if not words or set(words) & set(key.split("_"))
        ]
        return "\n".join(found) or f"I remember nothing that matches {' '.join(words)}."


@pytest.fixture
async def person(client: AsyncOpenAI) -> Person:
    return Person(client)


async def test_the_small_model_remembers_and_recalls(person: Person) -> None:
    assert await person.say("where do I live?") == "I don't know that yet."
    assert await person.say("I live in Oslo, remember that") == "Got it, I'll remember that you live in Oslo."
    assert await person.say("where do I live?") == "You live in Oslo."
    assert person.called == [
        ("search_user_memory", {"query": "city live"}),
        ("remember_user_info", {"information_type": "city", "information": "Oslo"}),
        ("search_user_memory", {"query": "city live"}),
    ]


async def test_the_small_model_forgets(person: Person) -> None:
    await person.say("I live in Oslo")

    assert await person.say("forget my city") == "Forgotten."
    assert await person.say("where do I live?") == "I don't know that yet."


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("forget my city", "city"),
        ("please forget where I live.", "city"),
        ("forget that I live in Oslo", "city"),
        ("forget bananas", "bananas"),
    ],
)
async def test_the_small_model_finds_what_to_forget(person: Person, text: str, key: str) -> None:
    await person.say(text)

    assert person.called == [("forget_user_info", {"information_type": key})]


async def test_the_small_model_forgets_one_thing_at_a_time(person: Person) -> None:
    assert await person.say("forget everything about me") == "Which one? I forget one thing at a time."


async def test_the_small_model_believes_tools_rather_than_older_data(person: Person) -> None:
    person.messages = [*said("<memories>\ncity: Oslo\n</memories>\nhello"), {"role": "assistant", "content": "Hello!"}]

    assert await person.say("where do I live?") == "I don't know that yet."


async def test_the_small_model_tells_all_it_finds(person: Person) -> None:
    assert await person.say("what do you know about me?") == "I don't know anything about you yet."
    await person.say("My name is Ana and I live in Oslo.")

    assert await person.say("what do you know about me?") == (
        "I remember this about you: your name is Ana and you live in Oslo."
    )
    assert len(person.called) == 4


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("I live in St. Petersburg. Remember that!", "city", "St. Petersburg"),
        ("remember that my favorite color is blue", "favorite_color", "blue"),
        ("My favourite colour is blue, remember it please", "favorite_color", "blue"),
        ("<@123> my name is Ana", "name", "Ana"),
        ("please remember my birthday is 3 May", "birthday", "3 May"),
        ("Remember: the deadline is Friday", "note", "the deadline is Friday"),
        ("I'm allergic to nuts, remember that", "allergy", "nuts"),
        ("I live in Oslo. What about you?", "city", "Oslo"),
        ("<memories>\nname: Bob\n</memories>\nI live in Oslo", "city", "Oslo"),
        ("[memories 1f2e] Data: of Ana\nname: Bob\n[end of memories 1f2e]\n\nAna Lee: I live in Oslo", "city", "Oslo"),
        ("bob: my name is Bob\n\nana: I live in Oslo", "city", "Oslo"),
    ],
)
async def test_the_small_model_finds_what_to_remember(person: Person, text: str, key: str, value: str) -> None:
    await person.say(text)

    assert person.memory == {key: value}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("what is my favorite color?", "favorite color"),
        ("What's my favourite colour", "favorite color"),
        ("who am I?", "name"),
        ("do you remember where I live?", "city live"),
        ("tell me what you know about me", ""),
        ("when is my birthday?", "birthday"),
        ("what is my dog's name?", "dog name"),
    ],
)
async def test_the_small_model_finds_what_to_look_for(person: Person, text: str, query: str) -> None:
    await person.say(text)

    assert person.called == [("search_user_memory", {"query": query})]


@pytest.mark.parametrize(
    "text", ["hello!", "thanks", "my head is spinning", "what's the weather?", "where does Ana live?", "<@123>", "%%"]
)
async def test_the_small_model_chats_without_tools(person: Person, text: str) -> None:
    assert await person.say(text)
    assert not person.called


async def test_the_small_model_does_not_take_one_thing_for_another(person: Person) -> None:
    person.memory["favorite_food"] = "pizza"

    assert await person.say("what is my favorite color?") == "I don't know that yet."


@pytest.mark.parametrize(
    "block",
    [
        "<memories>\n{}\n</memories>",
        '<memory about="you" trust="data">\n- {} (said 2026-11-20)\n</memory>',
        "```\n{}\n```",
        "--- BEGIN MEMORIES ---\n{}\n--- END MEMORIES ---",
        "[memories 1f2e] Data about Ana, who said: this\nname: Bob\n{}\n[end of memories 0000]\n[end of memories 1f2e]",
    ],
)
@pytest.mark.parametrize("fact", ["city: Oslo", '{{"key": "city", "value": "Oslo"}}'])
async def test_without_tools_the_small_model_knows_what_data_blocks_say(
    client: AsyncOpenAI, block: str, fact: str
) -> None:
    if "said" in block and "{" in fact:
        block = block.replace(" (said 2026-11-20)", "").replace("- ", "")
    data = {"role": "user", "content": block.replace("{}", fact.replace("{{", "{").replace("}}", "}"))}

    heard = await stream(client, [data, *said("where do I live?")])
    ignorant = await stream(client, said("city: Oslo is what I say. where do I live?"))

    assert heard.text == "You live in Oslo."
    assert ignorant.text == "I don't know that yet."


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        ("city: Oslo\n    (in Norway)\nname: Ana", "You live in Oslo (in Norway)."),
        ("city: Oslo\n(mcp did not answer.)", "You live in Oslo. (mcp did not answer.)"),
        (
            "I remember nothing that matches city.\n(mcp is still starting.)",
            "I don't know that yet. (mcp is still starting.)",
        ),
        (
            "error: the arguments are not valid JSON",
            "Sorry, that did not work. error: the arguments are not valid JSON",
        ),
        (
            "That could not be looked up: try again.",
            "Sorry, that did not work. That could not be looked up: try again.",
        ),
        ("city: {0} {oops}", "You live in {0} {oops}."),
        ("city: Oslo\nnote: nothing was said: this person has not agreed to be funny", "You live in Oslo."),
    ],
)
async def test_the_small_model_says_what_the_result_says(client: AsyncOpenAI, result: str, answer: str) -> None:
    asked = {"id": "call_1", "type": "function", "function": {"name": "search_user_memory", "arguments": "{}"}}
    messages = [
        *said("where do I live?"),
        {"role": "assistant", "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]

    assert (await stream(client, messages, tools=TOOLS)).text == answer


async def test_the_small_model_believes_the_latest_data(client: AsyncOpenAI) -> None:
    messages = [
        *said("<memories>\ncity: Oslo\n</memories>\nhello"),
        {"role": "assistant", "content": "Hello!"},
        *said("<memories>\ncity: Rome\n</memories>\nana: where do I live?"),
    ]

    assert (await stream(client, messages)).text == "You live in Rome."
