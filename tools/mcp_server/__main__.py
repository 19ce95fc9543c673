"""The command line of the MCP memory server.

`python -m tools.mcp_server --db FILE` serves over standard input and output, with `--http HOST:PORT` over HTTP;
`python -m tools.mcp_server tokens` looks after who may come in there.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from memory.errors import MemoryBackendError
from tools.mcp_server.grants import Grant, Scope, scopes_in
from tools.mcp_server.tokens import TokenFile, TokenFileError, write_privately, written_privately

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from memory.store import StoreBackend

CANNOT_RUN = 2

_ANYBODY = "-"
_COLUMNS = ("name", "scopes", "user", "created")

app = typer.Typer(
    help="Serve a memory over MCP: to the bot, and to any other MCP client.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tokens_app = typer.Typer(
    help="Look after the tokens that open the server over HTTP.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(tokens_app, name="tokens")

DB = Annotated[Path | None, typer.Option("--db", metavar="FILE", help="The SQLite file; made if it is missing.")]
Tokens = Annotated[
    Path | None, typer.Option("--tokens", metavar="FILE", help="The tokens' hashes (default: FILE.tokens beside --db).")
]
Scopes = Annotated[str | None, typer.Option("--scopes", metavar="LIST", help="Of read, write and admin.")]
User = Annotated[str | None, typer.Option("--user", metavar="ID", help="The only user whom it may touch.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the token is called.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the token there, mode 0600, and do not show it.")
]


@app.callback()
def serve(
    context: typer.Context,
    *,
    db: DB = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Serve over HTTP; port 0 is any free one.")
    ] = None,
    tokens: Tokens = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name it is reached by.")
    ] = None,
    scopes: Scopes = None,
    user: User = None,
) -> None:
    """Serve a memory over MCP: to the bot, and to any other MCP client.

    Over standard input and output --scopes and --user say what whoever started it may do (default: everything; with
    --user read and write). Over HTTP the caller's token says it.
    """
    if context.invoked_subcommand is not None:
        context.obj = (db, tokens)
    elif db is None:
        _refuse("--db FILE is missing: the SQLite file to serve, made if it is not there")
    elif http is None:
        if tokens is not None or allow_host:
            _refuse("--tokens and --allow-host are for --http")
        _serve_stdio(db, scopes, user)
    elif scopes is not None or user is not None:
        _refuse("--scopes and --user are for standard input and output; over HTTP each token has its own")
    else:
        _serve_http(db, http, tokens, allow_host or [])


@tokens_app.command("add")
def tokens_add(
    context: typer.Context,
    name: Name,
    *,
    scopes: Annotated[str, typer.Option("--scopes", metavar="LIST", help="Of read, write and admin, with commas.")],
    user: User = None,
    out: Out = None,
    db: DB = None,
    tokens: Tokens = None,
) -> None:
    """Make a token and show it, once."""

    def work(file: TokenFile) -> None:
        keep = typer.echo if out is None else partial(write_privately, out)
        file.add(Grant(name, scopes_in(scopes), user), keep)

    _on(context, db, tokens, work)


@tokens_app.command("list")
def tokens_list(context: typer.Context, *, db: DB = None, tokens: Tokens = None) -> None:
    """List the tokens: name, scopes, user (- is any), created. In a pipe with tabs between."""
    _on(context, db, tokens, _show)


@tokens_app.command("remove")
def tokens_remove(context: typer.Context, name: Name, *, db: DB = None, tokens: Tokens = None) -> None:
    """Let a token open nothing any more, at once."""
    _on(context, db, tokens, lambda file: file.remove(name))


@tokens_app.command("rotate")
def tokens_rotate(context: typer.Context, name: Name, *, out: Out = None, db: DB = None, tokens: Tokens = None) -> None:
    """Make a new token in the place of one, which opens nothing any more, at once."""

    def work(file: TokenFile) -> None:
        file.rotate(name, _shown if out is None else partial(written_privately, out))

    _on(context, db, tokens, work)


def main() -> None:
    app(prog_name="python -m tools.mcp_server")


def _serve_stdio(db: Path, scopes: str | None, user: str | None) -> NoReturn:
    # Imported here: whoever asks for help or makes a token need not wait for the SDK.
    from tools.mcp_server import serving

    usual = ",".join(Scope) if user is None else f"{Scope.READ},{Scope.WRITE}"
    try:
        grant = Grant("standard input", scopes_in(usual if scopes is None else scopes), user)
    except MemoryBackendError as exc:
        _refuse(str(exc))
    serving.run(db, partial(serving.over_stdio, grant=grant))


def _serve_http(db: Path, where: str, tokens: Path | None, allowed: list[str]) -> NoReturn:
    from tools.mcp_server import http, serving

    try:
        address = http.parse_address(where)
        file = TokenFile(tokens or _beside(db))
        if not file.entries():
            _first_token(file, db, alone=http.is_loopback(address.host))
        listening = http.listen(address)
    except (MemoryBackendError, ValueError) as exc:
        _refuse(str(exc))
    except OSError as exc:
        _refuse(f"cannot listen on {where}: {exc.strerror}")
    address = http.Address(address.host, listening.getsockname()[1])

    async def over_http(store: StoreBackend, stopped: asyncio.Event) -> None:
        typer.echo(f"Listening on {address}", err=True)
        await http.serve_http(store, file, listening, address, stopped, allowed)

    serving.run(db, over_http)


def _first_token(file: TokenFile, db: Path, *, alone: bool) -> None:
    """Make a token for whoever starts the server for the first time, for this machine alone."""
    if not alone:
        raise TokenFileError(
            "to listen beyond this machine there must be a token first: "
            "python -m tools.mcp_server tokens add NAME --scopes read,write --db FILE"
        )
    out = db.with_name(f"{db.name}.token")
    file.add(Grant("first", frozenset(Scope)), partial(write_privately, out, instead=True))
    typer.echo(f"Made a token that may do everything; it is in {out}", err=True)


def _on(context: typer.Context, db: Path | None, tokens: Path | None, work: Callable[[TokenFile], None]) -> None:
    before_db, before_tokens = context.obj
    db, tokens = db or before_db, tokens or before_tokens
    if tokens is None and db is None:
        _refuse("say whose tokens: --db FILE, or --tokens FILE")
    try:
        work(TokenFile(tokens or _beside(db)))
    except MemoryBackendError as exc:
        _refuse(str(exc))


@contextmanager
def _shown(token: str) -> Iterator[None]:
    yield
    typer.echo(token)


def _show(file: TokenFile) -> None:
    from rich.console import Console  # here, for the bot's sake, which starts the server and waits
    from rich.table import Table
    from rich.text import Text

    rows = [
        (entry.grant.name, ",".join(sorted(entry.grant.scopes)), entry.grant.user_id or _ANYBODY, entry.created)
        for entry in file.entries()
    ]
    if not Console().is_terminal:
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _beside(db: Path) -> Path:
    return db.with_name(f"{db.name}.tokens")


def _refuse(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(CANNOT_RUN)


if __name__ == "__main__":
    main()
