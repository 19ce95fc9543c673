"""Messages that this process never saw: when they are deleted, who wrote them is looked up in what is remembered."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cogs import deletions
from cogs import offers as offers_module
from cogs.deletions import DeletionsCog
from tests.cogs.conftest import OurBot, running
from tests.cogs.test_deletions import OFFER, remembered
from tools.consent import PRIVACY
from tools.linked import said_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from cogs.offers import Offers
    from cogs.services import Services
    from memory import MemoryEntry, SharedMemory
    from sandbox import Message
    from tests.cogs.conftest import Chat


@asynccontextmanager
async def restarted(chat: Chat, services: Services | None = None, **times: float) -> AsyncIterator[DeletionsCog]:
    """Start the bot anew, which then knows of no message; it looks up quickly."""
    await chat.bot.close()
    services = services or chat.bot.services
    async with running(chat.server, bot := OurBot(services)):
        chat.bot = bot
        await bot.remove_cog("Deletions")
        quick = {"gather_s": 0.05, "look_every_s": 0.05} | times
        cog = DeletionsCog(bot, services.tools, services.speech, **quick)
        await bot.add_cog(cog)
        yield cog


async def offered(chat: Chat, text: str = OFFER, *, after: int = 0) -> Message:
    """Return the first offer that the bot makes after the message of that id."""
    said = await chat.server.wait_for(lambda each: each.message.content == text and each.message.id > after)
    return said.message


def offers(chat: Chat) -> int:
    return sum("was deleted. Shall I forget" in action.message.content for action in chat.server.actions)


def ended(cog: DeletionsCog | Offers, step: str) -> asyncio.Event:
    """Return what is set as soon as that step of *cog* has come to an end, whichever."""
    end = asyncio.Event()
    work: Any = getattr(cog, step)

    async def watched(*args: Any) -> Any:
        try:
            return await work(*args)
        finally:
            end.set()

    setattr(cog, step, watched)
    return end


class Looks:
    """What was looked up: the links, and among whose messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[set[str], Collection[str] | None]] = []
        monkeypatch.setattr(deletions, "said_in", self._look)

    async def _look(
        self, memory: SharedMemory, links: Collection[str], speakers: Collection[str] | None
    ) -> list[MemoryEntry]:
        self.seen.append((set(links), speakers))
        return await said_in(memory, links, speakers)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


@pytest.mark.parametrize("flag", ["on", "off"])
@pytest.mark.parametrize("everyone", [False, True])
async def test_after_a_restart_deleting_a_message_offers_to_forget_what_came_from_it(
    chat: Chat, flag: str, everyone: bool
) -> None:
    if flag == "off":
        await chat.ask(chat.you, "%memory migration off")
    await chat.ask(chat.ana, "%remember pet Rex", "Home")
    message = await remembered(chat)
    services = chat.bot.services
    policy = replace(services.policy, everyone=everyone)

    async with restarted(chat, replace(services, policy=policy)):
        chat.server.delete(message)
        offer = await offered(chat)
        forgotten = await chat.ask(chat.ana, "yes", "Home")

    assert offer.channel == message.channel
    assert forgotten == "Forgotten."
    assert list((await chat.kept(chat.ana)).values()) == ["Rex"]


async def test_in_a_dm_that_was_not_heard_of_since_the_restart_too(chat: Chat) -> None:
    message = await remembered(chat, guild=None)

    async with restarted(chat):
        connection: Any = chat.bot._connection
        connection._private_channels.pop(message.channel.id, None)
        assert chat.bot.get_channel(message.channel.id) is None
        chat.server.delete(message)
        offer = await offered(chat)
        await chat.ask(chat.ana, "yes")

    assert offer.channel == message.channel
    assert await chat.kept(chat.ana) == {}


async def test_only_who_said_it_says_yes_to_that(chat: Chat) -> None:
    message = await remembered(chat)

    async with restarted(chat) as cog:
        made = ended(cog._offers, "_make")
        chat.server.delete(message)
        await offered(chat)
        for person in (chat.ben, chat.you):
            await chat.bot.handled(chat.server.say(person, "yes", guild="Home"))
        await chat.bot.handled(chat.server.say(chat.ana, "yes"))
        await chat.bot.handled(chat.server.say(chat.ana, "later", guild="Home"))
        async with asyncio.timeout(10):
            await made.wait()

    assert list((await chat.kept(chat.ana)).values()) == ["tea"]


