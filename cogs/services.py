"""What the cogs are handed: one container, built in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cogs.speech import Speech
    from llm.assistant import Assistant
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
        answers_per_minute: how often one person is answered by the language model in any 60 seconds.
        channel_answers_per_minute: the same for everybody in one channel.
        everyone: whether anybody is answered, as in the sandbox.
    """

    prefix: str = "%"
    owner_ids: frozenset[int] = frozenset()
    allowed_users: frozenset[int] = frozenset()
    channels: frozenset[int] = frozenset()
    sends_per_minute: int = 20
    answers_per_minute: int = 6
    channel_answers_per_minute: int = 12
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """What cogs use; they find it as `bot.services`. Whoever builds it opens and closes the memory.

    Attributes:
        assistant: answers what is no command; None where no language model is configured.
    """

    policy: ChatPolicy
    memory: SharedMemory
    tools: ToolManager
    speech: Speech
    assistant: Assistant | None = None
