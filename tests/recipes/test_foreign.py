"""Recipes of other projects and of older releases: one answer with every key that is not here, and what to write."""

from pathlib import Path

import pytest
import yaml
from datasets import ReadInstruction

from hpt_trl.errors import UserError
from hpt_trl.recipes.declared import declared_in_file, declared_somewhere
from hpt_trl.recipes.stages import STAGE_MODULES
from hpt_trl.runs.early import check_run
from hpt_trl.settings.keys import unknown_key
from hpt_trl.settings.renamed import _SAME, renamed
from tests.helpers.processes import hpt_trl

FOREIGN = yaml.safe_load((Path(__file__).parent / "foreign_recipes.yaml").read_text())
KNOWN = declared_somewhere().keys
OURS = {
    "model_name_or_path": "tiny-vlm",
    "dataset_name": "arithmetic",
    "reward_funcs": ["accuracy", "format"],
    "torch_dtype": "bfloat16",
    "warmup_ratio": 0.1,
    "dataset_prompt_column": "question",
    "dataset_mixer": {"a/b": 0.5},
    "dataset_mixture": {"datasets": [{"id": "a/b", "config": "c", "split": "train_sft", "weight": 0.25}]},
}
# Key -> what its line has to tell.
NEW = {
    "torch_dtype": "`dtype`",
    "warmup_ratio": "`warmup_steps: 0.1`",
    "overwrite_output_dir": "`overwrite: true`",
    "chat_template": "`chat_template_path`",
    "dataset_mixture": '`dataset_name: a/b`, `dataset_config: c`, `dataset_train_split: "train_sft[:25%]"`',
    "dataset_mixer": '`dataset_name: a/b`, `dataset_train_split: "train[:50%]"`',
    "dataset_prompt_column": "`column_mapping: {prompt: question}`",
    "hub_model_revision": "`hub_revision`",
    "vllm_device": "`vllm: colocate`",
    "wandb_project": "`project`",
    "wandb_entity": "`env: {WANDB_ENTITY: ...}`",
    "benchmarks": "`evaluations`",
    "max_seq_length": "`max_length`",
}


def written(folder, name, output):
    """The recipe's keys with values of our own, at which nothing is wrong."""
    values = {}
    for key in FOREIGN[name]:
        default = KNOWN[key].default if key in KNOWN else "x"
        values[key] = OURS.get(key, default)
    if "output_dir" in values:
        values["output_dir"] = str(output)
    # Values that go together by their defaults.
    for key in ("report_to", "gradient_accumulation_steps", "per_device_train_batch_size", "num_generations"):
        values.pop(key, None)
    path = folder / name.split("/")[0] / Path(name).parent.name / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path, values


@pytest.mark.parametrize("name", FOREIGN)
def test_one_answer_names_every_key_that_is_not_here(name, tmp_path):
    path, values = written(tmp_path, name, tmp_path / "out")
    with pytest.raises(UserError) as refused:
        check_run(str(path), [])
    told = {error.place.key: error.said for error in refused.value.every}
    unknown = [key for key in values if key not in KNOWN]
    assert unknown and set(unknown) < set(told)
    assert "`stage` is missing" in told["stage"]
    if "/sft/" in name or "/dpo/" in name or "/grpo/" in name:
        assert f"This looks like `stage: {Path(name).parent.name}`." in told["stage"]
    for key in unknown:
        assert NEW.get(key, ":") in told[key] and "Did you mean" not in told[key], told[key]
    # Nothing but these: rewards of other names, and keys that a recipe here has to have.
    assert set(told) - set(unknown) <= {"stage", "reward_funcs", "output_dir"}


def test_the_command_prints_a_line_for_each(tmp_path):
    path, values = written(tmp_path, "alignment-handbook/zephyr-7b-beta/sft/config_qlora", tmp_path / "out")
    head, *lines = hpt_trl("run", str(path)).stderr.splitlines()
    assert head == f"error: {len(lines)} mistakes in {path}:"
    assert len(lines) == len([key for key in values if key not in KNOWN]) + 1


@pytest.mark.parametrize("stage", sorted(STAGE_MODULES))
def test_no_line_sends_to_a_key_that_the_stage_would_refuse(stage):
    known = declared_in_file(stage).keys
    for old, new in _SAME.items():
        said = renamed(old, None, known)
        assert new in KNOWN and f"`{new}`" in said
        assert (new in known) != ("drop the line" in said)


def test_mixtures_of_several_are_translated_or_said_to_be_one():
    mixture = {
        "datasets": [
            {"id": "a/b", "config": "c", "split": "train", "columns": ["messages"], "weight": 0.5},
            {"id": "d/e", "split": "test"},
        ],
        "test_split_size": 100,
    }
    with_block = renamed("dataset_mixture", mixture, {"datasets"})
    assert with_block.startswith("write `datasets: [") and with_block.endswith("`, and `test_split_size: 100`")
    block = yaml.safe_load(with_block.split("`")[1])
    assert block["datasets"] == [
        {"path": "a/b", "name": "c", "split": "train[:50%]", "columns": ["messages"]},
        {"path": "d/e", "split": "test"},
    ]
    assert renamed("dataset_mixture", mixture, set()).startswith("one data set is read")
    for odd in (None, 3, "x", [1], {"datasets": 3}, {"datasets": [3, {"id": None}]}):
        assert renamed("dataset_mixture", odd, {"datasets"}) and renamed("dataset_mixer", odd, set())


