"""From a recipe's data keys to rows that a trainer takes: columns mapped, rows checked and held out, messages made.

Every stage reads its data here, so that a layout is described once, in the recipe, and fails in one way.
"""

import difflib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hpt_trl.arguments import RecipeArguments
from hpt_trl.errors import UserError
from hpt_trl.rewards import final_answer
from hpt_trl.row_checks import iterate_rows, validate_lengths, validate_rows
from hpt_trl.sources import ROW, as_dict, read_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Splits", "load_splits", "to_conversational", "validate_lengths", "validate_rows"]

logger = logging.getLogger(__name__)

# GRPOTrainer passes these to the rewards itself; a column of the same name would be a second value for the argument.
_RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments")
_USUAL_NAMES = {
    "prompt": ("question", "problem", "instruction", "query", "input", "messages"),
    "completion": ("target", "solution", "response", "output", "answer", "demonstration"),
}
# GSM8K's calculator marks: <<48/2=24>>. A demonstration is not to teach calls of a calculator that is not there.
_CALCULATOR = re.compile(r"<<[\d\s+\-*/().,%$]*=[\d\s+\-*/().,%$]*>>")


@dataclass
class Splits:
    """Training and held-out rows; `source` and `test_source` are how messages name them.

    Columns: `prompt` (text or messages), the demonstration column (of the same kind; optional), `answer` (text or
    None; optional), `row` (1-based row or line of the source) and what else the source has.
    """

    train: Dataset
    test: Dataset | None
    source: str
    test_source: str
    demonstration_column: str = "completion"


def load_splits(
    arguments: RecipeArguments,
    *,
    seed: int,
    needs_demonstration: bool,
    demonstration_column: str = "completion",
    first_rows: int | None = None,
) -> Splits:
    """Read the data of a recipe, map its columns, check every row and hold rows out.

    `column_mapping` gives each column its source, which may be a dotted path into a struct; one source may feed
    several columns. A mapped source column is gone under its old name, all others stay for the rewards to read.
    `answer` keeps only the final answer where its source is a worked solution (GSM8K, MATH).

    Args:
        seed: draws generated datasets and the held-out rows.
        needs_demonstration: every training row must have a demonstration.
        demonstration_column: name of the demonstrations' column, after the mapping.
        first_rows: read and check only so many rows of each split, and hold none out.

    Raises:
        UserError: data that cannot be read, a missing column, a faulty row, or a held-out size that does not fit.
    """
    mapping = as_dict(arguments.column_mapping, "column_mapping")
    (train, source), held_out = read_source(arguments, seed=seed, first_rows=first_rows)
    needed = ["prompt", demonstration_column] if needs_demonstration else ["prompt"]

    train = _prepare(train, source, mapping, needed, demonstration_column)
    validate_rows(train, source, demonstration_column=demonstration_column, needs_demonstration=needs_demonstration)
    if held_out is None or arguments.test_split_size is not None:
        test, test_source = None, f"{source} (held out)"
        if arguments.test_split_size is not None and first_rows is None:
            train, test = _hold_out(train, source, arguments.test_split_size, seed)
    else:
        test, test_source = held_out
        # The evaluation reads no demonstrations, so a test split may lack them.
        test = _prepare(test, test_source, mapping, ["prompt"], demonstration_column)
        validate_rows(test, test_source, demonstration_column=demonstration_column, needs_demonstration=False)
    return Splits(train, test, source, test_source, demonstration_column)


def to_conversational(splits: Splits, tokenizer: "PreTrainedTokenizerBase", arguments: RecipeArguments) -> Splits:
    """Apply `prompt_template`, `conversational` and `system_prompt`.

    The template goes around a string prompt, or around the last user message. String prompts become messages where
    the tokenizer has a chat template, unless `conversational` says otherwise. `system_prompt` replaces the system
    message of a prompt that has one; an empty one removes it.

    Raises:
        UserError: a template without `{prompt}`, messages for a tokenizer without chat template, or a system prompt
            for string prompts.
    """
    template, system = arguments.prompt_template, arguments.system_prompt
    if template is not None and "{prompt}" not in template:
        raise UserError(f"prompt_template: {template!r} must hold `{{prompt}}`, which stands for the prompt.")
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

    def prompt_of(prompt: Any) -> Any:
        if isinstance(prompt, str):
            prompt = prompt if template is None else template.replace("{prompt}", prompt)
            messages = [{"role": "user", "content": prompt}]
        else:
            messages = _with_template(prompt, template)
        if not chat:
            return prompt
        if system is not None:
            messages = [message for message in messages if message["role"] != "system"]
            if system:
                messages = [{"role": "system", "content": system}, *messages]
        return messages

    def convert(dataset: Dataset) -> Dataset:
        if is_text or template is not None or system is not None:
            dataset = _replace(dataset, "prompt", prompt_of)
        if chat and is_text and splits.demonstration_column in dataset.column_names:
            dataset = _replace(dataset, splits.demonstration_column, _assistant)
        return dataset

    test = None if splits.test is None else convert(splits.test)
    return replace(splits, train=convert(splits.train), test=test)


