"""Recipes: any keys and values, right ones that are changed, and right ones whose mappings and lists are drawn."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from hpt_trl.recipes.bundled import bundled_recipes
from hpt_trl.recipes.declared import declared_in_file
from hpt_trl.recipes.loading import LOADING
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.settings.keys import Key
from hpt_trl.settings.ranges import Rule
from hpt_trl.settings.values import is_kind, members
from tests.fuzz.strategies import NAMES, SCALARS, TEXTS, VALUES

RECIPES = [path for path in bundled_recipes() if "stage: pipeline" not in path.read_text()]
PIPELINES = [path for path in bundled_recipes() if "stage: pipeline" in path.read_text()]


@st.composite
def recipe_dictionaries(draw: Any) -> dict[str, Any]:
    """Keys of any stage with any values; mostly with a stage that there is."""
    values = draw(st.dictionaries(NAMES, VALUES, max_size=12))
    if draw(st.integers(0, 5)):
        values["stage"] = draw(st.sampled_from(sorted(STAGE_MODULES)))
    return values


@st.composite
def changed_recipes(draw: Any, paths: list[Path]) -> str:
    """The text of a bundled recipe with lines that are changed, doubled, dropped, or put in."""
    lines = draw(st.sampled_from(paths)).read_text().splitlines()
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
            inside = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            lines.insert(at, f"{inside}{draw(NAMES)}: {json.dumps(draw(VALUES))}")
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

# What lies beside the recipes that are drawn.
BESIDE = {
    "rows.jsonl": '{"prompt": "1 + 1?", "completion": "2", "answer": "2"}\n' * 4,
    "measured.yaml": "stage: evaluate\ndataset_name: rows.jsonl\nmodel_name_or_path: a/b\noutput_dir: measured\n",
}
_SMALL = st.one_of(st.integers(-2, 3), st.sampled_from([0.0, 0.5, 1e-9, 1e30, True, None, "two", "", "cos", [], {}]))
_NAMED_DATA = st.sampled_from(["rows.jsonl", "*.jsonl", "arithmetic", "a/b", ".", "nowhere.csv", "reasoning_gym:x", ""])
_COLUMNS = st.sampled_from(["prompt", "completion", "text", "answer", "messages", "", 3, None])


def _some(taken: dict[str, st.SearchStrategy[Any]], needed: dict[str, st.SearchStrategy[Any]] | None = None) -> Any:
    needed = needed or {}
    return st.fixed_dictionaries(needed, optional={key: one for key, one in taken.items() if key not in needed})


_SCHEDULE = ("num_cycles", "power", "timescale", "lr_end", "min_lr", "min_lr_rate", "decay_type", "num_decay_steps")
_ENTRY = {
    "split": st.sampled_from(["train", "train[:50%]", "test", "train[:2", "", "all"]),
    "test_split": st.sampled_from(["test", "train[50%:]", None]),
    "fraction": st.one_of(st.floats(0, 2), st.sampled_from([-1, 0, 1, "half", 10**400])),
    "columns": st.lists(_COLUMNS, max_size=3),
    "column_mapping": st.dictionaries(st.sampled_from(["prompt", "text", "x"]), _COLUMNS, max_size=3),
    "dataset_layout": st.sampled_from(["sharegpt", "alpaca", "messages", "nope", None]),
    "options": st.dictionaries(st.sampled_from(["size", "seed", "x"]), _SMALL, max_size=2),
    "name": st.sampled_from(["main", "", None]),
    "data_files": _NAMED_DATA,
}
# Mappings and lists as they should be, or nearly.
SHAPED: dict[str, st.SearchStrategy[Any]] = {
    "datasets": st.lists(st.one_of(_some(_ENTRY, {"path": st.one_of(_NAMED_DATA, st.lists(_NAMED_DATA))}), SCALARS)),
    "dataset_name": st.one_of(_NAMED_DATA, st.lists(_NAMED_DATA, max_size=3)),
    "column_mapping": _ENTRY["column_mapping"],
    "evaluations": st.lists(
        st.sampled_from(["measured.yaml", "evaluate/humaneval", "quickstart", "recipe.yaml", "rows.jsonl", ".", ""]),
        max_size=3,
    ),
    "env": st.dictionaries(st.sampled_from(["A", "WANDB_PROJECT", "HF_TOKEN", "", "A=B", "a\0"]), SCALARS, max_size=3),
    "lr_scheduler_kwargs": st.dictionaries(st.sampled_from(_SCHEDULE), _SMALL, max_size=3),
    "model_init_kwargs": st.dictionaries(st.sampled_from(sorted(LOADING)), _SMALL, max_size=3),
    "gradient_checkpointing_kwargs": st.dictionaries(
        st.sampled_from(["use_reentrant", "debug", "foo"]), _SMALL, max_size=2
    ),
    "report_to": st.lists(st.sampled_from(["none", "all", "wandb", "tensorboard", "nope"]), max_size=3),
    "reward_funcs": st.lists(
        st.sampled_from(["math_answer", "boxed_format", "os.path", "os.path.join", "nowhere.x", "__main__.x", "math"]),
        max_size=3,
    ),
    "reward_weights": st.lists(_SMALL, max_size=3),
    "lora_target_modules": st.lists(st.sampled_from(["q_proj", "all-linear", "[", ".*", "(?:", ""]), max_size=2),
    "optim_args": st.sampled_from(["a=1", "a", "a=1,b", "=", "a=b=c", "betas=(0.9"]),
}


def value_of(key: Key, rule: Rule | None) -> st.SearchStrategy[Any]:
    """Values of a key's type, the most in its range."""
    kinds: list[st.SearchStrategy[Any]] = []
    if names := key.choices or (rule.names if rule is not None else ()):
        kinds += [st.sampled_from(names)]
    for kind in members(key.hint):
        if kind is bool:
            kinds += [st.booleans()]
        elif kind in (int, float):
            least = 0 if rule is None or rule.least is None else rule.least
            least = int(least) if rule is None or rule.above is None else int(rule.above) + 1
            most = None if rule is None else rule.most or rule.below
            ends = (least, least + 3) if most is None else (min(least, int(most)), int(most))
            kinds += [st.integers(*ends) if kind is int else st.floats(*ends)]
        elif is_kind(kind, dict):
            kinds += [st.dictionaries(st.sampled_from(["a", "b", "size"]), _SMALL, max_size=2)]
        elif is_kind(kind, list):
            kinds += [st.lists(st.sampled_from(["a", "prompt", "math_answer"]), max_size=2)]
        elif kind is str and not names:
            kinds += [st.sampled_from(["steps", "a/b", "rows.jsonl", "outputs/x", "auto", "", "cuda"])]
        elif kind is type(None):
            kinds += [st.none()]
    return st.one_of(*kinds) if kinds else SCALARS


