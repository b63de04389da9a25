"""Recipes: what is read, what is derived, and that every mistake is refused with its place and what is allowed."""

import time
from pathlib import Path

import pytest

from hpt_trl.errors import UserError
from hpt_trl.recipes.batches import accumulation_steps
from hpt_trl.recipes.bundled import bundled_recipes, find_recipe, recipe_name, recipes_folder
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.settings.file import read_recipe_file, split_overrides
from tests.helpers.processes import ROOT

RECIPE = """\
# Hardware: two CPU cores
stage: hpt
model_name_or_path: smollm2-135m
dataset_name: arithmetic
output_dir: outputs/test
reward_funcs: [math_answer]
per_device_train_batch_size: 8
global_batch_size: 32
num_generations: 8
"""
NEXT_LINE = RECIPE.count("\n") + 1


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads RECIPE with more lines below it (a key set again replaces RECIPE's) and overrides."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def read_with(extra: str = "", overrides: str | list[str] = "", world_size: int | None = None):
        again = {line.split(":")[0] for line in extra.splitlines()}
        kept = [line for line in RECIPE.splitlines() if line.split(":")[0] not in again]
        path = tmp_path / "recipe.yaml"
        path.write_text("\n".join(kept) + "\n" + extra)
        words = overrides.split() if isinstance(overrides, str) else overrides
        return read_recipe(path, words, world_size)

    return read_with


def refused(read, extra: str = "", overrides: str | list[str] = "", **options) -> str:
    with pytest.raises(UserError) as caught:
        read(extra, overrides, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_values_have_the_types_of_their_fields(read):
    recipe = read(
        "unify_strategy: no\n"  # a boolean in YAML 1.1
        "learning_rate: 1e-6\n"  # text in YAML 1.1
        'weight_decay: "1e-2"\n'
        "max_steps: 1e2\n"
        "run_name: 007\n"
        "bf16: off\n"
        "scale_rewards: false\n"
        "reward_funcs: math_answer\n"
        "eval_strategy: no\n"
        "lr_scheduler_type: cosine_with_min_lr\n"
        "lr_scheduler_kwargs: {min_lr: 1e-7}\n"
        "dataset_options:\n  size: 200\n"
    )
    config = recipe.config
    assert config.unify_strategy == "no"
    assert config.learning_rate == 1e-6 and config.weight_decay == 1e-2
    assert config.max_steps == 100 and isinstance(config.max_steps, int)
    assert config.run_name == "007"
    assert config.bf16 is False
    assert config.scale_rewards == "none"
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-7}
    assert recipe.arguments.reward_funcs == ["math_answer"]
    assert recipe.arguments.dataset_options == {"size": 200}
    assert config.report_to == []


def test_command_line_stands_above_the_file_and_the_file_above_defaults(read):
    recipe = read(
        "learning_rate: 1e-5\nbeta: 0.1\n",
        [
            *("--beta", "0.2", "--max-steps=7", "--use_peft", "--gradient_checkpointing", "false"),
            *("--reward_funcs", "math_answer", "boxed_format", "--reward_weights", "1", "0.5"),
            *("--dataset_options", "{size: 200}", "--column_mapping", '{"prompt": "question"}'),
            *("--switch_gate", "-1", "--switch_gate_off", "null", "--no_shuffle_dataset"),
            *("--system_prompt", "Answer: {briefly}"),
        ],
    )
    assert recipe.config.learning_rate == 1e-5  # the file
    assert recipe.config.beta == 0.2  # the command line
    assert recipe.config.temperature == 1.0  # the default
    assert recipe.config.max_steps == 7
    assert recipe.model_args.use_peft is True
    assert recipe.config.gradient_checkpointing is False
    assert recipe.arguments.reward_funcs == ["math_answer", "boxed_format"]
    assert recipe.config.reward_weights == [1.0, 0.5]
    assert recipe.arguments.dataset_options == {"size": 200}
    assert recipe.arguments.column_mapping == {"prompt": "question"}
    assert recipe.config.switch_gate == -1 and recipe.config.switch_gate_off is None
    assert recipe.config.shuffle_dataset is False
    assert recipe.arguments.system_prompt == "Answer: {briefly}"
    assert recipe.raw["beta"] == 0.2 and "gradient_accumulation_steps" not in recipe.raw
    assert {"beta", "max_steps"} <= recipe.overrides
    assert recipe.lines["stage"] == 2


def test_env_block_sets_variables(read, monkeypatch):
    monkeypatch.setenv("HPT_TRL_TEST_VARIABLE", "before")
    read("env: {HPT_TRL_TEST_VARIABLE: 3}\n")
    import os

    assert os.environ["HPT_TRL_TEST_VARIABLE"] == "3"


def test_cpu_is_chosen_where_there_is_no_accelerator(read):
    import torch

    assert read().config.use_cpu is not torch.accelerator.is_available()


def test_split_overrides_keeps_negative_numbers_and_the_last_of_two():
    assert split_overrides(["--a", "-1", "--b=x=y", "--c", "--a", "2", "3"]) == {"a": ["2", "3"], "b": ["x=y"], "c": []}


# The global batch


def test_accumulation_follows_from_the_global_batch(read):
    assert read().config.gradient_accumulation_steps == 4
    assert read("per_device_train_batch_size: 4\n").config.gradient_accumulation_steps == 8
    assert read(world_size=2).config.gradient_accumulation_steps == 2
    assert read(overrides="--global_batch_size 64").config.gradient_accumulation_steps == 8
    assert [accumulation_steps(128, 4, world) for world in (1, 2, 4, 8)] == [32, 16, 8, 4]


def test_world_size_is_the_launchers(read, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = refused(read, "global_batch_size: 48\n")
    assert "48 rows do not divide into 8 rows (`per_device_train_batch_size`) on each of 4 processes" in message
    assert "a multiple of 32, e.g. 32 or 64" in message and "of 1, 2, 3, 4, 6, 12" in message


# Mistakes: the extra lines, and what the message must hold beside file, line and key

MISTAKES = {
    "beta: -1": "-1 is not allowed; allowed: 0 or more",
    "beta: abc": "abc is not allowed; allowed: a number",
    "beta: {a: 1}": "allowed: a number",
    "beta: [1]": "allowed: a number",
    "beta: .nan": "allowed: a number",
    "beta:": "there is no value; allowed: a number",
    "learning_rate: fast": "fast is not allowed; allowed: a number",
    "max_steps: 2.5": "2.5 is not allowed; allowed: a whole number",
    "max_steps: 0": "allowed: 1 or more, or -1",
    "temperature: 0": "0 is not allowed; allowed: above 0",
    "top_p: 1.5": "allowed: above 0 to 1",
    "loss_type: grppo": "allowed: grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo, vespo. Did you mean `grpo`?",
    "max_completion_length: -5": "allowed: 1 or more",
    "num_generations: 1": "allowed: 2 or more",
    "unify_strategy: hard": "allowed: switch, soft, no",
    "switch_gate: 9": "9 with `num_generations` 8; allowed: -1 (never) to `num_generations` (always)",
    "switch_gate: -2": "-2 is not allowed; allowed: -1 (never) to `num_generations` (always)",
    "dtype: bf16": "allowed: one of auto, bfloat16, float16, float32",
    "optim: adamw_torchh": "Did you mean `adamw_torch`?",
    "use_peft: maybe": "allowed: true or false",
    "dataset_options: 5": "allowed: a mapping",
    "reward_weights: [1, x]": "allowed: a list (a number)",
    "reward_weights: [1, 2]": "2 weights for 1 rewards",
    "load_in_4bit: true\nload_in_8bit: true": "`load_in_8bit` is set as well",
    "gradient_accumulation_steps: 2": "follows from `global_batch_size`",
    "lr_scheduler_kwargs: {min_lr: 1e-7}": "`lr_scheduler_type: linear` does not take it",
    "steps_per_generation: 2\ngeneration_batch_size: 16": "keep one of the two",
    "model_name_or_path: null": "a recipe needs it",
    "reward_funcs: []": "name at least one reward",
    "lerning_rate: 1": "Did you mean `learning_rate`?",
    "torch_dtype: bfloat16": "it is now `dtype`",
    "warmup_ratio: 0.1": "write `warmup_steps: 0.1`; a value below 1 is a share of all steps",
    "overwrite_output_dir: true": "it was removed",
    "max_prompt_length: 512": "it was removed",
    "max_seq_length: 512": "it is now `max_completion_length`",
    "lr_scheduler_kwargs.min_lr: 1": "write `lr_scheduler_kwargs: {min_lr: ...}`",
    "stage: hptt": "Did you mean `hpt`?",
}


@pytest.mark.parametrize("extra", MISTAKES)
def test_a_mistake_is_refused_with_its_line(read, extra):
    key = extra.split(":")[0]
    kept = [line for line in RECIPE.splitlines() if line.split(":")[0] not in extra.replace("\n", ":").split(":")]
    message = refused(read, extra + "\n")
    assert message.startswith(f"recipe.yaml, line {len(kept) + 1}, `{key}`: ") or "\n" in extra, message
    assert message.startswith("recipe.yaml, line ") and MISTAKES[extra] in message


def test_groups_must_fill_the_batch(read):
    message = refused(read, "num_generations: 6\n")
    assert message.startswith("recipe.yaml, line 8, `global_batch_size`: a generation batch of 32 completions")
    assert "does not divide into groups of 6" in message and "`num_generations` among 2, 4, 8, 16, 32" in message
    message = refused(read, "generation_batch_size: 24\nnum_generations: 16\n")
    assert "`generation_batch_size`: a generation batch of 24" in message
    message = refused(read, "eval_strategy: steps\nper_device_eval_batch_size: 3\n")
    assert "`per_device_eval_batch_size`: 3 completions" in message


def test_float16_on_a_cpu_is_refused(read):
    assert "a CPU does not train in float16" in refused(read, "use_cpu: true\nfp16: true\n")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("--beta -1", "--beta on the command line (recipe.yaml): -1 is not allowed; allowed: 0 or more."),
        ("--lerning_rate=1", "--lerning_rate on the command line (recipe.yaml): there is no such key. Did you mean"),
        ("--beta", "there is no value; allowed: a number, after the key"),
        ("--beta 1 2", "1 2 is not allowed; allowed: a number, as one word"),
        ("--dataset_options {size", "{size is not YAML"),
        ("--reward_weights 1 x", "1 x is not allowed; allowed: a list (a number)"),
        ("beta 1", "`beta` on the command line follows no key"),
        ("--stage hptt", "Did you mean `hpt`?"),
        ("--global_batch_size 20", "--global_batch_size on the command line (recipe.yaml): 20 rows do not divide"),
    ],
)
def test_a_mistake_on_the_command_line(read, overrides, said):
    assert said in refused(read, overrides=overrides)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the recipe is empty"),
        ("# only a comment\n", "the recipe is empty"),
        ("- stage: hpt\n", "line 1: a recipe is a mapping of `key: value` lines, this is a list"),
        ("hpt\n", "this is a single value"),
        ("stage: hpt\nbeta: [1\n", "this is not YAML"),
        ("stage: hpt\nbeta: 1\n  gamma: 2\n", "line 3: this is not YAML"),
        ("stage: hpt\nbeta: 1\nbeta: 2\n", "line 3, `beta`: the key is already set on line 2"),
        ("stage: hpt\ndataset_options:\n  size: 1\n  size: 2\n", "line 4, `size`: the key is already set on line 3"),
        ("? [a]\n: 1\n", "a key is one word"),
        ("beta: 1\n", "the key `stage` is missing. Write one of: `stage: critic`"),
        ("stage: hpt\nenv: 3\n", "line 2, `env`: allowed: a mapping"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    assert said in str(caught.value) and "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("stage: sft\n".encode("utf-16"), "recipe.yaml: the recipe is written in UTF-16; save it as UTF-8"),
        ("stage: sft\n".encode("utf-32"), "the recipe is written in UTF-32"),
        (
            "stage: sft\nrun_name: \xe9t\xe9\n".encode("latin-1"),
            "line 2: the recipe cannot be read as text: the byte 0xe9",
        ),
        (b'{"prompt": "x", "completion": "y"}\n' * 50_000, "a file of 1,750,000 bytes is no recipe"),
    ],
)
def test_a_file_that_is_not_a_recipes_text(tmp_path, written, said):
    path, started = tmp_path / "recipe.yaml", time.process_time()
    path.write_bytes(written)
    with pytest.raises(UserError) as caught:
        read_recipe_file(path)
    assert said in str(caught.value) and time.process_time() - started < 1


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_lines_count_whatever_ends_them(tmp_path, ending):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(f"\ufeffstage: sft{ending}seed: 1{ending}".encode())
    assert read_recipe_file(path).lines == {"stage": 1, "seed": 2}


