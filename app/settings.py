"""All settings of the bot: config.toml as one frozen object."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from memory.config import FileSettings, MemorySettings, Table

Snowflakes = frozenset[Annotated[int, Field(gt=0, lt=1 << 64)]]


def _variable_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) is None:
        raise ValueError("must be the name of an environment variable, never the secret itself")
    return text


VariableName = Annotated[str, AfterValidator(_variable_name)]


class BotTable(Table):
    """[bot]."""

    prefix: Annotated[str, Field(min_length=1, max_length=10)] = "%"
    token_env: VariableName = "DISCORD_TOKEN"  # noqa: S105 - a name, no token
    owner_ids: Snowflakes = frozenset()
    allowed_users: Snowflakes = frozenset()
    channels: Snowflakes = frozenset()
    sends_per_minute: Annotated[int, Field(ge=1, le=120)] = 20

    @field_validator("prefix")
    @classmethod
    def _no_space(cls, prefix: str) -> str:
        if any(c.isspace() for c in prefix):
            raise ValueError("must not hold spaces")
        return prefix


class LogTable(Table):
    """[log]."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    file: str = ""
    max_bytes: Annotated[int, Field(ge=1_000, le=1_000_000_000)] = 1_000_000
    backups: Annotated[int, Field(ge=0, le=100)] = 3
    json_lines: Annotated[bool, Field(alias="json")] = False


class Settings(FileSettings):
    """The whole file."""

    bot: BotTable = BotTable()
    log: LogTable = LogTable()
    memory: MemorySettings = MemorySettings()
