"""Mistakes that need no torch: told at once, by what keys.json says, in the words of the run itself."""

import json
import subprocess
import sys

import pytest

from hpt_trl.errors import UserError
from hpt_trl.recipes import declared
from hpt_trl.recipes.declared import KEYS_FILE, declared_by, declared_in_file, rewards_in_file
from hpt_trl.recipes.stages import STAGE_MODULES, load_stage
from hpt_trl.recipes.write_keys import keys_as_written
from hpt_trl.rewards.functions import REWARDS
from hpt_trl.runs.early import check_run
from hpt_trl.runs.preparation import prepare
from hpt_trl.settings.ranges import problem
from hpt_trl.settings.values import NotAllowed, convert, read_words
from tests.helpers.processes import ENVIRONMENT, ROOT, hpt_trl_within

# Words after `hpt-trl run quickstart` -> what is said of them.
MISTAKES = {
    "unknown key": (["--max_stepz", "3"], "Did you mean `max_steps`?"),
    "renamed key": (["--kl_coef", "0.1"], "write `beta`"),
    "type": (["--max_steps", "many"], "many is not allowed; allowed: a whole number."),
    "choice": (["--optim", "adamw_torc"], "Did you mean `adamw_torch`?"),
    "range": (["--learning_rate", "0"], "0 is not allowed; allowed: above 0."),
    "stage": (["--stage", "hpd"], "Did you mean `hpt`?"),
    "stage elsewhere": (["--stage", "rm"], "Did you mean `reward`?"),
    "required": (["--reward_funcs", "null"], "a recipe needs it"),
    "batch": (["--global_batch_size", "7"], "7 rows do not divide into"),
    "reward": (["--reward_funcs", "math_anser"], "Did you mean `math_answer`?"),
    "reward module": (["--reward_funcs", "nowhere.reward"], "No module named 'nowhere'"),
    "reward model": (["--reward_model_name_or_path", "outputs/nowhere"], "there is no folder outputs/nowhere"),
    "file": (["--dataset_name", "nope.jsonl"], "there is no file nope.jsonl"),
    "folder": (["--dataset_name", "some/where/else"], "there is no file or folder some/where/else"),
    "model": (["--model_name_or_path", "./nowhere"], "there is no folder ./nowhere"),
    "evaluation": (["--evaluations", "evaluate/humanevil"], "Did you mean `evaluate/humaneval`?"),
    "output": (["--output_dir", str(ROOT / "docs")], "holds no run of hpt-trl"),
    "resuming": (["--resume_from_checkpoint", "nowhere"], "there is no folder nowhere"),
}