def test_errors_of_a_recipe_name_the_place(read):
    recipe = read("beta: 0.5\n", "--temperature 0.7")
    assert str(recipe.error("beta", "no.")) == f"recipe.yaml, line {NEXT_LINE}, `beta`: no."
    assert str(recipe.error("temperature", "no.")) == "--temperature on the command line (recipe.yaml): no."
    assert str(recipe.error("top_p", "no.")) == "recipe.yaml, `top_p` (not set, its default holds): no."
    placed = recipe.place(ValueError("with `beta` above 0 this cannot be"))
    assert str(placed) == f"recipe.yaml, line {NEXT_LINE}, `beta`: with `beta` above 0 this cannot be"


# Finding recipes


def test_find_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    assert find_recipe(str(path)) == path
    with pytest.raises(UserError, match="is a folder"):
        find_recipe(str(tmp_path))
    with pytest.raises(UserError, match="there is no recipe `nothing-like-it`"):
        find_recipe("nothing-like-it")


def test_bundled_recipes_are_found_by_name_and_near_names_are_offered():
    assert recipes_folder() == ROOT / "recipes"
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == recipes_folder() / "quickstart.yaml"
    with pytest.raises(UserError, match="Did you mean `quickstart`"):
        find_recipe("quikstart")


def single_stages() -> list[Path]:
    """The bundled recipes of one stage; chains of recipes are checked in tests/pipeline/test_pipeline.py."""
    return [path for path in bundled_recipes() if read_recipe_file(path).values.get("stage") != "pipeline"]