async def test_what_is_kept_of_others_is_neither_offered_nor_erased(chat: Chat) -> None:
    message = await remembered(chat)
    link = (await chat.small.shared.by_flag.search(str(chat.ana.id), limit=10, audience=None))[0].metadata["link"]
    said = {"how": "command", "by": str(chat.ana.id), "link": link}
    await chat.small.shared.by_flag.store(str(chat.ben.id), "about_ana", "likes tea", said)

    async with restarted(chat):
        chat.server.delete(message)
        await offered(chat)
        forgotten = await chat.ask(chat.ana, "yes", "Home")

    assert forgotten == "Forgotten."
    assert offers(chat) == 1
    assert await chat.kept(chat.ana) == {}
    assert list((await chat.kept(chat.ben)).values()) == ["likes tea"]


async def test_what_came_from_there_is_offered_there_wherever_it_may_be_told_now(chat: Chat) -> None:
    moved = await remembered(chat, "%remember pet Rex")
    await chat.ask(chat.ana, "%memory scope pet dm", "Home")
    message = await remembered(chat)

    async with restarted(chat):
        chat.server.delete_together([moved, message])
        await offered(chat, OFFER.replace("something from", "2 things from"))
        await chat.ask(chat.ana, "yes", "Home")

    assert await chat.kept(chat.ana) == {}


async def test_who_is_erased_or_refused_meanwhile_is_offered_nothing(chat: Chat) -> None:
    of_ana, of_ben, of_you = (
        await remembered(chat),
        chat.server.say(chat.ben, "%remember drink water", guild="Home"),
        chat.server.say(chat.you, "%remember drink milk", guild="Home"),
    )
    await chat.bot.handled(of_you)
    await chat.ask(chat.ana, "%forgetme")
    await chat.ask(chat.ana, "yes")
    await chat.ask(chat.ben, "%privacy off", "Home")
    await chat.ask(chat.ben, "no", "Home")

    async with restarted(chat) as cog:
        made = ended(cog._offers, "_make")
        chat.server.delete_together([of_ana, of_ben, of_you])
        await offered(chat)
        await chat.ask(chat.you, "yes", "Home")
        async with asyncio.timeout(10):
            await made.wait()  # all that there are for that channel

    assert offers(chat) == 1
    assert await chat.kept(chat.you) == {}
    assert list((await chat.kept(chat.ben)).values()) == ["water"]


async def test_what_is_said_anew_while_it_is_asked_stays_also_in_the_same_words(chat: Chat) -> None:
    message = await remembered(chat, "%remember --everywhere drink tea")

    async with restarted(chat):
        chat.server.delete(message)
        await offered(chat)
        await chat.ask(chat.ana, "%remember --everywhere drink tea")
        await chat.ask(chat.ana, "yes", "Home")

    assert await chat.kept(chat.ana) == {("", "drink"): "tea"}


async def test_what_is_deleted_while_another_offer_is_open_is_offered_after_it(chat: Chat) -> None:
    first, second = await remembered(chat), await remembered(chat, "%remember pet Rex")

    async with restarted(chat) as cog:
        chat.server.delete(first)
        offer = await offered(chat)
        put_off = ended(cog._offers, "_make_one")
        chat.server.delete(second)
        async with asyncio.timeout(10):
            await put_off.wait()
        chat.server.say(chat.ana, "yes", guild="Home")
        await offered(chat, after=offer.id)
        await chat.ask(chat.ana, "yes", "Home")

    assert offers(chat) == 2
    assert await chat.kept(chat.ana) == {}


async def test_much_that_is_deleted_is_looked_up_at_once(chat: Chat, looks: Looks) -> None:
    messages = [await remembered(chat, f"%remember thing{number} {number}") for number in range(20)]

    async with restarted(chat, gather_s=0.2, look_every_s=60) as cog:
        for message in messages:
            chat.server.delete(message)
        await offered(chat, OFFER.replace("something from", "20 things from"))
        waits = cog._looking is not None and not cog._looking.done()  # until it may look again

    assert waits
    assert len(looks.seen) == 1
    assert len(looks.seen[0][0]) == 20


