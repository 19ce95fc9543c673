"""The command that has a person forgotten for good: `erase USER_ID`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from memory.cli.terminal import DONE, NOT_WELL, NOTHING, SETTLE_S, AsJSON, Config, finish, one_line, opened, show
from memory.errors import MemoryRejectedError
from memory.receipt import Part, PartState

if TYPE_CHECKING:
    from pathlib import Path

    from memory.receipt import Receipt
    from memory.shared import MemorySystem, SharedMemory

_COLUMNS = ("place", "state", "found", "why")
_SNOWFLAKE = re.compile(r"[0-9]{15,20}")

BEYOND = (
    Part(
        "a bot that runs",
        PartState.OUT_OF_REACH,
        why="what it has at hand of this account it looks up anew before it uses it, and drops then",
    ),
    Part(
        "what others said",
        PartState.OUT_OF_REACH,
        why="what somebody else told me about this account is theirs, under their own id: they can forget it",
    ),
    Part(
        "Discord",
        PartState.OUT_OF_REACH,
        why="the messages themselves are Discord's: delete there what should not stay there",
    ),
)
"""What no memory reaches: in the words of the bot's own receipt."""


def erase(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="Whom to forget: the id, as Discord shows it.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """Erase everything of one person, for good: for those who ask by mail, and for accounts that are gone.

    From every store, what is on its way, earlier values, what searching keeps, and the copies that we made
    ourselves. Nothing brings it back: no backup, no store that was away. What is pending goes on by itself while a bot
    or any of these commands runs. In a pipe a line for each place with tabs between: place, state, how much was
    found, why. All is well if nothing is pending. An account that nothing is known of here is erased, too, since a
    store that is away may know it; what is no account's id and has nothing under it is refused.
    """
    if not yes:
        typer.confirm("Erase everything of this person? It cannot be undone", abort=True)
    finish(config, lambda file: _erase(file, user_id, as_json=as_json))


async def _erase(config: Path, user_id: str, *, as_json: bool) -> int:
    async with opened(config) as memory:
        await memory.on_loop("start", _settled, bounded=False)
        if _SNOWFLAKE.fullmatch(user_id) is None and not (user_id and await _has_any(memory, user_id)):
            raise MemoryRejectedError("USER_ID", "is no account's id, and nothing is kept under it", "15 to 20 digits")
        receipt = _with_others(await memory.erase(user_id))
        if as_json:
            typer.echo(json.dumps({**asdict(receipt), "complete": receipt.complete}, indent=2))
        else:
            if not receipt.known:
                typer.echo("Nothing was known here about this id.")
            show(
                _COLUMNS,
                [[p.name, p.state, str(p.count or NOTHING), one_line(p.why) or NOTHING] for p in receipt.parts],
            )
            typer.echo(_summary(receipt))
    return DONE if receipt.complete else NOT_WELL


async def _has_any(memory: SharedMemory, user_id: str) -> bool:
    return bool((await memory.by_flag.scan(user_id, limit=1)).records)


def _with_others(receipt: Receipt) -> Receipt:
    """Return *receipt* without what ends with this process anyway, and with what no memory reaches."""
    return replace(receipt, parts=(*(part for part in receipt.parts if part.name != "working sets"), *BEYOND))


async def _settled(system: MemorySystem) -> None:
    await system.unified.settle(SETTLE_S)


def _summary(receipt: Receipt) -> str:
    if receipt.complete:
        return f"Erased: {receipt.entries} memories. What is left is a hash of the id, and when."
    return "Not everywhere yet: what is pending goes on by itself, as soon as it can be reached."
