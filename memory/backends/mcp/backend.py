"""The store behind an MCP server: the primitives as tool calls, every answer checked."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, TypeVar

from memory.backend import PAGE
from memory.backends.mcp import protocol
from memory.backends.mcp.link import LinkDownError, LinkStartingError, MCPLink
from memory.deadline import remaining_s
from memory.errors import BackendStartingError, BackendUnavailableError, MemoryRejectedError
from memory.limits import LIMIT_MAX, check_key, check_record, check_scope, check_user_id
from memory.model import (
    Audience,
    MemoryEntry,
    Page,
    Position,
    Record,
    StoreIdentity,
    UserDigest,
    UserTombstone,
    slot_of,
    user_hash_of,
)
from memory.receipt import PartState, Scrubbed
from memory.store import StoreBackend
from memory.wire import (
    check_bucket,
    check_installation_id,
    count_from_json,
    digest_from_json,
    identity_from_json,
    xor_from_json,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from memory.backends.mcp.endpoint import Endpoint
    from memory.revision import HybridLogicalClock

log = logging.getLogger(__name__)

T = TypeVar("T")
Wired = TypeVar("Wired", dict[str, Any], str)


class MCPMemoryBackend(StoreBackend):
    """Keeps memories in an MCP server, which it runs as a child process and keeps running.

    `open` returns before the server is up. Until it is, and whenever it is not, everything raises
    BackendUnavailableError at once. A put of more than 256 KiB is all or nothing in each part of that size.

    Args:
        endpoint: where the server is.
        call_timeout_s: the longest that one call may take; a server that says nothing for so long is restarted.
        connect_timeout_s: the longest that a server may take to come up.
        sleep, jitter: see MCPLink.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str = "mcp",
        clock: HybridLogicalClock | None = None,
        deadline_s: float = 2.0,
        call_timeout_s: float = 1.5,
        connect_timeout_s: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(name, clock=clock, deadline_s=deadline_s)
        self._call_timeout_s = call_timeout_s
        self._distrusted = False
        self._guarded = False
        self._identified: object | None = None
        self._link = MCPLink(
            endpoint,
            name=name,
            tools=protocol.TOOLS,
            call_timeout_s=call_timeout_s,
            connect_timeout_s=connect_timeout_s,
            sleep=sleep,
            jitter=jitter,
        )

    @property
    def pid(self) -> int | None:
        """The server's process, while there is one."""
        return self._link.pid

    async def wait_ready(self, timeout_s: float) -> bool:
        """Return whether the server answers, waiting up to *timeout_s* for it."""
        return await self._link.wait_ready(timeout_s)

    async def open(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        self._identified = None
        await self._link.close()

    async def put(self, records: Sequence[Record]) -> int:
        for record in records:
            check_record(record)
        return await self._put(map(protocol.to_wire, records))

    async def put_texts(self, texts: Sequence[str]) -> int:
        if not protocol.takes_texts(self._link.takes):  # a server of an earlier version
            return await super().put_texts(texts)
        return await self._put(texts)

    async def _put(self, items: Iterable[Wired]) -> int:
        changed = 0
        for batch in _batches(items):
            answer = await self._ask("store", protocol.PUT, {"records": batch})
            count = answer.get("changed")
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(batch):
                raise self._nonsense("store")
            changed += count
        return changed

    async def get(self, user_id: str, key: str, scopes: Audience) -> Page:
        check_user_id(user_id)
        check_key(key)
        for scope in scopes or ():
            check_scope(scope)
        slots = None if scopes is None else {slot_of(user_id, scope, key) for scope in scopes}
        asked = {"user_id": user_id, "key": key, "scopes": None if scopes is None else sorted(scopes)}

        def answers(record: Record) -> bool:
            if isinstance(record, UserTombstone):
                return record.user_hash == user_hash_of(user_id)
            if slots is not None:
                return record.user_id == user_id and record.position[1] in slots
            return isinstance(record, MemoryEntry) and (record.user_id, record.key) == (user_id, key)

        records: dict[Position, Record] = {}
        after: Position | None = None
        while True:
            page = await self._page("retrieve", protocol.GET, asked | {"after": after}, answers)
            records |= {record.position: record for record in page.records}
            if page.next is None:
                return Page(tuple(records.values()), None, (self.name,))
            if page.next[0] != user_id or (after is not None and page.next <= after):
                raise self._nonsense("retrieve")
            after = page.next

    async def scan(self, user_id: str | None = None, after: Position | None = None, limit: int = PAGE) -> Page:
        if user_id is not None:
            check_user_id(user_id)
        user_hash = None if user_id is None else user_hash_of(user_id)

        def answers(record: Record) -> bool:
            if isinstance(record, UserTombstone) and user_id is not None:
                return record.user_hash == user_hash
            owner, _ = record.position
            return (user_id is None or owner == user_id) and (after is None or record.position > after)

        asked = {"user_id": user_id, "after": after, "limit": min(limit, LIMIT_MAX)}
        page = await self._page("scan", protocol.SCAN, asked, answers)
        if page.next is not None:  # or a scan would go round for ever
            ahead = after is None or page.next > after
            if not ahead or (user_id is not None and page.next[0] != user_id):
                raise self._nonsense("scan")
        return page

    async def probe(self) -> int:
        return await self._checked("probe", protocol.PROBE, {}, lambda answer: count_from_json(answer.get("counter")))

    def guard(self) -> None:
        self._guarded = True

    async def identify(self) -> StoreIdentity:
        connection = self._link.connection
        identity = await self._checked("identify", protocol.IDENTIFY, {}, identity_from_json)
        self._identified = connection
        return identity

    async def claim(self, installation_id: str) -> None:
        check_installation_id(installation_id)

        def check(answer: Mapping[str, Any]) -> None:
            if answer.get("installation_id") != installation_id:
                raise MemoryRejectedError("installation_id", "is another one")

        await self._checked("claim", protocol.CLAIM, {"installation_id": installation_id}, check)

    async def buckets(self) -> dict[str, tuple[int, int]]:
        def parse(answer: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
            found: dict[str, tuple[int, int]] = {}
            for name, said in answer["buckets"].items():
                check_bucket(name)
                count = count_from_json(said["count"])
                if count == 0:
                    raise MemoryRejectedError("bucket", "is empty")
                found[name] = count, xor_from_json(said["xor"])
            return found

        return await self._checked("compare", protocol.BUCKETS, {}, parse)

    async def digests(self, bucket: str) -> list[UserDigest]:
        check_bucket(bucket)
        found: list[UserDigest] = []

        def parse(answer: Mapping[str, Any]) -> str | None:
            """Add the digests of a part, which must lie behind all before; return where to go on."""
            for item in _listed(answer["digests"]):
                digest = digest_from_json(item, bucket)
                if found and digest.user_hash <= found[-1].user_hash:
                    raise MemoryRejectedError("user_hash", "is out of order")
                found.append(digest)
            following = answer.get("next")
            if following is not None and (not answer["digests"] or following != found[-1].user_hash):
                raise MemoryRejectedError("next", "is not where the answer ends")
            return None if following is None else str(following)

        after: str | None = None
        while True:
            asked = {"bucket": bucket, "after": after}
            after = await self._checked("compare", protocol.DIGESTS, asked, parse)
            if after is None:
                return found

    async def scrub(self) -> Scrubbed:
        if self._link.connection is not None and protocol.SCRUB not in self._link.takes:
            return Scrubbed(PartState.PENDING, "the server is of an earlier version: update it")

        def parse(answer: Mapping[str, Any]) -> Scrubbed:
            return Scrubbed(PartState(answer["state"]), str(answer["why"])[:200])

        return await self._checked("scrub", protocol.SCRUB, {}, parse)

    async def _page(self, operation: str, tool: str, asked: dict[str, Any], answers: Callable[[Record], bool]) -> Page:
        """Ask for a page, of which every record must be one that *answers* the question."""
        answer = await self._ask(operation, tool, asked)
        try:
            records = tuple(protocol.from_wire(item) for item in _listed(answer["records"]))
            following = answer.get("next")
            if following is not None:
                owner, slot = following
                following = (str(owner), str(slot))
        except (MemoryRejectedError, KeyError, TypeError, ValueError) as exc:
            raise self._nonsense(operation) from exc
        if not all(answers(record) for record in records):
            raise self._nonsense(operation, "the server answered with records that were not asked for")
        self._distrusted = False
        return Page(records, following, (self.name,))

    async def _checked(
        self, operation: str, tool: str, asked: dict[str, Any], parse: Callable[[Mapping[str, Any]], T]
    ) -> T:
        """Ask, and return what *parse* makes of the answer; what it cannot make sense of is no answer."""
        answer = await self._ask(operation, tool, asked)
        try:
            return parse(answer)
        except (MemoryRejectedError, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise self._nonsense(operation) from exc

    async def _ask(self, operation: str, tool: str, arguments: dict[str, Any]) -> Mapping[str, Any]:
        left_s = remaining_s()
        timeout_s = self._call_timeout_s if left_s is None else min(self._call_timeout_s, left_s)
        strange = self._link.connection not in (None, self._identified)
        if self._guarded and strange and tool != protocol.IDENTIFY:
            # A server that was started again may have another file before it.
            raise BackendUnavailableError(self.name, operation, "it came back, and has not said yet which store it is")
        try:
            answer = await self._link.call(tool, arguments, timeout_s)
        except LinkStartingError as exc:
            raise BackendStartingError(self.name, operation, str(exc)) from exc
        except LinkDownError as exc:
            raise BackendUnavailableError(self.name, operation, str(exc)) from exc
        if not answer.failed:
            return answer.data
        rejected = protocol.rejected(answer.meta)
        if rejected is not None:
            raise rejected
        reason, readable = protocol.unavailable(answer.meta)
        raise BackendUnavailableError(self.name, operation, reason, readable=readable)

    def _nonsense(self, operation: str, reason: str = "the server's answer makes no sense") -> BackendUnavailableError:
        if not self._distrusted:
            self._distrusted = True
            extra = {"event": "mcp_bad_answer", "backend": self.name, "operation": operation}
            log.warning("%s could not %s: %s; the answer was dropped", self.name, operation, reason, extra=extra)
        return BackendUnavailableError(self.name, operation, reason)


def _listed(items: object) -> list[Any]:
    if not isinstance(items, list):
        raise TypeError("not a list")
    return items


def _batches(items: Iterable[Wired]) -> Iterator[list[Wired]]:
    batch: list[Wired] = []
    size = 0
    for item in items:
        cost = protocol.size_of(item)
        if batch and (size + cost > protocol.BATCH_BYTES or len(batch) == LIMIT_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += cost
    if batch:
        yield batch