@pytest.mark.parametrize("path", single_stages(), ids=recipe_name)
def test_every_bundled_recipe_is_valid(path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    # The recipes for GPUs ask for what a machine without one refuses; everything else in them is checked.
    overrides = ["--vllm", "null"] if "vllm" in read_recipe_file(path).values else []
    recipe = read_recipe(path, overrides)
    assert recipe.path == path
    assert not recipe.stage.trains or "global_batch_size" in recipe.lines, "a recipe states its global batch"
    recipe.stage.check(recipe)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ('{"A=B": 1}', "'A=B' cannot be the name of a variable"),
        ('{"": 1}', "'' cannot be the name"),
        ("{A: }", "the value of A is empty; write a text"),
        ("{A: {B: 1}}", "the value of A is no single value"),
        ("{A: [1]}", "the value of A is no single value"),
        ("[A]", "allowed: a mapping of variables to values"),
    ],
)
def test_variables_that_there_cannot_be(read, block, said):
    message = refused(read, f"env: {block}\n")
    assert message.startswith(f"recipe.yaml, line {NEXT_LINE}, `env`: ") and said in message


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e999", "9" * 5000])
def test_a_number_beyond_all_numbers_is_none(read, value):
    assert "recipe.yaml" in refused(read, f"learning_rate: {value}\n")
    assert "recipe.yaml" in refused(read, f"max_steps: {value}\n")


@pytest.mark.parametrize("key", ["max_completion_length", "num_generations"])
@pytest.mark.parametrize("stage", ["hpt", "grpo", "ppo"])
def test_numbers_that_a_rollout_needs_are_not_null(read, stage, key):
    for written in ("null", ""):
        message = refused(read, f"stage: {stage}\n{key}: {written}\n")
        assert f"`{key}`: null is not allowed; allowed: " in message and "or more." in message
    assert "null is not allowed" in refused(read, f"stage: {stage}\n", f"--{key} null")