def _prepare(
    dataset: Dataset, source: str, mapping: dict[str, str], needed: Sequence[str], demonstration_column: str
) -> Dataset:
    if len(dataset) == 0:
        raise UserError(f"{source} has no rows.")
    if ROW not in dataset.column_names:
        dataset = dataset.add_column(ROW, list(range(1, len(dataset) + 1)))
    dataset = _map_columns(dataset, source, mapping)
    present = [name for name in dataset.column_names if name != ROW]
    for column in needed:
        if column not in present:
            raise _missing_column(column, column, source, present, mapping)
    for column in _RESERVED:
        if column in present:
            raise UserError(
                f"{source}: the column `{column}` has the name of an argument that the trainer gives to rewards. "
                f"Rename it, e.g. column_mapping: {{source_{column}: {column}}}"
            )
    if "answer" in present:
        dataset = _replace(dataset, "answer", _short_answer)
    if demonstration_column in present:
        dataset = _prepare_demonstrations(dataset, demonstration_column)
    return dataset


def _map_columns(dataset: Dataset, source: str, mapping: dict[str, str]) -> Dataset:
    columns = [name for name in dataset.column_names if name != ROW]
    renamed: dict[str, str] = {}
    copied: dict[str, list[Any]] = {}
    for target, path in mapping.items():
        if not isinstance(path, str):
            raise UserError(f"column_mapping: `{target}: {path}` must name one column of the data.")
        name, *inner = [path] if path in columns else path.split(".")
        if name not in columns:
            raise _missing_column(target, path, source, columns, mapping)
        if target == path:
            continue
        # A rename moves no data; a second use of a column, or a column inside a struct, is copied.
        if not inner and name not in mapping and name not in renamed:
            renamed[name] = target
        else:
            copied[target] = _reach(
                _values(dataset, name), [name, *inner], f"column_mapping: `{target}: {path}`", source
            )
    replaced = [name for name in columns if name in mapping and mapping[name] != name and name not in renamed]
    dataset = dataset.remove_columns(replaced).rename_columns(renamed)
    for target, values in copied.items():
        dataset = dataset.add_column(target, values)
    return dataset


def _reach(values: list[Any], path: list[str], key: str, source: str) -> list[Any]:
    """Follow `path` (a column and the fields inside it) in each value."""
    for depth, field in enumerate(path[1:], 1):
        fields = dict.fromkeys(name for value in values if isinstance(value, dict) for name in value)
        if field not in fields:
            found = f"it holds {', '.join(fields)}" if fields else "it is not a struct"
            raise UserError(f"{key}: {source} has `{'.'.join(path[:depth])}`, but {found}.")
        values = [None if value is None else value[field] for value in values]
    return values


def _missing_column(target: str, path: str, source: str, columns: list[str], mapping: dict[str, str]) -> UserError:
    usual = [name for name in _USUAL_NAMES.get(target, _USUAL_NAMES["completion"]) if name in columns]
    near = difflib.get_close_matches(path, columns, n=1) or usual[:1]
    guess = near[0] if near else "<column>"
    suggestion = ", ".join(f"{key}: {value}" for key, value in {**mapping, target: guess}.items())
    return UserError(
        f"{source} has no column `{path}`; it has {', '.join(columns)}. Write, e.g. column_mapping: {{{suggestion}}}"
    )


def _hold_out(dataset: Dataset, source: str, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows off for the evaluation; training rows that repeat a held-out prompt are dropped."""
    count = round(size * len(dataset)) if 0 < size < 1 else int(size)
    if count != size and not 0 < size < 1:
        raise UserError(f"test_split_size: {size} must be a count of rows, or a share between 0 and 1.")
    if not 0 < count < len(dataset):
        raise UserError(
            f"test_split_size: {size:g} asks for {count} held-out rows, but {source} has {len(dataset)} rows; write a "
            f"count from 1 to {len(dataset) - 1}, or a share between 0 and 1."
        )
    parts = dataset.train_test_split(test_size=count, seed=seed)
    held_out = {repr(prompt) for prompt in _values(parts["test"], "prompt")}
    keep = [row for row, prompt in enumerate(_values(parts["train"], "prompt")) if repr(prompt) not in held_out]
    if not keep:
        raise UserError(f"test_split_size: every prompt of {source} is also among the {count} held-out ones.")
    if len(keep) < len(parts["train"]):
        repeated = len(parts["train"]) - len(keep)
        logger.warning("%s: %d training rows repeat a held-out prompt and are dropped.", source, repeated)
    return _copied(parts["train"].select(keep)), _copied(parts["test"])


def _copied(dataset: Dataset) -> Dataset:
    """Lay picked rows out anew: each later change of a column would otherwise copy all columns again, and slowly."""
    return Dataset(dataset.with_format("arrow")[:].combine_chunks(), info=dataset.info)


def _values(dataset: Dataset, column: str) -> list[Any]:
    return dataset.select_columns(column)[:][column]


def _replace(dataset: Dataset, column: str, change: Callable[[Any], Any]) -> Dataset:
    values = _values(dataset, column)
    changed = [change(value) for value in values]
    return dataset if changed == values else dataset.remove_columns(column).add_column(column, changed)


def _short_answer(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).strip()
    found = final_answer(text)
    return text if found is None else found


def _kind(dataset: Dataset, column: str) -> type | None:
    return next((type(value) for _, (value,) in iterate_rows(dataset, [column]) if value is not None), None)


def _prepare_demonstrations(dataset: Dataset, column: str) -> Dataset:
    """Drop calculator marks, and make prompt and demonstration both text or both messages, as TRL takes them."""
    kinds = (_kind(dataset, "prompt"), _kind(dataset, column))
    if kinds[1] is str:
        dataset = _replace(dataset, column, lambda text: None if text is None else _CALCULATOR.sub("", text))
    if kinds == (list, str):
        return _replace(dataset, column, _assistant)
    if kinds == (str, list):
        return _replace(dataset, "prompt", lambda text: [{"role": "user", "content": text}])
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
