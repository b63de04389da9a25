"""Every mistake of a recipe in one answer, each once, in the order of the file."""

import importlib.metadata
import json
import os
import re
import sys

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.recipes import packages
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.declared import declared_in_file
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.run_files import MARK
from hpt_trl.runs.early import check_run
from hpt_trl.runs.preparation import prepare
from hpt_trl.settings.imported import check_found
from tests.helpers.processes import hpt_trl_within

# A recipe without a fault; what it is about is made by the package itself.
SOUND = {
    "stage": "grpo",
    "model_name_or_path": "tiny-vlm",
    "dataset_name": "arithmetic",
    "reward_funcs": ["math_answer"],
    "max_steps": 2,
}
# Key and value that are planted -> what is said of it.
PLANTED = {
    "learning_rat: 1e-5": "Did you mean `learning_rate`?",
    "torch_dtype: bfloat16": "it is now `dtype`",
    "num_train_epochs: many": "many is not allowed; allowed: a number",
    "logging_steps: -1": "-1 is not allowed",
    "optim: adamw_torc": "Did you mean `adamw_torch`?",
    "report_to: wanbd": "Did you mean `wandb`?",
    "reward_model_name_or_path: [outputs/nowhere]": "there is no folder outputs/nowhere",
    "evaluations: [evaluate/humanevil]": "Did you mean `evaluate/humaneval`?",
    "global_batch_size: 7": "7 rows do not divide into",
    "dataset_config: main": "names a part of a Hub dataset",
    "load_in_4bit: true": "add `use_peft: true`",
    "debug: foo": "allowed: underflow_overflow, tpu_metrics_debug",
    "accelerator_config: {even_batch: true}": "Did you mean `even_batches`?",
    "torch_compile_backend: inductr": "Did you mean `inductor`?",
    "gradient_checkpointing_kwargs: {use_rentrant: false}": "Did you mean `use_reentrant`?",
    "deepspeed: nowhere.json": "there is no file nowhere.json",
    "load_best_model_at_end: true": "nothing is measured by which one is the best",
    "eval_num_generations: 4": "greedy completions of one prompt are all the same",
    "env: 3": "a mapping of variables to values",
    "chat_template_kwargs.enable_thinking: false": "keys are flat",
}


# A stage -> values out of the ranges of its own keys, which no shared rule bounds.
OUT_OF_RANGE = {
    "ppo": {"gamma": 7, "lam": 2, "kl_coef": -1, "kl_horizon": 0, "score_clip": -1, "kl_controller": "fixd"},
    "hpt": {"chord_mu": 2, "sft_loss_coef": -1, "max_demonstration_length": 0, "unify_strategy": "swich"},
    "critic": {"baseline_pairs": -1, "value_head_dropout": 1, "return_lambda_hold_steps": -1, "objective": "pair"},
    "mtp": {"n_future_tokens": 0, "head_learning_rate": 0, "td_lambda": 4, "select_ratio": 4, "value_mode": "cache"},
    "dpo": {"ld_alpha": 4, "pad_to_multiple_of": 0},
    "sft": {"pad_to_multiple_of": -8},
    "pretrain": {"tokenizer_training_rows": 0, "tokenizer_vocab_size": 0},
}


@pytest.mark.parametrize("stage", OUT_OF_RANGE)
def test_ranges_of_a_stages_own_keys_are_told_with_all_others(stage, tmp_path):
    wrong = OUT_OF_RANGE[stage]
    path, _ = write(tmp_path, stage=stage, reward_funcs=None)
    path.write_text(path.read_text() + yaml.safe_dump(wrong) + "learning_rat: 1\n")
    with pytest.raises(UserError) as told:
        check_run(str(path), [])
    for key, value in wrong.items():
        assert f"`{key}`: {value} is not allowed; allowed: " in str(told.value)
    assert "Did you mean `learning_rate`?" in str(told.value)


