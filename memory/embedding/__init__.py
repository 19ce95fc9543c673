"""Meaning beside words: static word vectors, or the vectors of an embeddings endpoint, or none."""

from __future__ import annotations

from memory.embedding.static import StaticVectors

__all__ = ["StaticVectors"]
