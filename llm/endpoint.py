"""Any OpenAI-compatible endpoint: one streamed answer at a time, and every way it fails in words."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

log = logging.getLogger(__name__)

ANSWER_MAX = 20_000
"""Characters of one answer; what comes after is not read."""

CALLS_MAX = 64
_ARGUMENTS_MAX = 1_000_000
_CHECK_S = 10.0


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

    async def open(self) -> None:
        """Make ready; safe to repeat. Nothing is sent."""
        async with self._opening:
            if self._client is None:
                self._openai = await asyncio.to_thread(importlib.import_module, "openai")
                self._client = self._openai.AsyncOpenAI(
                    base_url=self.settings.base_url,
                    api_key=self.settings.key or "none",  # the library insists on one
                    max_retries=self.settings.retries,
                )

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
                await self._client.with_options(max_retries=0).models.list()
        except TimeoutError as exc:
            raise ModelError(f"{self.settings.base_url} does not answer within {_CHECK_S:g} s") from exc
        except Exception as exc:  # as in `ask`
            error = self._error(exc)
            if getattr(exc, "status_code", None) not in {404, 405, 501}:  # a server may lack the list, and answer
                raise error from exc

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
            stream = await self._client.chat.completions.create(
                model=self.settings.model,
                messages=list(messages),
                max_tokens=self.settings.most_tokens,
                stream=True,
                **options,
            )
            came = False
            async with stream:
                async for chunk in stream:
                    came |= bool(getattr(chunk, "choices", None))
                    if not _take(chunk, draft):
                        break
        except Exception as exc:  # whatever a server makes the library raise is one answer less, and no more
            raise self._error(exc) from exc
        if not came:
            raise ModelError(f"the answer of {self.settings.base_url} makes no sense (nothing in it)")

    def _error(self, exc: Exception) -> ModelError:
        """Return what *exc* means, without what the server said: that may quote the request."""
        if self._openai is None:
            return ModelError(type(exc).__name__)
        status = getattr(exc, "status_code", None)
        where = self.settings.base_url
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
