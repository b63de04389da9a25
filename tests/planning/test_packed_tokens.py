"""The tokens that `check` counts for a packed micro-batch are those that go through a layer while a recipe runs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from hpt_trl.planning.memory_settings import sizes_of
from hpt_trl.planning.rows import describe_rows
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.runs.building import build_trainer
from hpt_trl.runs.preparation import prepare_recipe
from tests.helpers.stage_runs import recipe_in

# No two prompts begin alike, but for what the template writes before them.
ROWS = [
    {"prompt": f"{letter} is a letter", "completion": "Yes.", "chosen": "Yes.", "rejected": "No.", "answer": "1"}
    for letter in "abcdefghijklmnopqrstuvwx"
]
GROUPS = {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}


@pytest.fixture
def shapes(monkeypatch):
    """Rows and columns of what a layer computes under a gradient."""
    seen, forward = set(), LlamaDecoderLayer.forward

    def noted(self, hidden_states, *arguments, **keywords):
        if torch.is_grad_enabled():
            seen.add(tuple(hidden_states.shape[:2]))
        return forward(self, hidden_states, *arguments, **keywords)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", noted)
    return seen


@pytest.mark.parametrize(
    ("stage", "settings", "is_packed", "less"),
    [
        ("sft", {}, True, lambda header, prompt: 4 + 3 * header),
        ("sft", {"neftune_noise_alpha": 5.0}, False, None),
        ("dpo", {}, True, lambda header, prompt: 8 + 4 * prompt),
        ("reward", {}, True, lambda header, prompt: 4 * prompt),
        ("grpo", GROUPS, True, lambda header, prompt: 8),
        ("grpo", GROUPS | {"padding_free": False}, False, None),
        ("ppo", {"num_generations": 1}, True, lambda header, prompt: 4 + 3 * header),
    ],
)
def test_as_many_as_are_counted(tiny_model_path, tmp_path, shapes, stage, settings, is_packed, less):
    """But for the last token of a row, whose hidden state no loss asks for, and for what rows share by their texts."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    if stage in ("grpo", "ppo"):
        # Each completion is as long as it may be.
        settings = settings | {"generation_kwargs": {"suppress_tokens": [tokenizer.eos_token_id]}}
    path = Path(recipe_in(tmp_path, tiny_model_path)(stage, **settings))
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = read_recipe(path, [])
    prepared = prepare_recipe(recipe)
    sizes = sizes_of(recipe, AutoConfig.from_pretrained(tiny_model_path), describe_rows(prepared)[1])
    build_trainer(prepared, []).train()
    answers = "chosen" if stage in ("dpo", "reward") else "completion"
    assert sizes.packed is is_packed
    if is_packed:
        encoded = [prepared.encoder.answered(row, answers) for row in prepared.splits.train]
        prompts = [one.ids[: one.context] for one in encoded]
        header = next(place for place, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
        assert shapes == {(1, sizes.batch.tokens - less(header, len(prompts[0])))}
    else:
        assert shapes == {(sizes.rows, sizes.batch.length)}
