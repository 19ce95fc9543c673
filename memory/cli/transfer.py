"""Commands that bring memories out of here and into here as files: `export FILE`, `import FILE`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from memory import interchange
from memory.backups import check_target
from memory.cli.saving import files_in_use
from memory.cli.terminal import DONE, NOT_WELL, SETTLE_S, AsJSON, Config, finish, one_line, opened, progress
from memory.errors import ConfigError, MemoryRejectedError
from memory.interchange import Kind
from memory.limits import check_user_id
from memory.wire import xor_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memory.interchange import Exported, Imported, Refused, Tally
    from memory.model import MemoryEntry, Page, Position
    from memory.shared import MemorySystem

_STANDARD_OUTPUT = Path("-")
_LISTED_MAX = 10_000


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; - is standard output.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it is there.")] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """Write everything that is remembered, and what was forgotten, to a file of JSON Lines.

    With scopes, metadata, revisions and earlier values; docs/export.md describes it. FILE is there once it is whole,
    readable by you alone. What is written meanwhile may be in it or not.
    """
    finish(config, lambda settings: _export(settings, file, force=force, as_json=as_json))


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export: ours, or another program's.")],
    *,
    user: Annotated[
        str | None, typer.Option("--user", metavar="ID", help="Whose memories they are, if the file does not say.")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option("--as", help="What wrote it, if its content does not tell.", show_choices=True)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check all of it, and write nothing.")] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """Take in what a file remembers: an export of ours, of npm's server-memory, mcp-memory-service, mem0, or sentences.

    Nothing newer is overwritten and nothing forgotten comes back, so it is safe to repeat, also beside a running bot.
    What is not taken, or not just as it stands there, is a line with a tab: where, why. All is well if all was taken.
    """
    finish(config, lambda settings: _import(settings, file, user, kind, dry_run=dry_run, as_json=as_json))


async def _export(config: Path, file: Path, *, force: bool, as_json: bool) -> int:
    to_stdout = file == _STANDARD_OUTPUT
    if not to_stdout:
        check_target(file, files_in_use(config), replace=force)
    async with opened(config) as memory:
        await memory.on_loop("start", lambda system: system.unified.settle(SETTLE_S), bounded=False)
        total = await memory.on_loop("count", _count, bounded=False)

        async def scan(after: Position | None) -> Page:
            return await memory.on_loop(
                "scan", lambda all_: interchange.scan_surely(all_.unified, after), bounded=False
            )

        async def past(user_id: str) -> list[MemoryEntry]:
            return await memory.on_loop("read the history", lambda all_: all_.unified.past(user_id), bounded=False)

        with (
            _standard_output() if to_stdout else interchange.new_file(file, force=force) as out,
            progress("exporting, records", quiet=as_json) as show,
        ):
            done = await interchange.export(scan, past, out, on_progress=lambda n: show(n, max(n, total)))
    _say_exported(file, done, as_json=as_json, aside=to_stdout)
    return NOT_WELL if done.missing else DONE


async def _import(
    config: Path, file: Path, user: str | None, kind: Kind | None, *, dry_run: bool, as_json: bool
) -> int:
    listed = _Listed(aloud=not as_json)
    with interchange.open_source(file, kind) as source:
        _check_user(user, source.kind, file)
        async with opened(config) as memory:
            await memory.on_loop("start", lambda system: system.unified.settle(SETTLE_S), bounded=False)
            with progress("importing, bytes", quiet=as_json) as show:
                done = await memory.on_loop(
                    "import",
                    lambda system: interchange.take_in(
                        system.unified, source, user_id=user or "", dry_run=dry_run, tell=listed, on_progress=show
                    ),
                    bounded=False,
                )
    if as_json:
        typer.echo(json.dumps(_as_data(file, source.kind, done, listed, dry_run=dry_run), indent=2))
    else:
        typer.echo(_summary(file, source.kind, done, dry_run=dry_run))
    return NOT_WELL if done.refused else DONE


class _Listed:
    """What is not taken, or not just as it stands: said at once, or kept for --json, as much as can be read."""

    def __init__(self, *, aloud: bool) -> None:
        self.found: list[Refused] = []
        self._aloud = aloud

    def __call__(self, refused: Refused) -> None:
        if self._aloud:
            said = f"{one_line(refused.where)}\t{one_line(refused.reason)}"
            typer.echo(f"{said} (taken)" if refused.altered else said)
        elif len(self.found) < _LISTED_MAX:
            self.found.append(refused)


def _check_user(user: str | None, kind: Kind, file: Path) -> None:
    if user is not None:
        if kind is Kind.OURS:
            raise ConfigError(f"--user: {file.name} says itself whose memories they are")
        try:
            check_user_id(user)
        except MemoryRejectedError as exc:
            raise ConfigError(f"--user: {exc}") from exc
    elif kind not in (Kind.OURS, Kind.MEM0):
        raise ConfigError(f"{file.name} ({kind}) does not say whose memories they are: say it with --user ID")


async def _count(system: MemorySystem) -> int:
    """Return about how many records there are."""
    for replica in system.unified.replicas:
        if replica.usable:
            buckets = await replica.call("count", replica.store.buckets)
            return sum(count for count, _ in buckets.values())
    return 0


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def _say_exported(file: Path, done: Exported, *, as_json: bool, aside: bool) -> None:
    for name in sorted(done.missing):
        typer.echo(f"{name} did not answer: what it alone knows is missing", err=True)
    if as_json:
        said = {"file": str(file), **done.tally.to_json(), "missing": sorted(done.missing)}
        typer.echo(json.dumps(said, indent=2), err=aside)
    else:
        typer.echo(f"Exported {_held(done.tally)}; digest {xor_to_json(done.tally.digest)}.", err=aside)


def _as_data(file: Path, kind: Kind, done: Imported, listed: _Listed, *, dry_run: bool) -> dict[str, Any]:
    counts = asdict(done)
    del counts["held"]
    return {
        "file": str(file),
        "kind": str(kind),
        "dry_run": dry_run,
        **done.held.to_json(),
        **counts,
        "listed": [refused._asdict() for refused in listed.found],
    }


def _summary(file: Path, kind: Kind, done: Imported, *, dry_run: bool) -> str:
    said = [f"{file.name} ({kind}): {_held(done.held)}"]
    if done.held.records and not dry_run:
        said.append(f"{done.news:,} of these {done.held.records:,} records were news")
    said += [f"{done.left_alone:,} left alone, because their keys are known or forgotten"] * bool(done.left_alone)
    said += [f"{done.forgotten:,} left out, because their user asked to be forgotten"] * bool(done.forgotten)
    said += [f"{done.altered:,} altered"] * bool(done.altered)
    said += [f"{done.refused:,} not taken, or wrong with the file: see above"] * bool(done.refused)
    return "; ".join(said) + (". Nothing was written." if dry_run else ".")


def _held(tally: Tally) -> str:
    kinds = (
        (tally.entries, "entry", "entries"),
        (tally.past, "earlier value", "earlier values"),
        (tally.deletions, "deletion", "deletions"),
        (tally.user_deletions, "user deletion", "user deletions"),
    )
    return ", ".join(f"{count:,} {one if count == 1 else many}" for count, one, many in kinds if count) or "nothing"
