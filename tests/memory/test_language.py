"""Words, stems, cues and dates: what a text says."""

from __future__ import annotations

import string
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import ConfigError
from memory.language import (
    ASKS,
    COUNT,
    HAS_NAME,
    HAS_NUMBER,
    HAS_PLACE,
    HAS_TIME,
    HAS_TITLE,
    WHEN,
    WHERE,
    WHO,
    Analysis,
    load_language,
)
from memory.limits import VALUE_MAX_BYTES
from tests.contract import HOSTILE, make_entry

ENGLISH = load_language("english")
NOW = datetime(2023, 6, 14, 12, tzinfo=UTC)
OURS = ("english", "german", "french", "spanish", "russian", "chinese")


def said(value: str, key: str = "m1") -> Analysis:
    return ENGLISH.analyse(make_entry("u", key, value))


def counts(analysis: Analysis) -> dict[str, int]:
    return dict(zip(analysis.terms.split(" "), analysis.counts, strict=True))


def asked(query: str, name: str = "") -> list[str]:
    return [term.stem for term in ENGLISH.question(query, name).terms]


# Words


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Ｆｕｌｌ-Width Étude, snake_case x", ["full", "width", "etude", "snake", "case", "x"]),
        ("Rex's colour\u2019s", ["rex", "color"]),
        ("flavour of the hour", ["flavor", "of", "the", "hour"]),
        ("a 🐕 and ⭐", ["a", "🐕", "and", "⭐"]),
        ("東京タワー", ["東", "京", "東京", "京タ", "タワ", "ワー"]),
        ("한국어 a", ["한국", "국어", "a"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("שָׁלוֹם", ["שלום"]),
        ("z\u0336a\u0337lgo co\u00adop", ["zalgo", "coop"]),
        ("3.5 km", ["3", "5", "km"]),
        ("nul\x00inside", ["nul", "inside"]),
        ("?!... \u202e", []),
    ],
)
def test_text_becomes_folded_words_in_any_script(text: str, tokens: list[str]) -> None:
    assert ENGLISH.tokens(text) == tokens


def test_forms_that_a_stemmer_leaves_apart_are_one_word() -> None:
    assert {ENGLISH.root(word) for word in ("buy", "bought", "buyer")} == {ENGLISH.root("buying")}
    assert ENGLISH.root("painted") == ENGLISH.root("painting")
    assert ENGLISH.root("the") == ""


def test_an_endless_word_is_cut_and_not_stemmed() -> None:
    assert ENGLISH.tokens("running" * 20) == [("running" * 20)[:64]]
    assert counts(said("x" * VALUE_MAX_BYTES)) == {"x" * 64: 1}