@st.composite
def shaped_recipes(draw: Any) -> dict[str, Any]:
    """What a recipe needs, a few mappings and lists as they should be or nearly, and keys with values of their type."""
    stage = draw(st.sampled_from(sorted(STAGE_MODULES)))
    values = {"stage": stage, "output_dir": "out", "model_name_or_path": "a/b", "dataset_name": "rows.jsonl"}
    declared = declared_in_file(stage)
    assert declared is not None
    for name in draw(st.lists(st.sampled_from(sorted({*SHAPED} & {*declared.keys, "env"})), max_size=4, unique=True)):
        values[name] = draw(SHAPED[name])
        if name == "datasets" and draw(st.booleans()):
            values.pop("dataset_name", None)
    for name in draw(st.lists(st.sampled_from(sorted(declared.keys.keys() - values.keys())), max_size=5, unique=True)):
        fits = draw(st.integers(0, 9))
        values[name] = draw(value_of(declared.keys[name], declared.rules.get(name)) if fits else SCALARS)
    return values


@st.composite
def planted_recipes(draw: Any) -> tuple[str, dict[int, str]]:
    """The text of a bundled recipe with lines that are made wrong, and the keys of these lines."""
    lines = draw(st.sampled_from(RECIPES)).read_text().splitlines()
    stage = next(line.split()[1] for line in lines if line.startswith("stage: "))
    declared = declared_in_file(stage)
    assert declared is not None
    # Values of one line.
    keys = {
        at: line.partition(":")[0]
        for at, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True))
        if line.partition(":")[0] in declared.keys and not line.startswith("stage:") and not following.startswith(" ")
    }
    wrong = {}
    for at in draw(st.sets(st.sampled_from(sorted(keys)), min_size=1, max_size=6)):
        key, kinds = declared.keys[keys[at]], members(declared.keys[keys[at]].hint)
        rule = declared.rules.get(key.name)
        takes = [one for one in (dict, list) if any(is_kind(kind, one) for kind in kinds)]
        values = ["[[1]]", *([] if dict in takes else ["{zz: 1}"])]
        if key.choices or (rule is not None and rule.names):
            values += ["zzz"]
        elif str not in kinds and not takes:
            values += ["three"]
        for bound, step in ((rule.least, -1), (rule.above, 0), (rule.below, 0), (rule.most, 1)) if rule else ():
            values += [] if bound is None or bound + step in rule.also else [str(bound + step)]
        if draw(st.booleans()):
            wrong[at] = f"{key.name}_zz"
            lines[at] = f"{wrong[at]}:{lines[at].partition(':')[2]}"
        else:
            wrong[at] = key.name
            lines[at] = f"{key.name}: {draw(st.sampled_from(values))}"
    return "\n".join(lines), {at + 1: key for at, key in wrong.items()}


