"""Static word vectors from files on this machine: a word is the mean of its pieces' rows. Nothing is ever fetched.

Two kinds of files are read, both by the same few lines: those that come in the wheel of `wordllama`, whose code is not
imported (it sets up the root logger), and a folder in the shape of model2vec. Source of the method: model2vec and
WordLlama, which are a table of rows and a mean; both are published under the MIT licence.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memory.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

EXTRA = "uv sync --extra semantic"
"""What installs what this needs."""

KEPT_MAX = 16_384
"""Words whose vectors are kept, in two bytes a number: 8 MB at 256 numbers a word."""

WORD_MAX = 64
"""Characters of a word; what is longer is no word that a model knows."""

_SHIPPED = "wordllama"
_SHIPPED_FILES = (Path("weights/l2_supercat_256.safetensors"), Path("tokenizers/l2_supercat_tokenizer_config.json"))
_TABLES = ("embeddings", "embedding.weight")
_DIMENSION_MAX = 4_096
_FEW = 64
_NO_MEANING = re.compile(r"<.*>|\[.*\]|(##)?[▁Ġ]*\d*")
"""Pieces that say nothing: special ones, single bytes, the mark of a word's beginning, and digits, all of which a
model takes for one another."""


class _Model(NamedTuple):
    """What the files hold: words as pieces; of each piece its row and its weight; and which pieces say something."""

    tokenizer: Any
    table: NDArray[Any]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    telling: frozenset[int]


class StaticVectors:
    """Vectors of words, from a model on this machine. Any thread may ask; the first one loads.

    Args:
        model: a folder with tokenizer.json and model.safetensors; None: the model that comes with the extra.

    Raises:
        ConfigError: the extra is not installed, or no such folder is there. What is in the files shows at `load`.
    """

    def __init__(self, model: Path | None = None) -> None:
        missing = [name for name in ("tokenizers", "safetensors") if importlib.util.find_spec(name) is None]
        if missing or (model is None and importlib.util.find_spec(_SHIPPED) is None):
            raise ConfigError(f'memory.recall.embedder: "static" needs packages that are not installed; run: {EXTRA}')
        self.name = f"static {model.name if model else _SHIPPED}"
        self._weights, self._tokenizer = _files_of(model)
        self._lock = threading.Lock()
        self._model: _Model | None = None
        self._places: dict[str, int] = {}
        self._kept: NDArray[np.float16] = np.empty((0, 0), np.float16)

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def load(self) -> None:
        """Read the files, in the caller's thread; safe to repeat. Some tenths of a second, 16 MB for the shipped one.

        Raises:
            ConfigError: they are not what they should be.
        """
        with self._lock:
            self._load()

    def of(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return a row for each of *words*, of unit length to within 0.001; zero where the model knows nothing.

        Numbers, emoji and scripts that the model has no pieces for are such words.

        Raises:
            ConfigError: see `load`.
        """
        with self._lock:
            model = self._load()
            new = [word for word in dict.fromkeys(words) if word not in self._places]
            if len(new) + len(self._places) > KEPT_MAX:
                self._places.clear()
                new = list(dict.fromkeys(words))
            if len(new) > KEPT_MAX:
                places = {word: place for place, word in enumerate(new)}
                return _vectors(model, new)[[places[word] for word in words]]
            if new:
                start = len(self._places)
                self._kept[start : start + len(new)] = _vectors(model, new)
                self._places.update((word, start + place) for place, word in enumerate(new))
            return self._kept[[self._places[word] for word in words]].astype(np.float32)

    def _load(self) -> _Model:
        if self._model is None:
            self._model = _read(self._weights, self._tokenizer)
            self._kept = np.empty((KEPT_MAX, self._model.table.shape[1]), np.float16)
            extra = {"event": "word_vectors_loaded", "pieces": len(self._model.rows)}
            log.info("The word vectors of %s are loaded", self.name, extra=extra)
        return self._model