# A stage -> values that do not go with each other, the key that bounds the first one among them.
OUT_OF_BOUNDS = {
    "hpt": ({"switch_gate": 5, "num_generations": 4}, "`switch_gate`: 5 with `num_generations` 4; allowed: -1"),
    "mtp": ({"max_length": 4}, "`max_length`: `n_future_tokens` is 4 with `max_length` 4; allowed: 1 to 32, below"),
    "evaluate": ({"n": 4, "k": [1, 8], "temperature": 0.6}, "`k`: [1, 8] with `n` 4; allowed: whole numbers from 1"),
}


@pytest.mark.parametrize("stage", OUT_OF_BOUNDS)
def test_a_value_that_another_key_bounds_is_told_with_all_others(stage, tmp_path):
    values, said = OUT_OF_BOUNDS[stage]
    path, _ = write(tmp_path, stage=stage, max_steps=None, **({"eval_split": None} if stage == "evaluate" else {}))
    path.write_text(path.read_text() + yaml.safe_dump(values) + "learning_rat: 1\n")
    with pytest.raises(UserError) as told:
        check_run(str(path), [])
    assert said in str(told.value) and "learning_rat" in str(told.value)


def write(folder, *lines, **values):
    """A recipe: sound but for these values and lines; its file, and the line of each key."""
    values = {key: value for key, value in (SOUND | {"output_dir": str(folder / "out")} | values).items() if value}
    text = yaml.safe_dump(values, sort_keys=False) + "".join(f"{line}\n" for line in lines)
    path = folder / "mine.yaml"
    path.write_text(text)
    return path, {line.partition(":")[0]: number for number, line in enumerate(text.splitlines(), 1)}


def refused(path, *words):
    with pytest.raises(UserError) as early:
        check_run(str(path), list(words))
    with pytest.raises(UserError) as late:
        prepare(str(path), list(words))
    assert str(early.value) == str(late.value)
    return early.value


def test_all_that_is_planted_is_told_once_in_the_order_of_the_lines(tmp_path):
    path, lines = write(tmp_path, *PLANTED)
    found = refused(path)
    assert str(found).startswith(f"{len(PLANTED)} mistakes in {path}:\n  ")
    told = [(error.place.line, error.place.key, error.said) for error in found.every]
    expected = [(lines[key], key) for key in (line.partition(": ")[0] for line in PLANTED)]
    assert [(line, key) for line, key, _ in told] == expected
    for (_, _, said), wanted in zip(told, PLANTED.values(), strict=True):
        assert wanted in said
    # A line for each, which names its place.
    assert [re.match(r"  (.+), line (\d+), ", line)[2] for line in str(found).splitlines()[1:]] == [
        str(line) for line, _ in expected
    ]


@pytest.mark.parametrize("line", PLANTED)
def test_one_fault_is_one_mistake(line, tmp_path):
    path, _ = write(tmp_path, line)
    (error,) = refused(path).every
    assert PLANTED[line] in str(error)


