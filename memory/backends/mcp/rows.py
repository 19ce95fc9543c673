"""Rows in somebody else's MCP server: a profile's steps as tool calls, every answer checked. Knows no records."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory.backends.mcp.link import LinkDownError, LinkStartingError
from memory.backends.mcp.profile import fill, pick
from memory.deadline import remaining_s
from memory.errors import BackendStartingError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from memory.backends.mcp.link import MCPLink
    from memory.backends.mcp.profile import Expect, Profile, Step
    from memory.backends.mcp.session import Answer

_CALL_BYTES = 512 * 1024
"""What a call carries, or one row more: stdio servers and clients read long lines slowly."""

_PAGES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Row:
    """A row of ours. Ids and owners are hex digits alone, so no server can take them for anything else.

    Attributes:
        text: what it is to hold.
        handle: what the server calls it, if it is there.
        old: the texts or handles that are to go from it.
    """

    id: str
    owner: str
    text: str = ""
    handle: str = ""
    old: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        return {"id": self.id, "owner": self.owner, "text": self.text, "handle": self.handle, "old": list(self.old)}


@dataclass(frozen=True, slots=True)
class Found:
    """A text of ours in the server, and where it stood."""

    id: str
    owner: str
    text: str
    handle: str


class RowExistsError(BackendUnavailableError):
    """Somebody else made the row meanwhile: look again."""


class RowServer:
    """Reads and writes rows as *profile* says. What does not look like a row of ours is not seen.

    Args:
        whose: returns id and owner of the row that a text belongs in, or None if it is no text of ours.
    """

    def __init__(
        self,
        profile: Profile,
        link: MCPLink,
        whose: Callable[[str], tuple[str, str] | None],
        *,
        name: str,
        call_timeout_s: float,
    ) -> None:
        if profile.rows is None or profile.steps is None:
            raise ValueError("the profile has no rows")
        self._rows = profile.rows
        self._steps = profile.steps
        self._link = link
        self._whose = whose
        self._name = name
        self._call_timeout_s = call_timeout_s
        self._list_timeout_s = profile.list_timeout_s
        self._errors = [re.compile(error) for error in profile.errors]
        self._exists = re.compile(profile.exists) if profile.exists else None
        self._turn = asyncio.Semaphore(profile.concurrency)
        self._only: object | None = None

    def over(self, connection: object) -> RowServer:
        """Return the same server that is not called any more once *connection* is lost."""
        bound = copy.copy(self)
        bound._only = connection
        return bound

    async def everything(self) -> list[Found]:
        """Return every text of ours; this may take long."""
        step = self._steps.listing
        if step is None:
            raise ValueError("the profile cannot list")
        width = {1: 0, 16: 1, 256: 2}[step.parts]
        found: list[Found] = []
        for part in range(step.parts):
            values = {"part": f"{part:0{width}x}" if width else ""}
            found += await self._paged("list", step, values, self._list_timeout_s)
        return found

    async def of_owner(self, owner: str) -> list[Found] | None:
        """Return every text of ours that is *owner*'s; None if the server cannot be asked that."""
        if self._steps.owner is None:
            return None
        found = await self._paged("read", self._steps.owner, {"owner": owner}, self._call_timeout_s)
        return [text for text in found if text.owner == owner]

    async def read(self, rows: Sequence[Row]) -> tuple[list[Found], dict[str, str]]:
        """Return the texts of *rows*, and the handles of those that are there at all, whatever they hold."""
        step = self._steps.read
        key = self._rows.key
        found: list[Found] = []
        present: dict[str, str] = {}
        for at in range(0, len(rows), step.at_once):
            asked = rows[at : at + step.at_once]
            names = {fill(key.equals, row.values()): row for row in asked}
            answer = await self._call("read", step, fill(step.args, {}, [row.values() for row in asked]))
            for item in self._items("read", answer):
                for said in pick(item, key.path):
                    if isinstance(said, str) and (row := names.get(said)):
                        present[row.id] = self._handle(item)
                        found += [text for text in self._texts(item) if text.id == row.id]
        return found, present

    async def add(self, rows: Sequence[Row]) -> None:
        """Make *rows*, which are not there; RowExistsError if one is."""
        await self._change("store", self._steps.add, rows)

    async def replace(self, rows: Sequence[Row]) -> None:
        """Give *rows* another text; the one before may stay beside it until `drop`."""
        await self._change("store", self._steps.replace, rows)

    async def drop(self, rows: Sequence[Row]) -> None:
        """Take the `old` texts from *rows*, in which another one stays."""
        await self._change("store", self._steps.drop, rows)

    async def remove(self, rows: Sequence[Row]) -> None:
        """Take *rows* away, with all that they hold."""
        await self._change("delete", self._steps.remove, rows)

    async def _change(self, operation: str, steps: Sequence[Step], rows: Sequence[Row]) -> None:
        for step in steps:
            if step.each:
                await self._each(operation, step, rows)
            else:
                for batch in _batches(rows, step.at_once):
                    await self._do(operation, step, batch)

    async def _each(self, operation: str, step: Step, rows: Sequence[Row]) -> None:
        """One call a row, all under way at once as far as the server takes that; all are over when this returns."""
        outcomes = await asyncio.gather(*(self._do(operation, step, [row]) for row in rows), return_exceptions=True)
        failed = [outcome for outcome in outcomes if outcome is not None]
        if failed:
            raise next((exc for exc in failed if not isinstance(exc, RowExistsError)), failed[0])

    async def _do(self, operation: str, step: Step, rows: Sequence[Row]) -> None:
        values = [row.values() for row in rows]
        alone = values[0] if step.each else {}
        answer = await self._call(operation, step, fill(step.args, alone, values), writes=True)
        if step.expect is not None and not self._confirmed(step.expect, answer, values):
            raise BackendUnavailableError(self._name, operation, "the server did not confirm it")

    def _confirmed(self, expect: Expect, answer: Answer, rows: Sequence[Mapping[str, Any]]) -> bool:
        if expect.text:
            return re.search(expect.text, answer.text) is not None
        said = {item for item in pick(self._data(answer), expect.path) if isinstance(item, str)}
        return all(fill(expect.equals, row) in said for row in rows)

    async def _paged(self, operation: str, step: Step, values: Mapping[str, Any], timeout_s: float) -> list[Found]:
        found: list[Found] = []
        before: list[Any] = []
        for page in range(1, _PAGES_MAX):
            asked = fill(step.args, {**values, "page": page})
            answer = await self._call(operation, step, asked, timeout_s=timeout_s)
            items = self._items(operation, answer)
            if items == before and page > 1:
                break  # it does not know of pages
            for item in items:
                found += self._texts(item)
            if not step.more or pick(self._data(answer), step.more) != [True]:
                return found
            before = items
        raise BackendUnavailableError(self._name, operation, "the server's list has no end")

    def _texts(self, item: Any) -> Iterator[Found]:
        """Give the texts of ours in *item*, if it stands where such texts belong."""
        keys, owners = pick(item, self._rows.key.path), pick(item, self._rows.owner.path)
        for text in pick(item, self._rows.text):
            place = self._whose(text) if isinstance(text, str) else None
            if place is None:
                continue
            values = {"id": place[0], "owner": place[1]}
            if fill(self._rows.key.equals, values) in keys and fill(self._rows.owner.equals, values) in owners:
                yield Found(*place, text, self._handle(item) or text)

    def _handle(self, item: Any) -> str:
        found = pick(item, self._rows.handle) if self._rows.handle else []
        return found[0] if found and isinstance(found[0], str) else ""

    def _items(self, operation: str, answer: Answer) -> list[Any]:
        data = self._data(answer)
        first = self._rows.items.partition("[*]")[0]
        if not pick(data, first):
            raise BackendUnavailableError(self._name, operation, "the server's answer makes no sense")
        return pick(data, self._rows.items)

    def _data(self, answer: Answer) -> Any:
        if self._rows.format == "structured":
            return answer.data
        try:
            return json.loads(answer.text)
        except (ValueError, RecursionError):
            return None

    async def _call(
        self,
        operation: str,
        step: Step,
        arguments: dict[str, Any],
        *,
        timeout_s: float | None = None,
        writes: bool = False,
    ) -> Answer:
        longest_s = timeout_s or self._call_timeout_s
        async with self._turn:
            left_s = remaining_s()
            if self._only is not None and self._link.connection is not self._only:
                raise BackendUnavailableError(self._name, operation, "the server ended meanwhile")
            try:
                answer = await self._link.call(
                    step.tool, arguments, longest_s if left_s is None else min(longest_s, left_s)
                )
            except LinkStartingError as exc:
                raise BackendStartingError(self._name, operation, str(exc)) from exc
            except LinkDownError as exc:
                raise BackendUnavailableError(self._name, operation, str(exc)) from exc
        if answer.failed or any(error.search(answer.text) for error in self._errors):
            # Its text may quote a memory, so it is told to nobody.
            kind = RowExistsError if self._exists and self._exists.search(answer.text) else BackendUnavailableError
            raise kind(self._name, operation, "the server reported an error", readable=writes)
        return answer


def _batches(rows: Sequence[Row], most: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        cost = len(row.text) + sum(map(len, row.old))
        if batch and (size + cost > _CALL_BYTES or len(batch) == most):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += cost
    if batch:
        yield batch
