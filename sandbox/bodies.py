"""The JSON bodies of Discord, as pure functions of sandbox/world.py. Nothing here has state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sandbox.world import DISCORD_EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandbox.world import Attachment, Channel, Guild, Message, Person, World

Json = dict[str, Any]

EVERYONE_MAY = "1071698660929"  # the permissions of @everyone in a fresh guild


def user(person: Person) -> Json:
    return {
        "id": str(person.id),
        "username": person.username,
        "discriminator": "0",
        "global_name": person.name,
        "avatar": None,
        "bot": person.is_bot,
        "public_flags": 0,
        "flags": 0,
    }


def account(person: Person) -> Json:
    """The logged-in account, as it sees itself."""
    private = {
        "email": None,
        "verified": True,
        "mfa_enabled": False,
        "locale": "en-US",
        "premium_type": 0,
        "phone": None,
        "bio": "",
    }
    return user(person) | private


def application(world: World) -> Json:
    return {
        "id": str(world.application_id),
        "name": world.bot.name,
        "icon": None,
        "description": "",
        "bot_public": False,
        "bot_require_code_grant": False,
        "verify_key": "",
        "flags": 0,
        "owner": user(world.you),
    }


def message(world: World, shown: Message) -> Json:
    """A message as REST and the gateway give it. In a DM there is no key guild_id: the client needs that."""
    body: Json = {
        "id": str(shown.id),
        "channel_id": str(shown.channel.id),
        "type": 0,
        "content": shown.content,
        "author": user(world.people.get(shown.author.id, shown.author)),
        "timestamp": shown.created_at.isoformat(),
        "edited_timestamp": shown.edited_at.isoformat() if shown.edited_at else None,
        "tts": False,
        "mention_everyone": shown.pings.everyone,
        "mentions": [user(world.people[person_id]) for person_id in shown.pings.people],
        "mention_roles": [],
        "attachments": [attachment(each) for each in shown.attachments],
        "embeds": [],
        "components": [],
        "pinned": False,
        "flags": 0,
    }
    if shown.author.is_webhook:
        body |= {"guild_id": str(shown.channel.guild_id), "webhook_id": str(shown.author.id)}
    elif shown.channel.guild_id is not None:
        body |= {"guild_id": str(shown.channel.guild_id), "member": membership(shown.author)}
    if shown.nonce is not None:
        body["nonce"] = shown.nonce
    if shown.reply_to is not None:
        body |= {
            "type": 19,
            "message_reference": message_place(shown.reply_to) | {"message_id": str(shown.reply_to.id)},
            "referenced_message": message(world, shown.reply_to) | {"referenced_message": None},
        }
    return body


def deleted_message(gone: Message) -> Json:
    return {"id": str(gone.id)} | message_place(gone)


def deleted_messages(gone: Sequence[Message]) -> Json:
    return {"ids": [str(each.id) for each in gone]} | message_place(gone[0])


def message_place(shown: Message) -> Json:
    place = {"channel_id": str(shown.channel.id)}
    if shown.channel.guild_id is not None:
        place["guild_id"] = str(shown.channel.guild_id)
    return place


def attachment(shown: Attachment) -> Json:
    url = f"https://cdn.invalid/attachments/{shown.id}/{shown.filename}"
    return {
        "id": str(shown.id),
        "filename": shown.filename,
        "size": len(shown.content),
        "url": url,
        "proxy_url": url,
    }


def dm_channel(channel: Channel) -> Json:
    """A DM with its recipients in full, as REST gives it."""
    recipients = [user(channel.recipient)] if channel.recipient else []
    return {
        "id": str(channel.id),
        "type": 1,
        "recipients": recipients,
        "last_message_id": None,
        "flags": 0,
    }


def guild_channel(channel: Channel) -> Json:
    return {
        "id": str(channel.id),
        "type": 0,
        "guild_id": str(channel.guild_id),
        "name": channel.name,
        "position": 0,
        "permission_overwrites": [],
        "parent_id": None,
        "topic": None,
        "nsfw": False,
        "last_message_id": None,
        "rate_limit_per_user": 0,
        "flags": 0,
    }


def membership(person: Person) -> Json:
    """What a guild knows of a member, without the user."""
    return {
        "roles": [],
        "joined_at": joined_at(person),
        "deaf": False,
        "mute": False,
        "nick": None,
        "flags": 0,
    }


def member(person: Person) -> Json:
    return membership(person) | {"user": user(person)}


def member_update(guild: Guild, person: Person) -> Json:
    return member(person) | {"guild_id": str(guild.id)}


def guild_properties(world: World, guild: Guild) -> Json:
    return {
        "id": str(guild.id),
        "name": guild.name,
        "owner_id": str(world.you.id),
        "icon": None,
        "splash": None,
        "banner": None,
        "description": None,
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "features": [],
        "premium_tier": 0,
        "preferred_locale": "en-US",
        "nsfw_level": 0,
        "mfa_level": 0,
        "afk_timeout": 300,
        "afk_channel_id": None,
        "system_channel_id": None,
        "system_channel_flags": 0,
        "vanity_url_code": None,
    }


def guild(world: World, shown: Guild) -> Json:
    """A guild without its properties: READY nests them, GUILD_CREATE has them flat."""
    return {
        "id": str(shown.id),
        "roles": [everyone_role(shown)],
        "channels": [guild_channel(shown.channel)],
        "emojis": [],
        "stickers": [],
        "threads": [],
        "member_count": len(world.people),
        "large": False,
        "joined_at": joined_at(world.bot),
    }


def everyone_role(of: Guild) -> Json:
    return {
        "id": str(of.id),
        "name": "@everyone",
        "permissions": EVERYONE_MAY,
        "position": 0,
        "color": 0,
        "hoist": False,
        "managed": False,
        "mentionable": False,
        "flags": 0,
    }


def guild_create(world: World, shown: Guild) -> Json:
    """How a bot account hears of a guild."""
    arrived: Json = {
        "members": [member(person) for person in world.people.values()],
        "presences": [],
        "voice_states": [],
        "unavailable": False,
    }
    return guild_properties(world, shown) | guild(world, shown) | arrived


def bot_ready(world: World, session_id: str, gateway_url: str) -> Json:
    """READY of a bot account; one GUILD_CREATE a guild follows."""
    return {
        "v": 10,
        "user": account(world.bot),
        "session_id": session_id,
        "resume_gateway_url": gateway_url,
        "guilds": [{"id": str(guild_id), "unavailable": True} for guild_id in world.guilds],
        "private_channels": [],
        "application": {"id": str(world.application_id), "flags": 0},
    }


def user_ready(world: World, session_id: str, gateway_url: str) -> Json:
    """READY of a user account; READY_SUPPLEMENTAL follows.

    Everybody whom an id points at must be in `users`, or the client's connect() dies.
    """
    empty: Json = {"version": 0, "partial": False, "entries": []}
    myself = membership(world.bot) | {"user_id": str(world.bot.id)}
    return {
        "v": 9,
        "user": account(world.bot),
        "users": [user(person) for person in world.others()],
        "session_id": session_id,
        "resume_gateway_url": gateway_url,
        "session_type": "normal",
        "guilds": [
            guild(world, each) | {"properties": guild_properties(world, each)} for each in world.guilds.values()
        ],
        "merged_members": [[dict(myself)] for _ in world.guilds],
        "private_channels": [private_channel(world.dm(person)) for person in world.others()],
        "relationships": [friendship(person) for person in world.others()],
        "read_state": empty,
        "user_guild_settings": empty,
        "user_settings_proto": "",
        "sessions": [client_session(session_id)],
        "connected_accounts": [],
        "consents": {},
        "experiments": [],
        "guild_experiments": [],
        "country_code": "US",
        "geo_ordered_rtc_regions": [],
        "tutorial": None,
        "analytics_token": "",
        "api_code_version": 1,
        "friend_suggestion_count": 0,
    }


def ready_supplemental(world: World) -> Json:
    """The second half of a user account's READY. The three lists over guilds must be equally long."""
    others = [membership(person) | {"user_id": str(person.id)} for person in world.others()]
    return {
        "guilds": [{"id": str(guild_id), "voice_states": []} for guild_id in world.guilds],
        "merged_members": [[dict(each) for each in others] for _ in world.guilds],
        "merged_presences": {"guilds": [[] for _ in world.guilds], "friends": []},
        "lazy_private_channels": [],
        "disclose": [],
    }