@pytest.mark.parametrize(
    ("values", "lines", "said"),
    [
        # What is misspelt is not missing as well.
        ({"dataset_name": None}, ["dataset_nam: arithmetic"], "Did you mean `dataset_name`?"),
        ({"model_name_or_path": None}, ["model_name_path: tiny-vlm"], "Did you mean `model_name_or_path`?"),
        ({"stage": None}, ["stagee: grpo"], "Did you mean `stage`?"),
        (
            {"reward_funcs": None},
            ["reward_func: [math_answer]", "reward_weights: [1.0]"],
            "Did you mean `reward_funcs`?",
        ),
        ({"output_dir": None}, ["outputdir: out"], "Did you mean `output_dir`?"),
        # What stands on a faulty value is not judged.
        ({"reward_funcs": {"a": 1}}, ["reward_weights: [1.0, 2.0]"], "`reward_funcs`: "),
        ({}, ["num_generations: few", "global_batch_size: 7"], "few is not allowed"),
        ({}, ["per_device_train_batch_size: 0", "global_batch_size: 7"], "0 is not allowed"),
        ({"stage": "sftt", "reward_funcs": None}, [], "Did you mean `sft`?"),
        ({"stage": "evalute", "dataset_name": None, "reward_funcs": None}, [], "Did you mean `evaluate`?"),
        ({}, ["load_in_4bit: maybe", "load_in_8bit: true"], "maybe is not allowed"),
        ({"stage": None}, ["stage: null"], "there is no stage `null`"),
        ({"stage": ["grpo"]}, [], "`stage`: "),
        ({"stage": {"a": 1}}, [], "`stage`: "),
        ({"model_name_or_path": None}, ['model_name_or_path: ""'], "model_name_or_path"),
        ({"dataset_name": None}, ['dataset_name: ""'], "dataset_name"),
    ],
)
def test_what_follows_from_a_fault_is_none_of_its_own(values, lines, said, tmp_path):
    path, _ = write(tmp_path, *lines, **values)
    (error,) = refused(path).every
    assert said in str(error)


