"""Meaning beside words: static word vectors, or the vectors of an embeddings endpoint, or nothing."""

from __future__ import annotations

from memory.embedding.choice import embedding_of
from memory.embedding.endpoint import EndpointEmbedder, EndpointSettings
from memory.embedding.indexer import Embedded, Indexer, Lacking, TextEmbedder, VectorStore
from memory.embedding.static import StaticVectors
from memory.embedding.vectors import text_of

__all__ = [
    "Embedded",
    "EndpointEmbedder",
    "EndpointSettings",
    "Indexer",
    "Lacking",
    "StaticVectors",
    "TextEmbedder",
    "VectorStore",
    "embedding_of",
    "text_of",
]
