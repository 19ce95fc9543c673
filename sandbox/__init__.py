"""A loopback Discord: the unmodified client library runs against it, in tests and for `bot.py --sandbox`."""

from sandbox.actions import BotAction
from sandbox.faults import Faults
from sandbox.redirect import RedirectError, redirect
from sandbox.server import LoopbackDiscord
from sandbox.terminal import Terminal
from sandbox.world import TOKEN, Attachment, Channel, Guild, Message, Person, World

__all__ = [
    "TOKEN",
    "Attachment",
    "BotAction",
    "Channel",
    "Faults",
    "Guild",
    "LoopbackDiscord",
    "Message",
    "Person",
    "RedirectError",
    "Terminal",
    "World",
    "redirect",
]
