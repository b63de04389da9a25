"""Generated datasets: the built-in arithmetic task and any task of reasoning-gym.

A newcomer needs data that is there at once, can be learnt in minutes on a CPU and can be checked exactly. The
arithmetic task is that: SmolLM2-135M-Instruct almost never answers it in the form that is graded, so that reinforcement
alone has nothing to start from, and its demonstrations show that form.
"""

import difflib
import inspect
import json
import logging
import random
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset

from hpt_trl.errors import UserError

logger = logging.getLogger(__name__)

REASONING_GYM = "reasoning_gym:"
_DEFAULT_TEST_SIZE = 200


@dataclass(frozen=True)
class ArithmeticOptions:
    """What `dataset_options` may hold for `arithmetic`.

    `terms` is the least and the greatest count of numbers in a problem, `largest` the greatest number, `operators`
    some of `+` and `-` (differences take SmolLM2-135M about twice as many steps to learn as sums). No running total
    falls below zero.
    """

    size: int = 1000
    test_size: int = _DEFAULT_TEST_SIZE
    terms: tuple[int, int] = (2, 4)
    largest: int = 20
    operators: tuple[str, ...] = ("+",)
    seed: int = 0


def arithmetic(options: dict[str, Any], *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Build the arithmetic task: columns prompt, completion (the demonstration) and answer, all strings.

    A prompt is `Calculate 17 + 5 + 12.`; its demonstration keeps a running total from left to right, one line per
    operation, and ends with the line `#### 34`. No held-out problem is a reordering of a training problem.

    Args:
        options: fields of `ArithmeticOptions`; `seed` in it comes before the argument.

    Returns:
        The training rows and the held-out rows (None for `test_size: 0`).

    Raises:
        UserError: an unknown option, a value out of range, or more rows asked for than there are problems.
    """
    checked = _arithmetic_options({"seed": seed, **options})
    generator = random.Random(checked.seed)
    wanted = checked.size + checked.test_size
    seen: set[tuple[int, ...]] = set()
    rows: list[dict[str, str]] = []
    misses = 0
    while len(rows) < wanted:
        terms = _draw_problem(generator, checked)
        problem = tuple(sorted(terms))
        if not terms or problem in seen:
            misses += 1
            if misses > 50 * wanted + 1000:
                raise UserError(
                    f"dataset_options of arithmetic: {wanted} rows are asked for (size + test_size), but there are few "
                    f"more than {len(rows)} different problems. Lower `size`, or raise `largest` or `terms`."
                )
            continue
        seen.add(problem)
        rows.append(_arithmetic_row(terms))
    # Short problems run out first: without a shuffle the held-out rows would be easier than the training rows.
    generator.shuffle(rows)
    held_out = rows[: checked.test_size]
    return Dataset.from_list(rows[checked.test_size :]), Dataset.from_list(held_out) if held_out else None


def _draw_problem(generator: random.Random, options: ArithmeticOptions) -> list[int]:
    """Draw the signed terms of one problem; nothing where a difference would have to start from 0."""
    terms = [generator.randint(1, options.largest)]
    for _ in range(generator.randint(*options.terms) - 1):
        if generator.choice(options.operators) == "+":
            terms.append(generator.randint(1, options.largest))
        elif sum(terms) > 0:
            terms.append(-generator.randint(1, min(options.largest, sum(terms))))
        else:
            return []
    return terms


def _arithmetic_row(terms: list[int]) -> dict[str, str]:
    total, expression, lines = terms[0], str(terms[0]), []
    for term in terms[1:]:
        step = f"{'-' if term < 0 else '+'} {abs(term)}"
        lines.append(f"{total} {step} = {total + term}")
        expression += f" {step}"
        total += term
    return {
        "prompt": f"Calculate {expression}.",
        "completion": "\n".join([*lines, f"#### {total}"]),
        "answer": str(total),
    }


def _arithmetic_options(options: dict[str, Any]) -> ArithmeticOptions:
    _refuse_unknown("arithmetic", options, [field.name for field in fields(ArithmeticOptions)])

    def whole(key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(
                f"dataset_options of arithmetic: `{key}: {value}` must be a whole number of at least {least}."
            )
        return value

    checked = dict(options)
    for key, least in (("size", 1), ("test_size", 0), ("largest", 2), ("seed", 0)):
        if key in checked:
            whole(key, checked[key], least)
    if "terms" in checked:
        terms = checked["terms"]
        if not isinstance(terms, (list, tuple)) or len(terms) != 2:
            raise UserError(
                f"dataset_options of arithmetic: `terms: {terms}` must be the least and greatest count, e.g. [2, 4]."
            )
        low, high = whole("terms", terms[0], 2), whole("terms", terms[1], 2)
        if low > high:
            raise UserError(f"dataset_options of arithmetic: `terms: {terms}` must not fall; write [{high}, {low}].")
        checked["terms"] = (low, high)
    if "operators" in checked:
        operators = checked["operators"]
        if not isinstance(operators, (list, tuple, str)) or not operators or set(operators) - {"+", "-"}:
            raise UserError(f'dataset_options of arithmetic: `operators: {operators}` must be some of ["+", "-"].')
        checked["operators"] = tuple(dict.fromkeys(operators))
    return ArithmeticOptions(**checked)


def prompts(options: dict[str, Any], *, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """Build a dataset of the prompts that the recipe itself lists, column prompt.

    Args:
        options: `prompts`, a list of texts; `size`, the training rows, which go round the list (by default one each);
            `test_prompts`, the held-out rows (by default the same prompts).
        seed: nothing is drawn.

    Raises:
        UserError: an unknown option, no prompts, or something else than texts.
    """
    source = "prompts"
    _refuse_unknown(source, options, ["prompts", "size", "test_prompts"])
    given: Any = options.get("prompts")
    for key, texts in (("prompts", given), ("test_prompts", options.get("test_prompts", given))):
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'dataset_options of {source}: `{key}: {texts}` must be a list of texts, e.g. ["I feel so"].'
            )
    size = options.get("size", len(given))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"dataset_options of {source}: `size: {size}` must be a whole number of at least 1.")
    train = [{"prompt": given[row % len(given)]} for row in range(size)]
    held_out = [{"prompt": text} for text in options.get("test_prompts", given)]
    return Dataset.from_list(train), Dataset.from_list(held_out)


def reasoning_gym(task: str, options: dict[str, Any], *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Build a task of reasoning-gym: columns prompt, completion, answer and metadata (JSON text).

    reasoning-gym gives answers, not worked solutions, so the demonstration is the one line `#### answer`; it is None
    where a task has no single answer. `metadata` holds the task, its options and the whole entry, which is what the
    reward `reasoning_gym` scores with.

    Args:
        options: the task's own options, beside `size` (1000), `test_size` (200) and `seed`. The two sizes are of one
            draw without repeated questions.

    Returns:
        The training rows and the held-out rows (None for `test_size: 0`).

    Raises:
        UserError: reasoning-gym is not installed, an unknown task, or an option that the task refuses.
    """
    registry = _reasoning_gym_registry()
    if task not in registry:
        near = difflib.get_close_matches(task, registry, n=3) or sorted(registry)[:5]
        raise UserError(
            f"dataset_name: reasoning-gym has no task `{task}`. Nearest: {', '.join(near)}. "
            'All: python -c "from reasoning_gym.factory import DATASETS; print(*DATASETS)"'
        )
    own = dict(options)
    sizes = {"size": 1000, "test_size": _DEFAULT_TEST_SIZE, "seed": seed}
    for key, least in (("size", 1), ("test_size", 0), ("seed", 0)):
        value = own.pop(key, sizes[key])
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(
                f"dataset_options of {REASONING_GYM}{task}: `{key}: {value}` must be a whole number from {least}."
            )
        sizes[key] = value
    known = [name for name in inspect.signature(registry[task][1]).parameters if name not in sizes]
    _refuse_unknown(REASONING_GYM + task, own, known)

    wanted = sizes["size"] + sizes["test_size"]
    entries: dict[str, dict[str, str | None]] = {}
    for entry in _create(task, own, size=wanted, seed=sizes["seed"]):
        answer = None if entry["answer"] is None else str(entry["answer"])
        entries.setdefault(
            entry["question"],
            {
                "prompt": entry["question"],
                "completion": None if answer is None else f"#### {answer}",
                "answer": answer,
                "metadata": json.dumps({"task": task, "options": own, "entry": _pack(entry)}),
            },
        )
    rows = list(entries.values())
    if len(rows) <= sizes["test_size"]:
        raise UserError(
            f"dataset_options of {REASONING_GYM}{task}: only {len(rows)} different questions came out of {wanted}; "
            f"lower `test_size` (now {sizes['test_size']}) or make the task larger by its options."
        )
    if len(rows) < wanted:
        logger.warning("%s%s repeats questions: %d of %d rows are different.", REASONING_GYM, task, len(rows), wanted)
    held_out = rows[: sizes["test_size"]]
    return Dataset.from_list(rows[sizes["test_size"] :]), Dataset.from_list(held_out) if held_out else None


def score_reasoning_gym(text: str, metadata: str, scorers: dict[str, Any]) -> float:
    """Score `text` with the scorer of the task that `metadata` (the column of `reasoning_gym`) came from.

    Args:
        scorers: datasets by task and options, filled here, so that a batch builds each one only once.

    Raises:
        UserError: reasoning-gym is not installed.
    """
    record = json.loads(metadata)
    key = json.dumps([record["task"], record["options"]], sort_keys=True)
    if key not in scorers:
        _reasoning_gym_registry()
        scorers[key] = _create(record["task"], record["options"], size=1, seed=0)
    return float(scorers[key].score_answer(text, _unpack(record["entry"])))


def _reasoning_gym_registry() -> dict[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise UserError("reasoning-gym is not installed. Run: pip install 'reasoning-gym>=0.1.25'") from error
    return DATASETS


def _create(task: str, options: dict[str, Any], *, size: int, seed: int) -> Any:
    from reasoning_gym import create_dataset

    try:
        return create_dataset(task, size=size, seed=seed, **options)
    # The tasks check their options with bare assertions.
    except (AssertionError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"dataset_options of {REASONING_GYM}{task}: {options} is refused: {error}") from error


def _refuse_unknown(source: str, options: dict[str, Any], known: list[str]) -> None:
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise UserError(f"dataset_options of {source}: unknown option `{key}`; {hint}Known: {', '.join(known)}.")


def _pack(value: Any) -> Any:
    """Turn `value` into JSON values; a scorer may tell a tuple or a set from a list, so those are tagged."""
    match value:
        case tuple():
            return {"__tuple__": [_pack(item) for item in value]}
        case set() | frozenset():
            return {"__set__": [_pack(item) for item in sorted(value, key=repr)]}
        case list():
            return [_pack(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _pack(item) for key, item in value.items()}
        case dict():
            return {"__items__": [[_pack(key), _pack(item)] for key, item in value.items()]}
    return value


def _unpack(value: Any) -> Any:
    match value:
        case {"__tuple__": items}:
            return tuple(_unpack(item) for item in items)
        case {"__set__": items}:
            return {_unpack(item) for item in items}
        case {"__items__": items}:
            return {_unpack(key): _unpack(item) for key, item in items}
        case dict():
            return {key: _unpack(item) for key, item in value.items()}
        case list():
            return [_unpack(item) for item in value]
    return value
