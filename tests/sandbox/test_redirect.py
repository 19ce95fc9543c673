"""The redirection of the client library: complete, reversible, and with a clear word when it cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import discord
import discord.asset
import discord.gateway
import discord.http
import discord.utils
import pytest

from sandbox import RedirectError, redirect
from tests.sandbox.conftest import IS_OFFICIAL

OWNERS = [
    discord.http.Route,
    discord.gateway.DiscordWebSocket,
    discord.asset.Asset,
    *([] if IS_OFFICIAL else [discord.utils.Headers]),
]
UNTOUCHED = [dict(vars(owner)) for owner in OWNERS]  # taken before any test has redirected anything


def test_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.delenv("no_proxy", raising=False)

    with redirect("http://127.0.0.1:1"):
        changed = [dict(vars(owner)) for owner in OWNERS]
        exceptions = (os.environ["NO_PROXY"], os.environ["no_proxy"])

    assert all(now != then for now, then in zip(changed, UNTOUCHED, strict=True))
    assert exceptions == ("example.com,127.0.0.1,localhost,::1", "127.0.0.1,localhost,::1")
    assert [dict(vars(owner)) for owner in OWNERS] == UNTOUCHED
    assert os.environ["NO_PROXY"] == "example.com"
    assert "no_proxy" not in os.environ


def test_another_library_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(discord.asset.Asset, "BASE")

    with pytest.raises(RedirectError, match=r"discord\.py.* has no discord\.asset\.Asset\.BASE"):
        redirect("http://127.0.0.1:1").__enter__()

    assert dict(vars(discord.http.Route)) == UNTOUCHED[0]


def test_only_loopback_connections_are_made() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.sandbox.isolated"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout)
    assert seen["answer"] == "tea"
    assert set(seen["python_connects_to"]) <= {"127.0.0.1"}
    assert seen["python_resolves"] == []
    assert seen["proxy_was_asked_for"] == []
    assert seen["control"] == ([] if IS_OFFICIAL else ["GET http://outside.invalid/ HTTP/1.1"])
