"""The tools as one object: the published synchronous functions, and what a language model's turn needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memory import BackendUnavailableError, ConfigError, migration
from memory.flag import in_words
from tools import memory_tools
from tools.context import ToolContext
from tools.memory_tools import MODEL_TOOLS, could_not
from tools.schema import Tool, ToolArgumentsError
from tools.user_memory import UserMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from memory import MigrationFlag, SharedMemory

log = logging.getLogger(__name__)

CALLS_MAX = 32
"""Tool calls of one turn that are run; a model that asks for more is told so."""

_NAME_SHOWN = 50


@dataclass(frozen=True, slots=True)
class MigrationState:
    """Which path is taken, and what the flag file says about how it came to that.

    Attributes:
        says: the evidence in words; empty if the flag is off.
        refusal: why the flag was not set, though that was asked for; empty if it was not, or was.
    """

    is_on: bool
    evidence: Mapping[str, Any]
    says: str = ""
    refusal: str = ""


class ToolManager(UserMemory):
    """Everything that tools can do.

        tm = ToolManager()
        tm.remember_user_info("user123", "favorite_color", "blue")

    Args:
        memory: None is the process-wide one, made from config.toml at the first use.
    """

    def __init__(self, memory: SharedMemory | None = None) -> None:
        super().__init__(memory)
        self._tools = {tool.name: tool for tool in (Tool(function) for function in MODEL_TOOLS)}

    # As published: synchronous, with a loop running or without. Each is the tool of the same name.

    def remember_user_info(self, user_id: str, information_type: str, information: str) -> str:
        """Remember *information* about a user, and return what to tell them: it was kept, or why it was not."""
        context = ToolContext(user_id)
        work = memory_tools.remember_user_info
        return self._wait("be remembered", lambda: work(self, context, information_type, information))

    def search_user_memory(self, user_id: str, query: str, limit: int = 10) -> str:
        """Return what is remembered about a user and matches *query*, as text: one `key: value` a line."""
        context = ToolContext(user_id)
        work = memory_tools.search_user_memory
        return self._wait("be looked up", lambda: work(self, context, query, limit))

    # For a language model.

    def get_available_tools(self) -> list[dict[str, Any]]:
        """Return the tools in OpenAI's function format. Whom they act for is not for the model to say."""
        return [tool.definition() for tool in self._tools.values()]

    async def run(self, calls: Sequence[Any], context: ToolContext) -> list[dict[str, str]]:
        """Run the tool calls of one turn together, for whom *context* says; return the tool messages, in order.

        Whatever a model did wrong comes back as a result that it can read, and nothing happens.
        """
        results = await asyncio.gather(*(self._run_one(call, context) for call in calls[:CALLS_MAX]))
        results += [f"error: too many calls at once (limit: {CALLS_MAX})"] * (len(calls) - len(results))
        return [
            {"role": "tool", "tool_call_id": _id_of(call), "content": result}
            for call, result in zip(calls, results, strict=True)
        ]

    async def _run_one(self, call: Any, context: ToolContext) -> str:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return "error: this is no call of a function"
        name = function.get("name")
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return f"error: there is no tool {str(name)[:_NAME_SHOWN]!r}; there are {', '.join(self._tools)}"
        try:
            return await tool.function(self, context, **tool.parse(function.get("arguments")))
        except ToolArgumentsError as exc:
            return f"error: {exc}"
        except Exception:  # a tool that breaks must not take the other calls of the turn with it
            log.exception("The tool %s failed", tool.name, extra={"event": "tool_failed", "tool": tool.name})
            return "error: something went wrong; it is not known whether it happened"

    # For the owner.

    async def status(self, *, settle_s: float = 5.0) -> dict[str, Any]:
        """Probe every store, waiting up to *settle_s* for those that are starting; see `get_full_status`."""
        return await self.memory.get_full_status(settle_s=settle_s)

    async def migration(self) -> MigrationState:
        """Return which path, unified or legacy, is taken."""
        return await asyncio.to_thread(_state_of, await self.memory.flag())

    async def set_migration(self, *, on: bool, by: str = "owner") -> MigrationState:
        """Take the unified path (*on*) or the legacy one, from the next call on.

        The unified path is taken after a clean verification against the predecessor's file, which may take some
        seconds; without one the flag stays as it is, and the state says why.

        Raises:
            BackendUnavailableError: No store answers, or the flag file cannot be written.
        """
        refusal = ""
        if on:
            try:
                refusal = migration.refusal(await self.memory.enable(by))
            except ConfigError as exc:  # the predecessor's file is there, and cannot be read
                refusal = str(exc)
        else:
            await asyncio.to_thread(migration.disable, await self.memory.flag())
        state = replace(await self.migration(), refusal=refusal)
        path = "unified" if state.is_on else "legacy"
        log.info("The %s path is taken", path, extra={"event": "migration_flag", "path": path, "by": by})
        return state

    def _wait(self, what: str, work: Callable[[], Coroutine[Any, Any, str]]) -> str:
        try:
            return self.memory.run(work)
        except BackendUnavailableError as exc:
            return could_not(what, exc)


def _state_of(flag: MigrationFlag) -> MigrationState:
    if not flag.is_on():
        return MigrationState(is_on=False, evidence={})
    evidence = flag.evidence()
    return MigrationState(is_on=True, evidence=evidence, says=in_words(evidence))


def _id_of(call: Any) -> str:
    return str(call.get("id") or "") if isinstance(call, Mapping) else ""
