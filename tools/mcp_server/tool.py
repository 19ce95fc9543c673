"""What a tool of the server is: what it does, what it says of itself, and who may call it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from memory.store import StoreBackend

if TYPE_CHECKING:
    import mcp_types as types

    from tools.mcp_server.grants import Grant, Scope

Run: TypeAlias = Callable[[StoreBackend, dict[str, Any]], Awaitable[tuple[str, dict[str, Any]]]]
"""Takes the call's arguments, of which `user_id` is already one that the caller may touch; returns text and data."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool.

    Attributes:
        spec: what an unbound caller is told; it must name the user, where there is one to name.
        strict: whether an argument that the tool does not have is refused.
    """

    run: Run
    spec: types.Tool
    scope: Scope
    strict: bool = False

    def spec_for(self, grant: Grant) -> types.Tool:
        """Return what *grant*'s holder is told: one that is bound to a user need not name it."""
        schema = self.spec.input_schema
        if grant.user_id is None or "user_id" not in schema["properties"]:
            return self.spec
        user = {**schema["properties"]["user_id"], "description": "May be left out: it is always the same user."}
        bound = {
            **schema,
            "properties": {**schema["properties"], "user_id": user},
            "required": [name for name in schema["required"] if name != "user_id"],
        }
        return self.spec.model_copy(update={"input_schema": bound})


def object_of(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object; required is what may not be null and has no default."""
    required = [name for name, schema in properties.items() if "null" not in schema["type"] and "default" not in schema]
    return {"type": "object", "properties": properties, "required": required}