def _files_of(model: Path | None) -> tuple[Path, Path]:
    """Return the weights and the tokenizer."""
    if model is None:
        spec = importlib.util.find_spec(_SHIPPED)
        folder = Path(next(iter((spec and spec.submodule_search_locations) or ()), ""))
        weights, tokenizer = (folder / file for file in _SHIPPED_FILES)
    else:
        weights, tokenizer = model / "model.safetensors", model / "tokenizer.json"
    for file in (weights, tokenizer):
        if not file.is_file():
            raise ConfigError(
                f"memory.recall.model: {file.parent} has no {file.name}; name a folder that holds a model2vec model "
                "(model.safetensors and tokenizer.json); nothing is fetched"
            )
    return weights, tokenizer


def _read(weights: Path, tokenizer: Path) -> _Model:
    # The packages raise classes of their own, even bare Exception, whatever is wrong with a file.
    try:
        tokens = importlib.import_module("tokenizers").Tokenizer.from_file(str(tokenizer))
        tokens.no_padding()
        tokens.no_truncation()
        vocabulary: dict[str, int] = tokens.get_vocab(with_added_tokens=True)
    except Exception as exc:
        raise ConfigError(f"memory.recall.model: {tokenizer.name} is no tokenizer ({type(exc).__name__})") from exc
    try:
        tensors = importlib.import_module("safetensors.numpy").load_file(str(weights))
    except Exception as exc:
        raise ConfigError(f"memory.recall.model: {weights.name} is no safetensors file of numbers") from exc
    table = next((tensors[name] for name in _TABLES if name in tensors), None)
    if table is None or table.ndim != 2 or not 1 <= table.shape[1] <= _DIMENSION_MAX:
        limit = f"a table named {' or '.join(_TABLES)}, up to {_DIMENSION_MAX} numbers a row"
        raise ConfigError(f"memory.recall.model: {weights.name} has no word vectors (limit: {limit})")
    pieces = max(vocabulary.values(), default=-1) + 1
    rows = np.asarray(tensors.get("mapping", np.arange(pieces)), np.int64)
    worth = np.asarray(tensors.get("weights", np.ones(pieces)), np.float32)
    if len(rows) < pieces or len(worth) < pieces or not ((rows >= 0) & (rows < len(table))).all():
        problem = f"has {len(table)} rows, {tokenizer.name} has {pieces} pieces"
        raise ConfigError(f"memory.recall.model: {weights.name} {problem}; they are of different models")
    worth = np.nan_to_num(worth[:pieces], posinf=0.0, neginf=0.0)
    telling = frozenset(place for piece, place in vocabulary.items() if not _NO_MEANING.fullmatch(piece))
    return _Model(tokens, table, rows[:pieces], worth, telling)


def _vectors(model: _Model, words: Sequence[str]) -> NDArray[np.float32]:
    """Return the mean of the pieces of each word, of unit length; zero if none says anything."""
    # A lone surrogate would be an error in the tokenizer.
    texts = [word.encode(errors="ignore").decode() if len(word) <= WORD_MAX else "" for word in words]
    # Folded words are not what a model was made from: London is one piece where london is three. Measured on half
    # of LoCoMo, the spelling of fewer pieces is worth 0.2 to 0.4 points of recall@10.
    folded = _pieces(model, texts)
    capital = _pieces(model, [text.capitalize() for text in texts])
    chosen = [b if b and (not a or len(b) < len(a)) else a for a, b in zip(folded, capital, strict=True)]
    ids = np.fromiter((piece for pieces in chosen for piece in pieces), np.int64)
    sums = np.zeros((len(words), model.table.shape[1]), np.float32)
    if len(ids):
        lengths = np.array([len(pieces) for pieces in chosen])
        known = np.flatnonzero(lengths)
        first = (np.cumsum(lengths) - lengths)[known]
        rows = np.nan_to_num(model.table[model.rows[ids]].astype(np.float32), posinf=0.0, neginf=0.0)
        sums[known] = np.add.reduceat(rows * model.weights[ids, None], first, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    sums /= np.where(norms > 0, norms, 1.0)
    return sums


def _pieces(model: _Model, texts: list[str]) -> list[list[int]]:
    """Return the pieces of each text that say something."""
    if len(texts) > _FEW:
        encoded = model.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    else:  # a batch is handed to other threads, for which a query would wait on a busy machine
        encoded = [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [[piece for piece in found.ids if piece in model.telling] for found in encoded]
