"""What becomes of a write: the outbox takes it, which acknowledges it; without an outbox, every store must."""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from memory.deadline import remaining_s
from memory.errors import BackendUnavailableError, ConfigError, WriteConcernError
from memory.model import stamped
from memory.reading import ask, nobody

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memory.acknowledged import AcknowledgedRevisions
    from memory.members import Members
    from memory.model import Record
    from memory.outbox import Kept, Outbox
    from memory.recall import Recall
    from memory.replica import Replica

_CONCERN_LEFT_S = 0.1

_is_counted = attrgetter("counted")


class Writer:
    """Writes to several stores as to one.

    Args:
        name: what errors call the memory.
        replicas: the stores, best priority first; some may join and leave.
        concern: how many stores must have a write before it counts, beside the outbox.
    """

    def __init__(
        self,
        name: str,
        replicas: Members,
        outbox: Outbox,
        acknowledged: AcknowledgedRevisions,
        recall: Recall,
        *,
        concern: int,
    ) -> None:
        self._name = name
        self._replicas = replicas
        self._outbox = outbox
        self._acknowledged = acknowledged
        self._recall = recall
        self._concern = concern

    async def keep(self, records: Sequence[Record]) -> int:
        """Keep checked *records*; those without a revision are stamped. Returns how many changed anything."""
        if not any(map(_is_counted, self._replicas)):
            raise nobody(self._name, "store", self._replicas, {})
        try:
            kept = await self._outbox.append(records)
        except BackendUnavailableError as exc:
            return await self._put_everywhere(records, exc)
        self._note(kept.records)
        if self._concern:
            await self.meet_concern(kept)
        return kept.changed

    async def log(self, records: Sequence[Record]) -> Kept:
        """Put *records* into the outbox, which feeds every store; they are acknowledged with that."""
        kept = await self._outbox.append(records)
        self._note(kept.records)
        return kept

    async def put_into(self, replica: Replica, records: Sequence[Record]) -> int:
        """Stamp and put *records* into one store alone, since nothing else takes them; the others are compared with it.

        Raises:
            BackendUnavailableError: neither does that store.
        """
        ready = stamped(records, self._outbox.clock)
        changed = await replica.call("store", partial(replica.store.put, ready))
        self._note(ready)
        for other in self._replicas:
            other.distrust(rewind=False)
        return changed

    def _note(self, records: Sequence[Record]) -> None:
        """These were acknowledged: from now on no read may know less."""
        self._acknowledged.note(records)
        self._recall.note(records)

    async def _put_everywhere(self, records: Sequence[Record], outbox: BackendUnavailableError) -> int:
        """Without an outbox a write counts only if every store took it: nothing would remember who missed it."""
        counted = [replica for replica in self._replicas if replica.counted]
        absent = [replica for replica in counted if not replica.writable]
        if absent:
            reasons = "; ".join(f"{r.name}: {r.health().detail or 'is not ready'}" for r in absent)
            raise BackendUnavailableError(self._name, "store", f"{outbox.reason}; {reasons}") from outbox
        ready = stamped(records, self._outbox.clock)
        outcomes = await ask(self._replicas, "store", lambda replica: replica.store.put(ready))
        changed = [outcomes[replica] for replica in counted]
        if not all(isinstance(outcome, int) for outcome in changed):
            error = nobody(self._name, "store", counted, {r: outcomes[r] for r in counted})
            if isinstance(error, BackendUnavailableError):
                error = BackendUnavailableError(self._name, "store", f"{outbox.reason}; {error.reason}")
            raise error from outbox
        for replica in self._replicas:
            if not isinstance(outcomes.get(replica), int):  # or it was not asked, since it has joined only now
                replica.distrust(rewind=False)
        self._note(ready)
        return max((outcome for outcome in changed if isinstance(outcome, int)), default=0)

    async def meet_concern(self, kept: Kept) -> None:
        """Wait until as many stores have what was logged as must have it.

        Raises:
            WriteConcernError: they do not have it in time. It is kept, and they will.
        """
        if not self._concern:
            return
        waits = {asyncio.ensure_future(r.confirm(kept.last_seq)): r for r in self._replicas if r.counted}
        try:
            left_s = remaining_s()
            async with asyncio.timeout(None if left_s is None else left_s - _CONCERN_LEFT_S):
                for count, done in enumerate(asyncio.as_completed(waits), start=1):
                    await done
                    if count >= self._concern:
                        return
        except TimeoutError:
            kept_in = tuple(r.name for wait, r in waits.items() if wait.done())
            waiting = tuple(r.name for wait, r in waits.items() if not wait.done())
            raise WriteConcernError(self._name, kept_in, waiting) from None
        finally:
            for wait in waits:
                wait.cancel()


def stores_needed(write_concern: str | int, stores: int) -> int:
    """Return how many stores must have a write; ConfigError if there are not so many."""
    named = {"local": 0, "all": stores}
    needed = write_concern if isinstance(write_concern, int) else named.get(write_concern, -1)
    if not 0 <= needed <= stores:
        raise ConfigError(
            f'memory.write_concern: {write_concern!r} cannot be met (limit: "local", "all" or 1 to {stores})'
        )
    return needed
