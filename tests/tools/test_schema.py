"""Functions become tools: what a model sees of them, and what becomes of the arguments that it sends."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
from pydantic import Field

from tools.schema import ARGUMENTS_MAX, Tool, ToolArgumentsError


async def greet(
    memory: object,  # noqa: ARG001
    context: object,  # noqa: ARG001
    name: Annotated[str, Field(min_length=1, max_length=10)],
    times: Annotated[int, Field(ge=1, le=3)] = 1,
) -> str:
    """Greet somebody,
    kindly.

    Args:
        name: Whom to greet,
            by first name.
        times: How often.
    """
    return f"hello {name} " * times


@pytest.fixture
def tool() -> Tool:
    return Tool(greet)


def test_a_tool_is_described_by_its_signature_and_docstring(tool: Tool) -> None:
    assert tool.definition() == {
        "type": "function",
        "function": {
            "name": "greet",
            "description": "Greet somebody, kindly.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "name": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": 10,
                        "description": "Whom to greet, by first name.",
                    },
                    "times": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": 3,
                        "default": 1,
                        "description": "How often.",
                    },
                },
                "required": ["name"],
            },
        },
    }


def test_an_argument_that_is_named_title_keeps_its_name() -> None:
    async def file(memory: object, context: object, title: str) -> str:  # noqa: ARG001
        """File it.

        Args:
            title: What it is called.
        """
        return title

    properties = Tool(file).definition()["function"]["parameters"]["properties"]

    assert properties == {"title": {"type": "string", "description": "What it is called."}}


def test_an_argument_without_a_description_is_noticed_at_once() -> None:
    async def silent(memory: object, context: object, name: str) -> str:  # noqa: ARG001
        """Say nothing about the name."""
        return name

    with pytest.raises(KeyError, match="name"):
        Tool(silent)


def test_good_arguments_are_understood(tool: Tool) -> None:
    assert tool.parse('{"name": "ana", "times": 2}') == {"name": "ana", "times": 2}
    assert tool.parse('{"name": "ana"}') == {"name": "ana", "times": 1}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "name is missing"),
        ("{", "not valid JSON"),
        ('{"name": "ana"} trailing', "not valid JSON"),
        ('{"name": "\\ud800"}', "not valid JSON"),
        ('{"name": "\ud800"}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["ana"]', "must be a JSON object"),
        ("null", "must be a JSON object"),
        (None, "must be the text of a JSON object"),
        ({"name": "ana"}, "must be the text of a JSON object"),
        ('{"name": 5}', "name: Input should be a valid string"),
        ('{"name": null}', "name: Input should be a valid string"),
        ('{"name": ""}', "name: String should have at least 1 character"),
        ('{"name": "ana ana ana"}', "name: String should have at most 10 characters"),
        ('{"name": "ana", "times": "2"}', "times: Input should be a valid integer"),
        ('{"name": "ana", "times": true}', "times: Input should be a valid integer"),
        ('{"name": "ana", "times": 4}', "times: Input should be less than or equal to 3"),
        ('{"name": "ana", "times": 1e400}', "times"),
        ('{"name": "ana", "user_id": "1"}', "user_id is no argument of greet, which takes name, times"),
        ('{"name": "ana", "context": {}}', "context is no argument of greet"),
        (json.dumps({"name": "a" * ARGUMENTS_MAX}), f"limit: {ARGUMENTS_MAX:,} characters"),
    ],
)
def test_bad_arguments_are_told_in_words_that_a_model_can_act_on(tool: Tool, arguments: object, told: str) -> None:
    with pytest.raises(ToolArgumentsError) as refused:
        tool.parse(arguments)

    assert told in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_thousand_wrong_arguments_do_not_make_a_long_answer(tool: Tool) -> None:
    with pytest.raises(ToolArgumentsError) as refused:
        tool.parse(json.dumps({f"{'x' * 1000}{number}": 1 for number in range(1000)}))

    assert len(str(refused.value)) < 1_000
