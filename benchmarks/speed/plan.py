"""How much is measured: everything, or enough for a first look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """How often, and of how many.

    Attributes:
        rounds: of single operations.
        slices: of 32 concurrent stores, and of looks at the loop.
        memories: in the memory that single operations meet.
        of_user: memories of a user who searches.
        cold_users: users whose first search is measured.
        sizes: memories in all, for the growth; search_growth is the last beside 10,000.
        starts: of the bot.
        peer_memories, peer_users, peer_rounds: of the comparison with others.
    """

    rounds: int = 1_000
    slices: int = 15
    memories: int = 10_000
    of_user: int = 1_000
    cold_users: int = 40
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    growth_rounds: int = 400
    stall_slices: int = 6
    stall_s: float = 2.5
    starts: int = 5
    peer_memories: int = 5_000
    peer_users: int = 50
    peer_rounds: int = 100


QUICK = Plan(
    rounds=250,
    slices=5,
    cold_users=12,
    sizes=(1_000, 10_000, 100_000),
    growth_rounds=100,
    stall_slices=2,
    stall_s=2.5,
    starts=2,
    peer_memories=1_000,
    peer_users=10,
    peer_rounds=20,
)
