"""The card, and what of recipe and results is for others."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hpt_trl.errors import UserError
from hpt_trl.hub.card import card_for, is_edited, write_card
from hpt_trl.hub.citations import method_of
from hpt_trl.hub.figures import measures_of
from hpt_trl.hub.origin import Origin, note_push, origin_of
from hpt_trl.hub.public import public_recipe, public_results
from hpt_trl.hub.run_folder import MARK, read_run_folder
from hpt_trl.methods.hybrid.config import HybridPostConfig
from hpt_trl.methods.mtp.config import WEIGHTINGS
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.settings.file import RecipeLoader
from hpt_trl.token_scores.weighting_config import VALUED

RESULTS = {
    "recipe": "mine",
    "stage": "sft",
    "model": "/home/somebody/base",
    "before": {"accuracy": 0.25, "accuracy_interval": [0.1, 0.5], "completions": [{"prompt": "secret"}], "samples": 8},
    "after": {
        "accuracy": 0.5,
        "accuracy_interval": [0.25, 0.75],
        "held_out": {"loss": 2.0},
        "held_out_errors": {"loss": 0.5},
        "evaluations": {"gsm8k": {"pass@1": 0.5, "pass@1_interval": [0.4, 0.6], "rows": 4, "success_reward": "math"}},
    },
    "overlap": {"rows": 2, "of": 8, "share": 0.25},
    "steps": 3,
    "wall_time_s": {"total": 3725.0, "train": 65.0},
    "versions": {"python": "3.11"},
    "hardware": {"device": "NVIDIA H100", "processes": 2, "peak_memory_gib": 1.5},
    "command": "hpt-trl run /home/somebody/mine.yaml",
}
RECIPE = {
    "stage": "sft",
    "model_name_or_path": "/home/somebody/base",
    "dataset_name": "/home/somebody/rows.jsonl",
    "judge_url": "http://10.0.0.5:8000/v1",
    "judge_api_key_env": "JUDGE_KEY",
    "reward_options": {"password": "hunter2", "path": "~/private/list.txt"},
    "learning_rate": 1e-5,
    "output_dir": "/home/somebody/out",
}


@pytest.fixture
def run_of(tmp_path):
    """Writes a run's folder and reads it."""

    def write(name: str = "run", results=RESULTS, **recipe) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        values = {key: value for key, value in (RECIPE | recipe).items() if value is not None}
        (folder / "recipe.yaml").write_text(f"{MARK}\n{yaml.safe_dump(values)}")
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / "model.safetensors").write_bytes(b"weights")
        return folder

    return write


def test_nothing_of_the_machine_is_told(run_of):
    run = read_run_folder(run_of())
    told = public_recipe(run, "me/x") + json.dumps(public_results(run)) + card_for(run, "me/x", None, ask=False)
    for secret in ("somebody", "hunter2", "10.0.0.5", "private", "secret", "mine.yaml"):
        assert secret not in told, secret
    assert yaml.safe_load(public_recipe(run, "me/x"))["dataset_name"] == "rows.jsonl"
    assert public_results(run)["after"]["accuracy"] == 0.5 and "completions" not in public_results(run)["before"]


def test_the_card_says_what_was_measured(run_of):
    card = ModelCard(card_for(read_run_folder(run_of()), "me/x", None, ask=False))
    assert "| accuracy | 25.0% (10.0% to 50.0%) | 50.0% (25.0% to 75.0%) |" in card.text
    assert "| held-out loss | — | 2 (1.02 to 2.98) |" in card.text and "| pass@1 on gsm8k | — | 50.0%" in card.text
    assert "2 of the 8 held-out rows were trained on as well" in card.text
    assert (
        "NVIDIA H100, 2 processes, at most 1.5 GiB" in card.text
        and "1 h 02 min, of which training 1 min 05 s" in card.text
    )
    found = [(one.metric_name, one.dataset_type, one.metric_value) for one in card.data.eval_results]
    assert ("accuracy before training", "rows.jsonl", 0.25) in found
    assert ("pass@1 after training", "gsm8k", 0.5) in found
    assert card.data.license is None and card.data.base_model is None


