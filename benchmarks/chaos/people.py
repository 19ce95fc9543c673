"""What a person asks of the memory through the tools, who is remembered only if they agreed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.context import ToolContext

if TYPE_CHECKING:
    from memory import SearchResult
    from tools.user_memory import UserMemory

ASKED = frozenset(
    {"agree", "refuse", "consent", "tell", "untell", "bring", "clear", "recall", "own", "erase", "past", "completed"}
)
_BROUGHT = {"source": "import"}


async def call(memory: UserMemory, what: str, given: dict[str, Any]) -> Any:
    """Make one call for a person; return what it gave as plain data."""
    user, scope, key = given["user"], given.get("scope", ""), given.get("key", "")
    audience = frozenset(given.get("audience") or {"", scope})
    here = ToolContext(user, scope, audience, needs_consent=True, private=what == "own")
    match what:
        case "agree":
            return await memory.agree(here)
        case "refuse":
            return await memory.refuse(here)
        case "consent":
            return str(await memory.consent(here))
        case "tell":
            return (await memory.remember(here, key, given["value"])).key
        case "untell":
            return bool(await memory.forget(here, key))
        case "bring":
            return await memory.memory.by_flag.store(user, key, given["value"], _BROUGHT, scope=scope)
        case "clear":
            return await memory.forget_everything(here)
        case "recall":
            return _shown(await memory.recall(here, given.get("query") or "", given["limit"]))
        case "own":
            return _shown(await memory.own(here, given.get("query") or "", given["limit"]))
        case "erase":
            receipt = await memory.erase(here)
            return {"begun": bool(receipt.revision), "complete": receipt.complete}
        case "past":
            return [[entry.scope, entry.key, entry.value] for entry in await memory.memory.past(user)]
        case "completed":
            for receipt in await memory.memory.completed():
                await memory.memory.told(receipt)
            return None
    raise ValueError(what)


def _shown(found: SearchResult) -> dict[str, Any]:
    return {
        "found": [[entry.scope, entry.key, entry.value] for entry in found],
        "spoken_for": bool(found.answered),
    }
