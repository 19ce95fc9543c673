"""Which of the two libraries named `discord` is really installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import discord

SELF = "discord.py-self"
OFFICIAL = "discord.py"

Kind = Literal["user account", "bot account"]


class WrongLibraryError(Exception):
    """The environment cannot run the bot; the text says how to mend it."""


@dataclass(frozen=True, slots=True)
class Library:
    """The library that `import discord` gives, and the kind of account it is for."""

    name: str
    version: str
    account: Kind


def installed_library() -> Library:
    """Return the library that is really there.

    Raises:
        WrongLibraryError: it is neither of the two, or one lies over the other.
    """
    listed = {name for name in (SELF, OFFICIAL) if _is_listed(name)}
    is_official = hasattr(discord, "Intents")
    actual = OFFICIAL if is_official else SELF
    if len(listed) == 2:
        raise WrongLibraryError(
            f"{SELF} and {OFFICIAL} are installed over each other (both are a package called `discord`; its files "
            f"are now those of {actual}). Give each an environment of its own: delete this one (.venv) and start "
            "again with one of the README's commands."
        )
    if actual not in listed:
        raise WrongLibraryError(
            f"`import discord` gives something that is not {SELF} and not {OFFICIAL}. Delete this environment "
            "(.venv) and start again with one of the README's commands."
        )
    return Library(actual, metadata.version(actual), "bot account" if is_official else "user account")


def _is_listed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
