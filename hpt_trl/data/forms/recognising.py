"""Which form rows have, by their columns and the first of them, or by `dataset_layout`."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from datasets import Dataset

from hpt_trl.data.column_mapping import shortened
from hpt_trl.data.forms.conversations import conversations, ultrachat, unnamed_turns
from hpt_trl.data.forms.form import Form, Found
from hpt_trl.data.forms.instructions import alpaca, dolly, question_answer
from hpt_trl.data.forms.pages import PAGE_FORMS
from hpt_trl.data.forms.preferences import HH_RLHF, LLAMA_FACTORY, ORCA, WHOLE_CONVERSATIONS
from hpt_trl.data.layout_names import Layout, layouts_of
from hpt_trl.data.layouts import answer_columns
from hpt_trl.data.prompt_parts import MARKS, SYSTEM_COLUMNS
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.data.usual_names import QUESTIONS, in_small_letters
from hpt_trl.errors import UserError

# Rows that are looked at for one that is of a form.
_LOOKED_AT = 100
# Names that count only where no other of their part is there.
_WEAK = ("input", "inputs", "answer")
# Columns beside those of a form that become part of the prompt, or mark a row.
_BESIDE = (*SYSTEM_COLUMNS, *MARKS, "input", "context", "history")
# Columns that a mapping gives the trainer's own names, which no form may replace.
OWN = ("prompt", "completion", "chosen", "rejected")


def _answered(layout: Layout) -> tuple[tuple[Form, ...], ...]:
    return (
        (ultrachat(layout),),
        conversations(layout, ("messages",)),
        (*conversations(layout), *unnamed_turns(layout), alpaca(layout), dolly(layout)),
        (question_answer(layout),),
    )


# The forms of each layout in ranks, of which the first that has one that fits decides: those that stand above the
# trainer's own columns, and those below them.
_ABOVE: dict[Layout, tuple[Form, ...]] = {"prompts": PAGE_FORMS, "comparisons": (WHOLE_CONVERSATIONS,)}
_BELOW: dict[Layout, tuple[tuple[Form, ...], ...]] = {
    "prompts": _answered("prompts"),
    "demonstrations": _answered("demonstrations"),
    "comparisons": ((LLAMA_FACTORY,), (HH_RLHF,), (ORCA,)),
    "documents": (),
    "solutions": (),
}


@dataclass(frozen=True)
class Wanted:
    """What a stage reads.

    Attributes:
        layouts: those that it reads; rows that fit several are of the first.
        demonstration_column: the column of the demonstrations.
        complete: whether every row must have a demonstration.
        named: what the recipe's `dataset_layout` says.
        mapped: the columns that `column_mapping` gives.
    """

    layouts: tuple[Layout, ...]
    demonstration_column: str = "completion"
    complete: bool = False
    named: str | None = None
    mapped: Collection[str] = ()

    @property
    def left(self) -> tuple[Layout, ...]:
        """The layouts that the rows may have."""
        return layouts_of(self.named, self.layouts)

    @property
    def form(self) -> str | None:
        """The form that the recipe names; None where it names a layout, or nothing."""
        return None if self.named in self.layouts else self.named


def recognise(rows: Dataset, source: str, wanted: Wanted) -> Found:
    """The form of rows; where none fits, that of the first layout, whose columns they then lack.

    Raises:
        UserError: `dataset_layout` names a form that does not fit, or two fit as well as each other.
    """
    names = [name for name in rows.column_names if name != ROW]
    # Right and wrong solutions also have the columns of instructions, all of which would be trained on.
    left = sorted(wanted.left, key=lambda layout: layout != "solutions") if _is_correct(names) else wanted.left
    for layout in left:
        for rank in _ranks(layout, wanted):
            found = fitting(_meant(rank, wanted), rows, names, wanted)
            if len(found) > 1:
                choices = " or ".join(f"`dataset_layout: {one.name}` ({one.wanted()})" for one in found)
                raise UserError(f"{source} can be read in several ways; write {choices}.")
            if found:
                _refuse_two_names(found[0], source, names, named=wanted.form is not None)
                return Found(found[0], found[0].columns_of(names))
    if wanted.form is not None:
        # Of several ranks that have it, the last takes the most names.
        one = _meant(every_form(left, wanted), wanted)[-1]
        raise UserError(
            f"dataset_layout: {wanted.named} has the columns {one.wanted()}, {one.said}; {source} has "
            f"{shortened(names)}{'' if one.lacks(names) else ', whose first rows look otherwise'}. Drop the key, or "
            "name the columns by `column_mapping`."
        )
    own = own_form(wanted.left[0], wanted)
    return Found(own, own.columns_of(names))


def renamed_to_fit(rows: Dataset, wanted: Wanted, kept: Collection[str]) -> dict[str, str]:
    """Columns -> their names in small letters, where rows are of a form by these alone (`Question`, `Response`).

    Of rows that are of one as they are, it is what prompts and checks take from beside the form (`Input`, `System`).

    Args:
        kept: columns that somebody names as they are.
    """
    names = [name for name in rows.column_names if name != ROW]
    small = in_small_letters(names, kept)
    forms = _meant(every_form(wanted.left, wanted), wanted)
    if not small:
        return {}
    if fitting(forms, rows, names, wanted):
        # What belongs to the rows under its usual name would be lost.
        return {name: usual for name, usual in small.items() if usual in _BESIDE}
    renamed = rows.rename_columns(small)
    return small if fitting(forms, renamed, [small.get(name, name) for name in names], wanted) else {}


def _meant(forms: Iterable[Form], wanted: Wanted) -> list[Form]:
    return [one for one in forms if wanted.form in (None, one.name)]


def _ranks(layout: Layout, wanted: Wanted) -> Iterator[tuple[Form, ...]]:
    yield from ((form,) for form in _ABOVE.get(layout, ()))
    yield (own_form(layout, wanted),)
    yield from _BELOW[layout]


def every_form(layouts: Iterable[Layout], wanted: Wanted) -> Iterator[Form]:
    """The forms of these layouts, those first that decide first."""
    return (form for layout in layouts for rank in _ranks(layout, wanted) for form in rank)


def own_form(layout: Layout, wanted: Wanted) -> Form:
    """The columns that a trainer reads."""
    names: dict[Layout, tuple[str, ...]] = {
        "prompts": ("prompt", *([wanted.demonstration_column] if wanted.complete else [])),
        "demonstrations": ("prompt", wanted.demonstration_column),
        "comparisons": ("prompt", "chosen", "rejected"),
        "documents": ("text",),
        "solutions": ("instruction", "output", "problem_id", "is_correct"),
    }
    return Form(layout, layout, _SAID[layout], {name: (name,) for name in names[layout]})


_SAID: dict[Layout, str] = {
    "prompts": "prompts",
    "demonstrations": "prompt and completion",
    "comparisons": "prompt, chosen and rejected",
    "documents": "documents, trained whole",
    "solutions": "solutions",
}


def _is_correct(names: list[str]) -> bool:
    return not own_form("solutions", Wanted(("solutions",))).lacks(names)


def fitting(forms: Iterable[Form], rows: Dataset, names: list[str], wanted: Wanted) -> list[Form]:
    """Those of the forms that the rows have; of two that read the same columns the one that shows in an earlier row."""
    places = [(one, place_of(one, rows, names)) for one in forms if _may_fit(one, names, wanted)]
    shown = [(one, place) for one, place in places if place is not None]
    return [
        one
        for one, place in shown
        if place == min(other for rival, other in shown if rival.parts.keys() == one.parts.keys())
    ]


def _may_fit(form: Form, names: list[str], wanted: Wanted) -> bool:
    """Whether a form fits as far as the columns tell."""
    if form.lacks(names):
        return False
    columns = form.columns_of(names)
    if form.convert is not None and lost_columns(form, names, wanted):
        return False
    answers = {"answer", "conversation"} & columns.keys() or wanted.demonstration_column in names
    return form.layout != "prompts" or not wanted.complete or bool(answers)


def lost_columns(form: Form, names: list[str], wanted: Wanted) -> set[str]:
    """The trainer's own columns that a form would make anew, and that it does not read.

    Those that a mapping gives are never replaced; others are, where the recipe names the form.
    """
    own = {wanted.demonstration_column if name == "completion" else name for name in OWN}
    made = {"prompt", *answer_columns(form.layout, wanted.demonstration_column)} - set(form.replaced)
    lost = own & set(wanted.mapped)
    if form.name != wanted.named:
        lost |= made & set(names)
    return lost - set(form.columns_of(names).values())


def place_of(form: Form, rows: Dataset, names: list[str]) -> int | None:
    """The first of the rows that have all parts of a form in which they are of it; None where none is."""
    columns = form.columns_of(names)
    read = list(dict.fromkeys(columns.values()))
    some = rows.select(range(min(len(rows), _LOOKED_AT)))
    held = [dict(zip(read, values, strict=True)) for _, values in iterate_rows(some, read)]
    complete = [one for one in held if all(value is not None for value in one.values())] or held[:1]
    return next(
        (
            place
            for place, row in enumerate(complete)
            if form.looks({part: row[name] for part, name in columns.items()})
        ),
        None,
    )


def _refuse_two_names(form: Form, source: str, names: list[str], *, named: bool) -> None:
    """Two columns of one meaning: which is meant is the user's to say."""
    if form.convert is None or form in PAGE_FORMS:
        return
    for part, usual in {**form.parts, **form.optional}.items():
        if part == "question" and not named:
            # Also of a form that has one name for it: the other column would be lost.
            usual = QUESTIONS
        there = [name for name in usual if name in names and name not in _WEAK]
        if len(there) > 1 and there[0] not in OWN:
            own = {"question": "prompt", "answer": "completion"}.get(part, there[0])
            raise UserError(
                f"{source}: {' and '.join(f'`{name}`' for name in there)} may each be the {part}; say which, e.g. "
                f"column_mapping: {{{own}: {there[0]}}}"
            )
