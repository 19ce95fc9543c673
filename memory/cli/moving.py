"""Commands that bring the predecessor's memories in and set the flag: `migrate`, `verify`, `enable`, `disable`."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory import migration
from memory.cli.terminal import (
    DONE,
    NOT_WELL,
    NOTHING,
    SETTLE_S,
    AsJSON,
    Config,
    finish,
    on_terminal,
    one_line,
    opened,
    progress,
    show,
)
from memory.config import MemoryFileSettings, load_settings
from memory.flag import MigrationFlag, in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from memory.migration import Migration, Preview, Verification
    from memory.shared import MemorySystem, SharedMemory

_FOUND_COLUMNS = ("kind", "row", "user", "key", "where", "what")
_SHOWN = 10

From = Annotated[Path, typer.Option("--from", metavar="FILE", help="The predecessor's database, e.g. data/jakey.db.")]
MaybeFrom = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE", help="What to compare with (default: what was migrated last)."),
]


def migrate(
    *,
    source: From,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
    config: Config = None,
    as_json: AsJSON = False,
) -> None:
    """Bring the memories of JakeySelfBot in, whether the bot runs or not.

    FILE itself is never written: a consistent copy of it is made and kept first. What was changed or forgotten here
    since stays so, and to migrate again changes nothing. Interrupted, the same command goes on from where it was. What
    cannot be taken is listed with its row and the reason. It does not set the flag: verify, then enable.
    """
    finish(config, lambda file: _migrate(file, source.resolve(), dry_run=dry_run, as_json=as_json))


def verify(*, source: MaybeFrom = None, config: Config = None, as_json: AsJSON = False) -> None:
    """Compare the predecessor's memories with those here, row by row, and each store by itself.

    In a pipe with tabs between: kind (missing, changed, extra), row, user, key, where, what. What was changed or
    forgotten here since the migration is no difference. All is well if nothing differs and every store could be asked.
    Earlier values are counted, not compared.
    """
    finish(config, lambda file: _verify(file, source and source.resolve(), as_json=as_json))


def enable(*, config: Config = None, as_json: AsJSON = False) -> None:
    """Set the migration flag, after a clean verification, with that as its evidence.

    From then on the unified memory writes, also in a bot that is running. If anything differs, nothing is changed.
    """
    finish(config, lambda file: _enable(file, as_json=as_json))


def disable(*, config: Config = None, as_json: AsJSON = False) -> None:
    """Remove the migration flag: the way back.

    From then on the predecessor's functions write again, into its file, also in a bot that is running. What was
    remembered meanwhile is in both. Nothing sets the flag again but enable, or its owner in chat.
    """
    finish(config, lambda file: _disable(file, as_json=as_json))


async def _migrate(config: Path, source: Path, *, dry_run: bool, as_json: bool) -> int:
    async with opened(config) as memory:
        await _settled(memory)
        with _phases(quiet=as_json) as told:
            if dry_run:
                found = await memory.on_loop(
                    "look", lambda system: migration.preview(system.unified, source, told), bounded=False
                )
                _say_preview(found, as_json=as_json)
                return DONE
            done = await memory.on_loop(
                "migrate",
                lambda system: migration.migrate(system.unified, system.places.backups, source, told),
                bounded=False,
            )
    _say_migration(done, as_json=as_json)
    return DONE


async def _verify(config: Path, source: Path | None, *, as_json: bool) -> int:
    async with opened(config) as memory:
        found = await _verified(memory, source, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    elif not found.source:
        typer.echo("There is nothing to compare with: nothing was migrated, and there is no legacy file.")
    else:
        _say_verification(found)
    return DONE if found.clean else NOT_WELL


async def _enable(config: Path, *, as_json: bool) -> int:
    async with opened(config) as memory:
        found = await _verified(memory, None, as_json=as_json)
        flag = await memory.flag()
        if found.clean:
            migration.enable(flag, found, "command line")
    evidence = flag.evidence() if flag.is_on() else {}
    if as_json:
        said = {"enabled": found.clean, "on": flag.is_on(), "evidence": evidence, "verification": found.as_json()}
        typer.echo(json.dumps(said, indent=2))
    elif found.clean:
        typer.echo(f"The migration flag is on ({one_line(in_words(evidence))}).")
        typer.echo("The unified memory writes from now on. The way back: python -m memory disable")
    else:
        _say_verification(found)
        typer.echo(f"The flag was not touched: {one_line(migration.refusal(found))}.", err=True)
    return DONE if found.clean else NOT_WELL


async def _disable(config: Path, *, as_json: bool) -> int:
    settings = load_settings(MemoryFileSettings, config).memory
    was_on = migration.disable(MigrationFlag(config.parent / settings.flag_file))
    # It takes part from now on, and is made if it was not there: let it have everything while somebody is looking.
    async with opened(config) as memory:
        await _settled(memory)
        with _phases(quiet=as_json) as told:
            following = await memory.on_loop(
                "fill", lambda system: migration.follow(system.unified, told), bounded=False
            )
    if as_json:
        typer.echo(json.dumps({"was_on": was_on, "on": False, "following": following}, indent=2))
        return NOT_WELL if following else DONE
    typer.echo("The migration flag is off now." if was_on else "The migration flag was off already.")
    typer.echo(
        f"The predecessor's functions write from now on, into {settings.legacy.path}; neither path misses what the "
        "other wrote. The way back: python -m memory enable"
    )
    _say_following(following)
    return NOT_WELL if following else DONE


def _say_following(following: Mapping[str, str]) -> None:
    for store, reason in following.items():
        typer.echo(f"{store} does not have everything yet ({one_line(reason)}); it follows when it can.")


async def _verified(memory: SharedMemory, source: Path | None, *, as_json: bool) -> Verification:
    await _settled(memory)
    if not as_json:
        places = await memory.on_loop("look", _places, bounded=False)
        if note := migration.source_to_verify(places.backups, places.legacy, source).note:
            typer.echo(note, err=True)
    with _phases(quiet=as_json) as told:
        return await memory.verify(source, told)


async def _settled(memory: SharedMemory) -> None:
    await memory.on_loop("start", lambda system: system.unified.settle(SETTLE_S), bounded=False)


async def _places(system: MemorySystem) -> Any:
    return system.places


@contextmanager
def _phases(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of one thing after the other."""
    with ExitStack() as stack:
        under_way = ""
        step: Callable[[int, int], None] = lambda _done, _total: None  # noqa: E731

        ended = False

        def told(what: str, done: int, total: int) -> None:
            nonlocal under_way, step
            if ended:  # a thread that was at it when we were interrupted
                return
            if what != under_way:
                stack.close()
                under_way, step = what, stack.enter_context(progress(what, quiet=quiet))
            step(done, total)

        try:
            yield told
        finally:
            ended = True


