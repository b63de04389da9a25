"""A token is in nothing that a run writes, prints or sends, wherever it was given."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from hpt_trl import cli
from hpt_trl.cli import process
from hpt_trl.errors import Collector, UserError
from hpt_trl.planning.check import check
from hpt_trl.recipes.declared import declared_in_file
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.recipes.withheld import note_secrets
from hpt_trl.runs.changes import changes_between
from hpt_trl.runs.going_on import after_interrupt
from hpt_trl.runs.locking import only_run
from hpt_trl.runs.output_folder import resolved_recipe
from hpt_trl.runs.resuming import note_of
from hpt_trl.settings.file import read_recipe_file
from hpt_trl.settings.masking import is_secret, is_secret_variable
from hpt_trl.settings.secrets import handed_on, take_secret_variables, take_token, take_token_of, withheld
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
    secret = {
        "hub_token": IN_RECIPE,
        "model_init_kwargs": {"token": IN_BLOCK},
        "env": {"WANDB_API_KEY": IN_BLOCK, "OTHER": "plain"},
    }
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


LOGIN = "http://u:pass12345@host:8000"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("vllm_server_base_url", LOGIN, "holds a login or a token"),
        ("run_name", f"run of {TOKEN}", "holds a login or a token"),
        ("model_init_kwargs", {"token": "••••"}, "stands for a secret that was left out"),
        ("dataset_name", ["http://••••@host/a.jsonl"], "stands for a secret that was left out"),
    ],
)
def test_what_checkpoints_would_hold_is_refused(key, value, said):
    class AsIs:
        error = staticmethod(lambda key, message: UserError(f"{key}: {message}"))

    mistakes = Collector()
    note_secrets({key: value, "max_new_tokens": 4, "chat_kwargs": {"eos_token": "</s>"}}, AsIs, mistakes)
    with pytest.raises(UserError, match=f"^{key}: .*{said}") as refused:
        mistakes.settle()
    assert TOKEN not in str(refused.value) and "pass12345" not in str(refused.value)


def test_no_key_but_the_tokens_is_taken_for_a_secret():
    assert [key for key in declared_in_file("mtp").keys if is_secret(key)] == ["hub_token"]
    assert not changes_between(
        {"dataset_name": "http://a:b@h/x"}, {"dataset_name": "http://••••@h/x"}, {}, {}, lambda was, now: False
    )


def test_no_secret_of_a_command_is_noted_by_a_tracker_or_in_the_results(recipe, tmp_path, monkeypatch, capfd):
    """wandb notes the words of the process by itself."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    secret = "s3cretOfTheCommand"
    words = ["--model_init_kwargs", json.dumps({"token": secret}), "--hub_token", TOKEN]
    monkeypatch.setattr("sys.argv", ["hpt-trl", "run", recipe("sft", max_steps=1, report_to="wandb"), *words])
    assert process.main() == 0
    assert sys.argv[3:] == ["--model_init_kwargs", '{"token": ••••}', "--hub_token", "••••"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in kept)
    assert not [path for path in kept if secret.encode() in path.read_bytes() or TOKEN.encode() in path.read_bytes()]
    printed = capfd.readouterr()
    assert secret not in printed.out + printed.err
    assert secret not in after_interrupt(tmp_path, ["hpt-trl", "run", "a.yaml", *words[:2]])


def test_a_stage_of_a_pipeline_gets_its_secrets_beside_its_recipe(tmp_path, monkeypatch):
    values = {"seed": 1, "model_init_kwargs": {"token": "s3cret"}, "judge_model": LOGIN, "env": {"A": LOGIN, "B": "1"}}
    written, kept = withheld(values)
    assert written["env"] == {"B": "1"} and "s3cret" not in str(written) and "pass12345" not in str(written)
    for name in ("stage.yaml", "other.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(written))
    for name, value in handed_on(tmp_path / "stage.yaml", kept).items():
        monkeypatch.setenv(name, value)
    read = read_recipe_file(tmp_path / "stage.yaml")
    assert read.values == values and read.texts["judge_model"] == LOGIN
    assert read_recipe_file(tmp_path / "other.yaml").values == written
    assert handed_on(tmp_path, withheld({"seed": 1})[1]) == {}


def test_a_login_of_the_data_is_in_no_file(recipe, tmp_path):
    path = recipe("sft", dataset_options={"storage_options": {"user": LOGIN}}, max_steps=1)
    resolved = resolved_recipe(read_recipe(Path(path)))
    assert "pass12345" not in resolved and "http://••••@host:8000" in resolved
    assert "pass12345" not in json.dumps(note_of(read_recipe(Path(path))), ensure_ascii=False)
    with only_run(tmp_path / "folder", ["hpt-trl", "run", "a.yaml", "--data", LOGIN]):
        assert "pass12345" not in (tmp_path / "folder" / ".run.owner").read_text()