def test_stems_are_the_same_from_many_threads() -> None:
    words = [f"{a}{b}nings" for a in string.ascii_lowercase for b in string.ascii_lowercase]
    found: list[list[str]] = []
    language = load_language.__wrapped__("english")
    threads = [threading.Thread(target=lambda: found.append([language.root(w) for w in words])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [[ENGLISH.root(word) for word in words]] * 4


# Memories


def test_the_words_of_a_key_count_twice() -> None:
    assert counts(said("a blue car", "favoriteColor_of.car")) == {"favorit": 2, "color": 2, "car": 3, "blue": 1}


@pytest.mark.parametrize(
    "key", ["m0001", "17", "memory_12", "fact-3", "5f0c1a9e", "550e8400-e29b-41d4-a716-446655440000"]
)
def test_a_key_that_a_program_made_up_is_not_text(key: str) -> None:
    assert counts(said("blue", key)) == {"blue": 1}


@pytest.mark.parametrize("key", ["ps5", "route_66_trip", "decade", "facade"])
def test_a_key_that_only_looks_made_up_is_text(key: str) -> None:
    assert "blue" in counts(said("blue", key))
    assert (len(counts(said("blue", key))) > 1) == (key != "ps5")  # a few letters and a number could be either


def test_a_text_of_stop_words_alone_can_be_found() -> None:
    assert counts(said("who am I")) == {"who": 1, "am": 1, "i": 1}
    assert asked("who am I?") == ["who", "am", "i"]


@pytest.mark.parametrize(
    ("text", "cues"),
    [
        ("how are you?  ", ASKS),
        ("I ran yesterday", HAS_TIME),
        ("it was in 1999", HAS_TIME | HAS_NUMBER),
        ("at 5pm", HAS_TIME | HAS_NUMBER),
        ("we went to the beach", HAS_PLACE),
        ("I met Ana", HAS_NAME),
        ("two of them", HAS_NUMBER),
        ('I read "Dune"', HAS_TITLE | HAS_NAME),
        ("nothing of it", 0),
    ],
)
def test_a_memory_shows_what_it_has(text: str, cues: int) -> None:
    assert said(text).cues & (ASKS | HAS_TIME | HAS_PLACE | HAS_NUMBER | HAS_TITLE) == cues & ~HAS_NAME
    if cues & HAS_NAME and "Ana" in text:
        assert said(text).cues & HAS_NAME


def test_session_and_time_come_from_the_metadata_and_the_time_else_from_the_update() -> None:
    entry = make_entry("u", "k", "v", metadata={"session": 7, "at": 1_683_554_160})

    assert ENGLISH.analyse(entry)[4:6] == ("7", 1_683_554_160.0)
    for at in ("noon", True, -1, 1e300, 10**400, float("nan"), None, [1]):
        bare = make_entry("u", "k", "v", metadata={"session": 10**5_000 if at is None else ["x"], "at": at})
        assert ENGLISH.analyse(bare)[4:6] == ("", bare.updated_at.timestamp())


def test_who_spoke_is_known_by_the_name_before_a_colon() -> None:
    assert said("Dr. Ana: hello").speaker == "dr ana"
    assert said("12: hello").speaker == ""
    assert said("x" * 40 + ": hello").speaker == ""
    assert said("a\nb: hello").speaker == ""


# Packed


@given(
    st.text(max_size=300),
    st.text(min_size=1, max_size=40),
    st.one_of(st.text(max_size=20), st.integers(), st.none(), st.booleans(), st.floats()),
    st.one_of(st.floats(), st.integers(), st.text()),
)
def test_what_is_packed_comes_out_the_same(value: str, key: str, session: object, at: object) -> None:
    analysis = ENGLISH.analyse(make_entry("u", key, value, metadata={"session": session, "at": at}))

    blob = ENGLISH.pack(analysis)

    assert blob.startswith(bytes.fromhex(ENGLISH.fingerprint))
    assert ENGLISH.unpack(blob) == analysis
    assert analysis.length == sum(analysis.counts)
    assert len(analysis.terms.split(" ")) == len(analysis.forms.split(" ")) == max(1, len(analysis.counts))


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a " * (VALUE_MAX_BYTES // 2), "é" * 50_000, "((((" * 20_000, '"a' * 40_000]
)
def test_hostile_text_is_analysed_and_packed(text: str) -> None:
    for name in OURS:
        language = load_language(name)
        analysis = language.analyse(make_entry("u", text[:256], text, metadata={"session": text[:100]}))
        assert language.unpack(language.pack(analysis)) == analysis
        language.question(text[:4_096], text[:100])


def test_what_another_language_packed_or_what_is_damaged_is_not_taken() -> None:
    blob = ENGLISH.pack(said("a blue car"))

    assert load_language("german").unpack(blob) is None
    for damaged in (b"", blob[:8], blob[:-1], blob + b"x", bytes([blob[0] ^ 1]) + blob[1:]):
        assert ENGLISH.unpack(damaged) is None
    for at in range(len(blob)):
        assert ENGLISH.unpack(blob[:at] + bytes([blob[at] ^ 0x40]) + blob[at + 1 :]) is None


def test_a_word_said_very_often_is_counted_in_a_byte() -> None:
    analysis = said("tea " * 1_000)

    assert analysis.counts == b"\xff"
    assert ENGLISH.unpack(ENGLISH.pack(analysis)) == analysis


# Questions


def test_ones_own_name_says_nothing_in_a_question() -> None:
    assert asked("What did Ana's sister paint?", "Ana") == ["sister", "paint"]
    assert asked("Ana", "Ana") == ["ana"]


def test_words_that_are_in_every_question_weigh_half() -> None:
    weights = {term.stem: term.weight for term in ENGLISH.question("what kind of tea do I like").terms}

    assert weights == {"kind": 0.5, "tea": 1.0, "like": 0.5}


def test_a_phrase_is_a_term_of_its_own() -> None:
    terms = {term.stem: term.weight for term in ENGLISH.question("where did I grow up").terms}

    assert terms == {"grow": 0.5, "grow up": 1.0}
    assert "hometown" in ENGLISH.groups["grow up"]


def test_examples_stand_for_their_kind_and_not_the_other_way_round() -> None:
    assert "dog" in ENGLISH.groups["pet"]
    assert "pet" not in ENGLISH.groups.get("dog", ())
    assert "hue" in ENGLISH.groups["color"]
    assert "color" in ENGLISH.groups["hue"]


@pytest.mark.parametrize(
    ("query", "cues"),
    [
        ("When did I move?", WHEN),
        ("where do I live", WHERE),
        ("who is my boss", WHO),
        ("how many cats", COUNT),
        ("whenever somewhere", 0),
    ],
)
def test_a_question_shows_what_it_asks_for(query: str, cues: int) -> None:
    assert ENGLISH.question(query).cues == cues


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("query", "begin", "days"),
    [
        ("on 2023-05-07", "2023-05-07", 1),
        ("on 7 May, 2023", "2023-05-07", 1),
        ("May 7th 2023", "2023-05-07", 1),
        ("on the 7th of May 2023", "2023-05-07", 1),
        ("in May 2023", "2023-05-01", 31),
        ("2023/05", "2023-05-01", 31),
        ("in 2023", "2023-01-01", 365),
        ("yesterday", "2023-06-13", 1),
        ("last week", "2023-06-05", 7),
        ("this month", "2023-06-01", 30),
        ("last year", "2022-01-01", 365),
        ("3 days ago", "2023-06-11", 1),
        ("last Friday", "2023-06-09", 1),
        ("on Wednesday", "2023-06-07", 1),
    ],
)
def test_a_question_names_dates(query: str, begin: str, days: int) -> None:
    (date,) = ENGLISH.question(f"what happened {query}?").dates

    ((first, end),) = date.within(NOW, 2023, 2023)

    assert datetime.fromtimestamp(first, UTC).isoformat() == f"{begin}T00:00:00+00:00"
    assert end - first == days * DAY.total_seconds()


@pytest.mark.parametrize("query", ["what may I do", "the march was long", "my 20 cats", "a sunny sun", "1234"])
def test_what_is_no_date_is_none(query: str) -> None:
    assert ENGLISH.question(query).dates == ()


def test_a_date_without_a_year_is_of_any_year() -> None:
    (date,) = ENGLISH.question("on February 29").dates

    spans = [datetime.fromtimestamp(begin, UTC).date().isoformat() for begin, _ in date.within(NOW, 2019, 2024)]

    assert spans == ["2020-02-29", "2024-02-29"]
    assert len(list(date.within(NOW, 1, 8_000))) < 20  # only of late, however long ago the first memory is


@given(st.text(max_size=100), st.sampled_from(OURS))
def test_no_question_is_too_odd(query: str, name: str) -> None:
    for date in load_language(name).question(query).dates:
        assert all(begin < end for begin, end in date.within(NOW, 2020, 2024))


@pytest.mark.parametrize(
    ("name", "memory", "query"),
    [
        ("german", "Ich wohne in einer schönen Straße", "Wo sind die Straßen?"),
        ("french", "J'aime les éléphants", "éléphant"),
        ("spanish", "Trabajo como médico", "¿quién trabaja?"),
        ("russian", "Я люблю чёрных кошек", "черная кошка"),
        ("chinese", "我住在北京", "北京"),
        ("italian", "amo i gatti neri", "gatto nero"),
    ],
)
def test_other_languages_have_stems_or_pairs_of_letters(name: str, memory: str, query: str) -> None:
    language = load_language(name)

    there = set(language.analyse(make_entry("u", "m1", memory)).terms.split(" "))

    assert {term.stem for term in language.question(query).terms} & there


@pytest.mark.parametrize(
    ("name", "query", "days_ago"),
    [
        ("german", "was war vor 3 Tagen", 3),
        ("french", "qu'est-ce que j'ai fait hier", 1),
        ("spanish", "qué hice hace 2 días", 2),
        ("russian", "что было 5 дней назад", 5),
        ("chinese", "我昨天去了哪里", 1),
    ],
)
def test_other_languages_have_dates(name: str, query: str, days_ago: int) -> None:
    (date,) = load_language(name).question(query).dates

    ((begin, _),) = date.within(NOW, 2023, 2023)

    assert datetime.fromtimestamp(begin, UTC).date() == NOW.date() - days_ago * DAY


@pytest.mark.parametrize("name", OURS)
def test_every_word_in_the_data_is_a_word_that_is_looked_at(name: str) -> None:
    language = load_language(name)

    assert language.groups
    assert all(
        stem and others and "" not in others and stem not in others
        for stem, others in language.groups.items()
        if others
    )


def test_an_unknown_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'klingon' is not known; known are .*english.*french"):
        load_language("klingon")
    for outside in ("../languages/english", "", ".", "english/"):
        with pytest.raises(ConfigError):
            load_language(outside)