@pytest.mark.parametrize("stage", [None, "gppo"])
def test_of_an_unknown_stage_the_output_folder_is_no_mistake(stage, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text(f"{MARK}\nstage: sft\n")
    path, _ = write(tmp_path, stage=stage)
    (error,) = refused(path).every
    assert "stage" in error.said and "holds a run" not in error.said


def test_keys_are_judged_although_the_stage_is_missing_or_wrong(tmp_path):
    for stage in (None, "gppo"):
        path, _ = write(tmp_path, "learning_rat: 1", "max_completion_length: 0", "dataset_layout: tables", stage=stage)
        keys = [error.place.key for error in refused(path).every]
        assert sorted(keys) == ["dataset_layout", "learning_rat", "max_completion_length", "stage"]


def test_batches_that_do_not_depend_on_each_other_are_told_together(tmp_path):
    lines = ("global_batch_size: 7", "eval_strategy: steps", "per_device_eval_batch_size: 3", "num_generations: 8")
    path, _ = write(tmp_path, *lines, "generation_batch_size: 16", "steps_per_generation: 2")
    keys = [error.place.key for error in refused(path).every]
    assert keys == ["global_batch_size", "per_device_eval_batch_size", "steps_per_generation"]
    # A group that does not fill a batch that does not divide is no mistake of its own.
    path, _ = write(tmp_path, "global_batch_size: 7", "num_generations: 5")
    assert [error.place.key for error in refused(path).every] == ["global_batch_size"]


def test_those_of_the_file_come_before_those_of_the_command_line(tmp_path):
    path, _ = write(tmp_path, "learning_rat: 1", "optim: nope", dataset_name=None)
    found = refused(path, "--max_stepz", "3", "--seed", "-1")
    assert [(error.place.key, error.place.on_command_line) for error in found.every] == [
        ("learning_rat", False),
        ("optim", False),
        ("dataset_name", False),
        ("max_stepz", True),
        ("seed", True),
    ]


def test_keys_that_are_set_twice_are_told_with_the_others(tmp_path):
    path, lines = write(tmp_path, "learning_rate: 1e-5", "learning_rate: 2e-5", "seed: 1", "seed: x", "? [a, b]\n: 1")
    found = refused(path)
    told = [(error.place.key, "already set" in str(error)) for error in found.every]
    assert told == [("learning_rate", True), ("seed", True), ("seed", False), ("", False)]
    assert f"already set on line {lines['seed'] - 1}" in str(found)


def test_every_mistake_of_an_evaluation_is_told(tmp_path):
    inner = tmp_path / "measure.yaml"
    inner.write_text("stage: evaluate\ndataset_name: nope.jsonl\nreward_funcs: [math_anser]\nmax_rowz: 3\n")
    path, lines = write(tmp_path, "evaluations: [measure.yaml]", "seed: x")
    found = refused(path)
    assert [error.place.line for error in found.every] == [lines["evaluations"]] * 3 + [lines["seed"]]
    for said in ("nope.jsonl", "`math_answer`", "`max_rows`"):
        assert str(found).count(said) >= 1


@pytest.mark.parametrize("stage", ["grpo", "evalute"])
def test_an_evaluation_is_no_training_and_has_none_of_its_own(stage, tmp_path):
    path, _ = write(tmp_path, "evaluations: [r.yaml]", stage=stage)
    path.rename(tmp_path / "r.yaml")
    (tmp_path / "other.yaml").write_text((tmp_path / "r.yaml").read_text().replace("[r.yaml]", "[mine.yaml]"))
    path, lines = write(tmp_path, "evaluations: [r.yaml, other.yaml, quickstart]")
    path.rename(tmp_path / "mine.yaml")
    found = refused(tmp_path / "mine.yaml").every
    assert {error.place.line for error in found} == {lines["evaluations"]} and len(found) == 3
    assert all("allowed here: evaluate" in str(error) or "Did you mean `evaluate`" in str(error) for error in found)


def test_evaluations_are_found_where_they_are_named(tmp_path, monkeypatch):
    for place in ("mine", "elsewhere/evaluate/humaneval", "mine/evaluate/humaneval"):
        (tmp_path / place).mkdir(parents=True)
    measure = yaml.safe_dump({**SOUND, "stage": "evaluate"} | {"output_dir": "x"}).replace("max_steps: 2\n", "")
    path, _ = write(tmp_path / "mine", "evaluations: [evaluate/humaneval]")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_recipe(path).arguments.evaluations == ["evaluate/humaneval"]
    assert find_recipe("evaluate/humaneval").name == "humaneval.yaml"
    for place in ("mine", "elsewhere"):
        (tmp_path / place / "ev.yaml").write_text(measure)
    assert read_recipe(path, ["--evaluations", "ev.yaml"]).arguments.evaluations == [
        str(tmp_path / "elsewhere" / "ev.yaml")
    ]
    path, _ = write(tmp_path / "mine", "evaluations: [ev.yaml]")
    assert read_recipe(path).arguments.evaluations == [str(tmp_path / "mine" / "ev.yaml")]


def test_every_stage_of_a_pipeline_is_told_of(tmp_path, capsys):
    words = ["--sft.max_stepz", "3", "--ppo.learning_rate", "-1", "--reward.dataset_name", "nope.jsonl"]
    assert main(["check", "pipeline/rlhf-tiny", *words]) == 2
    said = capsys.readouterr().err
    assert "3 mistakes" in said and all(f"{words[place]} on the command line" in said for place in (0, 2, 4)), said


def test_mistakes_of_a_pipeline_s_own_file_are_told_with_those_of_its_stages(tmp_path, capsys):
    chain = {
        "stage": "pipeline",
        "outputdir": "out",
        "output_dir": str(tmp_path / "out"),
        "num_processes": "many",
        "stages": {
            "one": {"recipe": "sft/stories-tiny", "model": "from:nowhere", "max_stepz": 3},
            "two": {"recipe": "sft/stories-tini"},
            "three": {"recipe": "dpo/stories-tiny", "model": "from:two", "learning_rate": "high"},
            "four": {},
        },
    }
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(chain, sort_keys=False))
    words = ["--five.max_steps", "3", "--one.seed", "x"]
    for command in ("check", "run"):
        assert main([command, str(path), *words]) == 2
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("  ")]
        for wanted in (
            *("`outputdir`", "`num_processes`", "`stages.one.max_stepz`", "`stages.two.recipe`"),
            *("`stages.three.learning_rate`", "`stages.four`", "--five.max_steps", "--one.seed"),
        ):
            assert len([line for line in lines if wanted in line]) == 1, (wanted, said)
        assert "from:two" not in said and len(lines) <= 10, said
    assert not (tmp_path / "out").exists()