_STAGE = {
    "recipe": st.sampled_from(["sft/stories-tiny", "grpo/stories-tiny", "measured.yaml", "pipeline/rlhf-tiny", "x", 3]),
    "stage": st.sampled_from([*sorted(STAGE_MODULES), "pipeline", "sfd", None]),
    "model": st.sampled_from(["from:a", "from:b", "from:1", "from:", "from:nope", "a/b", None, ["from:a"]]),
    "reward_model": st.sampled_from(["from:a", "from:c", ["from:b", "x/y"]]),
    "model_name_or_path": st.sampled_from(["from:b", "a/b"]),
    "output_dir": st.just("out"),
    "measure": st.sampled_from(["reward", "held_out.loss", 3, ""]),
    "max_steps": _SMALL,
    **{name: SHAPED[name] for name in ("datasets", "dataset_name", "env", "evaluations", "reward_funcs")},
}
_STAGES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "a-b", "1", "true", "null", "x y", "é", "a" * 300, ""]),
    st.one_of(
        _some(_STAGE, {"recipe": _STAGE["recipe"]}),
        st.builds(dict.__or__, _some(_STAGE), st.dictionaries(NAMES, VALUES, max_size=3)),
        SCALARS,
    ),
    max_size=4,
)


@st.composite
def pipelines(draw: Any) -> dict[str, Any]:
    """A pipeline of a few stages, most of which name a recipe that there is, and each other."""
    values = {"stage": "pipeline", "output_dir": "out", "stages": draw(st.one_of(_STAGES, _STAGES, VALUES))}
    taken = {
        "output_dir": st.sampled_from(["out", "", "/proc/x", "x" * 300, "rows.jsonl/x", None, 3]),
        "num_processes": _SMALL,
        "accelerate_config": st.sampled_from(["cpu", "fsdp2", "nope", "rows.jsonl", ".", "x" * 300, None]),
        "overwrite": _SMALL,
        "env": SHAPED["env"],
    }
    return values | draw(_some(taken)) | draw(st.dictionaries(NAMES, VALUES, max_size=1))
