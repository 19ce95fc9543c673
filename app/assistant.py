"""The assistant that the settings describe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llm.assistant import Assistant, AssistantSettings
from llm.endpoint import Endpoint, EndpointSettings
from memory.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from app.settings import LLMTable
    from tools.tool_manager import ToolManager

_PERSONA_MAX = 20_000


def make_assistant(table: LLMTable | None, root: Path, tools: ToolManager) -> Assistant | None:
    """Return the assistant, or None where no language model is configured.

    Args:
        root: what the persona's path is relative to.

    Raises:
        ConfigError: the persona cannot be read, or the key's variable is not set.
    """
    if table is None:
        return None
    key = os.environ.get(table.api_key_env, "").strip() if table.api_key_env else ""
    if table.api_key_env and not key:
        raise ConfigError(f"llm.api_key_env: the variable {table.api_key_env} is not set")
    endpoint = Endpoint(EndpointSettings(table.base_url, table.model, key, table.retries, table.max_answer_tokens))
    settings = AssistantSettings(
        persona=_persona(root / table.persona_file),
        deadline_s=table.deadline_s,
        most_rounds=table.max_rounds,
        memory_tokens=table.memory_tokens,
        history_lines=table.history_messages,
        history_characters=table.history_characters,
    )
    return Assistant(endpoint, tools, settings)


def _persona(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"llm.persona_file: {path} cannot be read as UTF-8 text") from exc
    if not 0 < len(text) <= _PERSONA_MAX:
        raise ConfigError(f"llm.persona_file: {path} holds {len(text)} characters (limit: 1 to {_PERSONA_MAX})")
    return text
