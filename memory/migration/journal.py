"""How far a migration has come, so that it goes on there after a kill, and what was noted of single rows."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

try:
    import fcntl
except ImportError:  # Windows: nobody is told of another migration there
    fcntl = None  # type: ignore[assignment]

from memory.errors import BackendUnavailableError, ConfigError
from memory.migration.reading import Counts
from memory.model import to_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from memory.migration.reading import Note

STATE = "migration.json"
_LOCK = "migration.lock"
_HALF = re.compile(r"jakey-\d{8}T\d{6}Z(-\d+)?\.db\.part(-wal|-shm|-journal)?")
_SHOWN = 10
_FORMAT = 1


@dataclass(slots=True)
class State:
    """What `migration.json` says.

    Attributes:
        source: the predecessor's file, as an absolute path.
        at: when the copy was made, ISO 8601, UTC.
        copy: the copy's file name, in the same folder.
        print: what `fingerprint` said of the copy.
        total: rows of the copy.
        position: the last user whose memories are durably here; None before the first.
        report_bytes: how much of the report belongs to what is counted.
        reasons: how many rows there are for each kind of note and reason.
        load_s: what loading took so far, in seconds.
        earlier: the files that were migrated before this one, and whether all of each came in.
    """

    source: str
    at: str
    copy: str
    print: list[Any]
    total: int
    position: str | None = None
    complete: bool = False
    counts: Counts = field(default_factory=Counts)
    report_bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    load_s: float = 0.0
    earlier: dict[str, bool] = field(default_factory=dict)

    @property
    def interrupted(self) -> str:
        """The name of a file of which not all came in yet; empty if there is none."""
        every = {**self.earlier, self.source: self.complete}
        return next((Path(name).name for name, complete in every.items() if not complete), "")

    @property
    def at_ms(self) -> int:
        """When the copy was made, in ms: what counts as the present, whenever the copy is read."""
        return to_ms(datetime.fromisoformat(self.at))


class Journal:
    """The state of the last migration, and its report, in *folder*. Use `with`: one migration at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self.state: State | None = None

    def __enter__(self) -> Self:
        with _in_words():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                raise BackendUnavailableError("the migration", "begin", "another one is under way") from None
        with suppress(ConfigError):  # it cannot be read: begin anew, which is what its reader is told to do
            self.state = read_state(self._folder)
        with suppress(OSError):
            for half in self._folder.iterdir():  # of a copy that was killed; what else is there is not ours
                if _HALF.fullmatch(half.name):
                    half.unlink()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def now(self) -> State:
        assert self.state is not None  # noqa: S101 - begun before it is asked for
        return self.state

    @property
    def copy(self) -> Path:
        return self._folder / self.now.copy

    @property
    def report(self) -> Path:
        return report_of(self.copy)

    def begin(self, state: State) -> None:
        """Start anew with the copy that *state* names."""
        if self.state is not None:
            earlier = {**self.state.earlier, self.state.source: self.state.complete}
            earlier.pop(state.source, None)
            state.earlier = earlier
        self.state = state
        with _in_words():
            os.close(os.open(self.report, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        self.save()

    def rewind(self) -> bool:
        """Cut off what a killed process noted and did not count; False if what was counted is not there any more."""
        with _in_words(), suppress(FileNotFoundError), self.report.open("r+b") as file:
            if file.seek(0, os.SEEK_END) >= self.now.report_bytes:
                file.truncate(self.now.report_bytes)
                return True
        return False

    def advance(self, position: str, counts: Counts, notes: Iterable[Note], load_s: float) -> None:
        """Everything up to the user *position* is durably here."""
        state = self.now
        lines = [json.dumps(note.as_json(), ensure_ascii=True) + "\n" for note in notes]
        if lines:
            text = "".join(lines).encode()
            with _in_words(), self.report.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # before the state counts it
            state.report_bytes += len(text)
            reasons = Counter(f"{note.kind}: {note.reason}" for note in notes)
            state.reasons = dict(Counter(state.reasons) + reasons)
        state.position = position
        state.counts.add(counts)
        state.load_s = load_s
        self.save()

    def finish(self) -> None:
        """All of it is durably here."""
        self.now.complete = True
        self.save()

    def first_notes(self) -> dict[str, list[dict[str, Any]]]:
        """Return the first few notes of each kind."""
        found: dict[str, list[dict[str, Any]]] = {}
        # What somebody wrote into the report is none of our notes: what stands before it is shown.
        with suppress(OSError, ValueError, RecursionError), self.report.open(encoding="utf-8") as file:
            for line in file:
                note = json.loads(line)
                if not isinstance(note, dict) or {"kind", "row", "user", "reason"} - note.keys():
                    break
                of_kind = found.setdefault(str(note["kind"]), [])
                if len(of_kind) < _SHOWN:
                    of_kind.append(note)
        return found

    def save(self) -> None:
        """Write the state as it is now."""
        state = {"format": _FORMAT, **_as_json(self.now)}
        draft = self._folder / f"{STATE}.part"
        with _in_words():
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(state, file, indent=2)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the name without what is in it
            draft.replace(self._folder / STATE)
            _sync_folder(self._folder)


def read_state(folder: Path) -> State | None:
    """Return what is known of the last migration; None if there was none.

    Raises:
        ConfigError: there was one, and its file cannot be read or makes no sense.
    """
    try:
        said = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return _as_state(said)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as exc:
        raise ConfigError(f"{STATE}: the state of the last migration cannot be read: run migrate again") from exc


def _as_state(said: dict[str, Any]) -> State:
    """Return what *said* says; one of the errors that `read_state` expects if it makes no sense."""
    if said.pop("format") != _FORMAT:
        raise ValueError("format")
    state = State(**{**said, "counts": Counts(**said["counts"])})
    texts = (state.source, state.at, state.copy, *state.reasons, *state.earlier)
    numbers = (state.total, state.report_bytes, *state.counts.as_json().values(), *state.reasons.values())
    sound = (
        all(isinstance(text, str) and "\0" not in text for text in texts)
        and all(isinstance(number, int) and number >= 0 for number in numbers)
        and all(isinstance(flag, bool) for flag in (state.complete, *state.earlier.values()))
        and (state.position is None or isinstance(state.position, str))
        and isinstance(state.load_s, int | float)
        and isinstance(state.print, list)
        and Path(state.source).is_absolute()
        and Path(state.copy).name == state.copy  # in this folder, and a name at all
    )
    if not sound or state.at_ms < 0:
        raise ValueError("state")
    return state


def report_of(copy: Path) -> Path:
    """Return where the notes about the rows of *copy* are."""
    return copy.with_suffix(".report.jsonl")


def _sync_folder(folder: Path) -> None:
    """Let a new name in *folder* outlive a power cut, where folders can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = f"{Path(exc.filename).name}: {exc.strerror}" if exc.filename else str(exc.strerror)
        raise BackendUnavailableError("the migration", "note how far it has come", reason) from exc


def _as_json(state: State) -> dict[str, Any]:
    said = {one.name: getattr(state, one.name) for one in fields(state)}
    return said | {"counts": state.counts.as_json()}
