"""What a row gives a chat template beside its messages: the columns `tools` and `chat_template_kwargs`."""

from typing import Any

from datasets import Dataset

from hpt_trl.data.objects import replaced
from hpt_trl.data.reading.soundness import decoded_fault
from hpt_trl.data.stored_text import decoded
from hpt_trl.data.turns import shown
from hpt_trl.errors import UserError


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """The schemas of a row's `tools`, which may be stored as text; None where there are none.

    Templates of the Llama family write a preamble for an empty list.

    Raises:
        UserError: it holds something else.
    """
    tools = _decoded("tools", value)
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise UserError(f"`tools` is {shown(str(value))}; write a list of schemas, or its JSON text.")
    return tools or None


def switches_of(value: Any) -> dict[str, Any]:
    """A row's `chat_template_kwargs`, which may be stored as text, without keys that are None.

    A table gives every row the keys of all: None stands for those that a row does not have.

    Raises:
        UserError: it holds something else.
    """
    switches = _decoded("chat_template_kwargs", value) or {}
    if not isinstance(switches, dict):
        raise UserError(
            f"`chat_template_kwargs` is {shown(str(value))}; write a mapping, as in "
            '{"enable_thinking": false}, or drop the column.'
        )
    return {key: inner for key, inner in switches.items() if inner is not None}


# Column -> what a template gets of its values.
RENDERED_WITH = {"tools": tools_of, "chat_template_kwargs": switches_of}


def given_to_templates(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a trainer of TRL, which hands both columns on to the template as they stand.

    Raises:
        UserError: as `tools_of` and `switches_of` do.
    """
    return row | {name: of(row[name]) for name, of in RENDERED_WITH.items() if name in row}


def all_given_to_templates(rows: Dataset | None) -> Dataset | None:
    """The rows of a data set, each as `given_to_templates` has it."""
    for name, of in RENDERED_WITH.items():
        if rows is not None and name in rows.column_names:
            rows = replaced(rows, name, of)
    return rows


def _decoded(column: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = decoded(value) if value.strip() else None
    if fault := decoded_fault(column, found):
        raise UserError(fault)
    return found
