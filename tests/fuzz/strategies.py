"""Recipes, rows and words: right ones, and what becomes of them by changes that hypothesis draws."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from hpt_trl.recipes.bundled import bundled_recipes
from hpt_trl.recipes.declared import KEYS_FILE
from hpt_trl.recipes.stages import STAGE_MODULES

KEYS = sorted(json.loads(KEYS_FILE.read_text())["keys"])
RECIPES = [path for path in bundled_recipes() if "stage: pipeline" not in path.read_text()]
_FOREIGN = [
    *(
        "torch_dtype",
        "warmup_ratio",
        "dataset_mixture",
        "dataset_mixer",
        "dataset_splits",
        "chat_template",
        "benchmarks",
    ),
    *("max_seq_length", "max_prompt_length", "overwrite_output_dir", "callbacks", "vllm_device", "wandb_project"),
    *("kl_coef", "group_by_length", "dataset_prompt_column", "code_language", "cosine_max_len", "pass_rate_min"),
]
_ODD = [
    "",
    "\0",
    "\ud800",
    "\u2028",
    "é",
    "\U0001d538",
    "null",
    "~",
    "true",
    "no",
    "1e400",
    "-1",
    "0x10",
    "nan",
    ".inf",
    "{",
    "[[",
]
_PATHS = ["/dev/null", "/proc/x", "~nobody/x", "x" * 300, "a/b/c", ".", "..", "/", "outputs/x", "x.jsonl", "*.jsonl"]
TEXTS = st.one_of(st.sampled_from([*_ODD, *_PATHS]), st.text(max_size=30))
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-(10**40), 10**40), st.floats(allow_nan=True, allow_infinity=True), st.just(10**400)
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
NAMES = st.one_of(st.sampled_from(KEYS), st.sampled_from(_FOREIGN), st.text(max_size=12))


@st.composite
def recipe_dictionaries(draw: Any) -> dict[str, Any]:
    """Keys of any stage with any values; mostly with a stage that there is."""
    values = draw(st.dictionaries(NAMES, VALUES, max_size=12))
    if draw(st.integers(0, 5)):
        values["stage"] = draw(st.sampled_from(sorted(STAGE_MODULES)))
    return values


@st.composite
def changed_recipes(draw: Any) -> str:
    """The text of a bundled recipe with lines that are changed, doubled, dropped, or put in."""
    lines = draw(st.sampled_from(RECIPES)).read_text().splitlines()
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(lines) - 1))
        key = lines[at].partition(":")[0]
        kind = draw(st.integers(0, 6))
        if kind == 0:
            lines[at] = f"{key}: {json.dumps(draw(VALUES))}"
        elif kind == 1:
            lines[at] = f"{key}: {draw(TEXTS)}"
        elif kind == 2:
            lines.insert(at, lines[at])
        elif kind == 3:
            lines.insert(at, f"{draw(NAMES)}: {json.dumps(draw(VALUES))}")
        elif kind == 4:
            place = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:place] + draw(st.text(max_size=5)) + lines[at][place + 1 :]
        elif kind == 5:
            lines[at] = f"{key}: " + draw(st.sampled_from("[{&*!")) * draw(st.sampled_from([1, 3, 200, 5000]))
        elif len(lines) > 1:
            del lines[at]
    return "\n".join(lines)


RAW = st.one_of(
    st.text(max_size=400).map(str.encode),
    st.binary(max_size=400).map(bytes),
    st.text(alphabet="ab:&*!-?[]{}|>'\"%@`#, \n\t01<~", max_size=120).map(str.encode),
    st.builds(
        lambda text, times: (text * times).encode(),
        st.sampled_from(["- ", "? ", "[", "a: ", "\t", "x", "- - "]),
        st.integers(1, 20_000),
    ),
)

# Rows.

_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
ROWS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": "1 + 1?", "completion": "2", "answer": "2"},
    "messages": {
        "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}],
        "completion": [{"role": "assistant", "content": "2"}],
    },
    "conversation": {
        "messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    },
    "calls": {
        "messages": [
            {"role": "user", "content": "1?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        ],
    },
    "comparisons": {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "margin": 0.5},
    "dialogues": {"chosen": "\n\nHuman: 1?\n\nAssistant: 1", "rejected": "\n\nHuman: 1?\n\nAssistant: 2"},
    "documents": {"text": "One and one is two."},
    "sharegpt": {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "1"}]},
    "alpaca": {"instruction": "Add.", "input": "1 + 1", "output": "2"},
}
LAYOUTS = {
    **dict.fromkeys(("prompts", "messages"), ("prompts", "demonstrations")),
    **dict.fromkeys(("conversation", "calls", "sharegpt", "alpaca"), ("demonstrations",)),
    **dict.fromkeys(("comparisons", "dialogues"), ("comparisons",)),
    "documents": ("documents",),
}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@st.composite
def changed_rows(draw: Any, row: dict[str, Any]) -> Any:
    """A row in which a value is another, is gone, or is wrapped."""
    row = copy.deepcopy(row)
    place = draw(st.sampled_from(_places(row)))
    new = draw(st.one_of(VALUES, st.sampled_from([_nested(300), _nested(900), "x" * 10_000, [], {}, "\ud800"])))
    if not place:
        return new
    holder: Any = row
    for key in place[:-1]:
        holder = holder[key]
    if draw(st.integers(0, 3)) == 0 and isinstance(holder, dict):
        del holder[place[-1]]
        holder[draw(st.sampled_from(["role", "row", "_row", "text", "x", "content"]))] = new
    else:
        holder[place[-1]] = new
    return row


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


WORDS = st.lists(
    st.one_of(
        st.sampled_from(KEYS).map("--{}".format),
        st.builds("--{}={}".format, st.sampled_from(KEYS), TEXTS),
        st.builds("--{}={}".format, NAMES, TEXTS),
        st.sampled_from(
            ["--help", "-h", "--json", "--accelerate", "--num_processes", "--launcher", "ray", "--", "-", "--x.y", "="]
        ),
        st.sampled_from(
            ["cpu", "fsdp2", "nope", "--num_machines", "--machine_rank", "--max_failures", "--num_workers"]
        ),
        TEXTS,
        NUMBERS.map(str),
    ),
    max_size=7,
)