def test_a_card_that_was_edited_stays(run_of):
    folder = run_of()
    file = write_card(read_run_folder(folder), "run")
    assert not is_edited(file.read_text())
    assert 'from_pretrained("me/x"' in card_for(read_run_folder(folder), "me/x", None, ask=False)
    edited = file.read_text().replace("# run", "# Mine")
    file.write_text(edited)
    assert card_for(read_run_folder(folder), "me/x", None, ask=False) == edited
    file.write_text(edited.replace("library_name", "][", 1))
    with pytest.raises(UserError, match="its metadata cannot be read"):
        card_for(read_run_folder(folder), "me/x", None, ask=False)
    # TRL's and PEFT's are replaced.
    file.write_text("# Model Card for run\nThis model was trained with TRL.\n")
    assert "# x" in card_for(read_run_folder(folder), "me/x", None, ask=False)


def test_the_base_is_the_nearest_model_on_the_hub(run_of):
    first = run_of("first", stage="sft", model_name_or_path="owner/root", model_revision="v1")
    second = run_of("second", stage="dpo", model_name_or_path=str(first))
    third = read_run_folder(run_of("third", stage="ppo", model_name_or_path=str(second)))
    assert third.base is None and third.root == Origin("owner/root", "v1") and third.chain == ("sft", "dpo")
    card = ModelCard(card_for(third, "me/x", None, ask=False))
    assert card.data.base_model == "owner/root" and "over the stages sft, dpo in between" in card.text
    circle = run_of("circle", model_name_or_path=None)
    run_of("circle", model_name_or_path=str(circle))
    assert read_run_folder(circle).root is None
    new = read_run_folder(
        run_of("new", stage="pretrain", model_name_or_path=None, results=RESULTS | {"model": "a new llama"})
    )
    assert "made from random weights (a new llama)" in card_for(new, "me/x", None, ask=False)


def test_where_a_folder_came_from_is_never_guessed(tmp_path, run_of):
    commit = "0123456789" * 4
    snapshot = tmp_path / "hub" / "models--owner--some-model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    assert origin_of(str(snapshot)) == Origin("owner/some-model", commit)
    assert origin_of("smollm2-135m") is None and origin_of("gpt2", "main") == Origin("gpt2", "main")
    folder = run_of()
    assert origin_of(str(folder)) is None
    note_push(folder, "me/x", None, commit)
    assert origin_of(str(folder)) == Origin("me/x", commit)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert origin_of(str(folder)) is None
    (folder / "hub.json").write_text("[")
    assert origin_of(str(folder)) is None


def test_every_stage_that_trains_has_a_name():
    for stage in STAGE_MODULES.keys() - {"evaluate", "index"}:
        name, papers = method_of({"stage": stage})
        assert not name.startswith("`stage") and all(paper.bibtex.count("{{") == 1 for paper in papers)
        assert all(paper.bibtex.count("&") == paper.bibtex.count(r"\&") for paper in papers)
    papers = method_of({"stage": "grpo", "environment": "vrag", "use_peft": True, "load_in_4bit": True})[1]
    assert [paper.arxiv for paper in papers] == ["2402.03300", "2505.22019", "2305.14314", "2106.09685"]


GRPO, HPT, LUFFY, SRFT, CHORD = "2402.03300", "2509.04419", "2504.14945", "2506.19767", "2508.11408"
MTP, RHO1, GAE = "2404.19737", "2404.07965", "1506.02438"


