"""What happens in one schedule: who does what, and which faults come when. Pure: a seed gives a schedule."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from benchmarks.chaos.traces import word

Action: TypeAlias = Literal[
    "store",
    "burst",
    "move",
    "delete",
    "forget",
    "erase",
    "retrieve",
    "search",
    "get_all",
    "agree",
    "refuse",
    "tell",
    "untell",
    "bring",
    "clear",
    "consent",
    "recall",
    "own",
]
READS = frozenset({"retrieve", "search", "get_all", "consent", "recall", "own"})

LOSSES = ("old_copy", "swap", "swap_foreign", "empty", "power_cut", "power_cut_and_loss", "outbox_gone", "legacy_gone")
"""After one of these the data of a store is gone or old: no other may follow before the stores agree again."""

HINDRANCES = (
    *("kill_mcp", "kill_bot", "stop_mcp", "stop_bot", "refuse", "lock", "two_bots", "disk_full"),
    *("flip_flag", "lock_legacy", "predecessor"),
)

FOREIGN_LOSSES = tuple(loss for loss in LOSSES if loss != "swap")
"""Those that can happen with somebody else's server: its file and ours cannot be exchanged for each other."""

SCRIPTED = tuple(
    f"scripted_{what}"
    for what in (
        "clock_jump",
        "crash",
        "disk_full",
        "empty",
        "flip_flag",
        "garbage",
        "hang",
        "late",
        "legacy_down",
        "legacy_hang",
        "lock",
        "old_copy",
        "refuse",
        "restart",
    )
)

FORGOTTEN = "forgotten"
"""A way of being late: whose it is, is forgotten before it lands."""

RESTED = "rested"
"""A way of losing data: when the outbox has let go of everything, and a copy is older than some deletions."""

_CYCLE, _REAL = 11, 6
"""Of how many schedules how many are with real processes."""
_FLAG_ON, _LEGACY_THERE = 0.7, 0.5

SCOPES = ("", "dm", "guild:1", "guild:10")
_KEYS = ("colour", "Colour", "a|b", "a", "b|", "naïve 'key'; --", "\u202ertl", "nul\x00", "🫖", "%_")
PEOPLE = (word("person 1"), word("person 2"))
"""They speak through the tools, and have to agree; what they are called is in each of their keys, too."""

_USERS = ("1", "10", "u'1", 'u"|', "U", "u", "\x00", "ü")

_LASTING = (
    *("stop_mcp", "stop_bot", "refuse", "lock", "two_bots", "disk_full", "swap_foreign"),
    *("flip_flag", "lock_legacy", "predecessor", "legacy_gone"),
)
_OVERLAPPING = ("stop_mcp", "refuse", "lock", "two_bots", "flip_flag", "lock_legacy", "predecessor")
_OF_LEGACY = ("flip_flag", "lock_legacy", "predecessor", "legacy_gone", "legacy_down", "legacy_hang")

_ACTIONS: tuple[tuple[Action, int], ...] = (
    ("store", 30),
    ("burst", 6),
    ("move", 8),
    ("delete", 12),
    ("forget", 3),
    ("erase", 1),
    ("retrieve", 22),
    ("search", 12),
    ("get_all", 15),
)
_OF_PEOPLE: tuple[tuple[Action, int], ...] = (
    ("tell", 40),
    ("untell", 4),
    ("agree", 14),
    ("refuse", 8),
    ("bring", 6),
    ("clear", 3),
    ("erase", 2),
    ("consent", 8),
    ("recall", 20),
    ("own", 6),
)
_AUDIENCES: tuple[tuple[str, ...] | None, ...] = (None, None, SCOPES, ("",), ("", "dm"), ("guild:1",))

