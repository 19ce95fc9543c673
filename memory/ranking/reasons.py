"""What was found, and why: in a few words, and each piece of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from memory.language import (
    COUNT,
    HAS_NAME,
    HAS_NUMBER,
    HAS_PLACE,
    HAS_TIME,
    HAS_TITLE,
    TITLE,
    WHEN,
    WHERE,
    WHO,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from memory.language import Language, Question
    from memory.ranking.memories import Doc

ANSWERS = (
    (WHEN, HAS_TIME, 2.0, "asks when, has a time"),
    (WHERE, HAS_PLACE, 2.0, "asks where, has a place"),
    (WHERE, HAS_NAME, 1.5, "asks where, has a name"),
    (WHO, HAS_NAME, 0.6, "asks for a name, has one"),
    (COUNT, HAS_NUMBER, 1.0, "asks how many, has a number"),
    (TITLE, HAS_TITLE, 1.5, "asks for a title, has one"),
)
"""What a question asks for, what a memory must have for it, what that is worth, and how it is said."""

MEANS = 0.3
"""The least cosine that is evidence by itself."""


class Found(NamedTuple):
    """A memory that was found."""

    score: float
    doc: Doc
    why: str
    details: tuple[str, ...] = ()


class Reasons:
    """Why memories answer one question.

    Args:
        others: for each term of the question, what may stand for it, with its worth.
        counts: for each term and row, how often it occurs there or nearby.
        inside: for each row, whether it is of a date in the question; empty if there is none.
        cosines: for each row, how alike it means; empty without a model.
        named: the rows of what the question names by its key.
    """

    def __init__(
        self,
        asked: Question,
        language: Language,
        others: Sequence[Mapping[str, float]],
        counts: NDArray[np.float64],
        inside: NDArray[np.bool_],
        cosines: NDArray[np.float64],
        named: Sequence[int] = (),
    ) -> None:
        self._terms = [
            (term.stem, term.form, f"has the word {term.form}", f"near {term.form}", f"stands near {term.form}")
            for term in asked.terms
        ]
        self._language = language
        self._others = others
        self._counts = counts
        self._inside = inside
        self._cosines = cosines
        self._named = named
        self._kinds = [(has, said) for kind, has, _, said in ANSWERS if asked.cues & kind]

    def of(self, row: int, doc: Doc) -> tuple[str, tuple[str, ...]]:
        """Return why *row* was found: shortly, and in full."""
        has = set(doc.analysis.terms.split(" "))
        own: list[str] = []
        near: list[str] = []
        details: list[str] = []
        counts = self._counts[:, row].tolist()
        for (stem, form, has_it, near_it, stands_near), others, count in zip(
            self._terms, self._others, counts, strict=True
        ):
            if not count:
                continue
            if stem in has:
                own.append(form)
                details.append(has_it)
            elif others and (alike := others.keys() & has):
                worth, best = max((others[other], other) for other in alike)
                word = _written(doc, best)
                own.append(f"{form} ~ {word}")
                is_alias = best in self._language.groups.get(stem, ())
                details.append(f"{word} may stand for {form}" if is_alias else f"{word} is like {form} ({worth:.2f})")
            else:
                near.append(near_it)
                details.append(stands_near)
        if row in self._named:
            own = own or ["is its key"]
            details.append("the question is its key")
        if len(self._inside) and self._inside[row]:
            own.append("of that date")
            details.append("is of a date in the question")
        if len(self._cosines) and self._cosines[row] >= MEANS:
            near.append("means alike")
            details.append(f"means alike ({self._cosines[row]:.2f})")
        details += [said for cue, said in self._kinds if doc.analysis.cues & cue]
        return ", ".join(own or near), tuple(details)


def _written(doc: Doc, stem: str) -> str:
    """Return the word of *doc* that has *stem*, as it stands there."""
    at = doc.analysis.terms.split(" ").index(stem)
    return doc.analysis.forms.split(" ")[at] or stem
