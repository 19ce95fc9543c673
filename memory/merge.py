"""Several stores' answers to one question, taken together: the newest of each slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory.model import MemoryEntry, Page, UserTombstone, newest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from memory.model import Audience, Position, Record


def merge_pages(pages: Sequence[Page], missing: Sequence[str] = (), starting: Sequence[str] = ()) -> Page:
    """Return one page out of one page of each store that answered, best store first.

    *missing* and *starting* (some of them) are the stores that did not.
    Where a store's page ends before the others', so does the merged one: what lies behind is asked again.
    """
    ends = [page.next for page in pages if page.next is not None]
    end = min(ends, default=None)
    records = [record for page in pages for record in page.records if _belongs(record, end)]
    answered = dict.fromkeys(name for page in pages for name in page.answered)
    silent = dict.fromkeys([*missing, *(name for page in pages for name in page.missing)])
    ordered = sorted(newest(records).values(), key=lambda record: record.position)
    young = dict.fromkeys([*starting, *(name for page in pages for name in page.starting)])
    return Page(tuple(ordered), end, tuple(answered), tuple(silent), tuple(young))


async def get_in_all(read: Callable[[Audience], Awaitable[Page]], scopes: Audience) -> Page:
    """Return what *read* finds in *scopes*, or, with None, in every scope that any of several stores knows.

    A deletion is known by its slot alone, so the scopes must be named before it can be seen.
    """
    page = await read(scopes)
    if scopes is None and len(page.answered) > 1:
        found = frozenset(record.scope for record in page.records if isinstance(record, MemoryEntry))
        if found:
            return await read(found)
    return page


def _belongs(record: Record, end: Position | None) -> bool:
    # A user's tombstone comes with the first page of that user, wherever its hash would sort.
    return end is None or record.position <= end or isinstance(record, UserTombstone)
