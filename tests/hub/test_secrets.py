"""A token is in nothing that a run writes, prints or sends, wherever it was given."""

import json
import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from hpt_trl import cli
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.settings.masking import is_secret_variable
from hpt_trl.settings.secrets import take_secret_variables, take_token, take_token_of
from tests.helpers.hub import TOKEN
from tests.helpers.processes import hpt_trl

IN_RECIPE, IN_BLOCK, IN_CACHE = "hf_TokenOfTheRecipeXYZ", "hf_TokenOfTheBlockXYZ", "hf_TokenOfTheCacheXYZ"
PLANTED = (TOKEN, IN_RECIPE, IN_BLOCK, IN_CACHE)


def found_in(folder: Path, *but: Path) -> list[str]:
    """Files, or their names, in which a planted token stands."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and path not in but
        for token in PLANTED
        if token.encode() in path.read_bytes() or token in path.name
    ]


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    for name in ("HPT_TRL_TOKEN_BY_COMMAND", "WANDB_API_KEY", "OTHER"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("fails", [False, True])
def test_no_token_is_written_printed_or_sent(recipe, hub, tmp_path, monkeypatch, capfd, fails):
    home = Path(constants.HF_HOME)
    home.mkdir(exist_ok=True)
    (home / "token").write_text(IN_CACHE)
    path = Path(recipe("sft", save_strategy="steps", save_steps=2, max_steps=2, push_to_hub=True, hub_model_id="me/x"))
    secret = {"hub_token": IN_RECIPE, "env": {"WANDB_API_KEY": IN_BLOCK, "OTHER": "plain"}}
    path.write_text(path.read_text() + yaml.safe_dump(secret))
    hub.fails = {"POST .*/commit/": 500} if fails else {}
    monkeypatch.setenv("HF_TOKEN", "")
    # The one on the command line stands above that of the recipe.
    assert cli.main(["run", str(path), "--hub_token", TOKEN]) == (2 if fails else 0)
    printed = capfd.readouterr()
    assert ("was not pushed: the Hub answered 500" in printed.err) == fails
    assert not any(token in printed.out + printed.err for token in PLANTED)
    assert (tmp_path / "sft" / "checkpoint-2" / "training_args.bin").is_file()
    assert not found_in(tmp_path, path) and not found_in(home, home / "token")
    results = json.loads((tmp_path / "sft" / "results.json").read_text())
    assert results["command"] == f"hpt-trl run {path}"
    sent = {**hub.objects, **{name: content for one in hub.repos.values() for name, content in one.files().items()}}
    assert not any(token.encode() in content for content in sent.values() for token in PLANTED)


@pytest.fixture
def crashing(tmp_path, monkeypatch) -> str:
    """A reward whose module ends the process by what is no mistake of a recipe, some calls deep."""
    monkeypatch.chdir(tmp_path)
    deep = "class Crash(BaseException): ...\n\n\ndef fail(token):\n    raise Crash('crashed here')\n"
    (tmp_path / "deep_reward.py").write_text(deep)
    (tmp_path / "crashing_reward.py").write_text("import os, deep_reward\n\ndeep_reward.fail(os.environ['HF_TOKEN'])\n")
    return "crashing_reward.reward"


LAUNCHED = ("--accelerate", "cpu", "--num_processes", "1")


def test_a_launched_run_that_prints_json_shows_no_token(recipe, tmp_path):
    done = hpt_trl("run", recipe("sft", max_steps=1), "--json", *LAUNCHED, "--hub_token", TOKEN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] and "starting: accelerate launch" in done.stderr
    assert TOKEN not in done.stdout + done.stderr and not found_in(tmp_path)


@pytest.mark.parametrize("words", [(), ("--json", *LAUNCHED)], ids=["plain", "launched"])
def test_no_token_is_in_a_traceback(recipe, tmp_path, crashing, words):
    path = recipe("grpo", max_steps=1, reward_funcs=[crashing])
    done = hpt_trl("run", path, *words, f"--hub_token={TOKEN}")
    assert done.returncode == 1 and "Traceback" in done.stderr and "deep_reward.Crash: crashed here" in done.stderr
    assert TOKEN not in done.stdout + done.stderr and not found_in(tmp_path)


@pytest.mark.parametrize("words", [("--hub_token", TOKEN, "--seed"), (f"--hub_token={TOKEN}", "--no_such_key", "1")])
def test_no_complaint_about_the_words_quotes_the_token(recipe, words, capsys):
    assert cli.main(["run", *words, recipe("sft")]) == 2
    said = capsys.readouterr()
    assert "the recipe comes before its overrides" in said.err and TOKEN not in said.out + said.err


def test_a_token_that_no_header_may_hold_is_not_quoted(recipe, hub, monkeypatch):
    for token in ("hf_Bad\u20acToken", "hf_Bad Token", "hf_Bad\nToken"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match="push_to_hub") as caught:
            check(recipe("sft", push_to_hub=True), [])
        assert "hf_Bad" not in str(caught.value) and caught.value.__cause__ is None


def test_words_lose_the_token_alone(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    words = ["--max_steps", "5", "--hub_token", "hf_a", "--seed", "1"]
    assert take_token(words) == ["--max_steps", "5", "--seed", "1"] and os.environ["HF_TOKEN"] == "hf_a"
    assert take_token(["--sft.hub-token=hf_b", "--x"]) == ["--x"] and os.environ["HF_TOKEN"] == "hf_b"
    assert take_token(["--hub_token", "--x"]) == ["--hub_token", "--x"] and os.environ["HF_TOKEN"] == "hf_b"
    assert take_token(["--no_hub_token", "y"]) == ["--no_hub_token", "y"]


def test_keys_and_variables_lose_what_is_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("MY_API_KEY", "")
    values = {"seed": 1, "hub_token": "hf_c", "env": {"MY_API_KEY": "k", "PLAIN": 1}}
    texts = {"seed": "1", "hub_token": "hf_c"}
    assert take_token_of(values, texts)
    take_secret_variables(values)
    assert values == {"seed": 1, "env": {"PLAIN": 1}} and texts == {"seed": "1"}
    assert is_secret_variable("AWS_SECRET_ACCESS_KEY") and is_secret_variable("DB_PASSWD")
    assert not is_secret_variable("TOKENIZERS_PARALLELISM") and not is_secret_variable("MAX_TOKENS")
    assert os.environ["HF_TOKEN"] == "hf_c" and os.environ["MY_API_KEY"] == "k"
    assert not take_token_of(wrong := {"hub_token": ["hf_d"]}, {}) and wrong == {}