def _say_migration(done: Migration, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_migration_as_json(done), indent=2))
        return
    name = Path(done.source).name
    if done.resumed:
        typer.echo(f"Went on with the migration of {name} that had been interrupted.")
    if done.again and not done.news:
        typer.echo(f"{name} had been migrated already, and has not changed since; this changed nothing.")
    typer.echo(
        f"{name}: {_counted(done.counts.as_json())}. {done.news:,} of them new here. "
        f"Loaded in {done.load_s:.1f} s ({done.rows_per_s:,} rows/s)."
    )
    typer.echo(f"The copy that was read stays at {done.copy}.")
    if done.reasons:
        _say_notes(done.reasons, done.first)
        typer.echo(f"All of them: {done.report}")
    _say_following(done.following)
    if done.changed:
        typer.echo(f"{name} has changed since the copy was made: run the same command again.")
    typer.echo("Next: python -m memory verify, then python -m memory enable")


def _migration_as_json(done: Migration) -> dict[str, Any]:
    return {
        "source": done.source,
        **done.counts.as_json(),
        "news": done.news,
        "load_s": round(done.load_s, 3),
        "rows_per_s": done.rows_per_s,
        "seconds": round(done.seconds, 2),
        "copy": str(done.copy),
        "report": str(done.report),
        "reasons": done.reasons,
        "resumed": done.resumed,
        "again": done.again,
        "changed": done.changed,
        "following": done.following,
    }


