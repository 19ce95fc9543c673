"""What `remember` messages said when they were last handled: no more of it than an edit or a deletion needs."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import discord

_KEPT = 500


@dataclass(slots=True)
class Said:
    """One message, as it was handled last.

    Attributes:
        digest: of its text, which may be a secret, or of somebody who does not want to be remembered.
        place: the scope and the key of what was remembered; both empty if nothing was.
        value: what was remembered.
        is_deleted: whether it was deleted since.
        handling: held while it is.
    """

    author_id: int
    digest: bytes
    place: tuple[str, str] = ("", "")
    value: str = ""
    is_deleted: bool = False
    handling: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def key(self) -> str:
        return self.place[1]


class SaidLately:
    """The latest `remember` messages, no more than a bound, each until it is deleted."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Said] = OrderedDict()
        self._salt = secrets.token_bytes(16)  # short texts could be guessed by their digests

    def handled(self, message: discord.Message) -> Said:
        """Note that *message* is handled now."""
        said = self._kept.setdefault(message.id, Said(message.author.id, b""))
        said.digest = self._digest(message.content)
        if len(self._kept) > _KEPT:
            # One that is being handled may wait for an answer: that it is deleted meanwhile must reach it.
            oldest = (key for key, each in self._kept.items() if key != message.id and not each.handling.locked())
            self._kept.pop(next(oldest, 0), None)
        return said

    def is_changed(self, message: discord.Message, before: discord.Message | None) -> bool:
        """Return whether *message* says something else than when it was handled, or, if it was not, than *before*."""
        said = self._kept.get(message.id)
        if said is not None:
            return said.digest != self._digest(message.content)
        return before is not None and before.content != message.content

    def deleted(self, message_id: int) -> None:
        """Let go of a message that was deleted; whoever handles it now sees that."""
        said = self._kept.pop(message_id, None)
        if said is not None:
            said.is_deleted = True

    def let_go(self, user_id: str) -> None:
        """Let go of what somebody's messages said; one that is being handled must still hear that it is deleted."""
        for message_id, said in list(self._kept.items()):
            if str(said.author_id) == user_id:
                said.place, said.value = ("", ""), ""
                if not said.handling.locked():
                    del self._kept[message_id]

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=self._salt, digest_size=16).digest()