def private_channel(channel: Channel) -> Json:
    """A DM as READY names it: by its recipients' ids."""
    body = dm_channel(channel)
    body["recipient_ids"] = [recipient["id"] for recipient in body.pop("recipients")]
    return body


def client_session(session_id: str) -> Json:
    """How the account is logged in: here, and nowhere else."""
    return {
        "session_id": session_id,
        "active": True,
        "client_info": {"version": 0, "os": "windows", "client": "web"},
        "status": "online",
        "activities": [],
        "hidden_activities": [],
    }


def friendship(person: Person) -> Json:
    return {"id": str(person.id), "user_id": str(person.id), "type": 1, "nickname": None}


def members_chunk(world: World, guild_id: str, nonce: str | None) -> Json:
    """The answer to op 8."""
    return {
        "guild_id": guild_id,
        "chunk_index": 0,
        "chunk_count": 1,
        "not_found": [],
        "nonce": nonce,
        "members": [member(person) for person in world.people.values()],
    }


def member_list(world: World, guild_id: str, ranges: Iterable[list[int]]) -> Json:
    """The answer to ops 14 and 37: the sidebar of a guild, everybody online."""
    count = len(world.people)
    group = {"id": "online", "count": count}
    items = [{"group": group}, *({"member": member(person)} for person in world.people.values())]
    return {
        "guild_id": guild_id,
        "id": "everyone",
        "member_count": count,
        "online_count": count,
        "groups": [group],
        "ops": [{"op": "SYNC", "range": each, "items": items[each[0] : each[1] + 1]} for each in ranges],
    }


def joined_at(person: Person) -> str:
    """An account joins every guild at the moment its id was made."""
    return datetime.fromtimestamp(((person.id >> 22) + DISCORD_EPOCH_MS) / 1000, UTC).isoformat()