def _say_preview(found: Preview, *, as_json: bool) -> None:
    said = {verdict.value: number for verdict, number in found.verdicts.items()}
    here, newer, forgotten = (said.get(name, 0) for name in ("same", "newer", "forgotten"))
    coming = said.get("missing", 0) + said.get("changed", 0)
    if as_json:
        data = {
            "dry_run": True,
            "source": found.source,
            **found.counts.as_json(),
            "would_come": coming,
            "here": here,
            "newer": newer,
            "forgotten": forgotten,
            "notes": [note.as_json() for note in found.notes],
            "seconds": round(found.seconds, 2),
        }
        typer.echo(json.dumps(data, indent=2))
        return
    typer.echo(f"{Path(found.source).name}: {_counted(found.counts.as_json())}.")
    typer.echo(
        f"{coming:,} would come in. {here:,} are here already, {newer:,} are newer here, and {forgotten:,} were "
        "forgotten here and stay so."
    )
    if found.notes:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for note in found.notes:
            kinds.setdefault(note.kind, []).append(note.as_json())
        _say_notes(
            Counter(f"{note.kind}: {note.reason}" for note in found.notes),
            {kind: notes[:_SHOWN] for kind, notes in kinds.items()},
        )
        typer.echo("All of them: the same command with --json")
    typer.echo("This was a dry run: nothing was changed.")


def _say_notes(reasons: Mapping[str, int], notes: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    for reason, number in sorted(reasons.items()):
        typer.echo(f"{number:,} x {one_line(reason)}")
    typer.echo(f"The first {_SHOWN} of each kind:")
    for some in notes.values():
        for note in some:
            row = NOTHING if note["row"] is None else str(note["row"])
            typer.echo(
                f"  row {row} of {one_line(note['user'] or 'nobody')}: {note['kind']}: {one_line(note['reason'])}"
            )


def _say_verification(found: Verification) -> None:
    if found.differences:
        show(_FOUND_COLUMNS, [_finding_cells(one.as_json()) for one in found.differences])
    if found.beyond:
        typer.echo(f"And {found.beyond:,} more differences.")
    for store, reason in found.unasked.items():
        typer.echo(f"{store} could not be asked: {one_line(reason)}", err=True)
    said = {verdict.value: number for verdict, number in found.verdicts.items()}
    stores = ", ".join(found.stores) or "none"
    text = (
        f"{Path(found.source).name}: {_counted(found.counts.as_json())}; compared with the memory and with each of: "
        f"{stores}. {said.get('same', 0):,} are the same, {said.get('newer', 0):,} newer here, "
        f"{said.get('forgotten', 0):,} forgotten here since, {said.get('added', 0):,} were added here."
    )
    if found.parked:
        text += f" {found.parked:,} are parked by a store: python -m memory parked."
    # In a pipe the findings alone are data.
    typer.echo(text, err=not on_terminal() and bool(found.differences))
    if found.clean:
        typer.echo(f"Nothing differs. Digest {found.digest[:16]}.")


def _finding_cells(one: Mapping[str, Any]) -> Sequence[str]:
    return [
        one["kind"],
        NOTHING if one["row"] is None else str(one["row"]),
        one_line(one["user"]),
        NOTHING if one["key"] is None else one_line(one["key"]),
        one["store"] or "memory",
        one["detail"],
    ]


def _counted(counts: Mapping[str, int]) -> str:
    text = (
        f"{counts['rows']:,} rows of {counts['users']:,} users: {counts['entries']:,} memories, "
        f"{counts['past']:,} earlier values"
    )
    if counts["past_left_out"]:
        text += f" ({counts['past_left_out']:,} of them older than what is kept)"
    if counts["deletions"]:
        text += f", {counts['deletions']:,} deletions"
    return f"{text}, {counts['altered']:,} altered, {counts['refused']:,} refused"
