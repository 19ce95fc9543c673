"""The command line of the memory: `python -m memory COMMAND`.

It works on the same memory as the bot, beside it if it runs, and never shows what anybody told the bot. A command is a
function in memory/cli with the words of its help, and a coroutine that returns the exit code.
"""

from __future__ import annotations

import typer

from memory.cli import forgetting, moving, saving, stores, transfer
from memory.cli.terminal import CODES

app = typer.Typer(
    help="Look after the stores of the bot's memory, whether the bot runs or not.",
    epilog=CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (
    stores.status,
    stores.adopt,
    stores.remove,
    stores.parked,
    moving.migrate,
    moving.verify,
    moving.enable,
    moving.disable,
    saving.backup,
    saving.restore,
    forgetting.erase,
):
    app.command(epilog=CODES)(command)
app.command(epilog=CODES)(transfer.export)
app.command("import", epilog=CODES)(transfer.import_)  # a word that no function can have


if __name__ == "__main__":
    app(prog_name="python -m memory")