# Where a fault strikes, and in which ways; the first way is what an option without one means.
_TARGETS: dict[str, tuple[str, ...]] = {
    "refuse": ("mcp", "bot"),
    "lock": ("mcp", "sqlite", "outbox"),
    "disk_full": ("mcp", "bot"),
    "old_copy": ("mcp", "sqlite"),
    "swap": ("mcp", "sqlite", "both"),
    "swap_foreign": ("mcp", "sqlite"),
    "empty": ("mcp", "sqlite"),
    "scripted_lock": ("second", "sqlite", "outbox", "legacy"),
    "scripted_empty": ("second", "sqlite"),
    "scripted_old_copy": ("second", "sqlite"),
    "scripted_clock_jump": ("forth", "back"),
}
_WAYS: dict[str, tuple[str, ...]] = {
    "old_copy": ("killed", "stopped", "in place", RESTED),
    "power_cut": ("", RESTED),
    "power_cut_and_loss": ("", RESTED),
    "swap_foreign": ("put right", "adopted"),
    "lock": ("IMMEDIATE", "EXCLUSIVE"),
    "lock_legacy": ("IMMEDIATE", "EXCLUSIVE"),
    "legacy_gone": ("running", "killed"),
    "scripted_late": ("", FORGOTTEN),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a client.

    Attributes:
        key: of a burst, the number of keys stored at once.
        source: of a move, the scope that the memory leaves.
        elsewhere: asked of the second bot, while there is one, whoever writes for this user.
    """

    action: Action
    user: str
    scope: str = ""
    key: str = ""
    audience: tuple[str, ...] | None = None
    source: str = ""
    elsewhere: bool = False

    def text(self) -> str:
        """Return the operation as a person reads it."""
        match self.action:
            case "forget" | "erase" | "agree" | "refuse" | "clear" | "consent":
                where = ""
            case "move":
                where = f" {self.key!r} from {self.source!r} to {self.scope!r}"
            case action if action in READS:
                where = f" {self.key!r} for {self.audience}" + " elsewhere" * self.elsewhere
            case _:
                where = f" {self.scope!r} {self.key!r}"
        return f"{self.action} {self.user!r}{where}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        target: where it strikes; empty where there is only one place.
        way: how, where there are several.
        wait_s: how long after the fault before it.
        hold_s: how long what it does is left so, if it is something that lasts.
        overlaps: whether the next fault comes while this one lasts.
        quiet: whether nobody calls while it lasts, so that only the canary can notice it.
    """

    kind: str
    target: str = ""
    way: str = ""
    wait_s: float = 0.3
    hold_s: float = 0.5
    overlaps: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything that is decided beforehand; only the timing of processes is not.

    Attributes:
        clients: what each client does, again and again until the last fault is over; the first owns the first
            users, and so on, and nobody else writes for these.
        gap_s: how long each client rests between two operations.
        flag_on: whether the flag is there at the start.
        legacy: whether the predecessor's database is there at the start, with something in it.
    """

    seed: str
    real: bool
    deadline_s: float
    probe_interval_s: float
    clients: tuple[tuple[Operation, ...], ...]
    gap_s: tuple[float, ...]
    faults: tuple[Fault, ...]
    flag_on: bool = True
    legacy: bool = False

    def text(self) -> str:
        """Return the schedule as a person reads it."""
        kind = "real processes" if self.real else "scripted"
        lines = [f"schedule {self.seed}: {kind}, deadline {self.deadline_s:g} s, canary {self.probe_interval_s:g} s"]
        has, there = "on" if self.flag_on else "off", "there" if self.legacy else "not there"
        lines.append(f"  the flag is {has}, the predecessor's database is {there}")
        lines += [
            f"  client {number} ({self.gap_s[number]:g} s apart): " + ", ".join(op.text() for op in operations)
            for number, operations in enumerate(self.clients)
        ]
        lines += [
            f"  {fault.kind} {fault.target} {fault.way}".rstrip()
            + f" after {fault.wait_s:.2f} s for {fault.hold_s:.2f} s"
            + (", quietly" if fault.quiet else "")
            + (", during which:" if fault.overlaps else "")
            for fault in self.faults
        ]
        return "\n".join(lines)


def is_real(index: int) -> bool:
    """Return whether schedule *index* of a run is one with real processes: six in eleven are."""
    return index % _CYCLE < _REAL


def schedule_for(seed: int, index: int, chosen: str = "", *, foreign: bool = False) -> Schedule:
    """Return schedule *index* of the run with *seed*.

    Each kind of fault comes as often as any other of its group: they are dealt
    like cards from shuffled packs, so that no kind depends on luck.

    Args:
        chosen: the faults instead of dealt ones, such as "stop_mcp+empty:sqlite,kill_bot"; a plus makes a fault
            last during the next.
        foreign: whether the second store is somebody else's server; then all schedules are with real processes.
    """
    dice = random.Random(f"chaos {seed} {index} {chosen}")
    if chosen:
        faults = _chosen(chosen, dice)
        real = not faults[0].kind.startswith("scripted_")
    else:
        real = foreign or is_real(index)
        faults = _dealt_foreign(seed, index, dice) if foreign else _dealt(seed, index, real, dice)
    clients = 4 if real else 3
    users = [_USERS[i::clients] for i in range(clients)]
    told = random.Random(f"people {seed} {index} {chosen}")
    per_client = 24 if real else 16
    # Where nothing strikes the predecessor's side, there is none: a third copy mends what two must be able to.
    of_legacy = any(fault.kind.removeprefix("scripted_") in _OF_LEGACY for fault in faults)
    longest_s = (2.0 if chosen else dice.choice((1.0, 2.0))) if real else 0.4
    return Schedule(
        seed=f"{seed}:{index}",
        real=real,
        deadline_s=longest_s,
        probe_interval_s=0.5 if real else 0.1,
        clients=(
            *(tuple(_operation(owned, dice) for _ in range(per_client)) for owned in users),
            tuple(_of_person(told.choice(PEOPLE), told) for _ in range(2 * per_client)),
        ),
        gap_s=tuple(dice.choice((0.005, 0.01, 0.03) if real else (0.0, 0.002)) for _ in (*users, PEOPLE)),
        faults=faults,
        flag_on=not of_legacy or dice.random() < _FLAG_ON,
        legacy=of_legacy and dice.random() < _LEGACY_THERE,
    )


def _dealt(seed: int, index: int, real: bool, dice: random.Random) -> tuple[Fault, ...]:
    cycle, place = divmod(index, _CYCLE)
    if real:
        rank = cycle * _REAL + place
        kinds = _from_pack(seed, LOSSES, rank, 2) + _from_pack(seed, HINDRANCES, rank, 3)
    else:
        kinds = _from_pack(seed, SCRIPTED, cycle * (_CYCLE - _REAL) + place - _REAL, 5)
    return _mixed(kinds, real, dice)


def _dealt_foreign(seed: int, index: int, dice: random.Random) -> tuple[Fault, ...]:
    kinds = _from_pack(seed, FOREIGN_LOSSES, index, 2) + _from_pack(seed, HINDRANCES, index, 3)
    # Its file is not ours to lock.
    return tuple(
        replace(fault, target="sqlite") if (fault.kind, fault.target) == ("lock", "mcp") else fault
        for fault in _mixed(kinds, True, dice)
    )


def _mixed(kinds: list[str], real: bool, dice: random.Random) -> tuple[Fault, ...]:
    dice.shuffle(kinds)
    faults = [_made(kind, dice) for kind in kinds]
    # What lasts may go on while the next one comes: a loss while a store hangs is where acknowledgements die.
    for number, fault in enumerate(faults[:-1]):
        if fault.kind in _OVERLAPPING or not real:
            faults[number] = replace(fault, overlaps=dice.random() < 0.5)
    for number, fault in enumerate(faults):
        if fault.kind in ("stop_mcp", "refuse", "lock", "swap_foreign") or not real:
            faults[number] = replace(fault, quiet=dice.random() < 0.3 or fault.quiet)
    return tuple(faults)


def _from_pack(seed: int, kinds: tuple[str, ...], rank: int, each: int) -> list[str]:
    """Return the *each* kinds that schedule number *rank* is dealt from packs of *each* copies of *kinds*."""
    pack_number, place = divmod(rank, len(kinds))
    pack = list(kinds * each)
    random.Random(f"pack {seed} {kinds[0]} {pack_number}").shuffle(pack)
    return pack[place * each : (place + 1) * each]


def _chosen(text: str, dice: random.Random) -> tuple[Fault, ...]:
    faults = []
    for group in text.split(","):
        parts = group.split("+")
        for number, part in enumerate(parts):
            kind, target, way, *_ = [*part.split(":"), "", ""]
            if kind not in LOSSES + HINDRANCES + SCRIPTED:
                raise ValueError(f"{kind!r} is no fault; there are {', '.join(LOSSES + HINDRANCES + SCRIPTED)}")
            fault = _made(kind, dice)
            quiet = way in ("quiet", FORGOTTEN, RESTED)
            fault = replace(
                fault,
                target=target or _TARGETS.get(kind, ("",))[0],
                way=fault.way if way == "quiet" else way or _WAYS.get(kind, ("",))[0],
                quiet=quiet,
                wait_s=0.3 if kind.startswith("scripted_") else 3.0 if kind in LOSSES else 0.5,
                hold_s=1.5 if kind.startswith("scripted_") else 3.6 if kind in _LASTING else 0.2,
                overlaps=number < len(parts) - 1,
            )
            faults.append(fault)
    return tuple(faults)


def _made(kind: str, dice: random.Random) -> Fault:
    target = dice.choice(_TARGETS.get(kind, ("",)))
    way = dice.choice(_WAYS.get(kind, ("",)))
    if kind == "old_copy" and target == "mcp" and way != RESTED:
        way = "killed"  # its server is frozen while the file is exchanged, then killed
    if kind.startswith("scripted_"):
        hold_s = dice.choice((0.05, 0.2, 1.2))  # the last: longer than a broken store may be green, also one fed last
        return Fault(kind, target, way, wait_s=dice.uniform(0, 0.1), hold_s=hold_s, quiet=way == FORGOTTEN)
    # Some hold for longer than the time in which a broken store must no longer be green.
    if kind not in _LASTING:
        return Fault(kind, target, way, wait_s=dice.uniform(0.1, 0.6), hold_s=0.2, quiet=way == RESTED)
    hold_s = dice.uniform(0.2, 0.8) if dice.random() < 0.6 or kind == "stop_bot" else dice.uniform(2.2, 3.2)
    return Fault(kind, target, way, wait_s=dice.uniform(0.1, 0.6), hold_s=hold_s)


def _operation(owned: tuple[str, ...], dice: random.Random) -> Operation:
    action = dice.choices([a for a, _ in _ACTIONS], [weight for _, weight in _ACTIONS])[0]
    scope = dice.choice(SCOPES)
    key = dice.choice(_KEYS[:6])
    if action in READS:
        user = dice.choice(_USERS)
        asked = "" if action == "search" and dice.random() < 0.5 else key
        return Operation(action, user, "", asked, dice.choice(_AUDIENCES), elsewhere=dice.random() < 0.5)
    if action in ("forget", "erase"):
        return Operation(action, dice.choice(owned))
    if action == "move":
        source = dice.choice([other for other in SCOPES if other != scope])
        return Operation(action, dice.choice(owned), scope, key, source=source)
    return Operation(action, dice.choice(owned), scope, str(dice.randint(3, 8)) if action == "burst" else key)


def _of_person(person: str, dice: random.Random) -> Operation:
    action = dice.choices([a for a, _ in _OF_PEOPLE], [weight for _, weight in _OF_PEOPLE])[0]
    scope, key = dice.choice(SCOPES), f"{person}_{dice.choice(('colour', 'team'))}"
    if action == "recall":
        return Operation(action, person, "", "", tuple({"": 0, scope: 0}), elsewhere=dice.random() < 0.5)
    if action in READS:
        return Operation(action, person, elsewhere=dice.random() < 0.5)
    if action == "bring":  # what the person says later must not take its place, as it would under the same key
        return Operation(action, person, "", f"{key}_before")
    return Operation(action, person, scope, key)


def burst_keys(count: int) -> tuple[str, ...]:
    return _KEYS[:count]
