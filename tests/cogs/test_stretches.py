"""Which messages belong together, as one stretch of talk."""

from __future__ import annotations

import pytest

from cogs.stretches import SILENCE_S, Stretches

NOON = 1_700_000_000.0
HERE, THERE = 10, 11
ANA, BEN = 1, 2


def test_talk_without_a_long_silence_is_one_stretch_however_long_it_lasts() -> None:
    stretches = Stretches()

    sessions = {stretches.session_of(HERE, ANA, NOON + number * SILENCE_S) for number in range(5)}

    assert len(sessions) == 1


def test_after_a_long_silence_a_new_one_begins() -> None:
    stretches = Stretches()

    sessions = [stretches.session_of(HERE, ANA, NOON + s) for s in (0, SILENCE_S + 1, SILENCE_S + 2)]

    assert sessions[0] != sessions[1] == sessions[2]


@pytest.mark.parametrize(("channel", "person"), [(THERE, ANA), (HERE, BEN)])
def test_each_channel_and_person_has_stretches_of_their_own(channel: int, person: int) -> None:
    stretches = Stretches()
    first = stretches.session_of(HERE, ANA, NOON)

    assert stretches.session_of(channel, person, NOON) != first
    assert stretches.session_of(HERE, ANA, NOON + 1) == first


def test_others_who_go_on_talking_do_not_keep_a_persons_stretch_alive() -> None:
    stretches = Stretches()
    first = stretches.session_of(HERE, ANA, NOON)

    for number in range(4):
        stretches.session_of(HERE, BEN, NOON + number * SILENCE_S / 2)

    assert stretches.session_of(HERE, ANA, NOON + SILENCE_S * 1.5) != first


def test_a_message_that_comes_in_late_changes_nothing() -> None:
    stretches = Stretches()
    first = stretches.session_of(HERE, ANA, NOON)

    assert stretches.session_of(HERE, ANA, NOON - 60) == first
    assert stretches.session_of(HERE, ANA, NOON + SILENCE_S) == first


def test_a_stretch_ends_also_where_messages_came_in_out_of_order() -> None:
    stretches = Stretches()
    stretches.session_of(HERE, BEN, NOON + SILENCE_S)
    first = stretches.session_of(HERE, ANA, NOON)

    assert stretches.session_of(HERE, ANA, NOON + SILENCE_S + 1) != first


def test_the_id_says_nothing_of_person_or_channel() -> None:
    session = Stretches().session_of(123_456_789, 987_654_321, NOON)

    assert len(session) == 16
    assert not any(part in session for part in ("123456789", "987654321", "1700000000"))


def test_what_ended_is_not_kept_nor_more_than_there_is_room_for() -> None:
    stretches = Stretches()
    for person in range(10_500):
        stretches.session_of(HERE, person, NOON)
    kept = len(stretches)

    stretches.session_of(HERE, ANA, NOON + SILENCE_S + 1)

    assert (kept, len(stretches)) == (10_000, 1)
