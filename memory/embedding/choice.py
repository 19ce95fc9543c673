"""Which of the three the settings ask for: nothing, static word vectors, or an endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from memory.embedding.endpoint import EndpointEmbedder, EndpointSettings
from memory.embedding.static import StaticVectors
from memory.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from memory.config import RecallTable


def embedding_of(table: RecallTable, root: Path) -> StaticVectors | EndpointEmbedder | None:
    """Return what *table* asks for; nothing is loaded, opened or sent yet.

    Args:
        root: what a relative folder is relative to.

    Raises:
        ConfigError: something that it needs is not there.
    """
    match table.embedder:
        case "none":
            return None
        case "static":
            return StaticVectors(root / table.model if table.model else None)
        case "endpoint":
            return EndpointEmbedder(
                EndpointSettings(
                    table.base_url,
                    table.model,
                    _key_of(table),
                    dimensions=table.dimensions,
                    batch=table.batch,
                    timeout_s=table.timeout_s,
                    retries=table.retries,
                    query_prefix=table.query_prefix,
                    text_prefix=table.text_prefix,
                )
            )


def _key_of(table: RecallTable) -> str:
    if not table.api_key_env:
        return ""
    key = os.environ.get(table.api_key_env, "")
    if not key:  # its name is not told: somebody may have written the key itself there
        raise ConfigError("memory.recall.api_key_env: the variable that it names is not set")
    return key
