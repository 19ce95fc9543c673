"""Commands that make a copy of everything and put one back: `backup FILE`, `restore FILE`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory import backups
from memory.backends import mcp
from memory.backups import Manner
from memory.cli.terminal import DONE, NOT_WELL, SETTLE_S, AsJSON, Config, finish, one_line, opened, progress
from memory.config import MCPTable, MemoryFileSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memory.backups import Backup, LeftOut, Restored
    from memory.backups.work import Progress
    from memory.shared import MemorySystem

_MB = 1_000_000
_LISTED_MAX = 10_000


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there and not in use.")] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """Write everything that is remembered, and what was forgotten, to one SQLite file.

    It is of the same kind as data/memory.db, with scopes, metadata, revisions and earlier values, and is made beside
    a running bot without holding it up. FILE is there once it is whole and checked, readable by you alone. All is
    well if everybody answered who may know something; docs/backups.md says more.
    """
    finish(config, lambda settings: _backup(settings, file, force=force, as_json=as_json))


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup, or a store's file; it is only read.")],
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put what FILE says in place of what is different now.")
    ] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """Put back what a backup holds, or a memory.db, also of an older version or NAME.damaged-TIME.

    What is missing is filled in. What is newer here stays, and what was forgotten here stays forgotten. With
    --replace the entries and deletions of FILE that differ from what is here are stamped as new, after a backup of
    the present state; but people who asked to be forgotten since stay so, and what was remembered since under keys
    that FILE does not have stays, too. For that all stores must be in step. Safe to repeat, also beside a running
    bot. All is well if all of FILE could be read and taken.
    """
    finish(config, lambda settings: _restore(settings, file, replace=replace, as_json=as_json))


async def _backup(config: Path, file: Path, *, force: bool, as_json: bool) -> int:
    began = time.monotonic()
    in_use = files_in_use(config)
    async with opened(config) as memory:
        with progress("backing up, pages", quiet=as_json) as show:
            done = await memory.on_loop(
                "back up", lambda all_: _make(all_, file, in_use, show, force=force), bounded=False
            )
    if as_json:
        said = {
            "file": str(file),
            "users": done.users,
            "entries": done.entries,
            "deletions": done.deletions,
            "bytes": done.size,
            "missing": list(done.missing),
            "seconds": round(time.monotonic() - began, 3),
        }
        typer.echo(json.dumps(said, indent=2))
    else:
        for name in done.missing:
            typer.echo(f"{name} did not answer: what it alone knows is missing", err=True)
        typer.echo(_backed_up(file, done))
    return NOT_WELL if done.missing else DONE


def files_in_use(config: Path) -> list[Path]:
    """Return the files that no command may write over: of all stores, of the settings, and what decides between paths.

    Raises:
        ConfigError: the settings cannot be read.
    """
    settings = load_settings(MemoryFileSettings, config).memory
    root = config.parent
    files = [settings.outbox, settings.legacy.path, settings.flag_file, Path(".env")]
    for table in settings.backends.values():
        if table.path is not None:
            files.append(table.path)
        elif isinstance(table, MCPTable) and not table.url:
            profile = mcp.load(root / table.profile if table.profile.endswith(".toml") else table.profile)
            files += [Path("data") / profile.start.file] if profile.start is not None else []
    return [config, *(root / file for file in files)]


async def _make(system: MemorySystem, target: Path, in_use: Sequence[Path], show: Progress, *, force: bool) -> Backup:
    await system.unified.settle(SETTLE_S)
    manner = Manner(replace=force)
    return await backups.back_up(system.unified, target, system.places.backups, manner, in_use=in_use, progress=show)


async def _restore(config: Path, file: Path, *, replace: bool, as_json: bool) -> int:
    began = time.monotonic()
    listed: list[LeftOut] = []

    def tell(left_out: LeftOut) -> None:
        if not as_json:
            typer.echo(f"{one_line(left_out.where)}\t{one_line(left_out.reason)}", err=True)
        elif len(listed) < _LISTED_MAX:
            listed.append(left_out)

    async with opened(config) as memory:
        with progress("restoring", quiet=as_json) as show:
            done = await memory.on_loop(
                "restore", lambda all_: _put_back(all_, file, show, tell, replace=replace), bounded=False
            )
    if as_json:
        said = {
            "file": str(file),
            "users": done.users,
            "entries": done.entries,
            "deletions": done.deletions,
            "unreadable": done.unreadable,
            "left_out": done.left_out,
            "past_left_out": done.past_left_out,
            "listed": [left_out._asdict() for left_out in listed],
            "filled": done.filled,
            "replaced": done.replaced,
            "forgotten": done.forgotten,
            "before": done.before and str(done.before),
            "waiting": list(done.waiting),
            "seconds": round(time.monotonic() - began, 3),
        }
        typer.echo(json.dumps(said, indent=2))
    else:
        _say_restored(file, done)
    return NOT_WELL if done.unreadable or done.left_out or done.past_left_out else DONE


async def _put_back(
    system: MemorySystem, source: Path, show: Progress, tell: Callable[[LeftOut], None], *, replace: bool
) -> Restored:
    await system.unified.settle(SETTLE_S)
    return await backups.restore(
        system.unified, source, system.places.backups, replace_newer=replace, progress=show, tell=tell
    )


def _backed_up(file: Path, done: Backup) -> str:
    held = _held(done.users, done.entries, done.deletions)
    return f"{one_line(str(file))}: {held}; {done.size / _MB:,.1f} MB, checked."


def _say_restored(file: Path, done: Restored) -> None:
    typer.echo(f"{one_line(str(file))}: {_held(done.users, done.entries, done.deletions)}.")
    if done.unreadable:
        typer.echo(f"It is damaged: {_things(done.unreadable, 'row', 'rows')} could not be read.", err=True)
    if done.left_out or done.past_left_out:
        past = _things(done.past_left_out, "earlier value", "earlier values")
        what = f"{_things(done.left_out, 'row', 'rows')} and {past}"
        typer.echo(f"Left out, because no store takes them: {what}.", err=True)
    if done.before is not None:
        typer.echo(f"As it was before: {one_line(str(_from_here(done.before)))}")
    same = done.entries + done.deletions - done.filled - done.replaced - done.forgotten - done.left_out
    typer.echo(f"Filled in, because it was missing here or older: {done.filled:,}.")
    if done.before is None:
        typer.echo(f"Left as it is here: {same:,}, which was the same, newer, or forgotten since.")
    else:
        typer.echo(f"Put in place of what was different here: {done.replaced:,}. The same already: {max(0, same):,}.")
        typer.echo(f"Left out, because their people asked to be forgotten: {done.forgotten:,}.")
        typer.echo("What was remembered since under other keys is still there.")
    if done.waiting:
        typer.echo(f"Not in {', '.join(done.waiting)} yet: the bot goes on with that.")


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _held(users: int, entries: int, deletions: int) -> str:
    of = f"{_things(entries, 'memory', 'memories')} of {_things(users, 'user', 'users')}"
    return f"{of} and {_things(deletions, 'deletion', 'deletions')}"


def _things(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
