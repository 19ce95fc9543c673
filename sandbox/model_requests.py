"""What OpenAI itself would refuse in a request, so that a client which gets it wrong hears of it here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.bodies import Json

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def complaints(body: Json) -> Iterator[str]:
    """Yield what is wrong with a chat completion's request, in OpenAI's words where it is known for them."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "[] is too short - 'messages'"
        return
    unanswered: set[Any] = set()
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            yield f"Invalid value: 'messages[{n}].role'"
        elif message["role"] == "tool":
            if message.get("tool_call_id") not in unanswered:
                yield f"messages[{n}]: a tool message must be a response to a preceding message with 'tool_calls'"
            unanswered.discard(message.get("tool_call_id"))
            yield from of_content(n, message)
        else:
            if unanswered:
                yield f"messages[{n}]: tool messages must first respond to {len(unanswered)} more 'tool_call_id'"
            unanswered = set()
            if message["role"] == "assistant" and "tool_calls" in message:
                yield from of_calls(n, message["tool_calls"], unanswered)
            else:
                yield from of_content(n, message)
    if unanswered:
        yield f"tool messages must still respond to {len(unanswered)} more 'tool_call_id'"
    yield from of_tools(body)


def of_content(n: int, message: Json) -> Iterator[str]:
    if not isinstance(message.get("content"), str | list):
        yield f"Invalid type for 'messages[{n}].content': expected a string or an array"


def of_calls(n: int, calls: Any, unanswered: set[Any]) -> Iterator[str]:
    """Yield what is wrong with an assistant's calls, and add their ids to *unanswered*."""
    if not isinstance(calls, list) or not calls:
        yield f"[] is too short - 'messages[{n}].tool_calls'"
        return
    for m, each in enumerate(calls):
        where = f"messages[{n}].tool_calls[{m}]"
        function = each.get("function") if isinstance(each, dict) else None
        if not isinstance(function, dict):
            yield f"Missing required parameter: '{where}.function'"
            continue
        if not isinstance(each.get("id"), str) or not each["id"] or each["id"] in unanswered:
            yield f"Invalid '{where}.id': expected a string that no other call has"
        else:
            unanswered.add(each["id"])
        if each.get("type") != "function":
            yield f"Invalid value: '{where}.type'"
        if not isinstance(function.get("name"), str) or not NAME.fullmatch(function["name"]):
            yield f"Invalid '{where}.function.name': string does not match pattern"
        if not isinstance(function.get("arguments"), str):
            yield f"Invalid type for '{where}.function.arguments': expected a string"


def of_tools(body: Json) -> Iterator[str]:
    if "tools" not in body:
        for name in ("tool_choice", "parallel_tool_calls"):
            if name in body:
                yield f"'{name}' is only allowed when 'tools' are specified"
        return
    if not isinstance(body["tools"], list) or not body["tools"]:
        yield "[] is too short - 'tools'"
        return
    for n, tool in enumerate(body["tools"]):
        function = tool.get("function") if isinstance(tool, dict) else None
        offered = function.get("name") if isinstance(function, dict) else None
        if not isinstance(offered, str) or not NAME.fullmatch(offered):
            yield f"Invalid 'tools[{n}].function.name': string does not match pattern"
