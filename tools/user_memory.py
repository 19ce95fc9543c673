"""What can be done with a person's memories, on behalf of whom the context names."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from memory import EVERYWHERE, MemoryRejectedError, SearchResult
from memory.limits import check_value
from memory.model import Tombstone, UserTombstone, from_ms
from tools import past
from tools.border import Admitted, admitted
from tools.consent import PRIVACY, Answers, Consent, ConsentNeededError, consent_of, told
from tools.entries import live, readable, under
from tools.export import export
from tools.hearsay import ABOUT, about
from tools.keys import most_alike, normalise_key
from tools.one_spelling import OneSpelling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memory import MemoryBackend, MemoryEntry, Receipt, SharedMemory
    from memory.shared import MemorySystem
    from tools.context import ToolContext
    from tools.past import Undone

_FIELDS = {"key": "information_type", "value": "information"}
_LIMIT_MAX = 1_000
_A_MOMENT = timedelta(milliseconds=1)


class UserMemory:
    """The memories of whoever the context names. Every method may raise what MemoryBackend's may.

    Where a context needs consent, whatever writes (but forgets nothing) raises ConsentNeededError without a yes.

    Args:
        memory: None is the process-wide one, made from config.toml at the first use.
    """

    def __init__(self, memory: SharedMemory | None = None) -> None:
        self._memory = memory
        self._listeners: list[Callable[[str], None]] = []
        self._spelling = OneSpelling(lambda: self.memory)
        self._answers = Answers(lambda: self.memory)

    @property
    def memory(self) -> SharedMemory:
        if self._memory is None:
            from memory import memory_backend

            self._memory = memory_backend
        return self._memory

    def use(self, memory: SharedMemory | None) -> SharedMemory | None:
        """Work on *memory* from now on; None is the process-wide one. Return what was worked on before."""
        before, self._memory = self._memory, memory
        self._spelling.start_afresh()
        return before

    async def remember(self, context: ToolContext, information_type: str, information: str) -> Admitted:
        """Remember *information* in place of what was there, and return what is kept: what nobody can see is not.

        Raises:
            ConsentNeededError: the person did not agree; nothing is kept.
            MemoryRejectedError: also for a secret.
        """
        _check_scope(context.scope)
        with _as_people_say():
            check_value(information)
        let_in = await admitted(information_type, information)
        kept = replace(let_in, key=normalise_key(let_in.key))
        await self._require_consent(context)
        others = about(let_in.key, kept.value, context.user_id, context.origin)
        metadata = context.metadata | {ABOUT: others} if others else context.metadata
        try:
            with _as_people_say():
                await self._spelling.store(context.user_id, context.scope, kept.key, kept.value, metadata)
        finally:
            if context.needs_consent:
                await self._take_back_if_refused(context, kept.key)
        return kept

    async def recall(self, context: ToolContext, query: str = "", limit: int = 10) -> SearchResult:
        """Return the memories that match *query*, best first; the newest if it is empty; none without consent."""
        if context.needs_consent and await self.consent(context) is not Consent.YES:
            return SearchResult()
        if context.audience is None:
            return await self._all_but_settings(context, query, limit)
        return await self._search(context, query, limit, context.audience - {PRIVACY})

    async def own(self, context: ToolContext, query: str = "", limit: int = 10) -> SearchResult:
        """Return what an explicit command of the person shows them of their memories.

        Where nobody else sees the answer, those of every scope, also without their consent; else nothing without it.
        """
        context = await self._showing(context)
        if context.audience is None or not context.private:
            return await self.recall(replace(context, needs_consent=False), query, limit)
        scopes = {entry.scope for entry in await live(self.memory, context.user_id)}
        return await self._search(context, query, limit, frozenset(scopes | context.audience) - {PRIVACY})

    async def elsewhere(self, context: ToolContext) -> int:
        """Return how many of the person's memories may not be told here; without their consent that is all."""
        audience = (await self._showing(context)).audience
        if audience is None:
            return 0
        return sum(entry.scope not in audience for entry in await live(self.memory, context.user_id))

    # Consent

    async def consent(self, context: ToolContext) -> Consent:
        """Return whether the person may be remembered; who needs no consent always may.

        Raises:
            BackendUnavailableError: nobody knows, which is no yes.
        """
        return await consent_of(self._store_of_all, context.user_id) if context.needs_consent else Consent.YES

    async def agree(self, context: ToolContext) -> None:
        """Note that the person agrees: from now on they may be remembered, and what is there may be recalled."""
        await self._answers.give(context, Consent.YES)

    async def refuse(self, context: ToolContext) -> bool:
        """Note that the person does not agree: from now on nothing is recalled or remembered.

        What they had agreed to stays until they delete it; what was brought along before they were asked is erased.

        Returns:
            Whether anything was erased.
        """
        with self._forgetting(context.user_id):
            return await self._answers.give(context, Consent.NO)

    # What was before, and where it belongs

    async def history(self, context: ToolContext, information_type: str) -> list[MemoryEntry]:
        """Return what is remembered under *information_type* and was before, the newest first.

        Of the scopes that may be read here; of all where nobody else sees the answer; else none without consent.

        Raises:
            UnifiedPathNeededError: the migration flag is off.
        """
        return await past.history(self.memory, await self._showing(context), information_type)

    async def undo(self, context: ToolContext, information_type: str = "") -> Undone | None:
        """Put back what was remembered before under *information_type*, or, without one, what was changed last here.

        To undo twice is to undo nothing. What is forgotten stays forgotten, and no value leaves its scope.

        Returns:
            None: there is nothing before, nothing there, or it was changed in this moment.

        Raises:
            UnifiedPathNeededError: the migration flag is off.
        """
        await self._require_consent(context)
        return await past.undo(self.memory, context, information_type)

    async def why(self, context: ToolContext, information_type: str) -> list[MemoryEntry]:
        """Return the entries under *information_type*, whose metadata say by whom, where and how they came.

        Of the scopes that may be read here; of all where nobody else sees the answer; else none without consent.
        """
        return await past.why(self.memory, await self._showing(context), information_type)

    async def move(self, context: ToolContext, information_type: str, scope: str) -> past.Moved | None:
        """Let what is remembered under *information_type* be told in *scope* from now on, and no longer where it was.

        Of several that may be read here that is one: the latest, of those that are told here. It takes the place of
        what is in *scope*, and its own values before end. The others stay where they are, and are returned.

        Args:
            scope: EVERYWHERE, "dm", or where this is said.

        Returns:
            None: there was nothing to move.
        """
        _check_scope(scope)
        if scope not in (EVERYWHERE, "dm", context.scope):
            raise MemoryRejectedError("scope", "is not where this is said", "everywhere, dm or here")
        key = normalise_key(information_type)
        await self._require_consent(context)

        async def work(system: MemorySystem) -> past.Moved | None:
            kept = under(key, await live(self.memory, context.user_id))
            found = readable(context, kept)
            if not found:
                return None
            now = found[0]
            if now.scope == scope and now.key == key:
                return past.Moved(key, scope, now.value, tuple(found[1:]))
            behind = await past.how_many_before(self.memory, now)
            # What it takes the place of has a history, and keeps it. What was deleted there, moved away perhaps, was
            # another entry: a time of its own tells.
            there = next((e.created_at for e in kept if (e.scope, e.key) == (scope, key)), now.created_at + _A_MOMENT)
            at = from_ms(system.flagged.clock.now_ms())
            moved = replace(now, key=key, scope=scope, created_at=there, updated_at=at, revision="")
            left = [entry for entry in found if entry.scope == now.scope and (entry.scope, entry.key) != (scope, key)]
            graves = [Tombstone(*entry.position) for entry in left]
            await system.flagged.write([moved, *graves])
            gone = {(scope, key), *((entry.scope, entry.key) for entry in left)}
            still = [entry for entry in found[1:] if (entry.scope, entry.key) not in gone]
            return past.Moved(key, scope, now.value, tuple(still), behind)

        with self._forgetting(context.user_id):
            return await self._answers.alone(context.user_id, "store", work)

    async def export(self, context: ToolContext) -> bytes:
        """Return all that is remembered about the person as JSON; see tools/export.py."""
        return await export(self.memory, context.user_id)

    # Forgetting

    async def forget(
        self,
        context: ToolContext,
        information_type: str,
        *,
        only_if: str | None = None,
        everywhere: bool = False,
    ) -> list[str]:
        """Forget what may be seen here under *information_type*; return the scopes in which there was anything.

        Args:
            only_if: forget only what still says exactly this.
            everywhere: in every scope: for who is shown all of them and means what they see.
        """
        key = normalise_key(information_type)
        scopes = context.scopes
        if everywhere:
            scopes |= {entry.scope for entry in under(key, await live(self.memory, context.user_id))}
        there = sorted(scopes - {PRIVACY})
        forgotten = await asyncio.gather(
            *(self._spelling.forget(context.user_id, scope, key, only_if) for scope in there)
        )
        self._tell_forgotten(context.user_id)
        return [scope for scope, had in zip(there, forgotten, strict=True) if had]

    async def take_back(self, context: ToolContext, information_type: str, said: str, *, no_trace: bool = False) -> str:
        """Let be there again what was there before the message of *context* said *said*, if that is still there.

        In the context's scope. Other values of the same message do not come back. Where nothing was there before, or
        with the migration flag off, it is forgotten.

        Args:
            no_trace: the history says nothing of it either; it begins anew then.

        Returns:
            What is there again; empty if nothing is, or something else is there.
        """
        key, there = normalise_key(information_type), frozenset({context.scope})
        link = context.origin.link if context.origin is not None else ""
        with self._forgetting(context.user_id):
            now = await self._store_of_all.retrieve(context.user_id, key, audience=there)
            before = None
            if now is not None and now.value == said:
                before = await past.before_message(self.memory, now, link)
            if now is None or before is None:
                await self.forget(replace(context, audience=there), key, only_if=said)
                return ""
            is_back = await past.put_instead(self.memory, now, before.value, dict(before.metadata), anew=no_trace)
            return before.value if is_back else ""

    async def forget_everything(self, context: ToolContext) -> bool:
        """Forget all about the person, in every scope, but what they answered; return whether there was anything."""
        with self._forgetting(context.user_id):
            return await self._answers.clear(context.user_id)

    def on_forget(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the user whenever something of theirs is forgotten: what was derived must go, too."""
        self._listeners.append(listener)

    async def erase(self, context: ToolContext, tell: str = "") -> Receipt:
        """Erase all of the person everywhere, also what they answered; see SharedMemory.erase.

        Args:
            tell: where to say that it is complete, if something is pending.
        """
        with self._forgetting(context.user_id):
            return await self._answers.erase(context.user_id, tell)

    async def erased(self, user_id: str) -> str:
        """Return the revision below which all of the person was forgotten at once; empty if that never happened.

        By whichever process: who keeps what was derived of a person lets go of it when this changes. A small read.
        """
        page = await self._store_of_all.scan(user_id, limit=1)
        return next((record.revision for record in page.records if isinstance(record, UserTombstone)), "")

    async def nearest_keys(self, context: ToolContext, information_type: str, *, limit: int = 1) -> list[str]:
        """Return the keys in use that are most like *information_type* and may be told here, best first."""
        wanted = normalise_key(information_type)
        context = await self._showing(context)
        if context.audience is None:
            kept = [entry.key for entry in await live(self.memory, context.user_id)]
        else:
            kept = list(await self._store_of_all.get_all(context.user_id, audience=context.audience - {PRIVACY}))
        return await asyncio.to_thread(most_alike, wanted, kept, limit)

    @property
    def _store_of_all(self) -> MemoryBackend:
        return self.memory.by_flag

    def _tell_forgotten(self, user_id: str) -> None:
        for listener in self._listeners:
            listener(user_id)

    @contextmanager
    def _forgetting(self, user_id: str) -> Iterator[None]:
        """Nothing derived of what is forgotten inside is there before, nor after."""
        self._tell_forgotten(user_id)
        try:
            yield
        finally:
            self._tell_forgotten(user_id)

    async def _showing(self, context: ToolContext) -> ToolContext:
        """Return *context* as an explicit command may show memories in it.

        What a person has not agreed to is shown to nobody else: where others see the answer, no scope may be read.
        """
        if context.private or await self.consent(context) is Consent.YES:
            return context
        return replace(context, audience=frozenset())

    async def _search(
        self, context: ToolContext, query: str, limit: int, audience: frozenset[str] | None
    ) -> SearchResult:
        return await self._store_of_all.search(context.user_id, query, limit, audience=audience, name=context.name)

    async def _all_but_settings(self, context: ToolContext, query: str, limit: int) -> SearchResult:
        """Search in all scopes, as the operator may, but for the one that holds no memories."""
        found = await self._search(context, query, min(limit + 1, _LIMIT_MAX) if limit > 0 else limit, None)
        hits = [hit for hit in found.hits if told([hit.entry])]
        others = len(hits) + found.cut
        if found.cut and len(hits) == len(found.hits):  # one that is cut off may be a setting
            others -= len(await self._search(context, query, 1, frozenset({PRIVACY})))
        shown = tuple(hits[:limit])
        return replace(found, hits=shown, cut=others - len(shown))

    async def _require_consent(self, context: ToolContext) -> None:
        state = await self.consent(context)
        if state is not Consent.YES:
            raise ConsentNeededError(state)

    async def _take_back_if_refused(self, context: ToolContext, key: str) -> None:
        """Take back what was remembered while the person took back their consent, in whatever process.

        Raises:
            ConsentNeededError: they did.
        """
        state = await self.consent(context)
        if state is Consent.YES:
            return
        user_id, scope = context.user_id, context.scope
        if state is Consent.UNASKED and await self.erased(user_id):
            await self.erase(context)  # else the key's tombstone would keep their id
        else:
            now = await self._store_of_all.retrieve(user_id, key, audience=frozenset({scope}))
            before = None if now is None else await past.value_before(self.memory, now)
            if now is None or before is None:
                await self._store_of_all.delete(user_id, key, scope=scope)
            else:
                await past.put_instead(self.memory, now, before.value, dict(before.metadata))
        raise ConsentNeededError(state)


@contextmanager
def _as_people_say() -> Iterator[None]:
    """Let errors call the fields as the tools do."""
    try:
        yield
    except MemoryRejectedError as exc:
        raise MemoryRejectedError(_FIELDS.get(exc.field, exc.field), exc.problem, exc.limit) from exc


def _check_scope(scope: str) -> None:
    """Raise MemoryRejectedError where no memory may be."""
    if scope == PRIVACY:
        raise MemoryRejectedError("scope", "is kept for settings", "any other")
