"""What a loopback model can be told to do with a request: answer in text and tool calls, refuse, hang, break off.

Values only; sandbox/model.py plays them. What no good model does is in sandbox/model_hostile.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sandbox.bodies import Json

SSE = "text/event-stream"
JSON = "application/json"
PIECES_MOST = 32  # of a text or of a call's arguments, where nobody says how many
PIECE_LEAST = 8
CREATED = 1_750_000_000


class Cut(Enum):
    """The connection ends here, in the middle of whatever was being sent."""

    CUT = "cut"


Piece: TypeAlias = bytes | asyncio.Event | Literal[Cut.CUT]


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer: its bytes are sent, its events are waited for; the headers go out with the first bytes."""

    pieces: Sequence[Piece]
    content_type: str = SSE
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Answer(ABC):
    """What the model does with one request."""

    __slots__ = ()

    @abstractmethod
    def reply(self, body: Json) -> Reply:
        """Return what goes over the wire for the request *body*, which asks for a stream or does not."""


Behaviour: TypeAlias = "Answer | Callable[[Json], Behaviour]"
"""An answer, or a function that chooses one when the request is there."""


def reply_to(body: Json, behaviour: Behaviour) -> Reply:
    while not isinstance(behaviour, Answer):
        behaviour = behaviour(body)
    return behaviour.reply(body)


def say(text: str, *, chunks: int | Sequence[str] | None = None, finish_reason: str | None = None) -> Turn:
    """Answer in *text*, streamed in that many *chunks* or in exactly these (whose text then counts)."""
    if chunks is None or isinstance(chunks, int):
        chunks = fragments(text, chunks)
    return Turn(texts=tuple(chunks), finish_reason=finish_reason)


def call(tool: str, arguments: Mapping[str, Any] | str, *, id: str | None = None) -> Turn:  # noqa: A002 - OpenAI's name
    """Call *tool*. Arguments that are text are sent as they are, JSON or not; an id is made if none is given."""
    return Turn(calls=(Call(tool, arguments if isinstance(arguments, str) else json.dumps(arguments), id),))


def turn(*parts: Turn, interleaved: bool = False) -> Turn:
    """Do several things in one turn: all texts, then all calls in order; or with their fragments *interleaved*."""
    reasons = [part.finish_reason for part in parts if part.finish_reason is not None]
    return Turn(
        texts=tuple(chain.from_iterable(part.texts for part in parts)),
        calls=tuple(chain.from_iterable(part.calls for part in parts)),
        finish_reason=reasons[-1] if reasons else None,
        interleaved=interleaved,
    )


def refuse(
    status: int, *, retry_after_s: float | None = None, body: Json | str | None = None, code: str | None = None
) -> Answer:
    """Answer with the HTTP *status* and OpenAI's error body, or with *body*: a dict is JSON, text is a proxy's HTML."""
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    if isinstance(body, str):
        return Raw(Reply([body.encode()], "text/html", status, headers))
    body = body or error(status, code=code)
    return Raw(Reply([json.dumps(body).encode()], JSON, status, headers))


def hang() -> Answer:
    """Take the request and never answer, not even with headers."""
    return Raw(Reply([asyncio.Event()]))


def hang_after(behaviour: Behaviour, *, after: int = 2) -> Answer:
    """Stop for good after that many chunks, the first of which carries only the role."""
    return slow(behaviour, asyncio.Event(), after=after)


def disconnect_after(behaviour: Behaviour, *, after: int = 2) -> Answer:
    """Drop the connection after that many chunks; 0 is before the headers."""
    return Disconnecting(behaviour, after)


def slow(behaviour: Behaviour, until: asyncio.Event, *, after: int = 2) -> Answer:
    """Send that many chunks at once, and each later one only while *until* is set."""
    return Slow(behaviour, until, after)


def forever(behaviour: Behaviour) -> Forever:
    """Do it for every request from here on, until the script is replaced."""
    return Forever(behaviour)


