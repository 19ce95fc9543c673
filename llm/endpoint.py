"""Any OpenAI-compatible endpoint: one streamed answer at a time, and every way it fails in words."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

log = logging.getLogger(__name__)

ANSWER_MAX = 20_000
"""Characters of one answer; what comes after is not read."""

CALLS_MAX = 64
_ARGUMENTS_MAX = 1_000_000
_CHECK_S = 10.0
_NEW_LIMIT = "max_completion_tokens"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class ModelError(Exception):
    """The model gave no answer; the text says why, fit for the status and the log."""


class ModelSetupError(ModelError):
    """It never will with these settings: a wrong key, address or model."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the model is.

    Attributes:
        key: empty for servers that need none.
        retries: how often a 429, a 5xx or a lost connection is tried again, after what Retry-After says.
        most_tokens: the longest answer.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    retries: int = 2
    most_tokens: int = 800


@dataclass(slots=True)
class ToolCall:
    """One call that the model asks for; its arguments are the text that the model wrote."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Draft:
    """What has come of an answer so far: it grows while the answer streams in."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class Endpoint:
    """The model behind an address. The client library is imported at `open`, in a thread."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self._openai: ModuleType | None = None
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._limit = "max_tokens"

    async def open(self) -> None:
        """Make ready; safe to repeat. Nothing is sent."""
        async with self._opening:
            if self._client is None:
                if not self.settings.key.isascii():
                    raise ModelSetupError("the key holds characters that no key has")
                self._openai = await asyncio.to_thread(importlib.import_module, "openai")
                try:
                    self._client = self._make_client(self._openai)
                except Exception as exc:  # a proxy or an address that the library cannot use
                    raise ModelSetupError(f"{self.where} cannot be used ({type(exc).__name__})") from exc

    async def close(self) -> None:
        """Let go of the connections; safe to repeat."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def check(self) -> None:
        """Ask for the list of models, so that a wrong key or address shows at once.

        Raises:
            ModelError: what is wrong.
        """
        await self.open()
        try:
            async with asyncio.timeout(_CHECK_S):
                listed = await self._models()
                if listed is None:  # a server may lack the list, and answer
                    await self.ask([{"role": "user", "content": "hello"}], [], Draft())
                elif listed and self.settings.model not in listed | {name.split(":")[0] for name in listed}:
                    raise ModelSetupError(f"{self.where} knows no model {self.settings.model!r}")
        except TimeoutError as exc:
            raise ModelError(f"{self.where} does not answer within {_CHECK_S:g} s") from exc

    async def _models(self) -> set[str] | None:
        """Return the models that the server lists; None if it has no list."""
        try:
            found = await self._client.with_options(max_retries=0).models.list()
        except Exception as exc:  # as in `ask`
            if getattr(exc, "status_code", None) in {404, 405, 501}:
                return None
            raise self._error(exc) from exc
        return {str(getattr(model, "id", "")) for model in getattr(found, "data", None) or []}

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], draft: Draft
    ) -> None:
        """Stream one answer into *draft*, which holds what came even if this fails half-way.

        Raises:
            ModelError: no answer, or not all of it.
        """
        await self.open()
        options: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            stream = await self._stream(messages, options)
            came = False
            async with stream:
                async for chunk in stream:
                    came |= bool(getattr(chunk, "choices", None))
                    if not _take(chunk, draft):
                        break
        except Exception as exc:  # whatever a server makes the library raise is one answer less, and no more
            raise self._error(exc) from exc
        if not came:
            raise ModelError(f"the answer of {self.where} makes no sense (nothing in it)")

    @property
    def where(self) -> str:
        """The address, for people: without a password that may stand in it."""
        parts = urlsplit(self.settings.base_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _make_client(self, openai: ModuleType) -> Any:
        options: dict[str, Any] = {}
        if urlsplit(self.settings.base_url).hostname in _LOOPBACK:  # no proxy stands between us and ourselves
            options["http_client"] = openai.DefaultAsyncHttpxClient(trust_env=False)
        return openai.AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self.settings.key or "none",  # the library insists on one
            max_retries=self.settings.retries,
            **options,
        )

    async def _stream(self, messages: Sequence[Mapping[str, Any]], options: dict[str, Any]) -> Any:
        """Begin an answer; OpenAI's newer models know the limit of its length by another name."""
        create = self._client.chat.completions.create
        request = {"model": self.settings.model, "messages": list(messages), "stream": True, **options}
        try:
            return await create(**request, **{self._limit: self.settings.most_tokens})
        except Exception as exc:  # sorted by `ask`
            if getattr(exc, "status_code", None) != 400 or _NEW_LIMIT not in str(exc) or self._limit == _NEW_LIMIT:
                raise
            self._limit = _NEW_LIMIT
            return await create(**request, **{self._limit: self.settings.most_tokens})

    def _error(self, exc: Exception) -> ModelError:
        """Return what *exc* means, without what the server said: that may quote the request."""
        if isinstance(exc, ModelError):
            return exc
        if self._openai is None:
            return ModelError(type(exc).__name__)
        status = getattr(exc, "status_code", None)
        where = self.where
        if status in {401, 403}:
            return ModelSetupError(f"{where} refused the key ({status})")
        if status == 404:
            return ModelSetupError(f"{where} knows no model {self.settings.model!r}, or is no such address (404)")
        if status == 429:
            return ModelError(f"{where} has had enough of us for now (429)")
        if isinstance(status, int):
            return ModelError(f"{where} answered with status {status}")
        if isinstance(exc, self._openai.APIConnectionError):
            return ModelError(f"{where} cannot be reached")
        return ModelError(f"the answer of {where} makes no sense ({type(exc).__name__})")


def _take(chunk: Any, draft: Draft) -> bool:
    """Add what *chunk* brings to *draft*; return whether there may be more. Servers leave out whatever they like."""
    choices = getattr(chunk, "choices", None) or []
    delta = getattr(choices[0], "delta", None) if choices else None
    if delta is None:
        return True
    text = getattr(delta, "content", None)
    if isinstance(text, str):
        draft.text = (draft.text + text)[:ANSWER_MAX]
    for part in getattr(delta, "tool_calls", None) or []:
        _take_call(part, draft.calls)
    return len(draft.text) < ANSWER_MAX and len(draft.calls) <= CALLS_MAX


def _take_call(part: Any, calls: list[ToolCall]) -> None:
    function = getattr(part, "function", None)
    name = getattr(function, "name", None) or ""
    arguments = getattr(function, "arguments", None)
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    index = getattr(part, "index", None)
    call_id = getattr(part, "id", None)
    known = calls[index] if isinstance(index, int) and 0 <= index < len(calls) else None
    if known is None and index is None and not call_id and not name and calls:
        known = calls[-1]
    if known is None or (call_id and known.id and call_id != known.id):
        known = ToolCall(str(call_id or f"call_{len(calls)}"), str(name))
        calls.append(known)
    elif name and not known.name:
        known.name = str(name)
    known.arguments = (known.arguments + (arguments or ""))[:_ARGUMENTS_MAX]
