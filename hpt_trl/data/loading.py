"""From a recipe's data keys to rows that a trainer takes: columns mapped, rows checked and held out, messages made.

Every stage reads its data here, so that a layout is described once, in the recipe, and fails in one way.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset

from hpt_trl.data.arguments import DataArguments
from hpt_trl.data.calculator_marks import drop_calculator_marks
from hpt_trl.data.code_contests import one_row_per_solution
from hpt_trl.data.column_mapping import map_columns, missing_column, short_answer
from hpt_trl.data.holding_out import hold_out
from hpt_trl.data.layouts import Layout, Splits, answer_columns
from hpt_trl.data.model_solutions import one_row_per_model
from hpt_trl.data.names import as_dict
from hpt_trl.data.objects import column_values, with_column
from hpt_trl.data.page_questions import page_questions
from hpt_trl.data.prompt_parts import complete_prompts, filled_templates, refuse_marked_rows
from hpt_trl.data.reading.places import ROW, where
from hpt_trl.data.reading.sources import read_measured, read_source
from hpt_trl.data.rendering import WHOLE
from hpt_trl.data.row_checks import (
    conversation_fault,
    iterate_rows,
    validate_comparisons,
    validate_documents,
    validate_rows,
    validate_solutions,
)
from hpt_trl.data.solutions import ProblemArguments
from hpt_trl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Before a letter it may begin a command of LaTeX.
_LITERAL_BREAK = re.compile(r"\\n(?![a-zA-Z])")

__all__ = ["Splits", "columns_for", "load_splits", "to_conversational", "validate_rows"]

# GRPOTrainer passes these to the rewards itself; a column of the same name would be a second value for the argument.
_RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments")
# Of layouts where every row has the same columns.
_NEEDED: dict[str, tuple[str, ...]] = {
    "documents": ("text",),
    "solutions": ("instruction", "output", "problem_id", "is_correct"),
    "comparisons": ("prompt", "chosen", "rejected"),
}


def load_splits(
    arguments: DataArguments,
    *,
    seed: int,
    needs_demonstration: bool,
    demonstration_column: str = "completion",
    layout: Layout = "prompts",
) -> Splits:
    """Read the data of a recipe, map its columns, check every row and hold rows out.

    `column_mapping` gives each column its source, which may be a dotted path into a struct; one source may feed
    several columns. A mapped source column is gone under its old name, all others stay for the rewards to read.
    `answer` keeps only the final answer where its source is a worked solution (GSM8K, MATH).

    Args:
        seed: draws generated datasets and the held-out rows.
        needs_demonstration: every training row must have a demonstration.
        demonstration_column: name of the demonstrations' column, after the mapping.
        layout: the columns that the rows must have.

    Raises:
        UserError: data that cannot be read, a missing column, a faulty row, or a held-out size that does not fit.
    """
    (train, source), held_out = read_source(arguments, seed=seed)

    def read(rows: Dataset, name: str, *, complete: bool) -> Dataset:
        return _checked(rows, name, arguments, layout, demonstration_column, complete=complete)

    train = read(train, source, complete=needs_demonstration)
    if held_out is None or arguments.test_split_size is not None:
        if held_out is not None:
            logger.warning(
                "test_split_size: the held-out rows are drawn from the training rows; %s, %d rows of the data's own, "
                "stays unused. Drop the line to take those.",
                held_out[1],
                len(held_out[0]),
            )
        test, test_source = None, source.called(f"{source} (held out)")
        if arguments.test_split_size is not None:
            answers = answer_columns(layout, demonstration_column)
            train, test = hold_out(train, source, arguments.test_split_size, seed, layout, answers)
    else:
        test, test_source = held_out
        # Answering prompts takes no demonstrations, so a test split may lack them; a loss is measured on them.
        test = read(test, test_source, complete=layout == "demonstrations")
    return Splits(train, test, source, test_source, demonstration_column, layout)


def load_measured(
    arguments: DataArguments, *, seed: int, demonstration_column: str = "completion", layout: Layout = "prompts"
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
            needs_demonstration=layout == "demonstrations",
            demonstration_column=demonstration_column,
            layout=layout,
        )
        return replace(splits, train=splits.test, test=None, source=splits.test_source)
    rows, source = read_measured(arguments, seed=seed)
    complete = layout == "demonstrations"
    rows = _checked(rows, source, arguments, layout, demonstration_column, complete=complete)
    return Splits(rows, None, source, source, demonstration_column, layout)


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
    if template is not None and "{prompt}" not in template:
        raise UserError(f"prompt_template: {template!r} must hold `{{prompt}}`, which stands for the prompt.")
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
        raise UserError(f"conversational: false, but the prompts of {splits.source} are messages already; drop it.")
    if not chat and system is not None:
        raise UserError(
            "system_prompt: string prompts have no system message; set conversational: true or write the text into "
            "prompt_template."
        )

    def prompt_of(prompt: Any, around: str | None) -> Any:
        if isinstance(prompt, str):
            prompt = prompt if around is None else around.replace("{prompt}", prompt)
            messages = [{"role": "user", "content": prompt}]
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
                    dataset = _replace(dataset, column, _assistant)
        return dataset

    test = None if splits.test is None else convert(splits.test)
    return replace(splits, train=convert(splits.train), test=test)


def _checked(
    rows: Dataset, name: str, arguments: DataArguments, layout: Layout, demonstration_column: str, *, complete: bool
) -> Dataset:
    """Rows of one split, their columns mapped and every one checked."""
    rows = _prepare(rows, name, arguments, layout, demonstration_column, complete=complete)
    if layout == "documents":
        validate_documents(rows, name)
    elif layout == "solutions":
        validate_solutions(rows, name)
    elif layout == "comparisons":
        validate_comparisons(rows, name)
    else:
        validate_rows(rows, name, demonstration_column=demonstration_column, needs_demonstration=complete)
    return rows


def _prepare(
    dataset: Dataset,
    source: str,
    arguments: DataArguments,
    layout: Layout,
    demonstration_column: str,
    *,
    complete: bool,
) -> Dataset:
    if len(dataset) == 0:
        raise UserError(f"{source} has no rows.")
    mapping = as_dict(arguments.column_mapping, "column_mapping")
    if layout == "prompts" and "prompt" not in mapping:
        dataset = page_questions(dataset, source)
    dataset = map_columns(dataset, source, mapping)
    if layout == "demonstrations":
        dataset = _split_messages(dataset, source, demonstration_column)
    elif layout == "comparisons":
        dataset = _split_conversations(dataset, source)
    elif layout == "solutions":
        dataset = one_row_per_model(dataset, source)
        dataset = one_row_per_solution(dataset, source, cast(ProblemArguments, arguments).solution_languages)
    if layout not in ("documents", "solutions"):
        dataset = complete_prompts(dataset, source, mapping)
    present = [name for name in dataset.column_names if name != ROW]
    answers = answer_columns(layout, demonstration_column)
    needed = _NEEDED.get(layout) or ("prompt", *(answers if complete else ()))
    for column in needed:
        if column not in present:
            raise missing_column(column, column, source, present, mapping)
    for column in _RESERVED:
        if column in present:
            raise UserError(
                f"{source}: the column `{column}` has the name of an argument that the trainer gives to rewards. "
                f"Rename it, e.g. column_mapping: {{source_{column}: {column}}}"
            )
    if layout in ("prompts", "demonstrations") and demonstration_column in present:
        refuse_marked_rows(dataset, source, mapping)
    if "answer" in present:
        dataset = _replace(dataset, "answer", short_answer)
    answers = tuple(column for column in answers if column in present)
    return _alike(drop_calculator_marks(dataset, list(answers), source), list(answers))


def _split_messages(dataset: Dataset, source: str, demonstration_column: str) -> Dataset:
    """A column `messages` in place of `prompt` and demonstration: the last message is the demonstration.

    The rows are marked: as one conversation, every turn of the assistant in them is trained.
    """
    if "messages" not in dataset.column_names or "prompt" in dataset.column_names:
        return dataset
    prompts, demonstrations = [], []
    for row, (messages,) in iterate_rows(dataset, ["messages"]):
        if fault := conversation_fault("messages", messages):
            raise UserError(f"{where(source, row)}: {fault}")
        prompts.append(messages[:-1])
        demonstrations.append(messages[-1:])
    dataset = with_column(dataset.remove_columns("messages"), "prompt", prompts)
    dataset = dataset.add_column(WHOLE, [True] * len(dataset))
    return with_column(dataset, demonstration_column, demonstrations)


def _split_conversations(dataset: Dataset, source: str) -> Dataset:
    """`chosen` and `rejected` as whole conversations: the prompt is what both begin with."""
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        return dataset
    first = next((pair for _, pair in iterate_rows(dataset, ["chosen", "rejected"]) if all(pair)), None)
    if first is None or not all(
        isinstance(messages, list) and isinstance(messages[0], dict) and messages[0].get("role") != "assistant"
        for messages in first
    ):
        return dataset
    columns: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": []}
    for row, pair in iterate_rows(dataset, ["chosen", "rejected"]):
        for name, messages in zip(("chosen", "rejected"), pair, strict=True):
            if fault := conversation_fault(name, messages):
                raise UserError(f"{where(source, row)}: {fault}")
        chosen, rejected = pair
        shared = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        # Equal conversations keep their last message, for the check of the rows to find them.
        shared = min(len(chosen), len(rejected)) - 1 if shared is None else shared
        if shared == 0:
            raise UserError(f"{where(source, row)}: `chosen` and `rejected` do not begin with the same prompt.")
        for name, part in zip(columns, (chosen[:shared], chosen[shared:], rejected[shared:]), strict=True):
            columns[name].append(part)
    dataset = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    for name, values in columns.items():
        dataset = with_column(dataset, name, values)
    return dataset


def _replace(dataset: Dataset, column: str, change: Callable[[Any], Any]) -> Dataset:
    values = column_values(dataset, column)
    changed = [change(value) for value in values]
    return dataset if changed == values else with_column(dataset.remove_columns(column), column, changed)


def _kind(dataset: Dataset, column: str) -> type | None:
    return next((type(value) for _, (value,) in iterate_rows(dataset, [column]) if value is not None), None)


def _alike(dataset: Dataset, answers: list[str]) -> Dataset:
    """Make prompt and answers all texts or all messages, as TRL takes them."""
    kinds = {column: _kind(dataset, column) for column in ("prompt", *answers)} if answers else {}
    if set(kinds.values()) != {str, list}:
        return dataset
    for column in answers:
        if kinds[column] is str:
            dataset = _replace(dataset, column, _assistant)
    if kinds["prompt"] is str:
        dataset = _replace(dataset, "prompt", lambda text: [{"role": "user", "content": text}])
    return dataset


def _assistant(text: str | None) -> list[dict[str, str]] | None:
    return None if text is None else [{"role": "assistant", "content": text}]


def _with_template(messages: list[dict[str, Any]], template: str | None) -> list[dict[str, Any]]:
    if template is None:
        return messages
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None or not isinstance(messages[last]["content"], str):
        return messages
    changed = {**messages[last], "content": template.replace("{prompt}", messages[last]["content"])}
    return [*messages[:last], changed, *messages[last + 1 :]]
