"""Whether everything that the predecessor's file says is here: row by row, in the memory and in each of its stores.

What is compared is computed from what is read, not from hashes that a store kept. What was changed or forgotten here
since is no difference, and what differs is looked at again, because others may be writing. Earlier values are counted,
not compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from memory.errors import BackendUnavailableError
from memory.migration import source
from memory.migration.before import Before
from memory.migration.comparison import Comparison
from memory.migration.findings import Finding, Verdict
from memory.migration.reading import Counts
from memory.migration.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from memory.unified import UnifiedMemoryBackend

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told what is under way, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        source: the file that was compared with; empty if there is none.
        digest: over the digests of all users in the source.
        digests: count and XOR (as in UserDigest) of each user's records in the source.
        verdicts: how many of the source's records stand how to what is here; and what is here and not there.
        parked: differences of stores that refused a record; the record is in the others.
        differences: what differs, up to LISTED_MAX.
        beyond: how many differences there are that are not listed.
        unasked: the stores that could not be asked, with the reason.
    """

    source: str
    counts: Counts = field(default_factory=Counts)
    digest: str = ""
    digests: dict[str, tuple[int, int]] = field(default_factory=dict)
    verdicts: dict[Verdict, int] = field(default_factory=dict)
    parked: int = 0
    differences: list[Finding] = field(default_factory=list)
    beyond: int = 0
    unasked: dict[str, str] = field(default_factory=dict)
    stores: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.differences and not self.beyond and not self.unasked

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "source": self.source or None,
            **self.counts.as_json(),
            "past_compared": False,
            **{verdict.value: self.verdicts.get(verdict, 0) for verdict in _COUNTED},
            "parked": self.parked,
            "differences": len(self.differences) + self.beyond,
            "found": [finding.as_json() for finding in self.differences],
            "unasked": self.unasked,
            "stores": list(self.stores),
            "digest": self.digest,
            "digests": {user: {"count": count, "xor": f"{xor:016x}"} for user, (count, xor) in self.digests.items()},
            "seconds": round(self.seconds, 2),
        }


_COUNTED = (Verdict.SAME, Verdict.NEWER, Verdict.FORGOTTEN, Verdict.ADDED)


async def verify(
    unified: UnifiedMemoryBackend,
    path: Path,
    legacy: Path,
    progress: Progress,
    *,
    at_ms: int | None = None,
    copy: Path | None = None,
) -> Verification:
    """Compare what *path* says with the memory and with each of its stores. Runs on the memory's loop.

    Args:
        legacy: the configured legacy file. If it is *path*, it is kept up to date: nothing may be here only.
        at_ms: when what was migrated was copied; None if nothing was.
        copy: what was migrated from *path*: tells what has gone from there since from what was added here, and what
            was changed there from what was changed here. Without it, and with *at_ms*, *path* is that copy itself.

    Raises:
        ConfigError: *path* cannot be used.
        BackendUnavailableError: no store answers.
    """
    began = time.monotonic()

    def copied(done: int, total: int) -> None:
        progress("Copying", done, total)

    rows = (await asyncio.to_thread(source.check, path)).rows
    with suppress(BackendUnavailableError):  # whoever fails is named below
        await unified.compare()
    with closing(await in_thread(partial(source.open_passing_copy, path, copied))) as db, ExitStack() as stack:
        live = path if _is_same_file(path, legacy) else None
        # Legacy is fed like the stores; where it is what is compared with, it is not compared with itself.
        stores = tuple(member for member in unified.members if member.counted or live is None)
        before = None
        if copy is not None and at_ms is not None:
            one = stack.enter_context(closing(await in_thread(partial(source.open_copy, copy))))
            other = stack.enter_context(closing(await in_thread(partial(source.open_copy, copy))))
            before, at_ms = (one, Before(other, at_ms)), None  # what *path* says is told as of now
        comparison = Comparison(unified, db, now_ms=at_ms, live=live, before=before, stores=stores)
        await comparison.run(lambda done: progress("Verifying", min(done, rows), rows))
        await comparison.look_again()
    return Verification(
        source=str(path),
        counts=comparison.counts,
        digest=comparison.digest.hexdigest(),
        digests=comparison.digests,
        verdicts=comparison.verdicts,
        parked=comparison.parked,
        differences=comparison.findings,
        beyond=comparison.beyond,
        unasked=comparison.unasked,
        stores=tuple(member.name for member in stores if member.name not in comparison.unasked),
        seconds=time.monotonic() - began,
    )


def _is_same_file(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False