def test_one_mistake_of_a_stage_hides_no_other(tmp_path, capsys):
    (tmp_path / "base.yaml").write_text("stage: sft\nbf16: perhaps\nseed: 1\nseed: 2\n")
    lines = [
        "stage: pipeline",
        "stages:",
        "  typo: {recipe: sft/nowhere,",
        "    max_stepz: 3, model: from:sft, beta: x}",
        "  sft:",
        "    recipe: base.yaml",
        "    output_dir: x",
        "    overwrite: true",
        "    model: tiny-vlm",
        "    model_name_or_path: tiny-vlm",
        "    dataset_name: arithmetic",
        "    env: 3",
        "    measure: [x]",
        "  kind:",
        "    stage: sftt",
        "    learning_rate: fast",
        "    reference: from:typo",
        "  none:",
        "    max_steps: x",
    ]
    path = tmp_path / "chain.yaml"
    path.write_text("\n".join(lines) + "\n")
    assert main(["check", str(path), "--sft.lora_r", "x"]) == 2
    told = capsys.readouterr().err
    at = re.findall(r"^  (\S+?)(?:, line (\d+))?(?:, `([\w.]+)`)?[: (]", told, re.MULTILINE)
    expected = [
        *((3, "typo.recipe"), (4, "typo.max_stepz"), (4, "typo.beta"), (7, "sft.output_dir"), (8, "sft.overwrite")),
        *((9, "sft.model"), (12, "sft.env"), (13, "sft.measure"), (15, "kind.stage"), (16, "kind.learning_rate")),
        *((18, "none"), (19, "none.max_steps")),
    ]
    assert [(int(line), key) for file, line, key in at if key.startswith("stages.")] == [
        (line, f"stages.{key}") for line, key in expected
    ], told
    assert [(int(line), key) for file, line, key in at if file.endswith("base.yaml")] == [(2, "bf16"), (4, "seed")]
    assert "`output_dir`: a pipeline needs it" in told and "--sft.lora_r on the command line" in told
    assert f"{len(expected) + 4} mistakes" in told, told


def test_what_only_the_libraries_know_is_told_together_too(tmp_path):
    lines = ("stop_on_warnings: [nonsense]", "eval_strategy: steps", "push_to_hub: true", "success_reward: nothing")
    path, _ = write(tmp_path, *lines, dataset_name=str(tmp_path / "rows.jsonl"), test_split_size=0)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} + 1 =", "answer": "2"}) + "\n" for n in range(3))
    )
    keys = {error.place.key for error in refused_late(path).every}
    assert {"stop_on_warnings", "eval_strategy", "success_reward"} <= keys


def refused_late(path):
    check_run(str(path), [])
    with pytest.raises(UserError) as late:
        prepare(str(path), [])
    return late.value


@pytest.mark.parametrize(
    ("stage", "settings", "keys"),
    [
        (
            "pretrain",
            {"use_peft": True, "max_length": None, "dataset_text_field": "story", "chat_template_path": "tiny-vlm"},
            {"use_peft", "max_length", "dataset_text_field", "chat_template_path"},
        ),
        (
            "sft",
            {"train_on_turns": "last", "completion_only_loss": False, "environment_options": {"a": 1}, "max_turns": 3},
            {"train_on_turns", "environment_options", "max_turns"},
        ),
        ("mtp", {"head_init": "shipped", "dataset_text_field": "story"}, {"head_init", "dataset_text_field"}),
    ],
)
def test_every_mistake_that_a_stage_tells_is_told(stage, settings, keys, recipe):
    found = refused_late(recipe(stage, **{key: value for key, value in settings.items() if value is not None}))
    keys = {key for key in keys if settings.get(key) is not None}
    assert keys <= {error.place.key for error in found.every}


