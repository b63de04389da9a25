"""What to say of rows that are of no form which a stage reads: what they may be instead, and what to write."""

import re
from collections import defaultdict
from dataclasses import replace

from datasets import Dataset

from hpt_trl.data.forms.form import Form
from hpt_trl.data.forms.preferences import said_of_judgements
from hpt_trl.data.forms.recognising import OWN, Wanted, every_form, fitting, lost_columns, own_form, place_of
from hpt_trl.data.layout_names import LAYOUTS
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.usual_names import ANSWERS, CONVERSATIONS

# One of two columns of answers: what both are called, and which of them it is.
_NUMBERED = re.compile(r"(.*?)_?(\d|[A-Za-z])")
_ANSWERING = (*ANSWERS, "answer", "conversation", "summary", "human_ref", "text")


def near_forms(rows: Dataset, wanted: Wanted) -> str:
    """What to say, on a line of its own, of the forms that rows without a form nearly have; empty without any."""
    names = [name for name in rows.column_names if name != ROW]
    said = (hint(rows, names, wanted) for hint in _HINTS)
    return next((f"\n{text}" for text in said if text), "")


def _judged(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    return said_of_judgements(rows, names) if "comparisons" in wanted.left else None


def _two_answers(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    if "comparisons" not in wanted.left or {"chosen", "rejected"} & set(names):
        return None
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match and match[1].lower() in _ANSWERING:
            found[match[1]].append(name)
    pair = next((both for both in found.values() if len(both) == 2), None)
    if pair is None:
        return None
    return (
        f"`{pair[0]}` and `{pair[1]}` are two answers. Where the better one is in the same column in every row, write "
        f"e.g. column_mapping: {{chosen: {pair[0]}, rejected: {pair[1]}}}; where another column says which it is, "
        "write `chosen` and `rejected` into the file."
    )


def _replacing(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    for one in _convertible(wanted):
        lost = sorted(lost_columns(one, names, wanted) - set(wanted.mapped))
        if lost and not one.lacks(names) and place_of(one, rows, names) is not None:
            replaced = ", ".join(f"`{name}`" for name in lost)
            return (
                f"As {one.said} the file's own {replaced} would be lost; if that is meant, write "
                f"`dataset_layout: {one.name}`."
            )
    return None


def _unanswered(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    asks = wanted.complete and "prompt" not in names
    found = fitting(_convertible(wanted), rows, names, replace(wanted, complete=False)) if asks else []
    return (
        f"Read as {found[0].said}, the rows have no demonstration, which this stage needs of every row; if a column "
        f"holds one, name it: column_mapping: {{{wanted.demonstration_column}: …}}."
        if found
        else None
    )


def _elsewhere(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    own = own_form(wanted.left[0], wanted)
    layouts = sorted((layout for layout in LAYOUTS if layout not in wanted.layouts), key=lambda name: name == "prompts")
    elsewhere = Wanted(tuple(layouts), complete=True)
    found = fitting(every_form(elsewhere.layouts, elsewhere), rows, names, elsewhere)
    if not found or (found[0].convert is not None and own.columns_of(names)):
        return None
    return f"The rows are {found[0].said}, from which this stage makes no {wanted.left[0]}."


def _no_messages(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    column = next((name for name in CONVERSATIONS if name in names), None)
    if column is None or not {"prompts", "demonstrations"} & set(wanted.left):
        return None
    value = next((value for _, (value,) in iterate_rows(rows, [column]) if value is not None), None)
    return (
        f"`{column}` holds {value!r:.120}, which is no conversation that is read; write a list of messages, "
        '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].'
    )


def _nearly(rows: Dataset, names: list[str], wanted: Wanted) -> str | None:
    near = [
        one
        for one in _convertible(wanted)
        if len(one.lacks(names)) == 1 and any(name not in OWN for name in one.columns_of(names).values())
    ]
    most = max((len(one.parts) for one in near), default=0)
    said = [f"{one.name}, without {one.wanted(one.lacks(names))}" for one in near if len(one.parts) == most]
    return f"Nearly of the form {'; or of '.join(said)}." if said else None


def _convertible(wanted: Wanted) -> list[Form]:
    return [one for one in every_form(wanted.left, wanted) if one.convert is not None]


# The first that has something to say is heard.
_HINTS = (_judged, _two_answers, _replacing, _unanswered, _elsewhere, _no_messages, _nearly)
