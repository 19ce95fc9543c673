"""A function becomes a tool in OpenAI's format, and a model's arguments become that function's.

The schema is made of the signature, the annotations and the docstring, so that there is one place to keep right.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from pydantic_core import ErrorDetails

ToolFunction: TypeAlias = "Callable[..., Coroutine[Any, Any, str]]"

ARGUMENTS_MAX = 1_000_000
"""Characters of JSON: the longest memory, with every character of it escaped, fits in."""

_BOUND = 2  # what the caller binds comes first: the memory and the context
_PROBLEMS_SHOWN = 5
_ECHO_MAX = 50
_ARGUMENT = re.compile(r"^(?: {4})?(\w+): (.+)$")


class ToolArgumentsError(ValueError):
    """A model's arguments cannot be used; the text tells the model what to change."""


class Tool:
    """One function that a model may call.

    Args:
        function: takes the memory and the context first, which no model sees, then the model's arguments. Its
            docstring describes it, and each argument under `Args:`.
    """

    def __init__(self, function: ToolFunction) -> None:
        self.function = function
        self.name = function.__name__
        self.description, described = _docstring(function)
        self._arguments = _model(function, described)

    def definition(self) -> dict[str, Any]:
        """Return the tool as OpenAI's `tools` parameter has it."""
        schema = _without_titles(self._arguments.model_json_schema())
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }

    def parse(self, arguments: object) -> Mapping[str, Any]:
        """Return the arguments in the JSON text *arguments*.

        Raises:
            ToolArgumentsError: They are not JSON, not ours, too many or too long.
        """
        if not isinstance(arguments, str):
            raise ToolArgumentsError("the arguments must be the text of a JSON object")
        if len(arguments) > ARGUMENTS_MAX:
            raise ToolArgumentsError(f"the arguments are too long (limit: {ARGUMENTS_MAX:,} characters)")
        try:
            parsed = self._arguments.model_validate_json(arguments or "{}")
        except ValidationError as exc:
            details = exc.errors(include_url=False, include_input=False)
            problems = [self._problem(detail) for detail in details[:_PROBLEMS_SHOWN]]
            raise ToolArgumentsError("; ".join(problems)) from exc
        return {name: getattr(parsed, name) for name in type(parsed).model_fields}

    def _problem(self, detail: ErrorDetails) -> str:
        where = ".".join(map(str, detail["loc"]))[:_ECHO_MAX]
        match detail["type"]:
            case "json_invalid" | "string_unicode":
                return f"the arguments are not valid JSON ({detail['msg']})"
            case "model_type":
                return "the arguments must be a JSON object"
            case "missing":
                return f"{where} is missing"
            case "extra_forbidden":
                takes = ", ".join(self._arguments.model_fields)
                return f"{where} is no argument of {self.name}, which takes {takes}"
            case _:
                return f"{where}: {detail['msg']}"


def _model(function: ToolFunction, described: Mapping[str, str]) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in list(inspect.signature(function).parameters.values())[_BOUND:]:
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (
            hints[parameter.name],
            Field(default, description=described[parameter.name]),
        )
    return create_model(function.__name__, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _docstring(function: ToolFunction) -> tuple[str, dict[str, str]]:
    """Return what the docstring says of the function, and of each of its arguments."""
    said, _, arguments = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:\n")
    described: dict[str, str] = {}
    name = ""
    for line in arguments.splitlines():
        if begins := _ARGUMENT.match(line):
            name, described[begins[1]] = begins[1], begins[2]
        elif line.strip() and name:
            described[name] += f" {line.strip()}"
        else:
            break
    return " ".join(said.split()), described


def _without_titles(schema: Any) -> Any:
    """Return *schema* without the titles that pydantic makes of names: they cost tokens and say nothing."""
    if not isinstance(schema, dict):
        return schema
    kept = {name: part for name, part in schema.items() if name != "title" or not isinstance(part, str)}
    return {name: _without_titles(part) for name, part in kept.items()}
