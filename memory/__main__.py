"""The command line of the memory: `python -m memory status`, `adopt NAME`, `remove NAME`, `parked`.

It works on the same memory as the bot, beside it if it runs, and never shows what anybody told the bot. A command
is a function here with the words of its help, and a coroutine that returns the exit code.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory.assemble import shared_memory
from memory.config import MemoryFileSettings, default_config_path, load_settings, read_dotenv
from memory.errors import BackendUnavailableError, ConfigError, MemoryBackendError
from memory.model import MemoryEntry, UserTombstone
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock
from memory.wire import record_to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from memory.model import Record
    from memory.outbox import Parked
    from memory.shared import MemorySystem, SharedMemory

T = TypeVar("T")

DONE = 0
NOT_WELL = 1
CANNOT_RUN = 2

_CODES = "Exit code: 0 done, all is well; 1 something is not, or a store did not answer; 2 wrong usage or settings."
_SETTLE_S = 5.0
_STATUS_COLUMNS = ("store", "state", "latency", "backlog", "filling", "parked", "detail")
_PARKED_COLUMNS = ("store", "kind", "bytes", "since", "reason")
_NOTHING = "-"
_COLOURS = {
    "healthy": "green",
    "starting": "yellow",
    "behind": "yellow",
    "read-only": "yellow",
    "refused": "red",
    "down": "red",
}

app = typer.Typer(
    help="Look after the stores of the bot's memory, whether the bot runs or not.",
    epilog=_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The settings (default: config.toml beside bot.py, or $JAKEY_CONFIG)."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The store's name, as in [memory.backends.NAME].")]
AsJSON = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


@app.command(epilog=_CODES)
def status(*, config: Config = None, as_json: AsJSON = False) -> None:
    """Say how each store is doing, after sending each a canary.

    On a terminal as a table. In a pipe a line for each store with tabs between: store, state, latency, backlog (rows
    that it does not have yet, and the age of the oldest), filling, parked, detail. Then the legacy store and the
    outbox if there is something to say of them, and which path writes. All is well if every store is healthy.
    """
    _finish(config, lambda file: _status(file, as_json=as_json))


@app.command(epilog=_CODES)
def adopt(name: Name, *, config: Config = None) -> None:
    """Take over a store that belongs to another installation.

    This machine takes over that store's installation id, for all its own stores, too, and both are merged, both
    ways: whatever one of them remembers or has forgotten, all do then. For a store that two machines are to share,
    or for stores that come from another machine. Not for one that was configured by mistake.
    """
    _finish(config, lambda file: _adopt(file, name))


@app.command(epilog=_CODES)
def remove(name: Name, *, config: Config = None) -> None:
    """Let nothing wait any more for a store that is gone for good.

    Take its table out of config.toml first, or set enabled = false there. The store itself stays as it is.
    """
    _finish(config, lambda file: _remove(file, name))


@app.command(epilog=_CODES)
def parked(
    *,
    retry: Annotated[bool, typer.Option("--retry", help="Offer them to their stores again, now.")] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """List what stores refused, without its text.

    In a pipe with tabs between: store, kind (entry, deletion, user deletion), bytes, since, reason. What is parked in
    one store is in the others, and is offered again whenever the stores are compared. All is well if nothing is left.
    """
    _finish(config, lambda file: _parked(file, retry=retry, as_json=as_json))


async def _status(config: Path, *, as_json: bool) -> int:
    async with _opened(config) as memory:
        found = await memory.get_full_status(settle_s=_SETTLE_S)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        rows = [_store_cells(name, store) for name, store in found["backends"].items()]
        if found["legacy"] is not None:
            rows.append(_store_cells("legacy", found["legacy"]))
        if found["trouble"]:
            rows.append(["outbox", "down", *[_NOTHING] * 4, _one_line(found["trouble"])])
        _show(_STATUS_COLUMNS, rows)
        typer.echo(f"path\t{found['path']}" if not _on_terminal() else _summary(found))
    legacy_writes = found["path"] == "legacy"
    well = found["healthy"] and (not legacy_writes or (found["legacy"] or {}).get("healthy", False))
    return DONE if well else NOT_WELL


async def _adopt(config: Path, name: str) -> int:
    async with _opened(config) as memory:
        await memory.on_loop("start", lambda system: system.unified.settle(_SETTLE_S), bounded=False)
        ours = await memory.on_loop("look up whose folder this is", _installation, bounded=False)
        theirs = await memory.adopt(name)
        if not theirs:
            typer.echo(f"{name} belongs to no installation, so there is nothing to take over.")
            return DONE
        if theirs == ours:
            typer.echo(f"{name} was already ours: installation {theirs}. Nothing was changed.")
            return DONE
        typer.echo(f"Took over installation {theirs} from {name}; ours was {ours or 'none'}.")
        try:
            await memory.on_loop("compare", lambda system: system.unified.compare(), bounded=False)
        except BackendUnavailableError as exc:
            typer.echo(f"The stores are not merged yet: {exc}. The bot goes on with that.", err=True)
            return NOT_WELL
        stores = (await memory.get_full_status(settle_s=_SETTLE_S))["backends"]
        left = [name for name, store in stores.items() if not store["healthy"]]
    if left:
        typer.echo(f"Not merged yet: {', '.join(left)}; python -m memory status says why.", err=True)
        return NOT_WELL
    typer.echo("The stores are merged.")
    return DONE


async def _remove(config: Path, name: str) -> int:
    # Asked before the memory is opened: if no bot runs, opening it already strikes off what is not configured.
    known = await _ask_outbox(config, Outbox.registered)
    async with _opened(config) as memory:
        struck_off = await memory.remove(name)
        configured = (await memory.peek_status())["backends"]
    if not struck_off and name not in known:
        names = ", ".join(sorted({*known, *configured}))
        raise ConfigError(f"there is no store called {_one_line(name)}; there are: {names}")
    typer.echo(f"Nothing waits for {name} any more. What it holds stays where it is.")
    return DONE


async def _parked(config: Path, *, retry: bool, as_json: bool) -> int:
    # Without the stores: to open them would already offer them what they refused, and this is only a look.
    left = await _ask_outbox(config, Outbox.parked)
    taken = 0
    if retry and left:
        before = {_whereabouts(one) for one in left}
        async with _opened(config) as memory:
            await memory.on_loop("start", lambda system: system.unified.settle(_SETTLE_S), bounded=False)
            try:
                await memory.retry_parked()
            except BackendUnavailableError as exc:
                typer.echo(str(exc), err=True)
            left = await memory.parked()
            stores = (await memory.peek_status())["backends"]
        gone = before - {_whereabouts(one) for one in left}
        taken = sum(store in stores for store, _ in gone)
    if as_json:
        listed = [dict(zip(_PARKED_COLUMNS, _parked_values(one), strict=True)) for one in left]
        typer.echo(json.dumps({"taken": taken, "left": len(left), "parked": listed}, indent=2))
    elif retry or not left:
        typer.echo(f"{taken} taken, {len(left)} left" if retry else "nothing is parked", err=not retry)
    else:
        _show(_PARKED_COLUMNS, [[str(value) for value in _parked_values(one)] for one in left])
    return NOT_WELL if left else DONE


# The memory


@asynccontextmanager
async def _opened(config: Path) -> AsyncIterator[SharedMemory]:
    """The memory that *config* describes, as the bot opens it; its stores and their processes end with it."""
    memory = shared_memory(config)
    try:
        try:
            await memory.open()
        except TimeoutError as exc:
            raise BackendUnavailableError("the memory", "start", "it was not ready in time") from exc
        yield memory
    finally:
        await memory.close()


async def _ask_outbox(config: Path, question: Callable[[Outbox], Awaitable[T]]) -> T:
    """Ask the outbox alone, without starting any store."""
    settings = load_settings(MemoryFileSettings, config).memory
    outbox = Outbox(config.parent / settings.outbox, HybridLogicalClock())
    try:
        await outbox.open()
        return await question(outbox)
    finally:
        await outbox.close()


async def _installation(system: MemorySystem) -> str:
    return await system.unified.outbox.installation()


def _finish(config: Path | None, work: Callable[[Path], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run *work* on the settings' file and exit with its code; what goes wrong is a sentence on standard error."""
    # The stores' troubles are in the answer, in our words; their log lines would only stand in between.
    logging.getLogger().addHandler(logging.NullHandler())
    file = (config or default_config_path()).resolve()
    try:
        read_dotenv(file.parent)
        code = asyncio.run(work(file))
    except ConfigError as exc:
        typer.echo(str(exc), err=True)
        code = CANNOT_RUN
    except MemoryBackendError as exc:
        typer.echo(f"{exc}. Try again in a moment; python -m memory status says how the stores are doing.", err=True)
        code = NOT_WELL
    raise typer.Exit(code)


