"""A tool call that a model wrote as its answer, as small models do. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llm.endpoint import ToolCall

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LONGEST = 8_000
_TAG = re.compile(r"<\|?tool_calls?\|?>(.*?)(?:</?\|?/?tool_calls?\|?>|$)", re.DOTALL | re.IGNORECASE)
_FUNCTION = re.compile(r"<function=(\w+)>(.*?)(?:</function>|$)", re.DOTALL)
_LIST = re.compile(r"^\s*\[TOOL_CALLS\]\s*(.*)$", re.DOTALL)
_FENCE = re.compile(r"^\s*```(?:json|tool_call)?\s*(.*?)\s*```\s*$", re.DOTALL)
_PYTHONIC = re.compile(r"^\s*(\w+)\((\{.*\})\)\s*$", re.DOTALL)
_MARKUP = re.compile(r"<\|?/?tool_call|\[TOOL_CALLS\]|</?function\b", re.IGNORECASE)


def calls_in(text: str, tools: Collection[str]) -> tuple[list[ToolCall], str]:
    """Return the calls of *tools* that *text* is, and what is left of it to say.

    A call must be the whole of the text, or stand in the tags that models are taught to put calls in. One that is
    quoted in a sentence is only text: it may be somebody else's.
    """
    if len(text) > _LONGEST or not any(tool in text for tool in tools):
        return [], text
    tagged = [*_TAG.findall(text), *(_as_object(name, given) for name, given in _FUNCTION.findall(text))]
    whole = [found[1] for form in (_LIST, _FENCE) if (found := form.match(text))]
    whole += [_as_object(*found.groups()) for found in [_PYTHONIC.match(text)] if found]
    sources = tagged or whole or [text]
    found_calls = [call for source in sources for call in _calls(source, tools)]
    if not found_calls:
        return [], text
    rest = _FUNCTION.sub("", _TAG.sub("", text)).strip() if tagged else ""
    return [ToolCall("", name, arguments) for name, arguments in found_calls], rest


def looks_like_a_call(text: str) -> bool:
    """Return whether *text* is, or ends in, markup of a call rather than something to say."""
    bare = text.strip()
    return bool(_MARKUP.search(bare)) or (bare.startswith("{") and '"arguments"' in bare and '"name"' in bare)


def _as_object(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments.strip() or "{}"}}}'


def _calls(source: str, tools: Collection[str]) -> Iterator[tuple[str, str]]:
    try:
        value: Any = json.loads(source)
    except (ValueError, RecursionError):
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("function"), dict):
            item = item["function"]
        if isinstance(item, dict) and item.get("name") in tools:
            arguments = item.get("arguments", item.get("parameters", {}))
            yield item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)
