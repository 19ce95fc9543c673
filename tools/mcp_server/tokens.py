"""The tokens that open the server over HTTP: a file of their hashes, for nobody's eyes but the owner's.

A token itself is shown or written once, when it is made, and is kept nowhere.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from memory.errors import MemoryBackendError, MemoryRejectedError
from tools.mcp_server.grants import Grant, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

log = logging.getLogger(__name__)

_OWNER_ONLY = 0o600
_OTHERS = 0o077
_TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


class TokenFileError(MemoryBackendError):
    """The tokens' file, or one for a token, cannot be used; the text says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A token, as far as it is kept.

    Attributes:
        digest: SHA-256 of it, in hex. Fast to compute, which is safe: the token is 256 random bits.
    """

    grant: Grant
    digest: str
    created: str


class TokenFile:
    """The tokens in a file. Commands change it, and a server that runs notices."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: tuple[Entry, ...] = ()
        self._seen: tuple[int, ...] | None = None
        self._complained = ""

    def grant_of(self, token: bytes) -> Grant | None:
        """Return what *token* allows at this moment, or None if it is none, or the file cannot be used."""
        try:
            self._refresh()
        except TokenFileError as exc:
            self._entries, self._seen = (), None
            if str(exc) != self._complained:
                self._complained = str(exc)
                log.error("nobody is let in: %s", exc, extra={"event": "tokens_unusable"})
        else:
            self._complained = ""
        digest = sha256(token).hexdigest()
        found = None
        for entry in self._entries:  # all of them, so that the time taken does not tell which was near
            if hmac.compare_digest(entry.digest, digest):
                found = entry.grant
        return found

    def entries(self) -> tuple[Entry, ...]:
        """Return what is in the file now; nothing if there is none.

        Raises:
            TokenFileError: it cannot be read, others may read it, or it makes no sense.
        """
        self._refresh()
        return self._entries

    def add(self, grant: Grant, keep: Callable[[str], None]) -> None:
        """Make a token for *grant* and hand it to *keep*; it counts as soon as that has returned."""
        if not _NAME.fullmatch(grant.name):
            raise MemoryRejectedError("name", "is none for a token", "1 to 64 letters, digits and . _ -")

        def change(entries: list[Entry], _: ExitStack) -> list[Entry]:
            if any(entry.grant.name == grant.name for entry in entries):
                raise TokenFileError(f"there is a token called {grant.name} already; rotate or remove it")
            return [*entries, Entry(grant, _made(keep), datetime.now(UTC).isoformat(timespec="seconds"))]

        self._change(change)

    def rotate(self, name: str, keep: Callable[[str], AbstractContextManager[None]]) -> None:
        """Put a new token in the place of *name*'s, which counts no longer.

        Args:
            keep: is left when the new token counts, and only then may take away where the old one is kept.
        """

        def change(entries: list[Entry], kept: ExitStack) -> list[Entry]:
            self._check_there(name, entries)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            fresh = _made(lambda token: kept.enter_context(keep(token)))
            return [replace(e, digest=fresh, created=now) if e.grant.name == name else e for e in entries]

        self._change(change)

    def remove(self, name: str) -> None:
        """Let *name*'s token open nothing any more."""

        def change(entries: list[Entry], _: ExitStack) -> list[Entry]:
            self._check_there(name, entries)
            return [entry for entry in entries if entry.grant.name != name]

        self._change(change)

    def _check_there(self, name: str, entries: list[Entry]) -> None:
        if all(entry.grant.name != name for entry in entries):
            names = ", ".join(entry.grant.name for entry in entries) or "none"
            raise TokenFileError(f"there is no token of that name; there are: {names}")

    def _change(self, change: Callable[[list[Entry], ExitStack], list[Entry]]) -> None:
        with _locked(self.path), ExitStack() as kept:
            text = json.dumps({"tokens": [_to_json(entry) for entry in change(list(self.entries()), kept)]}, indent=1)
            write_privately(self.path, text + "\n", instead=True)

    def _refresh(self) -> None:
        """Read the file if it is not the one that was read last."""
        try:
            if self._seen is not None and _marks(self.path.stat()) == self._seen:
                return
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            self._entries, self._seen = (), None
            return
        except OSError as exc:
            raise TokenFileError(f"{self.path.name} cannot be read: {exc.strerror}") from None
        with os.fdopen(file, "rb") as opened:
            status = os.fstat(opened.fileno())
            if os.name == "posix" and status.st_mode & _OTHERS:
                raise TokenFileError(f"{self.path.name} may be used by others than its owner; chmod 600 it")
            try:
                entries = tuple(_from_json(item) for item in json.loads(opened.read())["tokens"])
            except (KeyError, TypeError, ValueError, OSError, RecursionError):
                raise TokenFileError(f"{self.path.name} makes no sense; mend it or make it anew") from None
        self._entries, self._seen = entries, _marks(status)


def write_privately(path: Path, text: str, *, instead: bool = False) -> None:
    """Write a file that only its owner can read, from its first byte on; *instead*: of the one that may be there.

    Raises:
        TokenFileError: it cannot be written, or is there already.
    """
    if instead:
        with written_privately(path, text):
            return
    _write(path, path, text)


@contextmanager
def written_privately(path: Path, text: str) -> Iterator[None]:
    """Write as `write_privately` does, beside *path* at first: it takes its place at the end, if nothing fails.

    Raises:
        TokenFileError: it cannot be written.
    """
    if path.is_dir():
        raise TokenFileError(f"{path.name} cannot be written: it is a folder")
    first = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    _write(first, path, text)
    try:
        yield
        first.replace(path)
    except BaseException as exc:
        with suppress(OSError):
            first.unlink()
        if isinstance(exc, OSError):
            raise TokenFileError(f"{path.name} cannot be written: {exc.strerror}") from None
        raise


def _write(first: Path, path: Path, text: str) -> None:
    """Make the file *first*, which is or will be *path*."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    except FileExistsError:
        raise TokenFileError(f"{path.name} is there already; take it away or name another") from None
    except OSError as exc:
        raise TokenFileError(f"{path.name} cannot be written: {exc.strerror}") from None
    try:
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as exc:
        with suppress(OSError):
            first.unlink()
        raise TokenFileError(f"{path.name} cannot be written: {exc.strerror}") from None


def _made(keep: Callable[[str], None]) -> str:
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    keep(token)
    return sha256(token.encode()).hexdigest()


def _marks(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when the file does. Its mode is among it, so that one that is opened up is noticed."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode


def _to_json(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.grant.name,
        "sha256": entry.digest,
        "scopes": sorted(entry.grant.scopes),
        "user": entry.grant.user_id,
        "created": entry.created,
    }


def _from_json(item: dict[str, object]) -> Entry:
    name, digest, scopes, user, created = (item[part] for part in ("name", "sha256", "scopes", "user", "created"))
    if not isinstance(name, str) or not isinstance(digest, str) or not isinstance(created, str):
        raise TypeError
    if not isinstance(scopes, list) or not (user is None or isinstance(user, str)) or not _HASH.fullmatch(digest):
        raise TypeError
    return Entry(Grant(name, frozenset(Scope(scope) for scope in scopes), user), digest, created)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two commands from changing the file at once, of which one would be lost."""
    try:
        import fcntl
    except ImportError:  # Windows: without it
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, _OWNER_ONLY)
    except OSError as exc:
        raise TokenFileError(f"{path.name} cannot be locked: {exc.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