# What is shown


def _store_cells(name: str, store: Mapping[str, Any]) -> list[str]:
    found = store["filled"] + store["differences"]
    return [
        name,
        store["state"],
        _NOTHING if store["latency_ms"] is None else f"{store['latency_ms']:.1f} ms",
        # Seconds however many, unlike in chat: scripts compare them.
        f"{store['behind']} (oldest {store['behind_s']:.0f} s)" if store["behind"] else _NOTHING,
        f"filling: {store['filled']} of {found}" if store["differences"] else _NOTHING,
        str(store["parked"] or _NOTHING),
        _one_line(store["detail"]) or _NOTHING,
    ]


def _summary(found: Mapping[str, Any]) -> str:
    path = "on: the unified memory writes" if found["path"] == "unified" else "off: the legacy store writes"
    return f"{found['healthy_backends']} of {found['total_backends']} stores are healthy. The migration flag is {path}."


def _parked_values(one: Parked) -> tuple[str, str, int, str, str]:
    size = len(json.dumps(record_to_json(one.record), ensure_ascii=False).encode())
    since = datetime.fromtimestamp(one.since_ms / 1000, UTC).isoformat(timespec="seconds")
    return one.store, _kind(one.record), size, since, _one_line(one.reason)


def _kind(record: Record) -> str:
    if isinstance(record, MemoryEntry):
        return "entry"
    return "user deletion" if isinstance(record, UserTombstone) else "deletion"


def _whereabouts(one: Parked) -> tuple[str, tuple[str, str]]:
    return one.store, one.record.position


def _show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    if not _on_terminal():
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def _on_terminal() -> bool:
    return Console().is_terminal


def _one_line(text: str) -> str:
    """Return *text*, which may be a foreign server's, as what can neither break a line nor steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


if __name__ == "__main__":
    app(prog_name="python -m memory")
