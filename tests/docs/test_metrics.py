"""Every metric that a stage logs is explained on its page, or on the page of what it shares with others."""

import json
import re
from pathlib import Path

import pytest

from hpt_trl.cli import main
from hpt_trl.recipes.stages import STAGE_MODULES
from tests.helpers.documents import tokens
from tests.helpers.processes import ROOT
from tests.helpers.reader import recipe_of, write_recipe

SHARED = "outputs.md"
DRAWN = {"reward_funcs": ["tests.helpers.stage_runs.remainder"], "eval_samples": 2}
HELD_OUT = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
SMALL_LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
PRETRAIN = {
    "model_name_or_path": None,
    "model_config": {**SMALL_LLAMA, "num_attention_heads": 2},
    "tokenizer_vocab_size": 300,
    "dataset_name": "stories:documents",
    "dataset_options": {"size": 300, "test_size": 30},
    "test_split_size": None,
    "max_length": 64,
}
WEIGHED = {"dataset_layout": "demonstrations", "n_future_tokens": 2, "reference_cache_dir": "caches/mtp"}
PAGES_OF_THEIR_OWN = {"model_name_or_path": "tiny-vlm", "dataset_name": "my_questions.jsonl", "test_split_size": None}
SEARCHING = {"environment": "vrag", "search_index": "indexes/mine", "reward_funcs": ["answer_match"]}

# Run -> its stage, the pages that explain it, and keys over the stage's small recipe.
RUNS = {
    "pretrain": ("pretrain", ("pretrain.md",), PRETRAIN),
    "sft": ("sft", ("sft.md",), {}),
    "ref_tuning": ("ref_tuning", ("ref_tuning.md",), {}),
    "reward": ("reward", ("reward.md",), {}),
    "dpo": ("dpo", ("dpo.md",), {}),
    "critic": ("critic", ("critic.md",), {}),
    "rho1": ("rho1", ("rho1.md",), {}),
    "mtp": ("mtp", ("mtp.md",), WEIGHED),
    "mtp, weighted": ("mtp", ("mtp.md",), WEIGHED | {"weighting": "random_matched"}),
    "mtp, selected": (
        "mtp",
        ("mtp.md",),
        WEIGHED | {"weighting": "rho1", "reference_model_name_or_path": "reference"},
    ),
    "grpo": ("grpo", ("grpo.md",), DRAWN | HELD_OUT | {"beta": 0.1}),
    "ppo": ("ppo", ("ppo.md", "grpo.md"), DRAWN),
    "hpt": ("hpt", ("hybrid.md", "grpo.md"), {}),
    "hpt, off-policy": ("hpt", ("hybrid.md", "grpo.md"), {"unify_strategy": "soft", "soft_table": "on_off"}),
    "hpt, in vrag": (
        "hpt",
        ("hybrid.md", "grpo.md", "vrag.md"),
        PAGES_OF_THEIR_OWN | SEARCHING | {"max_completion_length": 16},
    ),
}
# They train nothing, so they log nothing.
SILENT = {"evaluate", "index"}


def explained(page: str) -> list[re.Pattern[str]]:
    """The metrics in the first columns of a page's tables of metrics; `<name>` and `*` stand for any."""
    found, table, cell = [], False, 0
    for token in tokens(ROOT / "docs" / page):
        if token.type == "tr_open":
            cell = 0
        elif token.type in ("th_open", "td_open"):
            cell += 1
        elif token.type == "inline" and cell == 1:
            if token.content.startswith(("Metric", "In metrics.jsonl")):
                table = True
            elif table:
                found += [part.content for part in token.children or [] if part.type == "code_inline"]
        elif token.type == "table_close":
            table, cell = False, 0
    assert found, f"docs/{page} has no table of metrics"
    return [re.compile(re.sub(r"<\w+>|\\\*", ".+", re.escape(name))) for name in found]


def test_every_stage_is_run():
    assert {stage for stage, _, _ in RUNS.values()} == set(STAGE_MODULES) - SILENT


@pytest.mark.parametrize("run", RUNS)
def test_metrics_are_explained(run, reader):
    stage, pages, changes = RUNS[run]
    write_recipe(Path("run.yaml"), recipe_of(stage, output_dir="outputs/run", **changes))
    # 2: nothing was trained, as where no prompt had a contrast; what is logged is the same.
    assert main(["run", "run.yaml"]) in (0, 2)
    lines = [json.loads(line) for line in Path("outputs/run/metrics.jsonl").read_text().splitlines()]
    logged = {key for line in lines for key in line}
    assert {"loss", "learning_rate", "step"} <= logged
    known = [pattern for page in (*pages, SHARED) for pattern in explained(page) if pattern.pattern != "eval_.+"]
    missing = {name for name in logged if not any(pattern.fullmatch(name.removeprefix("eval_")) for pattern in known)}
    assert not missing, f"explain them on {' or '.join(pages or (SHARED,))}"
