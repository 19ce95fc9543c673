"""What looks after a file's deleted bytes, where the file goes away under it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from memory.backends.sqlite import tables
from memory.receipt import PartState
from memory.scrubbing import Scrubber
from memory.sqlite_file import SQLiteFile

if TYPE_CHECKING:
    from pathlib import Path


class BusyFile(SQLiteFile):
    """One that is being written anew for as long as anybody waits."""

    async def scrub(self) -> str:
        await asyncio.Event().wait()
        return ""


async def test_who_waits_for_a_file_that_is_closed_hears_of_it_and_is_not_ended_with_it(tmp_path: Path) -> None:
    scrubber = Scrubber(BusyFile(tmp_path / "memory.db", name="sqlite", schema=tables.SCHEMA, busy_timeout_s=1.0))
    asking = asyncio.create_task(scrubber.scrub())
    await asyncio.sleep(0)

    await scrubber.close()

    scrubbed = await asking
    assert (scrubbed.state, scrubbed.why) == (PartState.PENDING, "it was closed meanwhile")
