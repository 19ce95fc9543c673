"""Settings: what the file says, what the environment says, and errors a person can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings
from memory.assemble import assemble
from memory.config import MCPTable, MemoryFileSettings, RecallTable, SQLiteTable, default_config_path, load_settings
from memory.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_the_shipped_file_says_what_the_defaults_say(file: Path) -> None:
    file.write_text("")

    shipped = load_settings(Settings, default_config_path())

    assert shipped == load_settings(Settings, file)


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[memory]\ndeadline_s = 3.0\nprobe_interval_s = 9.0\n[memory.backends.sqlite]\npriority = 7\n")
    monkeypatch.setenv("JAKEY_MEMORY__DEADLINE_S", "4.5")
    monkeypatch.setenv("JAKEY_MEMORY__BACKENDS__SQLITE__PATH", "elsewhere.db")

    memory = load_settings(Settings, file).memory

    assert (memory.deadline_s, memory.probe_interval_s) == (4.5, 9.0)
    assert memory.backends == {"sqlite": SQLiteTable(type="sqlite", priority=7, path=Path("elsewhere.db"))}


def test_a_table_without_a_type_is_of_the_type_it_is_named_for(file: Path) -> None:
    file.write_text('[memory.backends.mcp]\n[memory.backends.copy]\ntype = "sqlite"\npath = "copy.db"\n')

    backends = load_settings(Settings, file).memory.backends

    assert isinstance(backends["mcp"], MCPTable)
    assert isinstance(backends["copy"], SQLiteTable)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[memory]\ndeadlin_s = 1\n", ["memory.deadlin_s: unknown key", "did you mean deadline_s?"]),
        ("[memroy]\n", ["memroy: unknown key", "did you mean memory?"]),
        ("[bot]\nowner = [1]\n", ["bot.owner: unknown key", "did you mean owner_ids?"]),
        ("[memory.backends.mcp]\nprio = 1\n", ["memory.backends.mcp.prio: unknown key", "priority"]),
        ("[memory.backends.redis]\n", ["memory.backends.redis", "'sqlite', 'mcp'"]),
        ("[memory]\ndeadline_s = 99\n", ["memory.deadline_s", "less than or equal to 60"]),
        ('[memory]\ndeadline_s = "soon"\n', ["memory.deadline_s", "valid number"]),
        ("[memory.backends.sqlite]\nenabled = false\n", ["memory.backends", "at least one store must be enabled"]),
        ("[memory]\nbackends = 3\n", ["memory.backends"]),
        ('[log]\nlevel = "LOUD"\n', ["log.level", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"]),
        ('[bot]\nprefix = "a b"\n', ["bot.prefix", "must not hold spaces"]),
        ("[bot]\nowner_ids = [-1]\n", ["bot.owner_ids", "greater than 0"]),
        ('[bot]\ntoken_env = "MTIz.GAb.secret"\n', ["bot.token_env", "name of an environment variable"]),
        ('[memory.backends.sqlite]\npath = "data/./mcp_memory.db"\n[memory.backends.mcp]\n', ["share the file"]),
        ('[memory.backends.mcp]\nprofile = ""\n', ["memory.backends.mcp.profile", "at least 1 character"]),
        ('[memory.backends.mcp]\nurl = "http://h/mcp"\npath = "a.db"\n', ["memory.backends.mcp", "leave out path"]),
        ('[memory.backends.mcp]\ntoken_env = "T"\n', ["memory.backends.mcp", "a token is for a server at a url"]),
        (
            '[memory.backends.mcp]\nurl = "http://h/mcp"\ntoken_env = "T"\ntoken_file = "f"\n',
            ["memory.backends.mcp", "not in both"],
        ),
        (
            '[memory.backends.a]\ntype = "mcp"\nprofile = "p"\n[memory.backends.b]\ntype = "mcp"\nprofile = "p"\n',
            ["share the file data/the file of p"],
        ),
        ('[memory.backends.sqlite]\npath = "data/jakey.db"\n', ["two stores share the file data/jakey.db"]),
        ('[memory.recall]\nembeder = "none"\n', ["memory.recall.embeder: unknown key", "did you mean embedder?"]),
        ('[memory.recall]\nembedder = "word2vec"\n', ["memory.recall.embedder", "'none', 'static' or 'endpoint'"]),
        ('[memory.recall]\nembedder = "endpoint"\n', ["memory.recall", "an endpoint needs base_url and model"]),
        ('[memory.recall]\nbase_url = "ftp://h"\n', ["memory.recall.base_url", "http"]),
        ('[memory.recall]\nlanguage = "../english"\n', ["memory.recall.language", "pattern"]),
        ("[memory.recall]\ncache_mb = 0\n", ["memory.recall.cache_mb", "greater than or equal to 1"]),
        ("[memory.recall]\nquery_timeout_s = 60\n", ["memory.recall.query_timeout_s", "less than or equal to 10"]),
        ('[memory.recall]\napi_key_env = "MTIz-secret"\n', ["memory.recall.api_key_env", "never the secret itself"]),
        ("[memory\n", ["is not TOML", "line 1"]),
    ],
)
def test_an_error_names_the_file_the_key_and_the_limit(file: Path, text: str, says: list[str]) -> None:
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_settings(Settings, file)

    for part in [str(file), *says]:
        assert part in str(caught.value)
    assert "MTIz" not in str(caught.value)


def test_memories_are_found_by_words_alone_unless_the_file_says_otherwise(file: Path) -> None:
    file.write_text("")
    by_default = load_settings(Settings, file).memory.recall
    file.write_text('[memory.recall]\nembedder = "endpoint"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n')

    said = load_settings(Settings, file).memory.recall

    assert by_default == RecallTable(language="english", embedder="none")
    assert (said.embedder, said.base_url, said.model) == ("endpoint", "http://127.0.0.1:1/v1", "m")


def test_every_wrong_key_is_named_at_once(file: Path) -> None:
    file.write_text("[memory]\nx = 1\n[log]\ny = 1\n")

    with pytest.raises(ConfigError) as caught:
        load_settings(Settings, file)

    assert "memory.x" in str(caught.value)
    assert "log.y" in str(caught.value)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: cannot be read: No such file"):
        load_settings(Settings, file)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("JAKEY_MEMORY__DEADLINE_S", "never", "JAKEY_MEMORY__DEADLINE_S: memory.deadline_s: .*valid number"),
        ("JAKEY_MEMORY__DEDLINE_S", "3", "JAKEY_MEMORY__DEDLINE_S: memory.dedline_s: unknown key; .*deadline_s"),
        ("JAKEY_MEMROY__X", "3", r"JAKEY_MEMROY__X: unknown key; did you mean memory\?"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    file.write_text("")
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigError, match=says):
        load_settings(Settings, file)


def test_the_memory_alone_ignores_the_tables_of_others(file: Path) -> None:
    file.write_text("[bot]\nwhatever = 1\n[memory]\ndeadline_s = 1.0\n")

    assert load_settings(MemoryFileSettings, file).memory.deadline_s == 1.0


def test_settings_never_change(file: Path) -> None:
    file.write_text("")
    settings = load_settings(Settings, file)

    with pytest.raises(ValueError, match="frozen"):
        settings.memory.deadline_s = 5.0


def test_a_file_that_a_profile_names_is_shared_with_no_other_store(file: Path) -> None:
    (file.parent / "mine.toml").write_text(
        'name = "mine"\nprotocol = "replica"\ntransports = ["stdio"]\n'
        '[start]\ncommand = ["server", "{path}"]\nfile = "memory.db"\n'
    )
    file.write_text('[memory.backends.mcp]\nprofile = "mine.toml"\n[memory.backends.sqlite]\n')

    with pytest.raises(ConfigError, match=r"two stores share the file memory\.db"):
        assemble(load_settings(MemoryFileSettings, file).memory, file.parent)
