"""Every recipe of README and docs/ goes through `hpt-trl check`'s code, parts of one on a recipe that has the rest.

A block with `stage:` is a recipe. Any other is a part, and an HTML comment before it, `<!-- test: keys of NAME -->`,
names the recipe of `BASES` that it is put on. A block with neither fails.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hpt_trl.errors import UserError
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.pipeline.record import plan_steps, read_record
from hpt_trl.planning.check import check
from hpt_trl.recipes.resolving import read_recipe, resolve_recipe
from hpt_trl.settings.file import read_recipe_file
from tests.helpers.documents import Block, blocks
from tests.helpers.reader import recipe_of, write_recipe

EPISODES = {"model_name_or_path": "tiny-vlm", "dataset_name": "my_questions.jsonl", "reward_funcs": ["answer_match"]}
SEARCH = {"environment": "vrag", "search_index": "indexes/mine", "test_split_size": 4}
BASES = {
    "sft": recipe_of("sft"),
    "sft without held-out rows": recipe_of("sft", test_split_size=None),
    "sft from a mixture": recipe_of("sft", dataset_name=None, column_mapping=None, test_split_size=None),
    "sft with LoRA": recipe_of("sft", use_peft=True),
    "sft pushed": recipe_of("sft"),
    "hpt": recipe_of("hpt"),
    "hpt on programs": recipe_of("hpt", dataset_name="problems.jsonl", test_split_size=2),
    "sft on pages": recipe_of("sft", model_name_or_path="tiny-vlm", test_split_size=None),
    "hpt in vrag": recipe_of("hpt", **EPISODES, **SEARCH),
    "hpt with own rewards": recipe_of("hpt"),
    "grpo with a reward model": recipe_of("grpo"),
    "grpo with vLLM": recipe_of("grpo"),
}
LARGEST = 8


def small(values: dict[str, Any]) -> dict[str, Any]:
    """Generated data of a few rows."""
    options = values.get("dataset_options")
    if options:
        sizes = {key: min(options[key], LARGEST) for key in ("size", "test_size") if key in options}
        values = values | {"dataset_options": options | sizes}
    return values


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_recipes_are_checked(block: Block, reader, request, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_API_KEY", "none")
    if "push" in (block.note or ""):
        request.getfixturevalue("hub")
    path = Path("of_the_page.yaml")
    path.write_text(block.text)
    values = read_recipe_file(path).values
    if values.get("stage") == "pipeline":
        plan = read_plan(path, [])
        for step in plan_steps(plan, read_record(plan.output_dir)):
            resolve_recipe(plan.sources(step.stage, step.words), None, plan.profile)
        return
    if "stage" not in values:
        base = re.fullmatch(r"keys of (.+)", block.note or "")
        assert base and base.group(1) in BASES, f"{block}: a comment before it names one of {sorted(BASES)}"
        write_recipe(path, BASES[base.group(1)] | small(values))
        if "vLLM" in base.group(1) and find_spec("vllm") is None:
            with pytest.raises(UserError, match=r"pip install 'hpt-trl\[vllm\]'"):
                read_recipe(path, [])
            return
    if "evaluations" in values:
        # Those of the bundled ones are on the Hub.
        read_recipe(path, [])
        return
    check(str(path), [])
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block):
    assert json.loads(block.text)
