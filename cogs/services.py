"""What the cogs are handed: one container, built in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cogs.speech import Speech
    from memory import SharedMemory
    from tools.tool_manager import ToolManager


@dataclass(frozen=True, slots=True)
class ChatPolicy:
    """Who is answered, where, and how much is said.

    Attributes:
        prefix: what a command begins with.
        owner_ids: whose every command is answered, and who may change how the bot works.
        allowed_users: who else is answered.
        channels: the server channels where those others are answered; empty: any.
        sends_per_minute: the most messages that the bot sends in any 60 seconds.
        everyone: whether anybody is answered, as in the sandbox.
    """

    prefix: str = "%"
    owner_ids: frozenset[int] = frozenset()
    allowed_users: frozenset[int] = frozenset()
    channels: frozenset[int] = frozenset()
    sends_per_minute: int = 20
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """What cogs use; they find it as `bot.services`. Whoever builds it opens and closes the memory."""

    policy: ChatPolicy
    memory: SharedMemory
    tools: ToolManager
    speech: Speech
