"""From a recipe's data keys to rows that a trainer takes: columns mapped, rows checked and held out, messages made.

Every stage reads its data here, so that a layout is described once, in the recipe, and fails in one way.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset

from hpt_trl.data.alike import alike, as_assistant, as_user
from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.calculator_marks import drop_calculator_marks
from hpt_trl.data.code_contests import one_row_per_solution
from hpt_trl.data.column_mapping import map_columns, missing_column, short_answer
from hpt_trl.data.faults import Faults
from hpt_trl.data.forms.form import Found, converted
from hpt_trl.data.forms.messages import with_messages
from hpt_trl.data.forms.near import near_forms
from hpt_trl.data.forms.pictures import with_pictures, with_places
from hpt_trl.data.forms.preferences import asked_turns
from hpt_trl.data.forms.recognising import Wanted, recognise, renamed_to_fit
from hpt_trl.data.forms.telling import tell_form
from hpt_trl.data.holding_out import hold_out
from hpt_trl.data.layout_names import Layout
from hpt_trl.data.layouts import Splits, answer_columns
from hpt_trl.data.mixing import Part, mixed, parts_of, refuse_shared, taken
from hpt_trl.data.model_solutions import one_row_per_model
from hpt_trl.data.names import as_dict
from hpt_trl.data.objects import column_values, replaced, with_column
from hpt_trl.data.prompt_parts import (
    check_template,
    complete_prompts,
    filled_templates,
    find_marked_rows,
    names_columns,
)
from hpt_trl.data.reading.places import ROW, Source
from hpt_trl.data.reading.sources import read_measured, read_source
from hpt_trl.data.row_checks import find_faults, validate_rows
from hpt_trl.data.solutions import ProblemArguments
from hpt_trl.data.written_scalars import read_scalars
from hpt_trl.errors import Collector, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Training rows and, where the data has some, held-out rows, each with their source.
Read = tuple[tuple[Dataset, Source], tuple[Dataset, Source] | None]

# Before a letter it may begin a command of LaTeX.
_LITERAL_BREAK = re.compile(r"\\n(?![a-zA-Z])")

__all__ = ["Splits", "columns_for", "load_splits", "to_conversational", "validate_rows"]

# GRPOTrainer passes these to the rewards itself; a column of the same name would be a second value for the argument.
_RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments")


def load_splits(
    arguments: DataArguments,
    *,
    seed: int,
    needs_demonstration: bool,
    demonstration_column: str = "completion",
    layout: Layout | tuple[Layout, ...] = "prompts",
    read: Callable[[DataArguments], Read] | None = None,
) -> Splits:
    """Read the data of a recipe, map its columns, check every row and hold rows out.

    `column_mapping` gives each column its source, which may be a dotted path into a struct; one source may feed
    several columns. A mapped source column is gone under its old name, all others stay for the rewards to read.
    `answer` keeps only the final answer where its source is a worked solution (GSM8K, MATH).

    Args:
        seed: draws generated datasets and the held-out rows.
        needs_demonstration: every training row must have a demonstration.
        demonstration_column: name of the demonstrations' column, after the mapping.
        layout: the layout that the rows must have, or several, of which they are of the first that they fit.
        read: reads the data; by default `read_source`.

    Raises:
        UserError: data that cannot be read, a missing column, a faulty row, or a held-out size that does not fit.
    """
    wanted = _wanted(layout, demonstration_column, complete=needs_demonstration)
    parts = parts_of(arguments, wanted.layouts)
    every = [part.read(read or (lambda arguments: read_source(arguments, seed=seed))) for part in parts]
    training = taken(parts, [train for train, _ in every])
    train, source, found, dropped = _joined(parts, training, wanted)
    layout, test_dropped = found[0].form.layout, 0
    held_out = [(part, test) for part, (_, test) in zip(parts, every, strict=True) if test is not None]
    if not held_out or arguments.test_split_size is not None:
        for _, (unused, name) in held_out:
            logger.warning(
                "test_split_size: the held-out rows are drawn from the training rows; %s, %d rows of the data's own, "
                "stays unused. Drop the line to take those.",
                name,
                len(unused),
            )
        test, test_source = None, source.called(f"{source} (held out)")
        if arguments.test_split_size is not None:
            answers = answer_columns(layout, demonstration_column)
            train, test = hold_out(train, source, arguments.test_split_size, seed, layout, answers)
    else:
        refuse_shared(parts, training, held_out)
        # Answering prompts takes no demonstrations, so a test split may lack them; a loss is measured on them.
        wanted = replace(wanted, layouts=(layout,), complete=layout == "demonstrations")
        parts, tests = [part for part, _ in held_out], [test for _, test in held_out]
        test, test_source, _, test_dropped = _joined(parts, tests, wanted, told=False)
        train, test = alike([train, test], answer_columns(layout, demonstration_column))
        if arguments.datasets is not None:
            test_source = test_source.called(f"{source} (held out)")
    splits = _splits(train, test, source, test_source, demonstration_column, found)
    return replace(splits, dropped=dropped, test_dropped=test_dropped)


def load_measured(
    arguments: DataArguments,
    *,
    seed: int,
    demonstration_column: str = "completion",
    layout: Layout | tuple[Layout, ...] = "prompts",
) -> Splits:
    """Read the rows that an evaluation measures, as `load_splits` reads those of a training.

    With `test_split_size` they are the rows that a training with the same keys holds out.

    Returns:
        The rows as `train`.

    Raises:
        UserError: as `load_splits` does.
    """
    if arguments.test_split_size is not None:
        splits = load_splits(
            arguments,
            seed=seed,
            needs_demonstration=False,
            demonstration_column=demonstration_column,
            layout=layout,
        )
        return replace(splits, train=splits.test, test=None, source=splits.test_source)
    wanted = _wanted(layout, demonstration_column, complete=False)
    parts = parts_of(arguments, wanted.layouts, measured=True)
    read = [part.read(lambda arguments: read_measured(arguments, seed=seed)) for part in parts]
    rows, source, found, dropped = _joined(parts, taken(parts, read), wanted)
    return replace(_splits(rows, None, source, source, demonstration_column, found), dropped=dropped)


def columns_for(dataset: Dataset | None, *names: str) -> Dataset | None:
    """Return the dataset with those of the named columns that it has: TRL gives others a meaning of its own."""
    if dataset is None:
        return None
    return dataset.select_columns([name for name in names if name in dataset.column_names])


def to_conversational(splits: Splits, tokenizer: "PreTrainedTokenizerBase", arguments: DataArguments) -> Splits:
    """Apply `prompt_template`, `conversational` and `system_prompt`; documents have none of them.

    The template goes around a string prompt, or around the last user message; `{column}` in it stands for the row's
    value of another column, a list for one line each. String prompts become messages where
    the tokenizer has a chat template, unless `conversational` says otherwise. `system_prompt` replaces the system
    message of a prompt that has one; an empty one removes it.

    Raises:
        UserError: a template without `{prompt}`, messages for a tokenizer without chat template, or a system prompt
            for string prompts.
    """
    template, system = arguments.prompt_template, arguments.system_prompt
    if splits.layout == "documents":
        for key in ("prompt_template", "system_prompt", "conversational"):
            if getattr(arguments, key):
                raise UserError(f"{key}: documents (column `text`) are trained on as they are; drop the line.")
        return splits
    check_template(template, splits.train.column_names)
    if template is not None and _LITERAL_BREAK.search(template):
        logger.warning(
            "prompt_template holds a backslash and an `n`, where a line break may be meant: in YAML that is "
            "\"{prompt}\\n\", in double quotes, and on a command line $'{prompt}\\n'."
        )
    has_template = tokenizer.chat_template is not None
    is_text = isinstance(splits.train[0]["prompt"], str)
    chat = arguments.conversational if arguments.conversational is not None else has_template or not is_text
    if chat and not has_template:
        raise UserError(
            "the tokenizer has no chat template, but "
            + ("conversational: true asks for messages" if is_text else f"the prompts of {splits.source} are messages")
            + ". Use an instruct model, or put a chat_template.jinja into the model's folder."
        )
    if not chat and not is_text:
        raise UserError(f"conversational: false, but the prompts of {splits.source} are messages already; write true.")
    if not chat and system is not None:
        raise UserError(
            "system_prompt: string prompts have no system message; set conversational: true or write the text into "
            "prompt_template."
        )

    # Otherwise the prompts are written with it already.
    template = template if template is not None and "{prompt}" in template else None

    dialogues = chat and is_text and asked_turns(splits.train[0]["prompt"]) is not None
    if dialogues:
        logger.warning("%s: the turns of `Human:` and `Assistant:` in the prompts become messages.", splits.source)

    def prompt_of(prompt: Any, around: str | None) -> Any:
        if dialogues and (turns := asked_turns(prompt)):
            messages = _with_template(turns, around)
        elif isinstance(prompt, str):
            prompt = prompt if around is None else around.replace("{prompt}", prompt)
            messages = as_user(prompt)
        else:
            messages = _with_template(prompt, around)
        if not chat:
            return prompt
        if system is not None:
            messages = [message for message in messages if message["role"] != "system"]
            if system:
                messages = [{"role": "system", "content": system}, *messages]
        return messages

    def convert(dataset: Dataset) -> Dataset:
        if is_text or template is not None or system is not None:
            prompts = column_values(dataset, "prompt")
            changed = [
                prompt_of(prompt, around)
                for prompt, around in zip(prompts, filled_templates(template, dataset), strict=True)
            ]
            if changed != prompts:
                dataset = with_column(dataset.remove_columns("prompt"), "prompt", changed)
        if chat and is_text:
            for column in splits.answers:
                if column in dataset.column_names:
                    dataset = replaced(dataset, column, as_answer)
        return dataset

    def as_answer(text: str | None) -> list[dict[str, str]] | None:
        # Behind `Assistant:` stands a space.
        return as_assistant(text.strip() if dialogues and text is not None else text)

    test = None if splits.test is None else convert(splits.test)
    return replace(splits, train=convert(splits.train), test=test)


def _wanted(layout: Layout | tuple[Layout, ...], demonstration_column: str, *, complete: bool) -> Wanted:
    layouts = (layout,) if isinstance(layout, str) else layout
    return Wanted(layouts=layouts, demonstration_column=demonstration_column, complete=complete)


def _joined(
    parts: list[Part], read: list[tuple[Dataset, Source]], wanted: Wanted, *, told: bool = True
) -> tuple[Dataset, Source, list[Found], int]:
    """The rows of all data sets, each checked in its own form, these forms, and how many faulty rows were dropped."""
    checked, dropped = [], 0
    for part, (rows, source) in zip(parts, read, strict=True):
        arguments = part.arguments
        mapped = as_dict(arguments.column_mapping, "column_mapping").keys()
        own = replace(wanted, named=arguments.dataset_layout, mapped=mapped)
        rows, found, faulty = _checked(part.chosen(rows), source, arguments, own)
        dropped += faulty
        if told:
            tell_form(source, rows, found, own)
        checked.append((rows, found))
    layouts = [found.form.layout for _, found in checked]
    if odd := next((place for place, layout in enumerate(layouts) if layout != layouts[0]), None):
        raise UserError(
            f"datasets: {parts[0].name} has {layouts[0]} and {parts[odd].name} {layouts[odd]}, which are trained "
            "otherwise; write the same `dataset_layout` in both, where they can be read so, or train them one by one."
        )
    answers = answer_columns(layouts[0], wanted.demonstration_column)
    names, sources = [part.name for part in parts], [source for _, source in read]
    rows, source = mixed(names, [rows for rows, _ in checked], sources, answers)
    # The faults of rows that could not be read are settled by now.
    return rows, Source(source, source.pieces), [found for _, found in checked], dropped


def _splits(
    train: Dataset, test: Dataset | None, source: str, test_source: str, demonstration_column: str, found: list[Found]
) -> Splits:
    forms, layout = [one.form for one in found], found[0].form.layout
    name = ", ".join(dict.fromkeys(form.name for form in forms))
    said = " and ".join(dict.fromkeys(form.said for form in forms))
    used = frozenset(column for one in found for column in one.used)
    return Splits(train, test, source, test_source, demonstration_column, layout, name, said, used)


def _checked(rows: Dataset, name: Source, arguments: DataArguments, wanted: Wanted) -> tuple[Dataset, Found, int]:
    """Rows of one split in the columns of their layout, every one checked, and how many faulty ones were dropped."""
    faults = Faults(name, arguments.on_bad_row)
    if len(rows) == 0:
        faults.settled(rows)
        raise UserError(f"{name} has no rows.")
    mistakes = Collector()
    with mistakes.noted():
        rows, found = checked_rows(rows, faults, arguments, wanted)
    with mistakes.noted():
        kept = faults.settled(rows)
    mistakes.settle()
    return kept, found, len(rows) + faults.unread - len(kept)


def checked_rows(rows: Dataset, faults: Faults, arguments: DataArguments, wanted: Wanted) -> tuple[Dataset, Found]:
    """The rows in the columns of their layout, and their form; `faults` takes what is wrong with each.

    Raises:
        UserError: what is wrong with all of them, as a missing column.
    """
    rows, found = _prepare(rows, faults, arguments, wanted)
    layout = found.form.layout
    complete = wanted.complete or layout == "demonstrations"
    find_faults(rows, faults, layout, wanted.demonstration_column, complete=complete)
    return rows, found


def _prepare(dataset: Dataset, faults: Faults, arguments: DataArguments, wanted: Wanted) -> tuple[Dataset, Found]:
    source, mapping = faults.source, as_dict(arguments.column_mapping, "column_mapping")
    demonstration_column, template = wanted.demonstration_column, arguments.prompt_template
    dataset = map_columns(dataset, source, mapping)
    named = names_columns(template, [name for name in dataset.column_names if name != "prompt"])
    small = renamed_to_fit(dataset, wanted, {*mapping, *named})
    dataset = dataset.rename_columns(small)
    if small:
        logger.warning(
            "%s: its columns are read by their names in small letters: %s.", source, ", ".join(small.values())
        )
    faults.names = mapping | {name: column for column, name in small.items()}
    dataset = read_scalars(dataset, wanted.left, faults)
    for column in ("prompt", demonstration_column, "chosen", "rejected"):
        dataset = with_messages(dataset, column, faults)
    # A template without `{prompt}` writes the whole prompt.
    written = filled_templates(template, dataset) if template is not None and "{prompt}" not in template else None
    found = recognise(dataset, source, wanted)
    if written is not None and "prompt" in found.form.lacks(dataset.column_names):
        dataset = with_column(dataset, "prompt", written)
        found = recognise(dataset, source, wanted)
    layout = found.form.layout
    answers = answer_columns(layout, demonstration_column)
    near = near_forms(dataset, wanted) if found.form.lacks(dataset.column_names) else ""
    if layout not in ("documents", "solutions"):
        check_template(template, dataset.column_names)
    found = found.without(named)
    for part, target in (("question", "prompt"), ("answer", demonstration_column), *((side, side) for side in answers)):
        if part in found.columns:
            faults.names[target] = faults.called(found.columns[part])
    dataset = converted(dataset, found, faults, demonstration_column, staying=named)
    if layout == "solutions":
        dataset = one_row_per_model(dataset, source)
        dataset = one_row_per_solution(dataset, source, cast(ProblemArguments, arguments).solution_languages)
    elif layout != "documents":
        if written is not None:
            dataset = with_column(dataset.remove_columns(["prompt"]), "prompt", written)
        elsewhere = [] if found.asked else ["input"]
        dataset, put = complete_prompts(dataset, faults, {*mapping, *named, *elsewhere})
        found = replace(found, put=frozenset(put))
    present = [name for name in dataset.column_names if name != ROW]
    lacking = found.form.lacks(present) if found.form.convert is None else []
    if layout == "prompts" and wanted.complete and demonstration_column not in [*present, *lacking]:
        lacking = [demonstration_column]
        near = f"\nRead as {found.form.said}, no row has a demonstration, which this stage needs of every row."
    if lacking:
        error = missing_column(lacking[0], lacking[0], source, present, mapping, lacking[1:])
        raise UserError(f"{error}{near}")
    for column in _RESERVED:
        if column in present:
            raise UserError(
                f"{source}: the column `{column}` has the name of an argument that the trainer gives to rewards. "
                f"Rename it, e.g. column_mapping: {{source_{column}: {column}}}"
            )
    if layout in ("prompts", "demonstrations") and demonstration_column in present:
        find_marked_rows(dataset, faults, mapping)
    if "answer" in present:
        dataset = replaced(dataset, "answer", short_answer)
    answers = tuple(column for column in answers if column in present)
    if layout not in ("documents", "solutions"):
        dataset = with_places(with_pictures(dataset, list(answers), faults), list(answers), faults)
    (dataset,) = alike([drop_calculator_marks(dataset, list(answers), source)], answers)
    return dataset, found


def _with_template(messages: list[dict[str, Any]], template: str | None) -> list[dict[str, Any]]:
    if template is None:
        return messages
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None or not isinstance(messages[last]["content"], str):
        return messages
    changed = {**messages[last], "content": template.replace("{prompt}", messages[last]["content"])}
    return [*messages[:last], changed, *messages[last + 1 :]]