@pytest.mark.parametrize("weight", [0.001, 0.005, 0.125, 0.25, 1 / 3, 0.29, 0.996])
@pytest.mark.parametrize("split", ["train", "train+test", "train[:50%]"])
def test_shares_are_written_as_datasets_reads_them(weight, split):
    mixture = {"datasets": [{"id": "a/b", "split": split, "weight": weight}, {"id": "d/e"}]}
    said = renamed("dataset_mixture", mixture, {"datasets"})
    (written, _) = yaml.safe_load(said.split("`")[1])["datasets"]
    read = ReadInstruction.from_spec(written["split"]).to_absolute({"train": 1000, "test": 1000})
    rows = [(one.to or 1000) - (one.from_ or 0) for one in read]
    if "[" in split:
        assert rows == [500] and "write the share yourself" in said
    else:
        assert all(abs(taken - 1000 * weight) <= (5 if weight > 0.01 else 10) for taken in rows), rows
        assert all(rows) and len(rows) == len(split.split("+"))
    assert ("shares are rounded" in said) == (weight not in (0.25, 0.29))


def test_what_is_translated_is_short_however_long_it_is():
    entry = dict.fromkeys(("id", "config", "split"), "x" * 20_000) | {"weight": 0.5, "columns": ["y" * 20_000] * 9}
    mixture = {"datasets": [entry] * 100, "test_split_size": 10**400}
    for key, value in (
        *(("dataset_mixture", mixture), ("dataset_mixture", {"datasets": [entry]})),
        *(("dataset_mixer", {"x" * 20_000: 0.5}), ("rpo_alpha", 10**400), ("dataset_prompt_column", "x" * 20_000)),
    ):
        assert len(renamed(key, value, {"datasets"})) < 4000


@pytest.mark.parametrize(
    ("key", "stage", "said"),
    [
        ("max_seq_length", "sft", "`max_length`."),
        ("max_seq_length", "grpo", "`max_completion_length`."),
        ("use_liger_loss", "dpo", "`use_liger_kernel`"),
        ("rpo_alpha", "dpo", "`loss_type: [sigmoid, sft]` and `loss_weights: [1.0, 0.5]`"),
        ("evaluation_strategy", "sft", "`eval_strategy`"),
        ("vllm_max_model_len", "grpo", "`vllm_max_model_length`"),
        ("text_column", "sft", "`column_mapping: {text: ...}`"),
        ("base_model", "sft", "`model_name_or_path`"),
        ("lora_rank", "sft", "`lora_r`"),
        ("kl_coef", "grpo", "`beta`"),
        ("epochs", "sft", "`num_train_epochs`"),
        ("half_precision_backend", "sft", "it was removed; drop the line"),
        ("split_batches", "sft", "`accelerator_config: {split_batches: ...}`"),
        ("whiten_rewards", "ppo", "`scale_rewards`"),
        ("stop_token", "ppo", "a completion ends with the end tokens"),
        ("horizon", "ppo", "`kl_horizon`"),
        ("max_train_samples", "sft", '`dataset_train_split: "train[:1000]"`'),
        ("flash_attn", "sft", "`attn_implementation: flash_attention_2`"),
        ("lora_target_linear", "sft", "`lora_target_modules: all-linear`"),
        ("adapter_name_or_path", "dpo", "`model_name_or_path`"),
        ("lora_model_dir", "sft", "`model_name_or_path`"),
        ("eval_sample_packing", "sft", "`eval_packing`"),
        ("strict", "sft", "is refused always; drop the line"),
        ("loss_watchdog_threshold", "sft", "where its gradients are not finite; drop the line"),
        ("SEED", "sft", "Did you mean `seed`?"),
        ("Learning-Rate", "sft", "Did you mean `learning_rate`?"),
    ],
)
def test_older_names_and_those_of_others(key, stage, said):
    assert said in unknown_key(key, declared_in_file(stage).keys, 0.5)


def test_templates_of_stages_that_have_no_key_for_them():
    for key in ("chat_template", "chat_template_path"):
        assert "into its folder as chat_template.jinja" in renamed(key, None, {"dataset_name"})
    assert "`chat_template_path`" in renamed("chat_template", None, {"chat_template_path"})
    assert "a column `chat_template_kwargs`" in renamed("chat_template_kwargs", None, {"conversational"})
    assert "renders no chat template" in renamed("chat_template_kwargs", None, {"dataset_name"})


def test_what_is_nested_is_told_to_be_flat():
    said = unknown_key("actor_rollout_ref", declared_in_file("grpo").keys, {"actor": {"optim": {"lr": 1e-6}}})
    assert said.startswith("there is no such key. A recipe is flat: write the keys that stand inside of it")
