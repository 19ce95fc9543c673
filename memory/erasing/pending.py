"""The erasures that are not over, or not told yet, in a small file: it survives a kill, and all processes see it."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows: two processes that write at the same instant are not kept from each other
    fcntl = None  # type: ignore[assignment]

from memory.errors import BackendUnavailableError
from memory.receipt import Part, PartState, Receipt
from memory.sqlite_copy import flush

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure, and how far it is. What it says of a person is a hash, and what the caller gave along to tell them.

    Attributes: see Receipt.
        revision: empty as long as the tombstone is not known to be written.
        asked: above all that there was when it was asked for: what comes later is not to go with it.
        name: tells it from another of the same person; the revision at which it was first asked for.
    """

    user_hash: str
    revision: str = ""
    tell: str = ""
    entries: int = 0
    parts: tuple[Part, ...] = ()
    known: bool = True
    asked: str = ""
    name: str = ""

    def receipt(self) -> Receipt:
        known = self.known or any(part.count for part in self.parts)
        return Receipt(self.user_hash, self.revision, self.tell, self.entries, self.parts, known)


class PendingErasures:
    """The file at *path*; several processes may share it. Every method may raise BackendUnavailableError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Erasure]:
        """Return all of them, oldest first; of a person there may be several. It raises what it cannot read."""
        try:
            said = json.loads(self.path.read_text(encoding="utf-8"))
            return [_erasure(one) for one in said["erasures"]]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise self._failed("be read", exc) from exc
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise BackendUnavailableError("the erasures", "be read", f"{self.path.name}: makes no sense") from exc

    def keep(self, one: Erasure) -> None:
        """Note *one*, durably, beside others of the same person, which another process may be at."""
        self._change(lambda known: [*known, one])

    def advance(self, one: Erasure) -> bool:
        """Note how far *one* is; return False if nobody wants it any more.

        Never back behind what is noted of it. Earlier ones of that person go into it as soon as its tombstone, which
        covers theirs, is written: unless they are to be told to somebody else.
        """

        def is_in(other: Erasure) -> bool:
            is_covered = other.name < one.name and (other.revision or other.asked) < one.revision
            return is_covered and other.user_hash == one.user_hash and other.tell in ("", one.tell)

        def change(known: list[Erasure]) -> list[Erasure]:
            before = next((other for other in known if other.name == one.name), None)
            if before is None or before.revision > one.revision:
                return known
            gone = [other for other in known if is_in(other)]
            entries = max(other.entries for other in (one, before, *gone))
            now = replace(one, entries=entries, known=any(other.known for other in (one, *gone)))
            return [now if other.name == one.name else other for other in known if other not in gone]

        return any(other.name == one.name for other in self._change(change))

    def drop(self, user_hash: str, revision: str) -> None:
        """Keep nothing of this erasure any more; of others of that person all stays."""
        self._change(lambda known: [one for one in known if (one.user_hash, one.revision) != (user_hash, revision)])

    def _change(self, change: Callable[[list[Erasure]], list[Erasure]]) -> list[Erasure]:
        with self._held():
            before = self.read()
            known = change(before)
            if known != before:
                self._write(known)
            return known

    def _write(self, erasures: list[Erasure]) -> None:
        draft = self.path.with_name(f"{self.path.name}.part")
        try:
            if not erasures:
                self.path.unlink(missing_ok=True)
                flush(self.path.parent)
                return
            text = json.dumps({"format": _FORMAT, "erasures": [asdict(one) for one in erasures]}, indent=1)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the name without what is in it
            draft.replace(self.path)
            flush(self.path.parent)
        except OSError as exc:
            raise self._failed("be noted", exc) from exc

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes from writing at the same time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise self._failed("be noted", exc) from exc
        try:
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX)  # microseconds: whoever holds it writes a small file
            yield
        finally:
            os.close(held)

    def _failed(self, operation: str, exc: OSError) -> BackendUnavailableError:
        return BackendUnavailableError("the erasures", operation, f"{self.path.name}: {exc.strerror}")


def _erasure(said: dict[str, Any]) -> Erasure:
    parts = tuple(
        Part(str(one["name"]), PartState(one["state"]), int(one["count"]), str(one["why"])) for one in said["parts"]
    )
    user_hash, revision, tell = str(said["user_hash"]), str(said["revision"]), str(said["tell"])
    asked = str(said["asked"])
    known, name = bool(said.get("known", True)), str(said.get("name", asked))  # an older note has neither
    return Erasure(user_hash, revision, tell, int(said["entries"]), parts, known, asked, name)
