"""mem0 without a language model, in its own environment: one JSON object a line in, the seconds that it took out.

`python mem0_worker.py FOLDER`. Imports nothing of this project. Its embedder hashes words, so that no time goes into
a model; its vectors are in a local Qdrant. Telemetry is off.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

_DIMENSIONS = 64
_HITS = 10


class _Embedder:
    """A bag of hashed words, of unit length."""

    class config:  # noqa: N801 - it is looked up under this name
        embedding_dims = _DIMENSIONS

    def embed(self, text: str, memory_action: object = None) -> list[float]:  # noqa: ARG002
        vector = [0.0] * _DIMENSIONS
        for word in str(text).lower().split():
            digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
            vector[digest[0] % _DIMENSIONS] += 1.0 if digest[1] & 1 else -1.0
        length = math.sqrt(sum(part * part for part in vector)) or 1.0
        return [part / length for part in vector]

    def embed_batch(self, texts: list[str], memory_action: object = None) -> list[list[float]]:  # noqa: ARG002
        return [self.embed(text) for text in texts]


def _opened(folder: Path) -> Any:
    os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    logging.disable(logging.WARNING)  # it says at each search what is not installed
    factory = importlib.import_module("mem0.utils.factory")
    factory.EmbedderFactory.create = staticmethod(lambda *_, **__: _Embedder())
    factory.LlmFactory.create = staticmethod(lambda *_, **__: object())
    vectors = {"path": str(folder / "vectors"), "embedding_model_dims": _DIMENSIONS, "on_disk": True}
    settings = {
        "vector_store": {"provider": "qdrant", "config": {**vectors, "collection_name": "memories"}},
        "history_db_path": str(folder / "history.db"),
    }
    return importlib.import_module("mem0").Memory.from_config(settings)


def _do(memory: Any, asked: dict[str, Any]) -> int:
    """Do what is asked and return how much was found or stored."""
    if "store" in asked:
        for user_id, key, value in asked["store"]:
            memory.add(value, user_id=user_id, metadata={"key": key}, infer=False)
        return len(asked["store"])
    if "key" in asked:
        found = memory.get_all(filters={"user_id": asked["user_id"], "key": asked["key"]})
    else:
        found = memory.search(asked["query"], filters={"user_id": asked["user_id"]}, top_k=_HITS)
    return len(found["results"])


def main() -> None:
    memory = _opened(Path(sys.argv[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        found = _do(memory, asked)
        sys.stdout.write(json.dumps({"seconds": time.perf_counter() - began, "found": found}) + "\n")
        sys.stdout.flush()
    memory.vector_store.client.close()


if __name__ == "__main__":
    main()
