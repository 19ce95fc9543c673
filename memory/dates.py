"""Dates that a question names: "7 May 2023", "2023-05-07", "in May", "last week". Days are those of UTC."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ISO = re.compile(r"(?<!\d)((?:19|20)\d\d)[-/.](\d{1,2})(?:[-/.](\d{1,2}))?(?!\d)")
_YEAR = re.compile(r"(?:19|20)\d\d")
_DAY_S = 86_400.0
_DIGITS = 4
_YEARS = 50
"""Years back that a date without a year may mean."""


class DateSpan(NamedTuple):
    """A date as it was named. What was not named is 0; a date relative to now has *shift* and *unit* instead."""

    year: int = 0
    month: int = 0
    day: int = 0
    shift: int = 0
    unit: str = ""
    weekday: int = -1

    def within(self, now: datetime, first_year: int, last_year: int) -> Iterator[tuple[float, float]]:
        """Give the spans of time that are meant, in seconds since 1970: of each year, if none was named."""
        if self.unit or self.weekday >= 0:
            yield self._relative(now.astimezone(UTC).date())
            return
        for year in [self.year] if self.year else range(max(first_year, last_year - _YEARS), last_year + 1):
            month, day = self.month, self.day
            if day and day > calendar.monthrange(year, month)[1]:
                continue
            begin = date(year, month or 1, day or 1)
            if day:
                end = begin + timedelta(days=1)
            elif month:
                end = begin + timedelta(days=calendar.monthrange(year, month)[1])
            else:
                end = date(year, 12, 31) + timedelta(days=1)
            yield _seconds(begin), _seconds(end)

    def _relative(self, today: date) -> tuple[float, float]:
        if self.weekday >= 0:
            back = (today.weekday() - self.weekday) % 7 or 7
            begin = today - timedelta(days=back)
            return _seconds(begin), _seconds(begin) + _DAY_S
        if self.unit == "day":
            begin = today + timedelta(days=self.shift)
            return _seconds(begin), _seconds(begin) + _DAY_S
        if self.unit == "week":
            begin = today - timedelta(days=today.weekday()) + timedelta(weeks=self.shift)
            return _seconds(begin), _seconds(begin) + 7 * _DAY_S
        if self.unit == "month":
            months = today.year * 12 + today.month - 1 + self.shift
            begin = date(max(1, months // 12), months % 12 + 1, 1)
            return _seconds(begin), _seconds(begin) + calendar.monthrange(begin.year, begin.month)[1] * _DAY_S
        year = max(1, today.year + self.shift)
        return _seconds(date(year, 1, 1)), _seconds(date(year, 12, 31)) + _DAY_S


class DateReader:
    """Finds dates in the words of a question; what the words are called is one language's data."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._months = _numbered(data.get("months", ()))
        self._weekdays = _numbered(data.get("weekdays", ()))
        self._unsure = frozenset(data.get("unsure", "").split())
        self._before = frozenset(data.get("before", "").split())
        self._days: Mapping[str, int] = data.get("days", {})
        self._units = {word: unit for unit, words in data.get("units", {}).items() for word in words.split()}
        self._last, self._last_after, self._this, self._ago, self._ago_before = (
            frozenset(data.get(of, "").split()) for of in ("last", "last_after", "this", "ago", "ago_before")
        )
        self._day = re.compile(rf"(\d{{1,2}}){data.get('ordinal', '')}")

    def read(self, words: list[str], text: str) -> tuple[DateSpan, ...]:
        """Return the dates that *text* names, of which *words* are the folded words."""
        found = [span for match in _ISO.finditer(text) if (span := _iso(*match.groups()))]
        if found:
            return tuple(found)
        taken: set[int] = set()
        for at, word in enumerate(words):
            span = self._month_at(words, at, taken) or self._relative_at(words, at)
            if span:
                found.append(span)
            elif at not in taken and _YEAR.fullmatch(word) and not self._month_near(words, at):
                found.append(DateSpan(int(word)))
        return tuple(dict.fromkeys(found))

    def _month_near(self, words: list[str], at: int) -> bool:
        return any(words[i] in self._months for i in range(max(0, at - 2), at))

    def _month_at(self, words: list[str], at: int, taken: set[int]) -> DateSpan | None:
        month = self._months.get(words[at])
        if month is None:
            return None
        around = {offset: words[at + offset] if 0 <= at + offset < len(words) else "" for offset in (-2, -1, 1, 2)}
        near = [around[1], around[-1], around[-2]]
        day = next((n for word in near if (n := self._day_of(word))), 0)
        year = next((int(word) for word in (around[1], around[2]) if _YEAR.fullmatch(word)), 0)
        taken.update((at + 1, at + 2))
        if words[at] in self._unsure and not (day or year or around[-1] in self._before):
            return None
        return DateSpan(year, month + 1, min(day, 31))

    def _day_of(self, word: str) -> int:
        match = self._day.fullmatch(word)
        return int(match[1]) if match and 1 <= int(match[1]) <= 31 else 0

    def _relative_at(self, words: list[str], at: int) -> DateSpan | None:
        word = words[at]
        before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
        if word in self._days:
            return DateSpan(shift=self._days[word], unit="day")
        if word in self._units:
            if before in self._last or after in self._last_after:
                return DateSpan(shift=-1, unit=self._units[word])
            if before in self._this:
                return DateSpan(unit=self._units[word])
            is_past = after in self._ago or (at > 1 and words[at - 2] in self._ago_before)
            if is_past and before.isdecimal() and len(before) < _DIGITS:
                return DateSpan(shift=-int(before), unit=self._units[word])
        if word in self._weekdays and (before in self._before or word not in self._unsure):
            return DateSpan(weekday=self._weekdays[word])
        return None


def _iso(year: str, month: str, day: str | None) -> DateSpan | None:
    if not 1 <= int(month) <= 12 or not 0 <= int(day or 0) <= 31:
        return None
    return DateSpan(int(year), int(month), int(day or 0))


def _numbered(groups: list[str]) -> dict[str, int]:
    return {word: number for number, words in enumerate(groups) for word in words.split()}


def _seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
