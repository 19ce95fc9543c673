"""Profiles are data: what is wrong in one is said by file and key, and what is filled in stays what it is."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import tomllib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memory.backends.mcp import profile as profiles
from memory.backends.mcp.foreign import ForeignMCPBackend
from memory.backends.mcp.held_file import HeldFile
from memory.backends.mcp.profile import Profile, fill, pick
from memory.errors import BackendUnavailableError, ConfigError, MemoryRejectedError
from tests import servers
from tests.contract import HOSTILE, make_entry

if TYPE_CHECKING:
    from collections.abc import Callable

SHIPPED = Path(profiles.__file__).parents[2] / "profiles"

MINIMAL = """
name = "mine"
protocol = "rows"
transports = ["stdio"]
requires = ["get", "list", "put", "del"]
exclusive = true
can = { list = true }

[start]
command = ["server", "{path}"]
file = "mine.db"

[rows]
format = "json"
items = "items[*]"
text = "text"
handle = "id"
key = { path = "name", is = "{id}" }
owner = { path = "tag", is = "of {owner}" }

[steps.read]
tool = "get"
args = { names = { for = "rows", give = "{id}" } }

[steps.list]
tool = "list"

[[steps.add]]
tool = "put"
args = { name = "{id}", tag = "of {owner}", text = "{text}" }
expect = { text = "^ok" }
each = true

[[steps.replace]]
tool = "put"
args = { name = "{id}", text = "{text}" }
each = true

