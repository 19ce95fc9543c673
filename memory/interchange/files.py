"""Files as memories come and go in them: lines with a limit, and a new file that is whole or not there."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from memory.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE_MAX = 1 << 20
"""Bytes that a line of another program's may have."""

_HEAD = 4_096
_BOM = "\ufeff"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """A line that is not blank, and its number in the file, from 1."""

    number: int
    text: str

    @property
    def where(self) -> str:
        return f"line {self.number}"


class Refused(NamedTuple):
    """What of a file is not taken, or not just as it stands there, and why; never what it says.

    Attributes:
        where: the number of the line or item, and the id that the file has for it.
        altered: whether it is taken nevertheless.
    """

    where: str
    reason: str
    altered: bool = False


def read_lines(file: BinaryIO, most: int = LINE_MAX) -> Iterator[Line | Refused]:
    """Yield the lines of *file*; one that is longer than *most* bytes, or no UTF-8 text, is refused."""
    number = 0
    while raw := file.readline(most + 1):
        number += 1
        if len(raw) > most and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(most)
            yield Refused(f"line {number}", f"is longer than {most >> 20} MiB (limit: {most:,} bytes)")
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            yield Refused(f"line {number}", "is no UTF-8 text")
            continue
        text = text.removeprefix(_BOM).strip("\r\n") if number == 1 else text.strip("\r\n")
        if text.strip():
            yield Line(number, text)


def check_readable(file: BinaryIO, name: str) -> None:
    """Raise ConfigError if *file* is empty, UTF-16, or no text; leave it at its start."""
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise ConfigError(f"{name} is empty")
    if head.startswith(_UTF_16):
        raise ConfigError(f"{name} is UTF-16 text: save it as UTF-8 and try again")
    if b"\x00" in head:  # else its odd lines would be taken for sentences
        raise ConfigError(f"{name} is no text; a database is for python -m memory migrate, an archive to be unpacked")


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a file for its owner alone that stands under *path* once it is whole and on the disk, and never before.

    It grows beside *path*, as `NAME.PID.part`, which only a kill leaves behind.

    Raises:
        ConfigError: it is there already and *force* is not set, or it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if not force and os.path.lexists(path):
            raise _is_there(path)
        with suppress(FileNotFoundError):
            draft.unlink()  # of a process that was killed and had our number
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(draft, path, force=force)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or type(exc).__name__}") from exc


def _put_in_place(draft: Path, path: Path, *, force: bool) -> None:
    if force:
        draft.replace(path)
    else:
        try:
            path.hardlink_to(draft)  # unlike a rename, it fails if somebody else was faster
        except FileExistsError:
            raise _is_there(path) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise _is_there(path) from None
            draft.replace(path)
    with suppress(OSError):  # a file system that cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_there(path: Path) -> ConfigError:
    return ConfigError(f"{path} is there already; --force overwrites it")
