"""The settings of the memory: the `[memory]` tables of config.toml, once, frozen.

Also what every entry point needs to read settings: TOML first, then the environment, and errors a person can use.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from dotenv import load_dotenv
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from memory.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_core import ErrorDetails

ENV_PREFIX = "JAKEY_"
OUR_PROFILE = "jakeyselfbot"
_NESTED = "__"
CONFIG_VARIABLE = "JAKEY_CONFIG"

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Table(BaseModel):
    """One table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreTable(Table):
    """What every store has."""

    enabled: bool = True
    priority: Annotated[int, Field(ge=0, le=1000)] = 50
    timeout_s: Seconds = 1.5


class SQLiteTable(StoreTable):
    """[memory.backends.NAME] with type "sqlite"."""

    type: Literal["sqlite"]
    path: Path = Path("data/memory.db")

    @property
    def place(self) -> Path:
        return self.path


class MCPTable(StoreTable):
    """[memory.backends.NAME] with type "mcp": a server that the bot starts, or with a url one that runs by itself.

    Attributes:
        profile: which server it is: a name in memory/profiles, or the path of a file like those.
        path: the file that a started server keeps; None: the profile's name for it, in data/.
        command: how to start it; empty: as the profile says.
        token_env, token_file: where the bearer token is, which is read again when it is refused; one of the two.
    """

    type: Literal["mcp"]
    profile: Annotated[str, Field(min_length=1)] = OUR_PROFILE
    path: Path | None = None
    command: tuple[str, ...] = ()
    url: str = ""
    token_env: str = ""
    token_file: Path | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.url and (self.command or self.path):
            raise ValueError("a server at a url has been started by others: leave out path and command")
        if not self.url and (self.token_env or self.token_file):
            raise ValueError("a token is for a server at a url")
        if self.token_env and self.token_file:
            raise ValueError("the token is in token_env or in token_file, not in both")
        return self

    @property
    def place(self) -> Path:
        """What no two stores may share: the file, or what stands for the one that the profile names."""
        ours = "data/mcp_memory.db" if self.profile == OUR_PROFILE else f"data/the file of {self.profile}"
        return self.path or Path(self.url or ours)


BackendTable = Annotated[SQLiteTable | MCPTable, Field(discriminator="type")]


class LegacyTable(Table):
    """[memory.legacy]: the predecessor's database.

    Attributes:
        show_scoped: whether what was said in a DM or a server stands where the predecessor, which knows no scopes,
            can read it.
    """

    path: Path = Path("data/jakey.db")
    show_scoped: bool = True
    timeout_s: Seconds = 1.0


class BackupTable(Table):
    """[memory.backup]: the backups that a bot makes by itself.

    Attributes:
        folder: of these and all other copies that we make.
        every_h: hours from one to the next; 0: none are made.
        keep: how many are kept.
    """

    folder: Path = Path("data/backups")
    every_h: Annotated[float, Field(ge=0, le=8_760)] = 24.0
    keep: Annotated[int, Field(ge=1, le=1_000)] = 7


class RecallTable(Table):
    """[memory.recall]: how memories are found.

    Attributes:
        language: whose words: a folder in memory/languages.
        cache_mb: how much room the users who were searched last may take, ready to be searched again.
        embedder: what finds by meaning, beside the words: nothing; word vectors from this machine; or an
            OpenAI-compatible endpoint, to which every memory and every query is then sent.
        model: static: a folder that holds a model2vec model, empty: the one that comes with the extra; endpoint: the
            model's name.
        base_url, api_key_env, dimensions, batch, timeout_s, retries, query_prefix, text_prefix: of the endpoint; see
            memory/embedding/endpoint.py.
        query_timeout_s: how long a search waits for the vector of its query; then it goes by words alone.
    """

    language: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "english"
    cache_mb: Annotated[float, Field(ge=1, le=100_000)] = 64.0
    embedder: Literal["none", "static", "endpoint"] = "none"
    model: Annotated[str, Field(max_length=1_000)] = ""
    base_url: Annotated[str, Field(pattern=r"^(https?://[^\s]+)?$")] = ""
    api_key_env: Annotated[str, Field(max_length=256)] = ""
    dimensions: Annotated[int, Field(ge=0, le=8_192)] = 0
    batch: Annotated[int, Field(ge=1, le=2_048)] = 32
    timeout_s: Annotated[float, Field(ge=0.1, le=600)] = 30.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    query_timeout_s: Annotated[float, Field(ge=0.01, le=10)] = 0.3
    query_prefix: Annotated[str, Field(max_length=1_000)] = ""
    text_prefix: Annotated[str, Field(max_length=1_000)] = ""

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, text: str) -> str:
        if text and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) is None:
            raise ValueError("must be the name of an environment variable, never the secret itself")
        return text

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.embedder == "endpoint" and not (self.base_url and self.model):
            raise ValueError("an endpoint needs base_url and model")
        return self


