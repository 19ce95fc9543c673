"""What every command of `python -m memory` needs: options, exit codes, the memory, and how to say things."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from memory.assemble import shared_memory
from memory.config import MemoryFileSettings, default_config_path, load_settings, read_dotenv
from memory.errors import BackendUnavailableError, ConfigError, MemoryBackendError, MemoryRejectedError
from memory.outbox import Outbox
from memory.revision import HybridLogicalClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    from memory.shared import SharedMemory

T = TypeVar("T")

DONE = 0
NOT_WELL = 1
CANNOT_RUN = 2
INTERRUPTED = 130  # as a shell says it of what ended by Ctrl+C

CODES = (
    "Exit code: 0 done, all is well; 1 something is not, or a store did not answer; 2 wrong usage, settings or file; "
    "130 interrupted."
)
SETTLE_S = 5.0
_LINE_EVERY_S = 2.0
NOTHING = "-"
COLOURS = {
    "healthy": "green",
    "starting": "yellow",
    "behind": "yellow",
    "read-only": "yellow",
    "refused": "red",
    "down": "red",
}

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The settings (default: config.toml beside bot.py, or $JAKEY_CONFIG)."
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


@asynccontextmanager
async def opened(config: Path) -> AsyncIterator[SharedMemory]:
    """The memory that *config* describes, as the bot opens it; its stores and their processes end with it."""
    memory = shared_memory(config, indexes=False)
    try:
        try:
            await memory.open()
        except TimeoutError as exc:
            raise BackendUnavailableError("the memory", "start", "it was not ready in time") from exc
        yield memory
    finally:
        await memory.close()


async def ask_outbox(config: Path, question: Callable[[Outbox], Awaitable[T]]) -> T:
    """Ask the outbox alone, without starting any store."""
    settings = load_settings(MemoryFileSettings, config).memory
    outbox = Outbox(config.parent / settings.outbox, HybridLogicalClock())
    try:
        await outbox.open()
        return await question(outbox)
    finally:
        await outbox.close()


def finish(config: Path | None, work: Callable[[Path], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run *work* on the settings' file and exit with its code; what goes wrong is a sentence on standard error."""
    # The stores' troubles are in the answer, in our words; their log lines would only stand in between.
    logging.getLogger().addHandler(logging.NullHandler())
    file = (config or default_config_path()).resolve()
    try:
        read_dotenv(file.parent)
        code = asyncio.run(work(file))
    except KeyboardInterrupt:
        typer.echo("Interrupted. What was done stays done: the same command goes on from there.", err=True)
        code = INTERRUPTED
    except ConfigError as exc:
        typer.echo(str(exc), err=True)
        code = CANNOT_RUN
    except MemoryRejectedError as exc:
        typer.echo(str(exc), err=True)
        code = CANNOT_RUN
    except MemoryBackendError as exc:
        typer.echo(f"{exc}. Try again in a moment; python -m memory status says how the stores are doing.", err=True)
        code = NOT_WELL
    raise typer.Exit(code)


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    if not on_terminal():
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show how far long work has come, on standard error: a bar on a terminal, a line now and then in a pipe.

    Yields a function of how much is done and how much there is. Quiet, for --json, shows nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda _done, _total: None
    elif console.is_terminal:
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as bars:
            bar = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)
    else:
        yield _LineNowAndThen(what)


class _LineNowAndThen:
    def __init__(self, what: str) -> None:
        self._what = what
        self._said_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            typer.echo(f"{self._what}: {done:,} of {total:,}", err=True)


def on_terminal() -> bool:
    return Console().is_terminal


def one_line(text: str) -> str:
    """Return *text*, which may be a foreign server's, as what can neither break a line nor steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