def test_each_of_several_files_is_told(tmp_path):
    given = ["--dataset_name", "nope.jsonl", "arithmetic", "neither/*.csv", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as told:
        check_run("quickstart", given)
    said = [error.said for error in told.value.every]
    assert [any(part in text for text in said) for part in ("nope.jsonl", "`arithmetic` is no file", "matches neither")]
    assert len(said) == 3


VALUES = (None, True, 3, -1, 2.5, "", "x", "true", "3", "1e-3", "group", [1, "x"], {"a": 1}, float("nan"))


@pytest.mark.parametrize("words", [words for words, _ in MISTAKES.values()], ids=list(MISTAKES))
def test_it_is_said_as_the_run_says_it(words, tmp_path):
    given = ["--output_dir", str(tmp_path / "out"), *words]
    with pytest.raises(UserError) as early:
        check_run("quickstart", given)
    with pytest.raises(UserError) as late:
        prepare("quickstart", given)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize("name", MISTAKES)
def test_it_is_said_in_a_second_and_a_half(name, tmp_path):
    words, said = MISTAKES[name]
    result = hpt_trl_within(1.5, "run", "quickstart", "--output_dir", str(tmp_path / "out"), *words)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "quickstart", "--max_stepz", "3"], "Did you mean `max_steps`?"),
        (["eval", "evaluate/humaneval", "--max_rowz", "3"], "Did you mean `max_rows`?"),
        (["score-reference", "rho1/stories-tiny", "--select_ration", "1"], "Did you mean `select_ratio`?"),
        (["run", "pipeline/rlhf-tiny", "--ppo.max_stepz", "3"], "Did you mean `max_steps`?"),
        (["check", "pipeline/rlhf-tiny", "--sft.dataset_name", "nope.jsonl"], "there is no file nope.jsonl"),
        (["run", "pipeline/rlhf-tiny", "--sft.learning_rate", "-1"], "-1 is not allowed; allowed: above 0."),
        (["run", "quickstart", "--max_stepz", "3", "--accelerate", "multi_gpu"], "Did you mean `max_steps`?"),
        (["report", "nowhere"], "nowhere does not exist; name the output folder of a run or pipeline."),
        (["merge", "nowhere", "out"], "nowhere holds no adapter"),
        (["search", "nowhere", "question"], "nowhere holds no index"),
        (["index", "nowhere", "out"], "nowhere is no folder"),
        (["score-reference", "quickstart"], "hpt asks no frozen model; allowed here: rho1, mtp."),
        (["eval", "nowhere"], "there is no recipe `nowhere`"),
    ],
)
def test_no_library_is_imported_for_it(words, said, tmp_path):
    code = (
        "import sys; from hpt_trl.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    command = [sys.executable, "-c", code, *words]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr and not list(tmp_path.iterdir())


def test_the_file_is_of_the_installed_versions():
    assert KEYS_FILE.read_text(encoding="utf-8") == keys_as_written(), "run `make keys`"
    assert rewards_in_file() == list(REWARDS)


@pytest.mark.parametrize("name", sorted(STAGE_MODULES))
def test_keys_of_the_file_take_what_the_fields_take(name):
    live, read = declared_by(load_stage(name)), declared_in_file(name)
    assert read is not None and sorted(live.keys) == sorted(read.keys)
    facts = ("stage", "left_out", "trains", "makes_model", "works", "rewards")
    assert [getattr(live, fact) for fact in facts] == [getattr(read, fact) for fact in facts]
    assert {key: rule for key, rule in live.rules.items() if key in live.keys}.keys() == read.rules.keys()
    for key in live.keys:
        for value in VALUES:
            assert _taken(live, key, value) == _taken(read, key, value), (key, value)
        for words in ([], ["x"], ["3"], ["null"], ["{a: 1}"], ["a", "b"], ["[1, 2]"]):
            assert _words(live, key, words) == _words(read, key, words), (key, words)


def _taken(of: declared.Declared, key: str, value: object) -> object:
    try:
        taken = convert(of.keys[key].hint, value, str(value), of.keys[key].choices)
    except NotAllowed as refused:
        return str(refused), tuple(refused.names)
    rule = of.rules.get(key)
    numbers = isinstance(taken, int | float) and not isinstance(taken, bool)
    return taken, None if rule is None or not (numbers or rule.names) else problem(rule, taken)


def _words(of: declared.Declared, key: str, words: list[str]) -> object:
    try:
        return read_words(of.keys[key].hint, words)
    except NotAllowed as refused:
        return str(refused)


def test_a_file_of_other_versions_says_nothing(tmp_path, monkeypatch):
    written = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    for part, name in (("versions", "trl"), ("sources", "recipes/arguments.py")):
        other = tmp_path / f"{part}.json"
        other.write_text(json.dumps(written | {part: written[part] | {name: "0"}}))
        monkeypatch.setattr(declared, "KEYS_FILE", other)
        assert declared_in_file("sft") is None and rewards_in_file() is None
        # The stage itself is asked then.
        assert check_run("quickstart", ["--max_stepz", "3"]) is None
        with pytest.raises(UserError, match="Did you mean `max_steps`"):
            prepare("quickstart", ["--max_stepz", "3"])
