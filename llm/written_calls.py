"""Tool calls that a model wrote as text, as small models do. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llm.endpoint import ToolCall

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_MARKS = re.compile(r"</?tool_calls?>|\[/?TOOL_CALLS\]|<\|?/?tool_call\|?>|```(?:json|tool_call)?", re.IGNORECASE)
_FUNCTION = re.compile(r"<function=(\w+)>\s*(\{.*?\})\s*(?:</function>|$)", re.DOTALL)
_PYTHONIC = re.compile(r"^\s*(\w+)\((\{.*\})\)\s*$", re.DOTALL)


def calls_in(text: str, tools: Collection[str]) -> tuple[list[ToolCall], str]:
    """Return the calls of *tools* that *text* spells out, and what is left of it to say.

    Text that is no call stays as it is, also if it talks about one.
    """
    if not any(tool in text for tool in tools):
        return [], text
    calls = [ToolCall("", name, arguments) for name, arguments in _found(text, tools)]
    for number, call in enumerate(calls):
        call.id = f"written_{number}"
    return calls, _without(text, tools) if calls else text


def looks_like_a_call(text: str) -> bool:
    """Return whether *text* is markup of a call rather than something to say."""
    bare = text.strip()
    return bool(re.match(r"<\|?tool_call|\[TOOL_CALLS\]|<function=", bare)) or (
        bare.startswith("{") and '"arguments"' in bare and '"name"' in bare
    )


def _found(text: str, tools: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, arguments in _FUNCTION.findall(text):
        if name in tools:
            yield name, arguments
    written = _PYTHONIC.match(text)
    if written and written[1] in tools:
        yield written[1], written[2]
    for value in _json_values(text):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and isinstance(item.get("function"), dict):
                item = item["function"]
            if isinstance(item, dict) and item.get("name") in tools:
                arguments = item.get("arguments", item.get("parameters", {}))
                yield item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)


def _json_values(text: str) -> Iterator[Any]:
    """Return the JSON values that stand alone in *text*, once its markup is taken away."""
    decoder = json.JSONDecoder()
    at = 0
    bare = _FUNCTION.sub("", text)
    while (begin := _next_bracket(bare, at)) >= 0:
        try:
            value, at = decoder.raw_decode(bare, begin)
        except (ValueError, RecursionError):
            at = begin + 1
        else:
            yield value


def _next_bracket(text: str, start: int) -> int:
    found = [at for at in (text.find("{", start), text.find("[", start)) if at >= 0]
    return min(found, default=-1)


def _without(text: str, tools: Collection[str]) -> str:
    """Return *text* without the calls in it."""
    decoder = json.JSONDecoder()
    left = _MARKS.sub("", _FUNCTION.sub("", text))
    if _PYTHONIC.match(left):
        return ""
    at = 0
    while (begin := _next_bracket(left, at)) >= 0:
        try:
            _, end = decoder.raw_decode(left, begin)
        except (ValueError, RecursionError):
            at = begin + 1
            continue
        if any(tool in left[begin:end] for tool in tools):
            left, at = left[:begin] + left[end:], begin
        else:
            at = end
    return left.strip()
