"""Points the installed client library, discord.py-self or discord.py, at a loopback Discord.

Only addresses are replaced, as module attributes; no method of the client is.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXY_EXCEPTIONS = ("NO_PROXY", "no_proxy")


class RedirectError(Exception):
    """The installed library is not one that can be redirected; nothing was changed."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"the sandbox needs discord.py-self 2.1 or discord.py 2.7, but the installed library"
            f" ({installed_libraries()}) has no {missing}"
        )
        self.missing = missing


@contextmanager
def redirect(url: str) -> Iterator[None]:
    """Within the block a client that starts talks to *url* (`LoopbackDiscord.url`) and to nothing else.

    The block must last as long as the client does. At its end everything is as it was.

    Raises:
        RedirectError: Another library, or another version of it, is installed.
    """
    replaced = []
    for owner, name, value in replacements(url):
        replaced.append((owner, name, vars(owner)[name]))  # not getattr: it would unwrap a staticmethod
        setattr(owner, name, value)
    environment = {name: os.environ.get(name) for name in PROXY_EXCEPTIONS}
    for name, value in environment.items():
        # libcurl obeys HTTP_PROXY even for 127.0.0.1.
        os.environ[name] = ",".join([value, *LOOPBACK] if value else LOOPBACK)
    try:
        yield
    finally:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def replacements(url: str) -> list[tuple[Any, str, object]]:
    """(owner, attribute, new value) for everything that holds an address; all of them exist."""
    api_version = found("discord.http", "INTERNAL_API_VERSION")
    wanted: list[tuple[str, str, object]] = [
        ("discord.http:Route", "BASE", f"{url}/api/v{api_version}"),
        ("discord.gateway:DiscordWebSocket", "DEFAULT_GATEWAY", URL(url).with_scheme("ws") / "gw" / ""),
        ("discord.asset:Asset", "BASE", f"{url}/cdn"),
    ]
    if not hasattr(importlib.import_module("discord"), "Intents"):
        # discord.py-self asks a third party for a browser's properties at every start.
        wanted.append(("discord.utils:Headers", "get_api_properties", staticmethod(offline_api_properties)))
    return [(owner_of(path, name), name, value) for path, name, value in wanted]


def owner_of(path: str, name: str) -> Any:
    module, _, attribute = path.partition(":")
    owner = found(module, attribute)
    if name not in vars(owner):
        raise RedirectError(f"{module}.{attribute}.{name}")
    return owner


def found(module: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise RedirectError(f"{module}.{attribute}") from exc


async def offline_api_properties(*_: object, **__: object) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What discord.py-self would have fetched, made up: (properties, extra, properties in base 64)."""
    properties = {
        "os": "Windows",
        "browser": "Chrome",
        "browser_user_agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/136.0.0.0 Safari/537.36",
        "browser_version": "136.0.0.0",
        "client_build_number": 9999,
    }
    return properties, {}, base64.b64encode(json.dumps(properties).encode()).decode()


def installed_libraries() -> str:
    named = []
    for name in ("discord.py-self", "discord.py"):
        try:
            named.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return " and ".join(named) or "none"
