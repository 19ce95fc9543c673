"""The bot: `uv run bot.py`. With a token it logs in; without one it opens a sandbox on this machine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from app.logs import set_up_logs
from app.settings import Settings
from memory.config import default_config_path, load_settings, read_dotenv
from memory.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("bot")

CANNOT_RUN = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bot; return the exit code: 0 it was stopped, 2 it cannot run like this."""
    options = _parse(arguments)
    config = (options.config or default_config_path()).resolve()
    try:
        read_dotenv(config.parent)
        settings = load_settings(Settings, config)
        set_up_logs(settings.log, config.parent)
    except (ConfigError, OSError) as exc:
        print(exc, file=sys.stderr)
        return CANNOT_RUN
    try:
        return asyncio.run(_run(settings, config.parent, options))
    except KeyboardInterrupt:
        return INTERRUPTED


async def _run(settings: Settings, root: Path, options: argparse.Namespace) -> int:
    # Importing the client library takes most of the time to ready; --help and a wrong setting need not wait for it.
    from app import run
    from app.library import WrongLibraryError
    from app.supervisor import CannotRunError

    token = os.environ.get(settings.bot.token_env, "").strip()
    try:
        if options.sandbox or options.small_model or not token:
            asked = "--small-model" if options.small_model else "--sandbox" if options.sandbox else ""
            why = asked or f"{settings.bot.token_env} is not set"
            asks_a_model = settings.llm is not None and not options.small_model
            but = " but what the language model is asked" if asks_a_model else ""
            print(f"This is the sandbox ({why}): nothing leaves this machine{but}.", file=sys.stderr)
            await run.run_in_sandbox(settings, root, small_model=options.small_model)
        else:
            await run.run_on_discord(settings, root, token)
    except (CannotRunError, ConfigError, WrongLibraryError) as exc:
        print(f"The bot cannot run: {exc}", file=sys.stderr)
        return CANNOT_RUN
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bot.py", description="A Discord bot that remembers, in several stores that act as one."
    )
    parser.add_argument("--sandbox", action="store_true", help="talk to the bot here, even if a token is set")
    parser.add_argument(
        "--small-model",
        action="store_true",
        help="the sandbox, with a model of a few rules to talk to",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the settings (default: config.toml beside bot.py)")
    parser.add_argument("--version", action="version", version=_version())
    return parser.parse_args(arguments)


def _version() -> str:
    with (Path(__file__).resolve().parent / "pyproject.toml").open("rb") as file:
        return f"JakeySelfBot {tomllib.load(file)['project']['version']}"


if __name__ == "__main__":
    sys.exit(main())
