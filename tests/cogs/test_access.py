"""Who is answered, and on whose behalf a message acts. No Discord needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cogs.access import context_for, context_of, context_of_message, is_answered, may_command, scope_of
from cogs.services import ChatPolicy
from tools.context import Origin, ToolContext

OWNER, FRIEND, STRANGER, ME = 1, 2, 3, 4
HERE, THERE = 10, 11
LINK = "https://discord.com/channels/@me/11/12"

POLICY = ChatPolicy(owner_ids=frozenset({OWNER}), allowed_users=frozenset({FRIEND}), channels=frozenset({HERE}))


@pytest.mark.parametrize(
    ("author", "channel", "in_guild", "answered"),
    [
        (OWNER, HERE, True, True),
        (OWNER, THERE, True, True),
        (OWNER, THERE, False, True),
        (FRIEND, HERE, True, True),
        (FRIEND, THERE, True, False),
        (FRIEND, THERE, False, True),
        (STRANGER, HERE, True, False),
        (STRANGER, HERE, False, False),
    ],
)
def test_the_owner_is_answered_anywhere_and_others_by_the_lists(
    author: int, channel: int, in_guild: bool, answered: bool
) -> None:
    assert is_answered(POLICY, author, channel_ids={channel}, in_guild=in_guild) is answered


def test_by_default_nobody_is_answered_but_the_owner() -> None:
    policy = ChatPolicy(owner_ids=frozenset({OWNER}))

    assert is_answered(policy, OWNER, channel_ids={HERE}, in_guild=True)
    assert not is_answered(policy, FRIEND, channel_ids={HERE}, in_guild=False)
    assert not is_answered(ChatPolicy(), OWNER, channel_ids={HERE}, in_guild=False)


def test_without_a_list_of_channels_any_will_do() -> None:
    policy = ChatPolicy(allowed_users=frozenset({FRIEND}))

    assert is_answered(policy, FRIEND, channel_ids={THERE}, in_guild=True)


def test_in_the_sandbox_everyone_is_answered() -> None:
    assert is_answered(ChatPolicy(everyone=True), STRANGER, channel_ids={HERE}, in_guild=True)


def message(author: int, channel: int = THERE, guild: int | None = None, **of_channel: Any) -> Any:
    return SimpleNamespace(
        author=SimpleNamespace(id=author, display_name="Ana"),
        channel=SimpleNamespace(id=channel, **of_channel),
        guild=SimpleNamespace(id=guild) if guild else None,
        mentions=[],
        jump_url=LINK,
    )


def test_a_thread_belongs_to_its_channel() -> None:
    assert may_command(POLICY, message(FRIEND, 99, guild=7, parent_id=HERE))
    assert not may_command(POLICY, message(FRIEND, 99, guild=7, parent_id=THERE))


def test_the_account_itself_is_answered_where_it_is_told_of() -> None:
    assert may_command(POLICY, message(ME), me_id=ME)
    assert not may_command(POLICY, message(ME))
    assert not may_command(POLICY, message(STRANGER), me_id=ME)


@pytest.mark.parametrize(
    ("of", "scope"),
    [
        (message(OWNER, guild=7), "guild:7"),
        (message(OWNER, guild=7, type="group"), "guild:7"),
        (message(OWNER, type="private"), "dm"),
        (message(OWNER), "dm"),
        (message(OWNER, type="group"), f"group:{THERE}"),
    ],
)
async def test_what_is_said_somewhere_stays_there(of: Any, scope: str) -> None:
    bot = SimpleNamespace(services=SimpleNamespace(policy=POLICY), user=SimpleNamespace(id=ME))
    context: Any = SimpleNamespace(message=of, author=of.author, bot=bot)

    assert scope_of(of) == scope
    assert await context_of(context) == ToolContext(
        str(OWNER),
        scope,
        frozenset({"", scope}),
        "Ana",
        origin=Origin(str(OWNER), "command", scope, str(THERE), LINK),
        private=getattr(of.channel, "type", "") == "private" and of.guild is None,
    )


@pytest.mark.parametrize(("author", "asked"), [(OWNER, False), (ME, False), (FRIEND, True), (STRANGER, True)])
async def test_all_but_the_owner_and_the_account_itself_must_have_agreed(author: int, asked: bool) -> None:
    bot: Any = SimpleNamespace(services=SimpleNamespace(policy=POLICY), user=SimpleNamespace(id=ME))

    context = await context_for(bot, message(author), how="tool")

    assert context.needs_consent is asked
    assert context.user_id == str(author)
    assert context.origin is not None
    assert context.origin.how == "tool"


@pytest.mark.parametrize(
    ("of", "private"),
    [
        (message(OWNER, type="private"), True),
        (message(OWNER, type="group"), False),
        (message(OWNER, guild=7, type="text"), False),
        (message(OWNER), False),
    ],
)
def test_only_a_dm_that_is_known_to_be_one_is_private(of: Any, private: bool) -> None:
    assert context_of_message(of).private is private


def test_whom_a_message_mentions_is_noted_but_for_its_author_and_the_bot() -> None:
    of = message(OWNER)
    of.mentions = [SimpleNamespace(id=each, display_name=f"name {each}") for each in (OWNER, FRIEND, ME)]

    origin = context_of_message(of, me_id=ME).origin

    assert origin is not None
    assert origin.mentioned == ((str(FRIEND), f"name {FRIEND}"),)


@pytest.mark.parametrize(("called", "name"), [("half \ud83d", "half ?"), ("x" * 5_000, "x" * 100)])
def test_a_name_that_the_memory_would_refuse_is_made_one_that_it_takes(called: str, name: str) -> None:
    of = message(OWNER)
    of.author.display_name = called

    assert context_of_message(of).name == name
