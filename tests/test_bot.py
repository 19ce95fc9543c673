"""`bot.py` as its user starts it: a process, its pipes, its signals, its children."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import run
from app.settings import Settings
from app.supervisor import CannotRunError
from memory.config import load_settings
from sandbox import LoopbackDiscord, redirect
from tests.talk import ROOT, command, conversation, environment, furnish, sandbox

PUBLISHED = "%remember favorite_color blue\n%memories color\n%memorystatus\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_published_conversation_and_a_second_run_that_still_remembers(home: Path) -> None:
    first = sandbox(home, PUBLISHED)

    assert first.returncode == 0, first.stderr
    assert "Got it! I'll remember that favorite_color: blue" in first.stdout
    assert re.search(r"favorite_color: blue( ← .*)?\nyou: %memorystatus", first.stdout)
    assert "2/2 healthy stores" in first.stdout

    second = sandbox(home, "%memories color\n")

    assert second.returncode == 0
    assert "favorite_color: blue" in second.stdout


def test_after_kill_9_of_the_server_sqlite_answers_and_the_server_comes_back_within_10_s(home: Path) -> None:
    with conversation(home) as talk:
        assert "Got it!" in talk.say("%remember favorite_color blue")
        assert "2/2 healthy" in talk.say("%memorystatus")

        os.kill(talk.server(), signal.SIGKILL)
        killed_at = time.monotonic()

        assert "I remember 1 thing" in talk.say("%memories color")
        assert time.monotonic() - killed_at < 1
        assert "1/2 healthy" in talk.say("%memorystatus")
        assert "Got it!" in talk.say("%remember while_away remembered")
        while "2/2 healthy" not in talk.say("%memorystatus"):
            assert time.monotonic() - killed_at < 10
        assert time.monotonic() - killed_at < 10
        assert "I remember 2 things" in talk.say("%memories")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_everything_within_5_s_and_nothing_is_lost(home: Path, number: signal.Signals) -> None:
    with conversation(home) as talk:
        talk.say("%memorystatus")  # waits until the server is up
        server = talk.server()
        assert "Got it!" in talk.say("%remember favorite_color blue")

        talk.process.send_signal(number)
        began = time.monotonic()
        code = talk.process.wait(10)

        assert (code, time.monotonic() - began < 5) == (0, True)
        assert not is_running(server)

    assert not list((home / "data").glob("*-wal"))  # closed, not dropped
    assert "favorite_color: blue" in sandbox(home, "%memories\n").stdout


def test_without_a_token_it_says_why_this_is_the_sandbox(home: Path) -> None:
    run_without = subprocess.run(
        command(home), input="/quit\n", capture_output=True, text=True, timeout=30, env=environment(), check=False
    )

    assert run_without.returncode == 0
    assert "This is the sandbox (DISCORD_TOKEN is not set)" in run_without.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--version"], 0, "JakeySelfBot 0."),
        (["--help"], 0, "--sandbox"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml: cannot be read"),
        (["--nonsense"], 2, "unrecognized arguments"),
    ],
)
def test_the_command_line(home: Path, arguments: list[str], code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bot.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
        cwd=home,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == code
    assert says in done.stdout + done.stderr


def test_a_wrong_setting_is_one_readable_error(home: Path) -> None:
    (home / "config.toml").write_text("[memory]\ndeadlin_s = 1\n")

    done = sandbox(home, "")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"{home / 'config.toml'}: memory.deadlin_s: unknown key; did you mean deadline_s?"
    ]


def test_a_dotenv_in_another_encoding_is_one_readable_error(home: Path) -> None:
    (home / ".env").write_text("DISCORD_TOKEN=x\n", encoding="utf-16")

    done = sandbox(home, "")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"{home / '.env'}: cannot be read as UTF-8 text"]


def test_with_the_small_model_the_bot_remembers_what_it_is_told_in_talk(home: Path) -> None:
    talk = "I live in Oslo, remember that\nwhere do I live?\n/as ana\nwhere do I live?\n"
    done = subprocess.run(
        command(home, "--small-model"),
        input=talk,
        capture_output=True,
        text=True,
        timeout=50,
        env=environment(),
        check=False,
    )

    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("* you are ana now")
    assert "You live in Oslo." in before
    assert "Oslo" not in after


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('base_url = "ftp://x"\nmodel = "m"\n', "llm.base_url"),
        ('base_url = "http://x/v1"\n', "llm.model"),
        ('base_url = "http://x/v1"\nmodel = "m"\napi_key_env = "sk-secret!"\n', "name of an environment variable"),
        ('base_url = "http://x/v1"\nmodel = "m"\napi_key_env = "NO_SUCH_KEY"\n', "the variable NO_SUCH_KEY is not set"),
        ('base_url = "http://x/v1"\nmodel = "m"\npersona_file = "nobody.md"\n', "nobody.md cannot be read"),
    ],
)
def test_a_model_set_up_wrong_is_one_readable_error(home: Path, table: str, says: str) -> None:
    (home / "persona.md").write_text("Be kind.")
    (home / "config.toml").write_text(f"[llm]\n{table}")

    done = sandbox(home, "")

    assert done.returncode == 2
    assert says in done.stderr
    assert "sk-secret" not in done.stderr
    assert "Traceback" not in done.stderr


AGAINST_THE_LOOPBACK = """
import asyncio, sys, threading
import bot
from sandbox import LoopbackDiscord, redirect
from tests.talk import ROOT, command, conversation, environment, furnish, sandbox

up = threading.Event()
async def serve():
    async with LoopbackDiscord() as discord:
        with redirect(discord.url):
            up.set()
            await asyncio.Event().wait()

threading.Thread(target=asyncio.run, args=[serve()], daemon=True).start()
up.wait()
sys.exit(bot.main(["--config", sys.argv[1]]))
"""


def test_a_bad_token_is_one_clear_line_and_exit_code_2(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AGAINST_THE_LOOPBACK, str(home / "config.toml")],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment() | {"DISCORD_TOKEN": "secret-and-wrong"},
        cwd=ROOT,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "The bot cannot run: Discord refused the token"
    assert "secret-and-wrong" not in done.stderr + done.stdout


async def test_logged_in_the_owner_is_the_account_itself_and_nobody_else_is_answered(home: Path) -> None:
    settings = load_settings(Settings, home / "config.toml")
    async with LoopbackDiscord(people=["ana"]) as discord:
        with redirect(discord.url):
            running = asyncio.create_task(run.run_on_discord(settings, home, discord.token))
            await discord.wait_connected()
            discord.say(discord.world.person("ana"), "%remember color red")
            mine = discord.say_as_bot("%remember color blue", dm=discord.you, nonce="typed elsewhere")
            answer = await discord.wait_for_reply(mine)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    assert answer.content == "Got it! I'll remember that color: blue"
    assert len(discord.replies(mine)) == 1


async def test_a_refused_token_cannot_run(home: Path) -> None:
    settings = load_settings(Settings, home / "config.toml")
    async with LoopbackDiscord() as discord:
        with redirect(discord.url), pytest.raises(CannotRunError, match="refused the token"):
            await run.run_on_discord(settings, home, "wrong")
