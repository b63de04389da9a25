"""Rewards get the same text, state and names in the probe, the evaluation and the training: whole runs, recorded."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import qwen3_template

from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.rewards.completions import unlogged
from hpt_trl.runs import reporting, runner
from tests.runs.test_runner import KEYS

PROMPTS = [f"{number}: what is 2 + 3?" for number in range(10, 22)]
ANSWER = "<think>2 + 3 = 5</think>\n<answer>5</answer>"
SEEN: list[dict] = []


def record(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True):
        SEEN.append(
            {
                "training": log_metric is not unlogged,
                "prompt": copy.deepcopy(prompt),
                "completion": copy.deepcopy(completion),
                "ids": list(ids),
                "columns": sorted(columns),
                "step": trainer_state.global_step,
                "progress": trainer_state.global_step / trainer_state.max_steps,
                "max_steps": trainer_state.max_steps,
            }
        )
    return [float("5" in str(completion)) for completion in completions]


def growing(completions, trainer_state, **_):
    done = trainer_state.global_step / trainer_state.max_steps
    return [done * ("5" in str(completion)) for completion in completions]


def growing_by_epochs(completions, trainer_state, **_):
    return [min(1.0, trainer_state.epoch / 3) * ("5" in str(completion)) for completion in completions]


def tagged(completions, **_):
    return [float("<answer>5</answer>" in str(completion)) for completion in completions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_path):
    """A model that answers `PROMPTS` by `ANSWER`, whose answer tags are special tokens, and their rows."""
    folder = tmp_path_factory.mktemp("answers")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<answer>", "</answer>"]})
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    texts = [*PROMPTS, *tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)]
    batch = tokenizer([text + ANSWER + "<|im_end|>" for text in texts], padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    # Padding is on the left: all answers end alike.
    labels[:, : -len(tokenizer(ANSWER + "<|im_end|>")["input_ids"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    tokenizer.response_template = qwen3_template
    model.save_pretrained(folder / "parser")
    tokenizer.save_pretrained(folder / "parser")
    rows = [{"prompt": prompt, "completion": ANSWER, "answer": "5"} for prompt in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(folder, tmp_path, model, **changes) -> str:
    values = {
        **KEYS,
        "model_name_or_path": str(folder / model),
        "output_dir": str(tmp_path / "out"),
        "dataset_name": str(folder / "rows.jsonl"),
        "dataset_options": None,
        "test_split_size": 2,
        "eval_samples": 2,
        "max_completion_length": 48,
        "max_steps": None,
        "num_train_epochs": 2,
        "learning_rate": 1e-6,
        "reward_funcs": ["tests.runs.test_rewards_see_the_same.record"],
        **changes,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return str(path)


def run(path: str, words: Sequence[str] = ()) -> None:
    """Runs a recipe to its end; that rewards without contrast train nothing is said once the results are written."""
    try:
        runner.run(path, [*words])
    except UserError as error:
        assert "nothing was trained" in str(error), error
    results = json.loads((Path(path).parent / "out" / "results.json").read_text())
    assert results["trained"] or results["after"]["accuracy"] in (0.0, 1.0), results.get("why_untrained")


@pytest.mark.parametrize(
    ("model", "conversational", "seen"),
    [
        ("plain", True, [{"role": "assistant", "content": "<think>2 + 3 = 5</think>\n5"}]),
        ("plain", False, "<think>2 + 3 = 5</think>\n5"),
        (
            "parser",
            True,
            [{"role": "assistant", "reasoning_content": "2 + 3 = 5", "content": "<answer>5</answer>"}],
        ),
    ],
)
def test_probe_evaluation_and_training_hand_over_the_same(folder, tmp_path, capfd, model, conversational, seen):
    SEEN.clear()
    run(recipe(folder, tmp_path, model, conversational=conversational))
    ids = AutoTokenizer.from_pretrained(folder / model)(ANSWER + "<|im_end|>")["input_ids"]
    answers = [entry for entry in SEEN if entry["ids"] == ids]
    assert all(entry["completion"] == seen for entry in answers)
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS] if conversational else PROMPTS
    assert all(entry["prompt"] in prompts for entry in SEEN)
    assert len({str(entry["columns"]) for entry in SEEN}) == 1
    # 10 rows, 2 epochs, 4 prompts a step: what the probe was told is what the trainer counted.
    steps = json.loads((tmp_path / "out" / "results.json").read_text())["steps"]
    assert {entry["max_steps"] for entry in SEEN} == {steps} and steps == 4
    training = [place for place, entry in enumerate(SEEN) if entry["training"]]
    before, after = answers[: answers.index(SEEN[training[0]])], SEEN[training[-1] + 1 :]
    # The demonstrations of the probe, then the evaluation's completions.
    assert len(before) == 8 + 2 and {entry["step"] for entry in before} == {0}
    assert len(after) == 2 and {entry["progress"] for entry in after} == {1.0}
    assert sum(entry["training"] for entry in answers) > 4


def test_answer_tags_that_rewards_do_not_see_are_named(folder, tmp_path, caplog):
    tags = {"reward_funcs": ["tests.runs.test_rewards_see_the_same.tagged"]}
    with pytest.raises(UserError, match=r"</answer>, <answer> of the demonstrations are special tokens"):
        check(recipe(folder, tmp_path, "plain", **tags), [])
    check(recipe(folder, tmp_path, "parser", **tags), [])
    check(recipe(folder, tmp_path, "plain"), [])
    assert "special tokens, which rewards do not see" in caplog.text


def short(completions, **_):
    return [1.0 / (1 + len(str(completion))) for completion in completions]


def never(completions, **_):
    return [0.0] * len(completions)


def test_a_learnt_format_is_not_a_right_answer(tmp_path, tiny_model_path, capsys):
    """40 steps teach a tiny model the form of the answers and few sums."""
    settings = {"dataset_options": {"size": 64, "test_size": 8}, "max_steps": 40, "learning_rate": 1e-2}
    settings |= {"global_batch_size": 16, "per_device_train_batch_size": 16, "max_completion_length": 40}
    settings |= {"eval_samples": 8, "lr_scheduler_type": "constant", "output_dir": str(tmp_path / "out")}
    path = tmp_path / "sums.yaml"
    path.write_text(yaml.safe_dump(KEYS | settings | {"model_name_or_path": tiny_model_path}))
    runner.run(str(path), ["--reward_funcs", "math_answer", "boxed_format"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    after = results["after"]
    assert after["accuracy"] == after["rewards"]["math_answer"] < after["rewards"]["boxed_format"]
    assert after["reward"] == pytest.approx(sum(after["rewards"].values()))
    assert after["success_reward"] == "math_answer"
    low, high = after["accuracy_interval"]
    assert low <= after["accuracy"] < high
    printed = capsys.readouterr().out
    reporting.report(tmp_path / "out")
    for text in (printed, capsys.readouterr().out):
        assert f"Held-out reward boxed_format: 0 -> {after['rewards']['boxed_format']:.4g}" in text
        assert f"Held-out reward math_answer: 0 -> {after['accuracy']:.4g}" in text


@pytest.mark.parametrize(
    ("names", "success", "accuracy"),
    [(("never", "record"), None, 0.0), (("never", "record"), "record", 1.0), (("record", "short"), None, 1.0)],
)
def test_the_success_reward_alone_decides(folder, tmp_path, names, success, accuracy):
    rewards = [f"tests.runs.test_rewards_see_the_same.{name}" for name in names]
    path = recipe(folder, tmp_path, "plain", stage="grpo", reward_funcs=rewards, success_reward=success, max_steps=1)
    weights = ["--reward_weights", "1.0", "-5.0"] if "short" in names else []
    run(path, weights)
    after = json.loads((tmp_path / "out" / "results.json").read_text())["after"]
    assert after["accuracy"] == accuracy
    assert set(after["rewards"]) == set(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success_reward": "recrod"}, r"recipe\.yaml, line \d+.*Did you mean `record`\? Allowed: record"),
        ({"success_threshold": 0.0}, r"every empty completion reaches: `record`.*row"),
        ({"success_threshold": 3.0}, r"at most 1 to the first 8 demonstrations, below `success_threshold` 3"),
        ({"eval_success_threshold": -1.0}, r"eval_success_threshold.*every empty completion reaches"),
        ({"stage": "grpo", "eval_success_threshold": 0.0}, r"every empty completion reaches: `record`"),
        ({"stage": "grpo", "reward_funcs": ["math_answer"], "eval_success_threshold": 1.5}, "no completion can reach"),
        ({"stage": "grpo", "reward_funcs": None, "success_reward": "math_answer"}, "reward"),
    ],
)
def test_thresholds_that_the_success_reward_cannot_decide_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        check(recipe(folder, tmp_path, "plain", **changes), [])


def test_a_reward_may_grow_along_the_run(folder, tmp_path, caplog):
    """Before the first step it is 0 for all; after the last it tells right from wrong, up to 1."""
    by_epochs = {"reward_funcs": ["tests.runs.test_rewards_see_the_same.growing_by_epochs"]}
    path = recipe(folder, tmp_path, "plain", **by_epochs)
    # Ten rows, four prompts a step, two steps an epoch.
    check(path, ["--max_steps", "6"])
    assert "by different rewards" in caplog.text
    with pytest.raises(UserError, match=r"gives 0 to each of the first 8 demonstrations"):
        check(path, ["--max_steps", "5"])
    reward = {"reward_funcs": ["tests.runs.test_rewards_see_the_same.growing"]}
    check(recipe(folder, tmp_path, "plain", **reward), [])
    with pytest.raises(UserError, match=r"gives 0 to each of the first 8 demonstrations and to an empty completion"):
        check(recipe(folder, tmp_path, "plain", **reward, success_threshold=1.5), [])