def test_check_prints_them_as_json(tmp_path, capfd):
    path, lines = write(tmp_path, "learning_rat: 1e-5", "optim: nope", dataset_name=None)
    assert main(["check", str(path), "--max_stepz", "3", "--json"]) == 2
    told = capfd.readouterr()
    found = json.loads(told.out)["mistakes"]
    assert [(one["file"], one["line"], one["key"]) for one in found] == [
        (str(path), lines["learning_rat"], "learning_rat"),
        (str(path), lines["optim"], "optim"),
        (str(path), None, "dataset_name"),
        (str(path), None, "max_stepz"),
    ]
    assert found[0]["said"] == "there is no such key. Did you mean `learning_rate`?"
    assert len(told.err.splitlines()) == 1 and told.err.startswith("error: 4 mistakes in ")


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        ("datasets: [{path: 3.5}, {path: {a: 1}}]", {"dataset_name": None}, "entry 2"),
        ("reward_funcs: [.own.x]", {"reward_funcs": None}, "`.own.x`: the module .own cannot be imported"),
    ],
)
def test_values_of_odd_types_are_told(line, changes, said, tmp_path, capfd):
    path, _ = write(tmp_path, line, **changes)
    assert main(["check", str(path)]) == 2
    assert said in capfd.readouterr().err


def test_a_function_of_the_program_that_is_run_may_be_a_reward(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    check_found("__main__.x", "reward_funcs")


TOKEN = "hf_abcdefghijklmnopqrst"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["--model_init_kwargs", f'{{"token": "{TOKEN}']),
        ("", ["--model_init_kwargs", f"token={TOKEN}"]),
        ("", [TOKEN]),
        ("", ["--push_to_hub", TOKEN]),
        ("", [f"--{TOKEN}", "1"]),
        (f'env: {{"HF_TOKEN={TOKEN}": x}}', []),
        (f"reward_funcs_: [{TOKEN}]", []),
        (f"{TOKEN}: 1", []),
        (f"optim: {TOKEN}", []),
    ],
)
def test_no_message_shows_a_token(line, words, tmp_path, capfd):
    path, _ = write(tmp_path, line)
    for more in ([], ["--json"]):
        assert main(["check", str(path), *words, *more]) == 2
        told = capfd.readouterr()
        assert "error: " in told.err and TOKEN not in told.out + told.err


@pytest.mark.parametrize("value", ["a." + "x" * 3000, [10**50] * 60, ["x" * 3000]])
def test_a_message_is_short_however_long_what_it_quotes(value, tmp_path):
    known = declared_in_file("grpo").keys
    path = tmp_path / "long.yaml"
    lines = [f"{key}: {json.dumps(value)}\n" for key in [*known, "env", "k" * 1000] if key != "stage"]
    for stage in ("grpo", "x" * 3000):
        path.write_text("".join([f"stage: {stage}\n", *lines]))
        with pytest.raises(UserError) as found:
            check_run(str(path), ["--" + "k" * 20_000, "3"])
        told = [str(error) for error in found.value.every]
        assert len(told) > 50 and [text[:999] for text in told if len(text) > 1500] == []
    with pytest.raises(UserError) as found:
        check_run(str(path), ["x" * 20_000])
    assert len(str(found.value.every[-1])) < 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quikstart"], "Did you mean `quickstart`?"),
        ([], "check needs a recipe"),
        (["--max_steps", "3"], "the recipe comes before its overrides"),
    ],
)
def test_no_recipe_at_all_is_told_as_json_too(words, said, capfd):
    assert main(["check", *words, "--json"]) == 2
    (found,) = json.loads(capfd.readouterr().out)["mistakes"]
    assert found["file"] is None and said in found["said"]