class MemorySettings(Table):
    """[memory]."""

    deadline_s: Annotated[float, Field(ge=0.1, le=60)] = 2.0
    probe_interval_s: Annotated[float, Field(ge=0.5, le=300)] = 5.0
    compare_interval_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    hedge_s: Annotated[float, Field(ge=0.001, le=60)] = 0.1
    write_concern: Literal["local", "all"] | Annotated[int, Field(ge=1, le=100)] = "local"
    outbox: Path = Path("data/outbox.db")
    flag_file: Path = Path(".memory_migration_complete")
    low_disk_mb: Annotated[float, Field(ge=0, le=1_000_000)] = 200.0
    legacy: LegacyTable = LegacyTable()
    backup: BackupTable = BackupTable()
    recall: RecallTable = RecallTable()
    backends: dict[str, BackendTable] = {
        "mcp": MCPTable(type="mcp", priority=10),
        "sqlite": SQLiteTable(type="sqlite", priority=20),
    }

    @model_validator(mode="before")
    @classmethod
    def _type_from_name(cls, data: Any) -> Any:
        """A table without a type is of the type it is named for, so that a store needs few lines."""
        backends = data.get("backends") if isinstance(data, dict) else None
        if not isinstance(backends, dict):
            return data
        named = {
            name: {"type": name, **table} if isinstance(table, dict) else table for name, table in backends.items()
        }
        return {**data, "backends": named}

    @model_validator(mode="after")
    def _a_file_each(self) -> Self:
        """Two stores over one file would be one copy that claims to be two."""
        files = [table.place for table in self.backends.values() if table.enabled] + [self.legacy.path, self.outbox]
        twice = [str(file) for file, again in Counter(map(os.path.normpath, files)).items() if again > 1]
        if twice:
            raise ValueError(f"two stores share the file {twice[0]}; each needs one of its own")
        return self

    @field_validator("backends")
    @classmethod
    def _some_store(cls, backends: dict[str, BackendTable]) -> dict[str, BackendTable]:
        if not any(table.enabled for table in backends.values()):
            raise ValueError("at least one store must be enabled")
        return backends


class FileSettings(BaseSettings):
    """The settings of one program: what a TOML file says, and above that the environment.

    A variable is named like JAKEY_MEMORY__DEADLINE_S.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter=_NESTED)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is the library's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - .env is read into the environment, once
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


class MemoryFileSettings(FileSettings):
    """The part of the file that this package reads; the rest is for others."""

    model_config = SettingsConfigDict(extra="ignore")

    memory: MemorySettings = MemorySettings()


AnySettings = TypeVar("AnySettings", bound=FileSettings)


def default_config_path() -> Path:
    """Return the file named by JAKEY_CONFIG, else config.toml beside this package."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else Path(__file__).resolve().parent.parent / "config.toml"


def read_dotenv(root: Path) -> None:
    """Read the file .env in *root* into the environment, if it is there: secrets, and where the memory is.

    Raises:
        ConfigError: it is no text.
    """
    path = root / ".env"
    try:
        load_dotenv(path)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text") from exc


def load_settings(kind: type[AnySettings], path: Path) -> AnySettings:
    """Return the settings in *path* and the environment.

    Raises:
        ConfigError: naming the file, each wrong key, what is wrong with it and the nearest known key.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc
    if kind.model_config.get("extra") == "forbid":
        _check_variables(kind)
    try:
        return kind(**tables)
    except (ValidationError, SettingsError) as exc:
        problems = (
            [_describe(kind, error) for error in exc.errors()] if isinstance(exc, ValidationError) else [str(exc)]
        )
        raise ConfigError("\n".join(f"{_variable_of(problem) or path}: {problem}" for problem in problems)) from exc


def _check_variables(kind: type[FileSettings]) -> None:
    """Refuse a variable that looks like a setting and is in no table: pydantic would leave it out in silence."""
    for variable in os.environ:
        table, nested, _ = variable.upper().removeprefix(ENV_PREFIX).partition(_NESTED)
        if variable.upper().startswith(ENV_PREFIX) and nested and table.lower() not in kind.model_fields:
            raise ConfigError(f"{variable}: {_unknown(table.lower(), set(kind.model_fields))}")


def _variable_of(problem: str) -> str:
    """Return the environment variable that set the key that *problem* begins with, if one did."""
    named = ENV_PREFIX + problem.partition(":")[0].upper().replace(".", _NESTED)
    return next((variable for variable in os.environ if variable.upper() == named), "")


def _describe(kind: type[BaseModel], error: ErrorDetails) -> str:
    # Within a union pydantic names the type after the table's name: that is not part of the key.
    loc = [str(part) for part in error["loc"]]
    if loc[:2] == ["memory", "backends"] and len(loc) > 4:
        del loc[3]
    key = ".".join(loc)
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg']}"
    return f"{key}: {_unknown(loc[-1], _known_keys(kind, loc[:-1]))}"


def _unknown(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return "unknown key; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}")


def _known_keys(kind: type[BaseModel], loc: Sequence[str]) -> set[str]:
    tables = [kind]
    for part in loc:
        inner = [
            t for table in tables if part in table.model_fields for t in _tables(table.model_fields[part].annotation)
        ]
        tables = inner or tables
    return {name for table in tables for name in table.model_fields}


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)
