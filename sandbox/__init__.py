"""A loopback Discord, and a loopback language model: unmodified client libraries run against them.

For tests and for `bot.py --sandbox`. What bad models send is in sandbox.model_hostile.
"""

from sandbox.actions import BotAction
from sandbox.faults import Faults
from sandbox.model import LoopbackModel
from sandbox.model_behaviours import (
    Behaviour,
    call,
    disconnect_after,
    forever,
    hang,
    hang_after,
    raw,
    refuse,
    say,
    slow,
    turn,
)
from sandbox.redirect import RedirectError, redirect
from sandbox.server import LoopbackDiscord
from sandbox.terminal import Terminal
from sandbox.world import TOKEN, Attachment, Channel, Guild, Message, Person, World

__all__ = [
    "TOKEN",
    "Attachment",
    "Behaviour",
    "BotAction",
    "Channel",
    "Faults",
    "Guild",
    "LoopbackDiscord",
    "LoopbackModel",
    "Message",
    "Person",
    "RedirectError",
    "Terminal",
    "World",
    "call",
    "disconnect_after",
    "forever",
    "hang",
    "hang_after",
    "raw",
    "redirect",
    "refuse",
    "say",
    "slow",
    "turn",
]