def test_every_mistake_of_every_entry_of_a_mixture_is_told_by_its_line(tmp_path):
    entries = [
        "datasets:",
        "  - path: nowhere.jsonl",
        "    fraction: 2x",
        "  - {pth: rows.jsonl}",
        "  - 3",
        "  - path: arithmetic",
        "    splt: train",
        "    dataset_layout: tables",
        "    fraction: -1",
    ]
    path, lines = write(tmp_path, *entries, "test_split_sizes: 4", dataset_name=None)
    first = lines["datasets"]
    told = [(error.place.line - first, error.place.key, error.said[:30]) for error in refused(path).every]
    assert told == [
        (1, "datasets", "entry 1: path: there is no fil"),
        (2, "datasets", "entry 1: `fraction: '2x'`; all"),
        (3, "datasets", "entry 2: there is no `fraction"),
        (3, "datasets", "entry 2: there is no field `pt"),
        (4, "datasets", "entry 3: 3 is no mapping; writ"),
        (6, "datasets", "entry 4: there is no field `sp"),
        (7, "datasets", "entry 4: `dataset_layout: tabl"),
        (8, "datasets", "entry 4: `fraction: -1`; allow"),
        (9, "test_split_sizes", "there is no such key. Did you "),
    ]


@pytest.mark.parametrize("command", ["check", "run"])
def test_mistakes_of_how_it_is_started_are_told_with_the_recipe_s(command, tmp_path, capfd):
    # With processes that nobody knows, of batches nothing can be said.
    path, _ = write(tmp_path, "learning_rat: 1", "global_batch_size: 7")
    words = ["stray", "--accelerate", "nope", "--num_machines", "0", "--num_processes", "two", "--seeed", "1"]
    assert main([command, str(path), *words]) == 2
    said = capfd.readouterr().err
    wanted = ("`learning_rat`", "--seeed", "--accelerate: there is no file nope", "--num_machines: 0", "`stray`")
    assert "6 mistakes" in said and "--num_processes: two" in said and all(text in said for text in wanted), said


def test_all_packages_that_are_missing_are_told(tmp_path, monkeypatch):
    def version(name):
        if name in ("bitsandbytes", "liger-kernel", "flash-attn"):
            raise packages.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    monkeypatch.setattr(packages, "version", version)
    lines = ["optim: paged_adamw_8bit", "use_liger_kernel: true", "attn_implementation: flash_attention_2"]
    path, _ = write(tmp_path, *lines, "learning_rat: 1")
    with pytest.raises(UserError) as found:
        check_run(str(path), [])
    said = [error.said for error in found.value.every]
    assert [text.partition(", which is not installed")[0].rpartition(" ")[2] for text in said[:3]] == [
        *("bitsandbytes", "liger-kernel", "flash-attn")
    ], said
    assert len(said) == 4


@pytest.mark.parametrize("command", ["run", "check"])
def test_all_are_told_in_a_second_and_a_half(command, tmp_path):
    path, _ = write(tmp_path, *PLANTED)
    result = hpt_trl_within(1.5, command, str(path))
    assert result.returncode == 2 and result.stderr.count("error:") == 1 and "Traceback" not in result.stderr
    assert all(said in result.stderr for said in PLANTED.values())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORD": "x\0"}, "null character"),
        ({"MY_TOKEN": "x\0"}, "null character"),
        ({"A=TOKEN": "x"}, "name of a variable"),
        ({"HF_TOKEN": ["a"]}, "no single value"),
        ({"": 1}, "name of a variable"),
    ],
)
def test_variables_that_cannot_be_set_are_told(variables, said, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "before")
    path, lines = write(tmp_path, yaml.safe_dump({"env": variables}))
    (error,) = refused(path).every
    assert said in error.said and error.place.line == lines["env"]
    stages = {"one": {"recipe": "sft/stories-tiny", "env": variables}}
    chain = {"stage": "pipeline", "output_dir": str(tmp_path / "all"), "stages": stages}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(chain))
    for command in ("check", "run"):
        assert main([command, str(tmp_path / "chain.yaml")]) == 2
        told = capfd.readouterr().err
        assert said in told and "`stages.one.env`" in told, told
    assert os.environ["HF_TOKEN"] == "before"
