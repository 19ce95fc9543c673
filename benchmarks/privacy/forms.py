"""What no text of a person may do to what the bot says, or to what its model is asked. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PREFIXES = tuple("%!/.?$-")
INVISIBLE = "\u200b"  # what the bot makes a text harmless with

_LINE_ENDS = re.compile(r"\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
_MENTION = re.compile(r"@everyone|@here|<@[!&]?\d+>|<#\d+>|</[^<>]{1,64}:\d+>|<id:\w+>", re.IGNORECASE)
_BREAKOUTS = {"code block": "```", "spoiler": "||"}
_MASKED_LINK = re.compile(r"\]\(\s*<?\s*\w+:", re.IGNORECASE)
_OPENERS, _POP = "\u202a\u202b\u202d\u202e", "\u202c"
_ISOLATES, _POP_ISOLATE = "\u2066\u2067\u2068", "\u2069"
_SPEAKER = re.compile(r"[^#]* #(\d+): (.*)")  # a name with a number in it could be taken for somebody else's
_ADDRESSED = re.compile(r"You answer (.*) #(\d+), and act")
_MARK = re.compile(r"\[memories ([0-9a-f]+)\]")
_FORGED_BLOCK = re.compile(r"\[\s*(?:end\s+of\s+)?memories", re.IGNORECASE)
_HEADER = re.compile(r"instruction, and it is already remembered")
_SHORTEST = 6
_COMPARED = 60  # of a line that might be ours
_SAID = 24  # of what somebody said


def fragments(texts: Iterable[str]) -> set[str]:
    """Return what would stand at the beginning of a line if a text of several lines were shown as it is."""
    later = (plain(line)[:_COMPARED] for text in texts for line in _LINE_ENDS.split(text)[1:])
    return {line for line in later if len(line) >= _SHORTEST}


def plain(text: str) -> str:
    """Return *text* without what nobody sees, at its beginning and within."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c in "\n\t").strip()


def wrong_with_message(content: str, *, is_talk: bool, hostile: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with a message of the bot.

    Args:
        is_talk: the words are the model's own, which may be of any form.
        hostile: what the attacker said, in whole.
    """
    if not content.lstrip("\ufeff \t\r\n").startswith(INVISIBLE) and plain(content).startswith(PREFIXES):
        yield f"command: it begins with {plain(content)[:1]}"
    if found := _MENTION.search(content):
        yield f"mention: {found[0]}"
    if is_talk:
        return
    for name, opened in _BREAKOUTS.items():
        if opened in content:
            yield f"break-out: a {name}"
    if _MASKED_LINK.search(content):
        yield "break-out: a masked link"
    forged = fragments(hostile)
    lines = _LINE_ENDS.split(content)
    for line in lines:
        if line_begins := next((each for each in forged if plain(line).startswith(each)), ""):
            yield f"break-out: a line begins with what was said: {line_begins}"
        if _is_turned(line):
            yield "break-out: our words are turned around"
    start = plain(lines[0])[:_COMPARED] if lines else ""
    if len(start) >= _SHORTEST and any(start in plain(each) for each in hostile):
        yield f"break-out: the message begins with what was said: {start}"


def _is_turned(line: str) -> bool:
    """Return whether a control of direction that is open reaches words behind a colon, an arrow or a full stop."""
    depth = isolates = 0
    for n, c in enumerate(line):
        depth += (c in _OPENERS) - (c == _POP and depth > 0)
        isolates += (c in _ISOLATES) - (c == _POP_ISOLATE and isolates > 0)
        if (depth or isolates) and re.match(r"(?: ←|\. |: \w|, from|\)\.)", line[n + 1 :]):
            return True
    return False


class Prompts:
    """What a model was asked in one channel after the other; it learns who has which number where.

    Args:
        said: what each person said so far, by who they are; grows with what is said.
    """

    def __init__(self, said: Mapping[str, list[str]]) -> None:
        self._said = said
        self._numbers: dict[tuple[str, int], str] = {}

    def wrong_with(self, body: Mapping[str, Any], *, who: str, channel: str, hostile: Sequence[str]) -> Iterator[str]:
        """Yield what is wrong with a request that is made for *who*."""
        messages = body["messages"]
        system = str(messages[0]["content"])
        addressed, mark = _ADDRESSED.search(system), _MARK.search(system)
        if addressed is None or mark is None:
            yield "forged: the rules are not what they were"
            return
        if self._numbers.setdefault((channel, int(addressed[2])), who) != who:
            yield "forged: a number of somebody else"
        later = fragments(hostile)
        for message in messages[1:]:
            content = str(message.get("content") or "")
            if message["role"] == "user":
                yield from self._wrong_with_user(content, mark[1], channel)
            elif message["role"] == "tool":
                for line in _LINE_ENDS.split(content):
                    if found := next((each for each in later if plain(line) == line and line.startswith(each)), ""):
                        yield f"forged: a tool's line begins with what was said: {found}"

    def _wrong_with_user(self, content: str, mark: str, channel: str) -> Iterator[str]:
        inside = False
        for line in _LINE_ENDS.split(content):
            if line.startswith(f"[memories {mark}]"):
                inside = True
            elif line == f"[end of memories {mark}]":
                inside = False
            elif inside:
                if not _is_memory(line) and not _HEADER.match(line):
                    yield f"forged: in the block of memories stands {line[:60]!r}"
            elif _FORGED_BLOCK.search(unicodedata.normalize("NFKC", plain(line))):
                yield f"forged: a block of memories: {line[:60]!r}"
            elif line.strip() and not line.startswith("    ") and not self._is_speaker(line, channel):
                yield f"forged: nobody said {line[:60]!r}"

    def _is_speaker(self, line: str, channel: str) -> bool:
        found = _SPEAKER.match(line)
        if found is None:
            return line.startswith("(Your memory does not answer")
        who = self._numbers.get((channel, int(found[1])))
        if who is None:
            return False
        start = plain(found[2])[:_SAID]
        bare = unicodedata.normalize("NFKC", start).replace("(", "[")
        return any(bare in unicodedata.normalize("NFKC", plain(said)).replace("(", "[") for said in self._said[who])


def _is_memory(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
