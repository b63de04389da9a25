"""Which form rows have, by their columns and the first of them, or by `dataset_layout`."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from datasets import Dataset

from hpt_trl.data.column_mapping import shortened
from hpt_trl.data.forms.conversations import conversations, ultrachat, unnamed_turns
from hpt_trl.data.forms.form import Form, Found
from hpt_trl.data.forms.instructions import QUESTIONS, alpaca, dolly, question_answer
from hpt_trl.data.forms.pages import PAGE_FORMS
from hpt_trl.data.forms.preferences import HH_RLHF, LLAMA_FACTORY, ORCA, WHOLE_CONVERSATIONS, said_of_judgements
from hpt_trl.data.layout_names import Layout, layouts_of
from hpt_trl.data.layouts import answer_columns
from hpt_trl.data.reading.places import ROW
from hpt_trl.data.row_checks import iterate_rows
from hpt_trl.errors import UserError

# Rows that are looked at for one that is of a form.
_LOOKED_AT = 100
# Names that count only where no other of their part is there.
_WEAK = ("input", "inputs", "answer")
# Columns that a mapping gives the trainer's own names, which no form may replace.
_OWN = ("prompt", "completion", "chosen", "rejected")


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


def recognise(rows: Dataset, source: str, wanted: Wanted) -> Found:
    """The form of rows; where none fits, that of the first layout, whose columns they then lack.

    Raises:
        UserError: `dataset_layout` names a form that does not fit, or two fit as well as each other.
    """
    names = [name for name in rows.column_names if name != ROW]
    form = wanted.named not in (None, *wanted.layouts)
    # Right and wrong solutions also have the columns of instructions, all of which would be trained on.
    left = sorted(wanted.left, key=lambda layout: layout != "solutions") if _is_correct(names) else wanted.left
    for layout in left:
        for rank in _ranks(layout, wanted):
            fitting = _fitting([one for one in rank if not form or one.name == wanted.named], rows, names, wanted)
            if len(fitting) > 1:
                choices = " or ".join(f"`dataset_layout: {one.name}` ({one.wanted()})" for one in fitting)
                raise UserError(f"{source} can be read in several ways; write {choices}.")
            if fitting:
                _refuse_two_names(fitting[0], source, names, named=form)
                return Found(fitting[0], fitting[0].columns_of(names))
    if form:
        *_, one = (
            one for layout in left for rank in _ranks(layout, wanted) for one in rank if one.name == wanted.named
        )
        raise UserError(
            f"dataset_layout: {wanted.named} has the columns {one.wanted()}, {one.said}; {source} has "
            f"{shortened(names)}{'' if one.lacks(names) else ', whose first rows look otherwise'}. Drop the key, or "
            "name the columns by `column_mapping`."
        )
    own = _own(wanted.left[0], wanted)
    return Found(own, own.columns_of(names))


def near_forms(rows: Dataset, wanted: Wanted) -> str:
    """What to say, on a line of its own, of the forms that rows without a form nearly have; empty without any."""
    names = [name for name in rows.column_names if name != ROW]
    judged = said_of_judgements(rows, names) if "comparisons" in wanted.left else None
    if judged is not None:
        return f"\n{judged}"
    forms = [one for one in _every(wanted.left, wanted) if one.convert is not None]
    for one in forms:
        lost = sorted(_lost(one, names, wanted) - set(wanted.mapped))
        if lost and not one.lacks(names):
            replaced = ", ".join(f"`{name}`" for name in lost)
            return (
                f"\nAs {one.said} the file's own {replaced} would be lost; if that is meant, write "
                f"`dataset_layout: {one.name}`."
            )
    asks = wanted.complete and "prompt" not in names
    if unanswered := _fitting(forms, rows, names, replace(wanted, complete=False)) if asks else []:
        return (
            f"\nRead as {unanswered[0].said}, the rows have no demonstration, which this stage needs of every row; if "
            f"a column holds one, name it: column_mapping: {{{wanted.demonstration_column}: …}}."
        )
    own = _own(wanted.left[0], wanted)
    layouts = sorted((layout for layout in _BELOW if layout not in wanted.layouts), key=lambda name: name == "prompts")
    elsewhere = Wanted(tuple(layouts), complete=True)
    others = _fitting(_every(elsewhere.layouts, elsewhere), rows, names, elsewhere)
    if others and (others[0].convert is None or not own.columns_of(names)):
        return f"\nThe rows are {others[0].said}, from which this stage makes no {wanted.left[0]}."
    near = [
        one
        for one in forms
        if len(one.lacks(names)) == 1 and any(name not in _OWN for name in one.columns_of(names).values())
    ]
    most = max((len(one.parts) for one in near), default=0)
    said = [f"{one.name}, without {one.wanted(one.lacks(names))}" for one in near if len(one.parts) == most]
    return f"\nNearly of the form {'; or of '.join(said)}." if said else ""


def _ranks(layout: Layout, wanted: Wanted) -> Iterator[tuple[Form, ...]]:
    yield from ((form,) for form in _ABOVE.get(layout, ()))
    yield (_own(layout, wanted),)
    yield from _BELOW[layout]


def _every(layouts: Iterable[Layout], wanted: Wanted) -> Iterator[Form]:
    return (form for layout in layouts for rank in _ranks(layout, wanted) for form in rank)


def _own(layout: Layout, wanted: Wanted) -> Form:
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
    return not _own("solutions", Wanted(("solutions",))).lacks(names)


def _fitting(forms: Iterable[Form], rows: Dataset, names: list[str], wanted: Wanted) -> list[Form]:
    """Those of the forms that the rows have; of two that read the same columns the one that shows in an earlier row."""
    places = [(one, _place(one, rows, names)) for one in forms if _may_fit(one, names, wanted)]
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
    if form.convert is not None and _lost(form, names, wanted):
        return False
    answers = {"answer", "conversation"} & columns.keys() or wanted.demonstration_column in names
    return form.layout != "prompts" or not wanted.complete or bool(answers)


def _lost(form: Form, names: list[str], wanted: Wanted) -> set[str]:
    """The trainer's own columns that a form would make anew, and that it does not read.

    Those that a mapping gives are never replaced; others are, where the recipe names the form.
    """
    own = {wanted.demonstration_column if name == "completion" else name for name in _OWN}
    made = {"prompt", *answer_columns(form.layout, wanted.demonstration_column)} - set(form.replaced)
    lost = own & set(wanted.mapped)
    if form.name != wanted.named:
        lost |= made & set(names)
    return lost - set(form.columns_of(names).values())


def _place(form: Form, rows: Dataset, names: list[str]) -> int | None:
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
        if len(there) > 1 and there[0] not in _OWN:
            own = {"question": "prompt", "answer": "completion"}.get(part, there[0])
            raise UserError(
                f"{source}: {' and '.join(f'`{name}`' for name in there)} may each be the {part}; say which, e.g. "
                f"column_mapping: {{{own}: {there[0]}}}"
            )
