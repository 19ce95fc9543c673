"""Commands that look after the stores: `status`, `adopt NAME`, `remove NAME`, `parked`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory.cli.terminal import (
    DONE,
    NOT_WELL,
    NOTHING,
    SETTLE_S,
    AsJSON,
    Config,
    ask_outbox,
    finish,
    on_terminal,
    one_line,
    opened,
    show,
)
from memory.errors import BackendUnavailableError, ConfigError
from memory.flag import in_words
from memory.model import MemoryEntry, UserTombstone
from memory.outbox import Outbox
from memory.wire import record_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from memory.model import Record
    from memory.outbox import Parked
    from memory.shared import MemorySystem

_STATUS_COLUMNS = ("store", "state", "latency", "backlog", "filling", "parked", "detail")
_PARKED_COLUMNS = ("store", "kind", "bytes", "since", "reason")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The store's name, as in [memory.backends.NAME].")]


def status(*, config: Config = None, as_json: AsJSON = False) -> None:
    """Say how each store is doing, after sending each a canary.

    On a terminal as a table. In a pipe a line for each store with tabs between: store, state, latency, backlog (rows
    that it does not have yet, and the age of the oldest), filling, parked, detail. Then the legacy store and the
    outbox if there is something to say of them, a warning if there is one (the disk runs low), which path writes, and
    with what evidence the flag was set. All is well if every store is healthy; a warning changes nothing in that.
    """
    finish(config, lambda file: _status(file, as_json=as_json))


def adopt(name: Name, *, config: Config = None) -> None:
    """Take over a store that belongs to another installation.

    This machine takes over that store's installation id, for all its own stores, too, and both are merged, both
    ways: whatever one of them remembers or has forgotten, all do then. For a store that two machines are to share,
    or for stores that come from another machine. Not for one that was configured by mistake.
    """
    finish(config, lambda file: _adopt(file, name))


def remove(name: Name, *, config: Config = None) -> None:
    """Let nothing wait any more for a store that is gone for good.

    Take its table out of config.toml first, or set enabled = false there. The store itself stays as it is.
    """
    finish(config, lambda file: _remove(file, name))


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
    finish(config, lambda file: _parked(file, retry=retry, as_json=as_json))


async def _status(config: Path, *, as_json: bool) -> int:
    async with opened(config) as memory:
        found = await memory.get_full_status(settle_s=SETTLE_S)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        rows = [_store_cells(name, store) for name, store in found["backends"].items()]
        if found["legacy"] is not None:
            rows.append(_store_cells("legacy", found["legacy"]))
        if found["trouble"]:
            rows.append(["outbox", "down", *[NOTHING] * 4, one_line(found["trouble"])])
        if found["warning"]:
            rows.append(["warning", *[NOTHING] * 5, one_line(found["warning"])])
        show(_STATUS_COLUMNS, rows)
        typer.echo(_summary(found) if on_terminal() else "\n".join(_path_lines(found)))
    legacy_writes = found["path"] == "legacy"
    well = found["healthy"] and (not legacy_writes or (found["legacy"] or {}).get("healthy", False))
    return DONE if well else NOT_WELL


async def _adopt(config: Path, name: str) -> int:
    async with opened(config) as memory:
        await memory.on_loop("start", lambda system: system.unified.settle(SETTLE_S), bounded=False)
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
        stores = (await memory.get_full_status(settle_s=SETTLE_S))["backends"]
        left = [name for name, store in stores.items() if not store["healthy"]]
    if left:
        typer.echo(f"Not merged yet: {', '.join(left)}; python -m memory status says why.", err=True)
        return NOT_WELL
    typer.echo("The stores are merged.")
    return DONE


async def _remove(config: Path, name: str) -> int:
    # Asked before the memory is opened: if no bot runs, opening it already strikes off what is not configured.
    known = await ask_outbox(config, Outbox.registered)
    async with opened(config) as memory:
        struck_off = await memory.remove(name)
        configured = (await memory.peek_status())["backends"]
    if not struck_off and name not in known:
        names = ", ".join(sorted({*known, *configured}))
        raise ConfigError(f"there is no store called {one_line(name)}; there are: {names}")
    typer.echo(f"Nothing waits for {name} any more. What it holds stays where it is.")
    return DONE


async def _parked(config: Path, *, retry: bool, as_json: bool) -> int:
    # Without the stores: to open them would already offer them what they refused, and this is only a look.
    left = await ask_outbox(config, Outbox.parked)
    taken = 0
    if retry and left:
        before = {_whereabouts(one) for one in left}
        async with opened(config) as memory:
            await memory.on_loop("start", lambda system: system.unified.settle(SETTLE_S), bounded=False)
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
        show(_PARKED_COLUMNS, [[str(value) for value in _parked_values(one)] for one in left])
    return NOT_WELL if left else DONE


async def _installation(system: MemorySystem) -> str:
    return await system.unified.outbox.installation()


def _store_cells(name: str, store: Mapping[str, Any]) -> list[str]:
    found = store["filled"] + store["differences"]
    return [
        name,
        store["state"],
        NOTHING if store["latency_ms"] is None else f"{store['latency_ms']:.1f} ms",
        # Seconds however many, unlike in chat: scripts compare them.
        f"{store['behind']} (oldest {store['behind_s']:.0f} s)" if store["behind"] else NOTHING,
        f"filling: {store['filled']} of {found}" if store["differences"] else NOTHING,
        str(store["parked"] or NOTHING),
        one_line(store["detail"]) or NOTHING,
    ]


def _summary(found: Mapping[str, Any]) -> str:
    path = "on: the unified memory writes" if found["path"] == "unified" else "off: the legacy store writes"
    evidence = "" if found["evidence"] is None else f" ({one_line(in_words(found['evidence']))})"
    healthy = f"{found['healthy_backends']} of {found['total_backends']} stores are healthy"
    return f"{healthy}. The migration flag is {path}{evidence}."


def _path_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [f"path\t{found['path']}"]
    if found["evidence"] is not None:
        lines.append(f"evidence\t{one_line(in_words(found['evidence']))}")
    return lines


def _parked_values(one: Parked) -> tuple[str, str, int, str, str]:
    size = len(json.dumps(record_to_json(one.record), ensure_ascii=False).encode())
    since = datetime.fromtimestamp(one.since_ms / 1000, UTC).isoformat(timespec="seconds")
    return one.store, _kind(one.record), size, since, one_line(one.reason)


def _kind(record: Record) -> str:
    if isinstance(record, MemoryEntry):
        return "entry"
    return "user deletion" if isinstance(record, UserTombstone) else "deletion"


def _whereabouts(one: Parked) -> tuple[str, tuple[str, str]]:
    return one.store, one.record.position