[[steps.remove]]
tool = "del"
args = { name = "{id}" }
each = true
"""


def written(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in MINIMAL
    path = folder / "mine.toml"
    path.write_text(MINIMAL.replace(old, new, 1) if old else MINIMAL)
    return path


def error_of(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        profiles.load(path)
    return str(caught.value)


def test_the_three_servers_have_profiles() -> None:
    assert profiles.names() == ("jakeyselfbot", "mcp-memory-service", "server-memory")
    for name in profiles.names():
        profile = profiles.load(name)
        assert profile.name == name
        assert profile.about
        assert profile.start is not None


def test_a_profile_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    profile = profiles.load(written(tmp_path))

    assert (profile.name, profile.exclusive, profile.concurrency) == ("mine", True, 1)


def test_our_own_server_is_started_by_its_profile(tmp_path: Path) -> None:
    command = profiles.load("jakeyselfbot").command(tmp_path / "m.db", cwd=tmp_path)

    assert command.argv == (sys.executable, "-m", "tools.mcp_server", "--db", str(tmp_path / "m.db"))
    assert command.is_ours
    assert command.cwd == tmp_path


def test_a_file_is_named_to_a_server_absolutely_and_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    command = profiles.load("server-memory").command(Path("{python} {x}.jsonl"), argv=("node", "index.js", "{{}}"))

    assert command.env == {"MEMORY_FILE_PATH": str(tmp_path / "{python} {x}.jsonl")}
    assert command.argv == ("node", "index.js", "{}")
    assert not command.is_ours


def test_a_command_with_a_placeholder_that_means_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"command: \{file\} is not known; known here: \{path\}, \{python\}"):
        profiles.load("server-memory").command(tmp_path / "x", argv=("node", "{file}"))


def test_a_name_that_is_no_profile_names_those_that_are() -> None:
    text = error_of("../../etc/passwd")

    assert "no profile '../../etc/passwd'" in text
    assert "jakeyselfbot, mcp-memory-service, server-memory" in text


def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path) -> None:
    assert "nowhere.toml: cannot be read: No such file" in error_of(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    assert "broken.toml: is not TOML" in error_of(broken)
    broken.write_bytes(b"name = '\xff'")
    assert "broken.toml: is not TOML" in error_of(broken)


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        ('name = "mine"', 'name = "My Own"', ["name: ", "pattern"]),
        ('name = "mine"', 'name = "mine"\nnaem = 1', ["naem: unknown key; known here: about, batch, can, "]),
        ('protocol = "rows"', 'protocol = "rest"', ["protocol: ", "'replica' or 'rows'"]),
        ('["stdio"]', '["smoke"]', ["transports.0: ", "'stdio' or 'http'"]),
        ('["stdio"]', '["stdio", "http"]', ["exclusive is for servers that we start"]),
        ('["stdio"]', "[]", ["transports: "]),
        ("exclusive = true", "", ["steps.owner is needed"]),
        ("exclusive = true", "exclusive = true\nconcurrency = 0", ["concurrency: ", "greater than or equal to 1"]),
        ("exclusive = true", "exclusive = true\nlist_timeout_s = 0", ["list_timeout_s: ", "greater than 0"]),
        ("exclusive = true", "exclusive = true\ntext_bytes_max = 10", ["text_bytes_max: ", "1024"]),
        ("exclusive = true", "exclusive = true\nerrors = ['(']", ["errors: is not a regular expression"]),
        ("{ list = true }", "{ exact_get = true }", ["must be able to list what it holds", "can.list"]),
        ("{ list = true }", "{ list = true, fly = true }", ["can.fly: unknown key; known here: exact_get, list, "]),
        ('[steps.list]\ntool = "list"', "", ["must be able to list what it holds", "steps.list"]),
        ('"put", "del"]', '"put"]', ["requires lacks what steps call: del"]),
        ('handle = "id"\n', "", ["steps.drop is needed"]),
        ('"server", "{path}"', '"server", "{file}"', ["start: {file} is not known; known here: {path}, {python}"]),
        ('"server", "{path}"', "", ["start.command: "]),
        ('items = "items[*]"', 'items = "items[0]"', ["rows.items: is not a path"]),
        ('text = "text"\nhandle', 'text = "__import__(\'os\')"\nhandle', ["rows.text: is not a path"]),
        ('format = "json"', 'format = "xml"', ["rows.format: ", "'structured' or 'json'"]),
        ('is = "{id}"', 'is = "row"', ["rows: in key, is must hold {id}"]),
        ('is = "of {owner}"', 'is = "of {user}"', ["rows: in owner, {user} is not known; known here: {id}, {owner}"]),
        ('text = "{text}" }\nexpect', 'text = "{value}" }\nexpect', ["steps: in add, {value} is not known", "{text}"]),
        ('text = "{text}" }\nexpect', 'text = "{handle}" }\nexpect', ["steps: in add, {handle} is not known"]),
        ('text = "{text}" }\nexpect', 'text = "{text" }\nexpect', ["steps: in add, '{text' has a lone brace"]),
        ('{ text = "^ok" }', '{ text = "(" }', ["steps.add.0.expect.text: is not a regular expression"]),
        ('{ text = "^ok" }', '{ path = "a" }', ["steps.add.0.expect: needs either path and is, or text"]),
        ('{ text = "^ok" }', '{ path = "a", is = "{nothing}" }', ["steps: in add, {nothing} is not known"]),
        ('{ text = "^ok" }', '{ txt = "^ok" }', ["steps.add.0.expect.txt: unknown key; known here: is, path, text"]),
        ('for = "rows"', 'for = "users"', ["steps: in read, a list is written"]),
        ('for = "rows", give', 'for = "rows", take', ["steps: in read, a list is written"]),
        ('tool = "list"', 'tool = "list"\nargs = { page = "{page}" }', ["steps: in list, more and {page}"]),
        ('tool = "list"', 'tool = "list"\nmore = "more"', ["steps: in list, more and {page} need each other"]),
        ('tool = "list"', 'tool = "list"\nparts = 16', ["steps: in list, parts and {part} need each other"]),
        ('tool = "list"', 'tool = "list"\nparts = 7', ["steps.list.parts: ", "1, 16 or 256"]),
        ('tool = "list"', 'tool = "list"\nargs = { x = { for = "rows", give = "" } }', ["there are no rows"]),
        ('tool = "list"', 'tool = ""', ["steps.list.tool: "]),
        ('tool = "list"', 'tool = "list"\ncode = "x"', ["steps.list.code: unknown key; known here: args, at_once, "]),
        ('[[steps.remove]]\ntool = "del"\nargs = { name = "{id}" }\neach = true', "", ["steps.remove: Field required"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_profile_is_said(tmp_path: Path, old: str, new: str, problems: list[str]) -> None:
    path = written(tmp_path, old, new)

    text = error_of(path)

    assert str(path) in text
    for problem in problems:
        assert problem in text


def test_a_server_with_our_own_tools_needs_no_steps_and_gets_none(tmp_path: Path) -> None:
    path = written(tmp_path, 'protocol = "rows"', 'protocol = "replica"')

    assert "the protocol replica has no rows" in error_of(path)
    with pytest.raises(ValueError, match="no rows"):
        ForeignMCPBackend(profiles.load("jakeyselfbot"), profiles.load("jakeyselfbot").command(tmp_path / "m.db"))


def test_an_exclusive_server_is_not_started_without_its_file(tmp_path: Path) -> None:
    profile = profiles.load("server-memory")

    with pytest.raises(ValueError, match="its file must be said"):
        ForeignMCPBackend(profile, profile.command(tmp_path / "m.jsonl"))


# Filling in


@pytest.mark.parametrize("text", [*HOSTILE, "{id}", "{{id}}", "{", "}", "{text}{text}", '"}, {"x": "', "\\u007bid}"])
def test_what_was_filled_in_is_only_text(text: str) -> None:
    row = {"id": "abc", "text": text}
    tree = {
        "a": "{text}",
        "b": "<{text}|{id}>",
        "c": [{"d": ["{text}"]}],
        "e": {"for": "rows", "give": {"f": "{text}"}},
    }

    filled = fill(tree, row, [row, row])

    assert filled == {"a": text, "b": f"<{text}|abc>", "c": [{"d": [text]}], "e": [{"f": text}, {"f": text}]}


def test_a_placeholder_that_is_all_of_a_text_keeps_its_type_and_braces_can_be_written() -> None:
    values: dict[str, Any] = {"page": 3, "old": ["a", "b"]}

    assert fill({"p": "{page}", "o": "{old}", "s": "p{page}", "n": 7, "b": "{{page}}"}, values) == {
        "p": 3,
        "o": ["a", "b"],
        "s": "p3",
        "n": 7,
        "b": "{page}",
    }


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", [1]),
        ("rows[*].name", ["x", "y"]),
        ("rows[*].tags[*]", ["t", "u"]),
        ("deep.er", ["z"]),
        ("nothing.there", []),
        ("a[*]", []),
        ("a.b", []),
        ("rows.name", []),
    ],
)
def test_a_path_gives_what_stands_there(path: str, found: list[Any]) -> None:
    data = {"a": 1, "rows": [{"name": "x", "tags": ["t"]}, {"name": "y", "tags": ["u"]}, 7], "deep": {"er": "z"}}

    assert pick(data, path) == found


def test_nothing_in_the_shipped_profiles_is_more_than_data() -> None:
    for name in profiles.names():
        data = tomllib.loads((SHIPPED / f"{name}.toml").read_text())
        assert Profile(**data) == profiles.load(name)


# The file that a server gets


def held(path: Path, name: str = "server-memory") -> HeldFile:
    profile = profiles.load(name)
    assert profile.start is not None
    return HeldFile(path, profile.start, exclusive=profile.exclusive)


@pytest.mark.parametrize("name", ["server-memory", "mcp-memory-service"])
@pytest.mark.parametrize(
    "content", [b"SQLite format 3\x00" + b"\x00" * 84, b"hello", b'{"type":"note","text":"mine"}\n', b"\x00"]
)
def test_a_file_that_holds_something_else_is_neither_used_nor_touched(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    file = held(path, name)

    assert "its file " in file.hold()
    assert path.read_bytes() == content


def test_a_database_with_other_tables_is_neither_used_nor_touched(tmp_path: Path) -> None:
    path = tmp_path / "jakey.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE memories (id)")
    before = path.read_bytes()

    assert "holds something else" in held(path, "mcp-memory-service").hold()
    assert path.read_bytes() == before


def test_a_file_is_held_by_one_at_a_time_and_again_after_it_was_released(tmp_path: Path) -> None:
    one, other = held(tmp_path / "new" / "file"), held(tmp_path / "new" / "file")

    assert (one.hold(), one.hold()) == ("", "")
    assert other.hold() == "its file is in use by another process"
    one.release()
    one.release()
    assert other.hold() == ""
    other.release()


def test_a_folder_in_the_place_of_the_file_is_a_reason(tmp_path: Path) -> None:
    assert held(tmp_path).hold() == "its file cannot be used (Is a directory)"


async def test_a_store_that_cannot_have_its_file_says_why(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(b"SQLite format 3\x00")
    profile = profiles.load("server-memory")
    async with ForeignMCPBackend(profile, profile.command(path, argv=("false",)), path=path) as store:
        with pytest.raises(BackendUnavailableError) as caught:
            await store.probe()

        assert not await store.wait_ready(0.01)
        assert store.pid is None
    assert caught.value.reason == "its file holds something else, which it would destroy; give it a file of its own"


async def test_what_a_server_cannot_keep_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    small = profiles.load("server-memory").model_copy(update={"text_bytes_max": 2_000})
    store = ForeignMCPBackend(small, small.command(tmp_path / "x"), path=tmp_path / "x")

    with pytest.raises(MemoryRejectedError, match=r"value takes 5,\d+ bytes in server-memory \(limit: 2,000 bytes\)"):
        await store.put([make_entry("u", "key", "x" * 5_000)])


@pytest.mark.parametrize(
    ("name", "installed"), [("server-memory", servers.server_memory), ("mcp-memory-service", servers.memory_service)]
)
async def test_a_memory_outlives_the_server_that_keeps_it(
    tmp_path: Path, name: str, installed: Callable[[], tuple[str, ...]]
) -> None:
    profile = profiles.load(name)
    path = tmp_path / "file"
    command = profile.command(path, argv=installed())
    async with ForeignMCPBackend(profile, command, path=path, deadline_s=10.0, call_timeout_s=5.0) as store:
        assert await store.wait_ready(40)
        await store.store("u", "drink", 'tea {id} "{text}"')
        pid = store.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(40):
            while store.pid in (pid, None):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)
        assert await store.wait_ready(40)

        assert await store.get_all("u") == {"drink": 'tea {id} "{text}"'}
