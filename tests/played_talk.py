"""Documents in which a chat with the bot stands: held for real in the sandbox, and written anew.

    uv run python -m tests.played_talk docs/privacy.md

plays a document in a folder of its own and puts in what was said. What people say stands in a comment in front of each
chat, a line each, as one would type it; between the lines,

    !ready          until both stores are healthy
    !stop mcp       the MCP server stops answering, as if its machine were away
    !go mcp         it goes on
    !wait TEXT      until the bot has said that
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.talk import conversation, furnish

if TYPE_CHECKING:
    from tests.talk import Conversation

_CHAT = re.compile(r"<!-- said\n(?P<said>.*?)-->\n```text\n.*?^```$", re.DOTALL | re.MULTILINE)
_PATIENCE_S = 120.0
_LOOK_S = 0.2
_SAYS = {
    "!stop mcp": ("* the MCP server is away from here on", signal.SIGSTOP),
    "!go mcp": ("* the MCP server is back", signal.SIGCONT),
}


def play(document: str, folder: Path) -> str:
    """Return *document* with the chats as they are now, one after the other in *folder*; each is a run of the bot."""

    def anew(block: re.Match[str]) -> str:
        return f"<!-- said\n{block['said']}-->\n```text\n{_held(block['said'].splitlines(), folder)}\n```"

    return _CHAT.sub(anew, document)


def _held(said: list[str], folder: Path) -> str:
    with conversation(folder) as talk:
        watchdog = threading.Timer(_PATIENCE_S, talk.process.kill)
        watchdog.start()
        try:
            return "\n".join(_chat(talk, said))
        finally:
            watchdog.cancel()


def _chat(talk: Conversation, said: list[str]) -> list[str]:
    heard: list[str] = []
    back = threading.Event()
    for number, line in enumerate(said):
        if line in _SAYS:
            heard += _until(talk, f"/sync{number}")
            told, what = _SAYS[line]
            if what == signal.SIGSTOP:
                threading.Thread(target=_keep_away, args=(talk, back), daemon=True).start()
                time.sleep(_LOOK_S)
            else:
                back.set()
            heard.append(told)
        elif line == "!ready":
            heard += _until(talk, f"/sync{number}")
            while not any("2/2 healthy" in each for each in _asked(talk, f"/ready{number}")):
                pass
        elif line.startswith("!wait "):
            heard += _lines(talk, line.removeprefix("!wait "))
        else:
            _type(talk, line)
    return heard + _until(talk, "/end")


def _keep_away(talk: Conversation, back: threading.Event) -> None:
    """Keep the server stopped, and each that the bot starts in its place, until it is *back*."""
    stopped: set[int] = set()
    while not back.wait(_LOOK_S / 20):
        with suppress(ProcessLookupError, LookupError, AssertionError, ValueError, OSError):  # there is none just now
            server = talk.server()
            if server not in stopped:
                os.kill(server, signal.SIGSTOP)
                stopped.add(server)
    for server in stopped:
        with suppress(ProcessLookupError):  # the bot gave up on it
            os.kill(server, signal.SIGCONT)


def _asked(talk: Conversation, mark: str) -> list[str]:
    """Return how the stores are; that takes as long as they take to start."""
    _type(talk, "%memorystatus")
    return _until(talk, mark)


def _until(talk: Conversation, mark: str) -> list[str]:
    """Return what is said until all that was typed is answered."""
    _type(talk, mark)
    return _lines(talk, f"* there is no {mark};")[:-1]


def _lines(talk: Conversation, wanted: str) -> list[str]:
    assert talk.process.stdout is not None
    heard = []
    for line in talk.process.stdout:
        heard.append(line.rstrip("\n"))
        if wanted in line:
            return heard
    raise AssertionError(f"the bot ended without saying {wanted!r}:\n" + "\n".join(heard))


def _type(talk: Conversation, line: str) -> None:
    assert talk.process.stdin is not None
    talk.process.stdin.write(f"{line}\n")
    talk.process.stdin.flush()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            path = Path(name)
            path.write_text(play(path.read_text(encoding="utf-8"), furnish(Path(place))), encoding="utf-8")
