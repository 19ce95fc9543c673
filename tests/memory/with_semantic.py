"""Static word vectors, where the extra `semantic` is installed: test_embedding_static.py makes such an environment."""

from __future__ import annotations

import importlib
import json
import logging
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from memory.config import RecallTable
from memory.embedding import StaticVectors, embedding_of, static
from memory.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

WORDS = ["[UNK]", "tea", "coffee", "##pot", "moon", "7"]
TABLE = np.array([[9, 9], [1, 0], [0, 1], [0, 2], [-1, 0], [5, 5]], np.float32)


@pytest.fixture(scope="module")
def shipped() -> StaticVectors:
    return StaticVectors()


def save(folder: Path, tensors: Mapping[str, NDArray[Any]]) -> Path:
    """Write a model of a few words in the shape of model2vec."""
    folder.mkdir()
    tokenizers: Any = importlib.import_module("tokenizers")
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_padding(length=8)  # some come like this, and it must not count
    tokenizer.save(str(folder / "tokenizer.json"))
    importlib.import_module("safetensors.numpy").save_file(dict(tensors), str(folder / "model.safetensors"))
    return folder


def test_words_of_like_meaning_are_near(shipped: StaticVectors) -> None:
    color, colour, hue, dog, pet = shipped.of(["color", "colour", "hue", "dog", "pet"])

    assert color @ colour > 0.8
    assert color @ hue > color @ dog
    assert dog @ pet > 0.5


def test_a_folded_name_is_the_word_that_the_model_knows(shipped: StaticVectors) -> None:
    london, capital, england = shipped.of(["london", "London", "england"])

    assert np.allclose(london, capital)
    assert london @ england > 0.3


def test_rows_are_of_unit_length_and_zero_where_nothing_is_known(shipped: StaticVectors) -> None:
    words = ["tea", "", " ", "1984", "7", "😀", "\ud800", "x" * 65, "tea"]

    found = shipped.of(words)

    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), [1, 0, 0, 0, 0, 0, 0, 0, 1], atol=1e-3)
    assert (found[0] == found[-1]).all()
    assert shipped.of([]).shape == (0, found.shape[1])


def test_more_words_than_are_kept_are_looked_up_all_the_same(
    shipped: StaticVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["tea", "coffee", "moon", "cake", "dog"]
    expected = shipped.of(words)
    monkeypatch.setattr(static, "KEPT_MAX", 3)
    small = StaticVectors()

    one_by_one = np.concatenate([small.of([word]) for word in [*words, *words]])

    assert np.allclose(small.of([*words, *words]), one_by_one, atol=1e-3)
    assert np.allclose(one_by_one[5:], expected, atol=1e-3)


def test_many_words_at_once_have_the_vectors_that_few_have() -> None:
    words = [f"moon{letter}{other}" for letter in "abcdefghij" for other in "klmnopqrst"]

    at_once = StaticVectors().of(words)

    few = StaticVectors()
    assert np.array_equal(at_once, np.concatenate([few.of([word]) for word in words]))


def test_many_threads_may_ask_at_once(shipped: StaticVectors) -> None:
    words = [["tea", f"cake{number}", "moon"] for number in range(200)]
    fresh = StaticVectors()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh.of, words))

    assert all(np.array_equal(rows, shipped.of(asked)) for rows, asked in zip(found, words, strict=True))


def test_nothing_is_read_before_it_is_asked_for_and_other_packages_stay_unimported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # whoever would fetch something would fail
    handlers = list(logging.getLogger().handlers)

    chosen = embedding_of(RecallTable(embedder="static"), tmp_path)

    assert isinstance(chosen, StaticVectors)
    assert not chosen.loaded
    chosen.load()
    assert chosen.loaded
    assert "wordllama" not in sys.modules
    assert logging.getLogger().handlers == handlers
    assert "of static wordllama are loaded" in caplog.text


def test_a_folder_in_the_shape_of_model2vec_is_read(tmp_path: Path) -> None:
    save(tmp_path / "mine", {"embeddings": TABLE})
    mine = embedding_of(RecallTable(embedder="static", model="mine"), tmp_path)

    assert isinstance(mine, StaticVectors)
    found = mine.of(["tea", "teapot", "moon", "unheard", "7", "tea7"])
    assert mine.name == "static mine"
    assert np.allclose(found, np.array([[1, 0], [0.4472, 0.8944], [-1, 0], [0, 0], [0, 0], [0, 0]]), atol=1e-3)


def test_a_table_with_a_mapping_and_weights_and_numbers_that_are_none_is_read(tmp_path: Path) -> None:
    table = np.array([[1, 0], [0, 1], [np.nan, np.inf]], np.float16)
    mapping, weights = np.array([0, 0, 1, 1, 2, 0]), np.array([1, 1, 1, 3, 1, 1], np.float64)
    mine = StaticVectors(save(tmp_path / "mine", {"embeddings": table, "mapping": mapping, "weights": weights}))

    found = mine.of(["tea", "teapot", "moon"])

    assert np.allclose(found, np.array([[1, 0], [0.3162, 0.9487], [0, 0]]), atol=1e-3)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"other": TABLE}, r"no word vectors \(limit: a table named embeddings or embedding.weight, up to 4096"),
        ({"embeddings": TABLE[0]}, "no word vectors"),
        ({"embeddings": TABLE[:3]}, "model.safetensors has 3 rows, tokenizer.json has 6 pieces"),
        ({"embeddings": TABLE, "mapping": np.full(6, 6)}, "of different models"),
        ({"embeddings": TABLE, "mapping": np.full(6, -1)}, "of different models"),
        ({"embeddings": TABLE, "weights": np.ones(2)}, "of different models"),
    ],
)
def test_a_model_that_does_not_fit_is_an_error_that_says_what(
    tmp_path: Path, tensors: dict[str, NDArray[Any]], says: str
) -> None:
    mine = StaticVectors(save(tmp_path / "mine", tensors))

    with pytest.raises(ConfigError, match=says):
        mine.load()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe garbage", b"{}", json.dumps({"model": 3}).encode(), struct.pack("<Q", 2**62)]
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, file: str, content: bytes) -> None:
    folder = save(tmp_path / "mine", {"embeddings": TABLE})
    (folder / file).write_bytes(content)

    with pytest.raises(ConfigError, match=rf"memory\.recall\.model: {file}"):
        StaticVectors(folder).of(["tea"])


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_folder_without_a_model_is_an_error_at_once(tmp_path: Path, missing: str) -> None:
    folder = save(tmp_path / "mine", {"embeddings": TABLE})
    (folder / missing).unlink()

    with pytest.raises(ConfigError, match=f"has no {missing}; name a folder .* nothing is fetched"):
        StaticVectors(folder)
    with pytest.raises(ConfigError, match=r"memory\.recall\.model"):
        embedding_of(RecallTable(embedder="static", model="minishlab/potion-base-8M"), tmp_path)
