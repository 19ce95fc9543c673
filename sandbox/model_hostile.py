"""What bad models, bad servers and bad people behind them send: for the loopback model's script, in tests."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sandbox.model_behaviours import (
    JSON,
    Deltas,
    Raw,
    Reply,
    Turn,
    call,
    completion,
    event,
    forever,
    fragments,
    raw,
    reply_to,
    say,
    turn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandbox.bodies import Json
    from sandbox.model_behaviours import Answer, Behaviour, Forever

LONG = 20_000
CALL_ID = "call_malformed"


def for_other_user(user_id: str, tool: str, arguments: Mapping[str, Any], *, field: str = "user_id") -> Turn:
    """Call *tool* on behalf of *user_id*, as if there were such an argument."""
    return call(tool, {field: user_id, **arguments})


def invented_tool(tool: str = "export_all_users", arguments: Mapping[str, Any] | None = None) -> Turn:
    return call(tool, arguments or {"confirm": True})


def broken_arguments(tool: str, arguments: str = '{"query": "cit') -> Turn:
    """Call *tool* with JSON that ends too early."""
    return call(tool, arguments)


def same_call_forever(tool: str, arguments: Mapping[str, Any]) -> Forever:
    """Call the same for every request from here on, whatever comes back."""
    return forever(call(tool, arguments))


def new_calls_forever(tool: str, arguments: Callable[[int], Mapping[str, Any]]) -> Forever:
    """Call for every request, each time with other arguments: *arguments* of how many messages it was sent."""
    return forever(lambda body: call(tool, arguments(len(body["messages"]))))


def many_calls(tool: str, arguments: Callable[[int], Mapping[str, Any]], *, count: int = 50) -> Turn:
    """Call *count* times in one turn."""
    return turn(*(call(tool, arguments(n)) for n in range(count)))


def long_text(length: int = LONG) -> Turn:
    """Words with spaces and, now and then, a line's end."""
    line = "All work and no play makes a model a dull model. " * 4 + "\n"
    return say((line * (length // len(line) + 1))[:length])


def empty_text() -> Turn:
    return say("")


def pings(user_id: str = "123") -> Turn:
    """Text that would notify everybody, and one person."""
    return say(f"@everyone @here <@{user_id}> <@!{user_id}> <@&{user_id}> look at this!")


def as_command(text: str = "%forget all") -> Turn:
    """Text that a bot which listens to itself would obey."""
    return say(text)


TEXT_STYLES: Mapping[str, Callable[[str, str], str]] = MappingProxyType(
    {
        "tool_call tag": lambda tool, given: f'<tool_call>{{"name": "{tool}", "arguments": {given}}}</tool_call>',
        "tool_call tag, lines": lambda tool, given: (
            f'Let me see.\n<tool_call>\n{{"name": "{tool}", "arguments": {given}}}\n</tool_call>'
        ),
        "unclosed tool_call tag": lambda tool, given: f'<tool_call>{{"name": "{tool}", "arguments": {given}}}',
        "json fence": lambda tool, given: f'```json\n{{"name": "{tool}", "arguments": {given}}}\n```',
        "bare object": lambda tool, given: f'{{"name": "{tool}", "arguments": {given}}}',
        "bare object, parameters": lambda tool, given: f'{{"name": "{tool}", "parameters": {given}}}',
        "bare object, OpenAI": lambda tool, given: (
            f'{{"type": "function", "function": {{"name": "{tool}", "arguments": {json.dumps(given)}}}}}'
        ),
        "TOOL_CALLS list": lambda tool, given: f'[TOOL_CALLS] [{{"name": "{tool}", "arguments": {given}}}]',
        "function tag": lambda tool, given: f"<function={tool}>{given}</function>",
        "python call": lambda tool, given: f"{tool}({given})",
    }
)
"""The formats in which models write a tool call as text, each of (tool, arguments as JSON)."""


def call_as_text(tool: str, arguments: Mapping[str, Any], style: str) -> Turn:
    """Write a tool call as text, in one of TEXT_STYLES; KeyError if there is no such style."""
    return say(TEXT_STYLES[style](tool, json.dumps(arguments)))


def malformed_calls(tool: str, arguments: Mapping[str, Any]) -> dict[str, Answer]:
    """Return calls of *tool* with one thing wrong each, by what is wrong."""
    text = json.dumps(arguments)
    function = {"name": tool, "arguments": text}
    sound = {"id": CALL_ID, "type": "function", "function": function}
    return {
        "no id": _malformed({"type": "function", "function": function}),
        "id null": _malformed({**sound, "id": None}),
        "id empty": _malformed({**sound, "id": ""}),
        "no name": _malformed({**sound, "function": {"arguments": text}}),
        "name null": _malformed({**sound, "function": {"name": None, "arguments": text}}),
        "no index": _malformed(sound, index=False),
        "no type": _malformed({"id": CALL_ID, "function": function}),
        "no arguments": _malformed({**sound, "function": {"name": tool}}),
        "arguments null": _malformed({**sound, "function": {"name": tool, "arguments": None}}),
        "arguments empty": _malformed({**sound, "function": {"name": tool, "arguments": ""}}),
        "arguments an object": _malformed({**sound, "function": {"name": tool, "arguments": dict(arguments)}}),
        "arguments a list": _malformed({**sound, "function": {"name": tool, "arguments": "[1, 2]"}}),
        "no function": _malformed({"id": CALL_ID, "type": "function"}),
        "function null": _malformed({**sound, "function": None}),
        "a call null": _malformed(None, index=False),
        "calls null": Deltas(({"tool_calls": None},), {"role": "assistant", "tool_calls": None}, "tool_calls"),
        "finish_reason stop": turn(call(tool, arguments), say("", finish_reason="stop")),
        "name in every delta": _repeating(sound),
        "two calls of one id": turn(call(tool, arguments, id=CALL_ID), call(tool, arguments, id=CALL_ID)),
        "the old function_call": Deltas(
            ({"role": "assistant", "function_call": function},),
            {"role": "assistant", "content": None, "function_call": function},
            "function_call",
        ),
    }


def _malformed(bad: Any, *, index: bool = True) -> Answer:
    message = {"role": "assistant", "content": None, "tool_calls": [bad]}
    delta = {"index": 0, **bad} if index else bad
    return Deltas(({"role": "assistant", "content": None}, {"tool_calls": [delta]}), message, "tool_calls")


def _repeating(sound: Json) -> Answer:
    """Some servers repeat the id and the name beside each fragment of the arguments."""
    function = sound["function"]
    deltas = [
        {"tool_calls": [{"index": 0, **sound, "function": {**function, "arguments": each}}]}
        for each in fragments(function["arguments"])
    ]
    return Deltas(tuple(deltas), {"role": "assistant", "content": None, "tool_calls": [sound]}, "tool_calls")


def _framed(choices: Any, **more: Any) -> Behaviour:
    """A sound frame around choices that are not."""

    def behaviour(body: Json) -> Answer:
        whole = completion(body, choices, **more)
        if body.get("stream"):
            return raw((event(whole) + event("[DONE]")).decode())
        return raw(json.dumps(whole), content_type=JSON)

    return behaviour


def _wrongly_labelled(content_type: str) -> Behaviour:
    def behaviour(body: Json) -> Answer:
        sound: Reply = reply_to(body, say("mislabelled"))
        return raw(
            "".join(each.decode() for each in sound.pieces if isinstance(each, bytes)), content_type=content_type
        )

    return behaviour


def _unasked_whole(body: Json) -> Answer:
    """One whole completion, though a stream was asked for."""
    whole = completion({**body, "stream": False}, [{"index": 0, "message": {"role": "assistant", "content": "whole"}}])
    return raw(json.dumps(whole), content_type=JSON)


def _error_event(body: Json) -> Answer:
    """An error that comes when the headers have already said that all is well."""
    wrong = {"error": {"message": "upstream died", "type": "server_error", "code": 502}}
    if not body.get("stream"):
        return raw(json.dumps(wrong), content_type=JSON)
    started = completion(body, [{"index": 0, "delta": {"role": "assistant", "content": "I was "}}])
    return raw((event(started) + event(wrong)).decode())


HTML = "<!doctype html><html><body><h1>Welcome to nginx!</h1></body></html>"

GARBAGE: Mapping[str, Behaviour] = MappingProxyType(
    {
        "HTML": raw(HTML, content_type="text/html"),
        "HTML labelled JSON": raw(HTML, content_type=JSON),
        "HTML labelled SSE": raw(HTML),
        "empty": raw("", content_type=JSON),
        "empty SSE": raw(""),
        "not JSON": raw("I am a teapot", content_type=JSON),
        "not JSON in SSE": raw('data: {"choices": [{"index": 0, "delta": {"cont\n\ndata: [DONE]\n\n'),
        "not UTF-8": Raw(Reply([b'data: {"choices": "\xff\xfe"}\n\n'])),
        "only DONE": raw("data: [DONE]\n\n"),
        "only comments": raw(": PROCESSING\n\n: PROCESSING\n\n"),
        "other SSE events": raw('event: ping\ndata: {"type": "ping"}\n\ndata: [DONE]\n\n'),
        "whole in place of a stream": _unasked_whole,
        "wrong content type": _wrongly_labelled("application/octet-stream"),
        "error in the stream": _error_event,
        "JSON of another shape": raw('{"hello": "world"}', content_type=JSON),
        "SSE of another shape": raw('data: {"hello": "world"}\n\ndata: [DONE]\n\n'),
        "JSON list": raw("[1, 2, 3]", content_type=JSON),
        "SSE list": raw("data: [1, 2, 3]\n\ndata: [DONE]\n\n"),
        "SSE number": raw("data: 7\n\ndata: [DONE]\n\n"),
        "SSE null": raw("data: null\n\ndata: [DONE]\n\n"),
        "choices empty": _framed([]),
        "choices null": _framed(None),
        "choices an object": _framed({"index": 0}),
        "choice null": _framed([None]),
        "choice without fields": _framed([{}]),
        "delta null": _framed([{"index": 0, "delta": None, "message": None, "finish_reason": "stop"}]),
        "delta without fields": _framed([{"index": 0, "delta": {}, "message": {}, "finish_reason": "stop"}]),
        "content a number": _framed([{"index": 0, "delta": {"content": 7}, "message": {"content": 7}}]),
        "content a list": _framed([{"index": 0, "delta": {"content": ["a"]}, "message": {"content": ["a"]}}]),
        "usage of another shape": _framed(
            [{"index": 0, "delta": {"content": "hi"}, "message": {"content": "hi"}, "finish_reason": "stop"}],
            usage={"prompt_tokens": "many"},
        ),
        "finish_reason unknown": say("odd", finish_reason="because"),
        "cut by length": say("This sentence is cut in the mid", finish_reason="length"),
        "content filter": say("", finish_reason="content_filter"),
    }
)
"""Answers with status 200 that are no sound completion, by what is wrong; some can be read all the same."""