@pytest.mark.parametrize(
    ("settings", "begins", "papers"),
    [
        ("", "Hybrid Post-Training: ", [HPT]),
        ("unify_strategy: switch, switch_gate: 2", "Hybrid Post-Training: ", [HPT]),
        ("unify_strategy: no, offline_loss_type: srft", "Group Relative", [GRPO]),
        ("switch_gate: -1", "Group Relative", [GRPO]),
        ("switch_gate: 4, num_generations: 4", "Supervised fine-tuning", []),
        ("switch_gate: 8", "Supervised fine-tuning", []),
        ("switch_gate: 7", "Hybrid Post-Training: ", [HPT]),
        ("switch_gate: -1, switch_gate_off: 0", "Hybrid Post-Training: ", [HPT, LUFFY]),
        ("switch_gate: 0, switch_gate_off: 2", "Hybrid Post-Training: ", [HPT, LUFFY]),
        ("offline_loss_type: off_policy", "Hybrid Post-Training: ", [HPT, LUFFY]),
        ("offline_loss_type: srft", "Hybrid Post-Training: ", [HPT, SRFT]),
        ("offline_loss_type: chord", "Hybrid Post-Training: ", [HPT, CHORD]),
        ("unify_strategy: soft", "Hybrid Post-Training: ", [HPT, LUFFY]),
        ("unify_strategy: soft, soft_table: type_2", "Hybrid Post-Training: ", [HPT]),
        ("unify_strategy: soft, soft_table: {0: [0, 0, 1], 1: [1, 0, 0]}", "Hybrid Post-Training: ", [HPT]),
        ("unify_strategy: soft, soft_table: {0: [0, 0.5, 1], 1: [1, 0, 0]}", "Hybrid Post-Training: ", [HPT, LUFFY]),
        ("unify_strategy: soft, soft_table: '{\"0\": [0, 1, 0]}'", "Hybrid Post-Training: ", [HPT, LUFFY]),
        ("unify_strategy: soft, soft_table: on_off", "LUFFY: ", [LUFFY]),
        ("unify_strategy: soft, soft_table: on_sft", "Reinforcement learning and supervised", [GRPO]),
        ("unify_strategy: soft, soft_table: on_sft, offline_loss_type: off_policy", "LUFFY: ", [LUFFY]),
        ("unify_strategy: soft, soft_table: on_sft, offline_loss_type: srft", "SRFT: ", [SRFT]),
        ("unify_strategy: soft, soft_table: on_sft, offline_loss_type: chord", "CHORD: ", [CHORD]),
    ],
)
def test_the_settings_of_hpt_say_which_method_it_is(settings, begins, papers):
    recipe = yaml.load(f"{{stage: hpt, {settings}}}", RecipeLoader)
    config = HybridPostConfig(output_dir="-", use_cpu=True, **{key: recipe[key] for key in recipe if key != "stage"})
    # Its defaults, written out, say the same.
    defaults = ("unify_strategy", "soft_table", "offline_loss_type", "switch_gate", "num_generations")
    for one in (recipe, recipe | {key: getattr(config, key) for key in defaults}):
        name, cited = method_of(one)
        assert name.startswith(begins) and [paper.arxiv for paper in cited] == papers


@pytest.mark.parametrize(
    ("settings", "begins", "papers"),
    [
        ({}, "Multi-token prediction", [MTP]),
        ({"n_future_tokens": 1}, "Supervised fine-tuning", []),
        ({"weighting": "rho1"}, "Multi-token prediction, on the tokens that a reference", [MTP, RHO1]),
        ({"weighting": "rho1", "n_future_tokens": 1}, "Selective language modelling", [RHO1]),
        ({"weighting": "verifiable"}, "Multi-token prediction, each token weighted", [MTP, GAE]),
        ({"weighting": "verifiable", "n_future_tokens": 1}, "Supervised fine-tuning on demonstrations, each", [GAE]),
        ({"weighting": "shuffled"}, "Multi-token prediction, with the control weights `shuffled`", [MTP, GAE]),
        ({"weighting": "random_matched"}, "Multi-token prediction, with the control weights", [MTP]),
    ],
)
def test_the_weights_of_tokens_are_named_and_cited(settings, begins, papers):
    name, cited = method_of({"stage": "mtp", **settings})
    assert name.startswith(begins) and [paper.arxiv for paper in cited] == papers


def test_every_weighting_is_known():
    cited = {weighting: method_of({"stage": "mtp", "weighting": weighting})[1] for weighting in WEIGHTINGS}
    assert {name for name, papers in cited.items() if GAE in [paper.arxiv for paper in papers]} == set(VALUED)


def test_a_weighted_reward_that_is_one_of_them_stands_there_once():
    def names(before: tuple, after: tuple) -> list[str]:
        sides = (("before", before), ("after", after))
        results = {when: {"rewards": {"a": a, "b": b}, "reward": both} for when, (a, b, both) in sides}
        return [measure.name for measure in measures_of(results)]

    assert names((0.0, 1.0, 0.0), (0.5, 2.0, 0.5)) == ["reward a", "reward b"]
    # Alike on one side alone, as where nothing is solved yet.
    assert names((0.0, 0.0, 0.0), (0.5, 2.0, 2.5)) == ["reward a", "reward b", "weighted reward"]


def test_figures_of_nothing_are_none():
    assert measures_of({"before": None, "after": None}) == []
    assert measures_of({"before": None, "after": {"accuracy": None, "rewards": {"a": None}}}) == []
