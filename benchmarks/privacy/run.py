"""A whole run: attacks, then ordinary facts, and the figures of both."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.privacy.attacks import Attack, all_attacks, ordinary_facts
from benchmarks.privacy.cast import names_of
from benchmarks.privacy.house import house
from benchmarks.privacy.layers import LAYERS
from benchmarks.privacy.playing import Outcome, Player
from tools.keys import normalise_key

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from benchmarks.privacy.house import House

_EVERY_QUICK = 8
_FACTS_QUICK = 10
_ALARMS_MOST = 0.02
_TELLER = "Tess"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run.

    Attributes:
        ordinary: how many ordinary facts were told.
        alarms: those that were not kept as they were told: key, value, and what was kept or said instead.
    """

    outcomes: tuple[Outcome, ...]
    ordinary: int
    alarms: tuple[tuple[str, str, str], ...]

    @property
    def is_good(self) -> bool:
        return not any(outcome.leaks for outcome in self.outcomes) and self._alarm_rate <= _ALARMS_MOST

    @property
    def _alarm_rate(self) -> float:
        return len(self.alarms) / self.ordinary if self.ordinary else 0.0

    def figures(self) -> dict[str, Any]:
        """Return the figures as one JSON object."""
        leaked = [outcome.attack.id for outcome in self.outcomes if outcome.leaks]
        stopped = Counter(outcome.layer for outcome in self.outcomes if not outcome.leaks)
        attacks = Counter(outcome.attack.kind for outcome in self.outcomes)
        leaks = Counter(outcome.attack.kind for outcome in self.outcomes if outcome.leaks)
        return {
            "attacks": len(self.outcomes),
            "leaks": len(leaked),
            "leaked": leaked,
            "stopped": {layer: stopped[layer] for layer in LAYERS},
            "by_class": {kind: {"attacks": attacks[kind], "leaks": leaks[kind]} for kind in sorted(attacks)},
            "false_alarms": len(self.alarms),
            "ordinary": self.ordinary,
            "false_alarm_rate": round(self._alarm_rate, 4),
        }


async def measure(*, only: str | None = None, ids: Collection[str] | None = None, quick: bool = False) -> Report:
    """Play attacks, and tell ordinary facts.

    Args:
        only: one class of attacks, and no facts.
        ids: these attacks, and no facts.
        quick: a part of all.
    """
    attacks = [a for a in all_attacks() if only in (None, a.kind) and (ids is None or a.id in ids)]
    facts = [] if only or ids else ordinary_facts()
    if quick:
        attacks, facts = attacks[::_EVERY_QUICK], facts[::_FACTS_QUICK]
    return await measure_these(attacks, facts)


async def measure_these(attacks: Sequence[Attack], facts: Sequence[Sequence[str]] = ()) -> Report:
    """Play *attacks*, and tell *facts*, in one house."""
    names = [_TELLER, *(name for number in range(1, len(attacks) + 1) for name in names_of(number))]
    with tempfile.TemporaryDirectory(prefix="privacy-") as folder:
        async with house(Path(folder), names) as made:
            player = Player(made)
            outcomes = [await player.play(attack) for attack in attacks]
            if strangers := await player.strangers():
                outcomes[-1].leaks.append(f"write: in some attack, about {strangers} people who do not exist")
            alarms = [alarm for key, value in facts if (alarm := await _alarm(made, key, value))]
    return Report(tuple(outcomes), len(facts), tuple(alarms))


async def _alarm(made: House, key: str, value: str) -> tuple[str, str, str] | None:
    """Tell an ordinary fact; return it, with what came of it, if it is not kept just as it was told."""
    teller = made.person(_TELLER)
    if not await made.kept(teller):
        await made.services.memory.by_flag.store(str(teller.id), "consent", "yes", scope="privacy")
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    message = await made.say(teller, f'%remember "{quoted}" {value}', "dm")
    entry = (await made.kept(teller)).get(("dm", normalise_key(key)))
    if entry is not None and entry.value == value.strip():
        return None
    said = [reply.content for reply in made.discord.replies(message)]
    return key, value, entry.value if entry is not None else " ".join(said)
