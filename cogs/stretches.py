"""Stretches of talk: what one person says to the bot in one channel without a long silence. Pure."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

SILENCE_S = 1_800.0
"""After this much silence a new stretch begins."""

_KEPT = 10_000


@dataclass(slots=True)
class _Stretch:
    session: str
    last_s: float


class Stretches:
    """Knows which stretch of talk a message belongs to. In memory only: a restart begins new ones.

    A stretch is one person's, though others may talk in the channel: in a busy one there is never silence, and what
    somebody said in the morning and in the evening would pass for neighbours.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[tuple[int, int], _Stretch] = OrderedDict()  # the one that rested longest first

    def __len__(self) -> int:
        return len(self._latest)

    def session_of(self, channel_id: int, user_id: int, at_s: float) -> str:
        """Return the opaque id of the stretch that a message of *at_s*, in seconds since 1970, belongs to.

        A message that comes in late belongs to the stretch that is on.
        """
        self._drop_ended(at_s)
        place = (channel_id, user_id)
        stretch = self._latest.get(place)
        if stretch is None or at_s - stretch.last_s > SILENCE_S:
            stretch = self._latest[place] = _Stretch(_opaque(channel_id, user_id, at_s), at_s)
        stretch.last_s = max(stretch.last_s, at_s)
        self._latest.move_to_end(place)
        return stretch.session

    def _drop_ended(self, now_s: float) -> None:
        while self._latest:
            place, stretch = next(iter(self._latest.items()))
            if now_s - stretch.last_s <= SILENCE_S and len(self._latest) < _KEPT:
                return
            del self._latest[place]


def _opaque(channel_id: int, user_id: int, start_s: float) -> str:
    """Return 64 bits, in hex: whoever reads a memory learns nothing of where it was said."""
    return hashlib.blake2b(f"{channel_id}|{user_id}|{start_s:.3f}".encode(), digest_size=8).hexdigest()
