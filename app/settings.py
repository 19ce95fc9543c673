"""All settings of the bot: config.toml as one frozen object."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from memory.config import FileSettings, MemorySettings, Table

Snowflakes = frozenset[Annotated[int, Field(gt=0, lt=1 << 64)]]


def _variable_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) is None:
        raise ValueError("must be the name of an environment variable, never the secret itself")
    return text


def _variable_name_or_nothing(text: str) -> str:
    return _variable_name(text) if text else text


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


class LLMTable(Table):
    """[llm]: without it the bot answers commands only."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, AfterValidator(_variable_name_or_nothing)] = ""
    persona_file: Path = Path("persona.md")
    deadline_s: Annotated[float, Field(ge=1, le=600)] = 60.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    max_rounds: Annotated[int, Field(ge=1, le=20)] = 4
    max_answer_tokens: Annotated[int, Field(ge=16, le=32_000)] = 800
    memory_tokens: Annotated[int, Field(ge=0, le=32_000)] = 400
    history_messages: Annotated[int, Field(ge=2, le=200)] = 20
    history_characters: Annotated[int, Field(ge=500, le=200_000)] = 12_000
    answers_per_minute: Annotated[int, Field(ge=1, le=600)] = 6
    channel_answers_per_minute: Annotated[int, Field(ge=1, le=600)] = 12


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
    llm: LLMTable | None = None
    log: LogTable = LogTable()
    memory: MemorySettings = MemorySettings()
