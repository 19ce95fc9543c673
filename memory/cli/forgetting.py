"""The command that has a person forgotten for good: `erase USER_ID`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memory.cli.terminal import DONE, NOT_WELL, NOTHING, SETTLE_S, AsJSON, Config, finish, one_line, opened, show

if TYPE_CHECKING:
    from pathlib import Path

    from memory.receipt import Receipt
    from memory.shared import MemorySystem

_COLUMNS = ("place", "state", "found", "why")


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
    found, why. All is well if nothing is pending.
    """
    if not yes:
        typer.confirm("Erase everything of this person? It cannot be undone", abort=True)
    finish(config, lambda file: _erase(file, user_id, as_json=as_json))


async def _erase(config: Path, user_id: str, *, as_json: bool) -> int:
    async with opened(config) as memory:
        await memory.on_loop("start", _settled, bounded=False)
        receipt = await memory.erase(user_id)
        if as_json:
            typer.echo(json.dumps({**asdict(receipt), "complete": receipt.complete}, indent=2))
        else:
            show(
                _COLUMNS,
                [[p.name, p.state, str(p.count or NOTHING), one_line(p.why) or NOTHING] for p in receipt.parts],
            )
            typer.echo(_summary(receipt))
    return DONE if receipt.complete else NOT_WELL


async def _settled(system: MemorySystem) -> None:
    await system.unified.settle(SETTLE_S)


def _summary(receipt: Receipt) -> str:
    if receipt.complete:
        return f"Erased: {receipt.entries} memories. What is left is a hash of the id, and when."
    return "Not everywhere yet: what is pending goes on by itself, as soon as it can be reached."