def raw(content: str, *, content_type: str = SSE, status: int = 200) -> Answer:
    """Send exactly this, whatever was asked for."""
    return Raw(Reply([content.encode()], content_type, status))


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call, its arguments as the text that is sent."""

    tool: str
    arguments: str
    id: str | None = None

    def as_json(self, made_up_id: str) -> Json:
        call_id = made_up_id if self.id is None else self.id
        return {"id": call_id, "type": "function", "function": {"name": self.tool, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Answer):
    """Text in chunks, and tool calls: either, both or neither."""

    texts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    interleaved: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def reply(self, body: Json) -> Reply:
        # Made of the request, so that an id is new in a conversation and the same in a repetition.
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()[:12]
        calls = [each.as_json(f"call_{digest}_{n}") for n, each in enumerate(self.calls)]
        message: Json = {"role": "assistant", "content": self.text if self.texts or not calls else None}
        if calls:
            message["tool_calls"] = calls
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": each} for each in self.texts if each]
        of_calls = [call_deltas(n, each) for n, each in enumerate(calls)]
        together = chain.from_iterable(zip_longest(*of_calls) if self.interleaved else of_calls)
        deltas += [{"tool_calls": [each]} for each in together if each]
        reason = self.finish_reason or ("tool_calls" if calls else "stop")
        return Deltas(tuple(deltas), message, reason).reply(body)


@dataclass(frozen=True, slots=True)
class Deltas(Answer):
    """The `delta` of each chunk as it is sent, sound or not; *message* is the same for who asked for no stream."""

    deltas: tuple[Any, ...]
    message: Any
    finish_reason: str | None = "stop"

    def reply(self, body: Json) -> Reply:
        usage = usage_of(body, self.message)
        if not body.get("stream"):
            choice = {"index": 0, "message": self.message, "logprobs": None, "finish_reason": self.finish_reason}
            whole = json.dumps(completion(body, [choice], usage=usage))
            return Reply([each.encode() for each in fragments(whole, 4)], JSON)
        options = body.get("stream_options") or {}
        wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        no_usage = {"usage": None} if wants_usage else {}
        ends: list[tuple[Any, str | None]] = [*((each, None) for each in self.deltas), ({}, self.finish_reason)]
        events = [
            completion(body, [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], **no_usage)
            for delta, reason in ends
        ]
        if wants_usage:
            events.append(completion(body, [], usage=usage))
        return Reply([*map(event, events), event("[DONE]")])


@dataclass(frozen=True, slots=True)
class Raw(Answer):
    """The same for every request."""

    content: Reply

    def reply(self, body: Json) -> Reply:  # noqa: ARG002 - the point of it
        return self.content


@dataclass(frozen=True, slots=True)
class Slow(Answer):
    behaviour: Behaviour
    until: asyncio.Event
    after: int

    def reply(self, body: Json) -> Reply:
        whole = reply_to(body, self.behaviour)
        early = pieces_before(whole.pieces, self.after)
        late = chain.from_iterable((self.until, piece) for piece in whole.pieces[len(early) :])
        return replace(whole, pieces=[*early, *late])


@dataclass(frozen=True, slots=True)
class Disconnecting(Answer):
    behaviour: Behaviour
    after: int

    def reply(self, body: Json) -> Reply:
        whole = reply_to(body, self.behaviour)
        return replace(whole, pieces=[*pieces_before(whole.pieces, self.after), Cut.CUT])


@dataclass(frozen=True, slots=True)
class Forever(Answer):
    behaviour: Behaviour

    def reply(self, body: Json) -> Reply:
        return reply_to(body, self.behaviour)


def pieces_before(pieces: Sequence[Piece], after: int) -> list[Piece]:
    """Return the pieces up to the one that is sent as number *after*: waiting counts for nothing."""
    before: list[Piece] = []
    for piece in pieces:
        if after <= 0:
            break
        before.append(piece)
        after -= isinstance(piece, bytes)
    return before


def call_deltas(index: int, whole: Json) -> list[Json]:
    """Return a call as it is streamed: its id and name first, then its arguments in fragments."""
    function = whole["function"]
    first = {"index": index, **whole, "function": {"name": function["name"], "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": each}} for each in fragments(function["arguments"])]
    return [first, *rest]


def completion(body: Json, choices: Any, **more: Any) -> Json:
    """Return a completion, or a chunk of one where a stream is asked for."""
    kind = "chat.completion.chunk" if body.get("stream") else "chat.completion"
    head = {"id": "chatcmpl-loopback", "object": kind, "created": CREATED, "model": body.get("model")}
    return {**head, "choices": choices, **more}


def event(data: Json | str) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def fragments(text: str, count: int | None = None) -> list[str]:
    """Return *text* in at most *count* pieces of much the same length, none of them empty."""
    count = count or min(PIECES_MOST, -(-len(text) // PIECE_LEAST)) or 1
    size = -(-len(text) // count) or 1
    return [text[start : start + size] for start in range(0, len(text), size)]


def usage_of(body: Json, message: Any) -> Json:
    """Return the tokens of a request and of its answer: a quarter of their characters."""
    asked = tokens({name: body[name] for name in ("messages", "tools") if name in body})
    answered = tokens(message)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def tokens(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False)) // 4


ERRORS: Mapping[int, tuple[str, str, str | None]] = {
    400: ("The request is not valid.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("You are not allowed to do this.", "invalid_request_error", "forbidden"),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request.", "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded, please try again later.", "server_error", None),
}


def error(status: int, message: str | None = None, *, code: str | None = None) -> Json:
    """Return OpenAI's error body of a *status*."""
    usual, kind, usual_code = ERRORS.get(status, (f"Status {status}.", "api_error", None))
    return {"error": {"message": message or usual, "type": kind, "param": None, "code": code or usual_code}}