async def test_no_more_than_a_bound_wait_to_be_looked_up_and_the_rest_is_logged(
    chat: Chat, looks: Looks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deletions, "_KEPT", 3)
    messages = [await remembered(chat, f"%remember thing{number} {number}") for number in range(5)]

    with caplog.at_level("INFO"):
        async with restarted(chat, gather_s=0.2):
            chat.server.delete_together(messages)
            await offered(chat, OFFER.replace("something from", "3 things from"))

    assert len(looks.seen[0][0]) == 3
    assert [each.getMessage() for each in caplog.records if getattr(each, "event", "") == "offers_dropped"] == [
        "Many messages were deleted; 2 are not looked up"
    ]


async def test_no_more_than_a_few_are_asked_for_what_goes_at_once(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(offers_module, "_AT_ONCE", 1)
    messages = [await remembered(chat), await remembered(chat, "%remember pet Rex", guild=None)]

    with caplog.at_level("INFO"):
        async with restarted(chat, gather_s=0.2) as cog:
            for message in messages:
                chat.server.delete(message)
            offer = await offered(chat)
            making = set(cog._offers._making)
            for place in ("Home", None):
                await chat.bot.handled(chat.server.say(chat.ana, "no", guild=place))
            async with asyncio.timeout(10):
                await asyncio.gather(*making)

    assert offer.channel in {message.channel for message in messages}
    assert offers(chat) == 1
    assert [each.levelname for each in caplog.records if getattr(each, "event", "") == "offers_dropped"] == ["INFO"]


async def test_where_others_are_not_answered_only_what_the_owner_said_is_looked_up(chat: Chat, looks: Looks) -> None:
    of_ana = await remembered(chat)
    of_you = chat.server.say(chat.you, "%remember drink milk", guild="Home")
    await chat.bot.handled(of_you)
    services = chat.bot.services
    policy = replace(services.policy, channels=frozenset({chat.server.world.guild("Club").channel.id}))

    async with restarted(chat, replace(services, policy=policy)):
        chat.server.delete_together([of_ana, of_you])
        await offered(chat)
        await chat.ask(chat.you, "yes", "Home")

    speakers = set(looks.seen[0][1] or ())
    me: Any = chat.bot.user
    assert str(chat.you.id) in speakers
    assert (str(me.id) in speakers) is not me.bot  # what its human says in another client counts
    assert not speakers & {str(chat.ana.id), str(chat.ben.id)}
    assert offers(chat) == 1
    assert list((await chat.kept(chat.ana)).values()) == ["tea"]


async def test_each_message_goes_by_who_is_answered_in_its_own_channel(chat: Chat) -> None:
    at_home, in_club = await remembered(chat), await remembered(chat, "%remember pet Rex", guild="Club")
    services = chat.bot.services
    policy = replace(services.policy, channels=frozenset({in_club.channel.id}))

    async with restarted(chat, replace(services, policy=policy), gather_s=0.2):
        chat.server.delete(at_home)
        chat.server.delete(in_club)
        offer = await offered(chat)
        await chat.ask(chat.ana, "yes", "Club")

    assert offer.channel == in_club.channel
    assert offers(chat) == 1
    assert list((await chat.kept(chat.ana)).values()) == ["tea"]


async def test_what_was_seen_and_is_not_answered_is_not_looked_up(chat: Chat, looks: Looks) -> None:
    stranger = chat.server.world.person("stranger")
    message = await remembered(chat)

    async with restarted(chat):
        seen = chat.server.say(stranger, "hello", guild="Home")
        await chat.bot.handled(seen)
        chat.server.delete(seen)
        chat.server.delete(message)
        await offered(chat)

    assert [len(links) for links, _ in looks.seen] == [1]


async def test_while_the_memory_is_away_it_is_tried_again(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    message = await remembered(chat)

    async with restarted(chat) as cog:
        failed = ended(cog, "_known")
        chat.small.break_all()
        chat.server.delete(message)
        async with asyncio.timeout(10):
            await failed.wait()
        failed = ended(cog, "_known")
        async with asyncio.timeout(10):
            await failed.wait()  # which is said once
        assert offers(chat) == 0
        chat.small.break_all("")
        await chat.bot.services.tools.status(settle_s=0)
        await offered(chat)
        await chat.ask(chat.ana, "yes", "Home")

    assert await chat.kept(chat.ana) == {}
    said = [each for each in caplog.records if getattr(each, "event", "") == "offer_failed"]
    assert [each.levelname for each in said] == ["WARNING"]
    assert str(chat.ana.id) not in caplog.text


async def test_a_message_that_was_seen_is_offered_once_the_memory_is_back_too(chat: Chat) -> None:
    async with restarted(chat) as cog:
        message = await remembered(chat)
        made = ended(cog._offers, "_make")
        chat.small.break_all()
        chat.server.delete(message)
        async with asyncio.timeout(10):
            await made.wait()
        chat.small.break_all("")
        await chat.bot.services.tools.status(settle_s=0)
        await offered(chat)
        await chat.ask(chat.ana, "yes", "Home")

    assert await chat.kept(chat.ana) == {}


async def test_for_a_memory_that_stays_away_nothing_is_kept_for_ever(chat: Chat) -> None:
    message = await remembered(chat)

    async with restarted(chat, kept_s=0.0) as cog:
        nothing_left = ended(cog, "_look")
        chat.small.break_all()
        chat.server.delete(message)
        async with asyncio.timeout(10):
            await nothing_left.wait()
        chat.small.break_all("")
        await chat.bot.services.tools.status(settle_s=0)

    assert offers(chat) == 0
    assert list((await chat.kept(chat.ana)).values()) == ["tea"]


async def test_where_the_bot_is_no_longer_nothing_is_asked(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    message = await remembered(chat)
    gone = message.channel.id

    with caplog.at_level("INFO"):
        async with restarted(chat) as cog:
            made = ended(cog._offers, "_make")
            get_channel = chat.bot.get_channel
            chat.bot.get_channel = lambda each: None if each == gone else get_channel(each)  # type: ignore[method-assign]
            del chat.server.world.channels[gone]
            chat.server.gateway.publish(
                "MESSAGE_DELETE",
                {"id": str(message.id), "channel_id": str(gone), "guild_id": str(message.channel.guild_id)},
            )
            async with asyncio.timeout(10):
                await made.wait()
        chat.server.world.channels[gone] = message.channel

    assert [each.levelname for each in caplog.records if getattr(each, "event", "") == "offer_failed"] == ["INFO"]
    assert offers(chat) == 0


async def test_an_unloaded_cog_asks_and_looks_for_nothing_any_more(chat: Chat) -> None:
    message, other = await remembered(chat), await remembered(chat, "%remember pet Rex", guild=None)

    async with restarted(chat) as cog:
        chat.server.delete(message)
        await offered(chat)
        chat.server.delete(other)
        looking, offering = cog._looking, set(cog._offers._making)
        await chat.bot.remove_cog("Deletions")

        assert looking is not None
        assert offering
        assert all(task.done() for task in (looking, *offering))
        await chat.bot.handled(chat.server.say(chat.ana, "yes", guild="Home"))

    assert sorted((await chat.kept(chat.ana)).values()) == ["Rex", "tea"]


async def test_of_a_message_come_neither_settings_nor_what_is_kept_of_others(chat: Chat) -> None:
    await remembered(chat)
    ana, ben, memory = str(chat.ana.id), str(chat.ben.id), chat.small.shared
    link = (await memory.by_flag.search(ana, limit=10))[0].metadata["link"]
    await memory.by_flag.store(ana, "consent", "yes", {"by": ana, "link": link}, scope=PRIVACY)
    await memory.by_flag.store(ben, "about_ana", "likes tea", {"by": ana, "link": link})

    found = [await said_in(memory, {link}, None), await said_in(memory, {link}, {ana, ben})]

    assert [[(entry.user_id, entry.value) for entry in entries] for entries in found] == [[(ana, "tea")]] * 2
