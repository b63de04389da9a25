"""Which trackers a recipe names, and what is said of one that cannot be used, before a weight is loaded."""

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.planning.check import check
from hpt_trl.recipes import trackers
from hpt_trl.recipes.trackers import NotATracker, named_trackers
from hpt_trl.runs.preparation import prepare


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, []),
        ("none", []),
        ([], []),
        (["none"], []),
        ("wandb", ["wandb"]),
        (["tensorboard", "wandb", "tensorboard"], ["tensorboard", "wandb"]),
        ("all", ["wandb", "trackio", "tensorboard"]),
        (["all", "wandb"], ["wandb", "trackio", "tensorboard"]),
        ("mlflow", ["mlflow"]),
    ],
)
def test_names(value, names):
    assert named_trackers(value) == names


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("wanbd", "there is no tracker `wanbd`; allowed: wandb, .* Did you mean `wandb`"),
        (
            ["wanbd", "tensorbord"],
            "no tracker `wanbd`, `tensorbord`; .* Did you mean `wandb`. Did you mean `tensorboard`",
        ),
        ("", "there is no tracker ``"),
        ("true", "there is no tracker `true`"),
        (["wandb", "none"], "`none` stands beside wandb"),
        ({"wandb": True}, "not a name"),
        ([1], "not a name"),
        (7, "not a name"),
    ],
)
def test_what_is_no_tracker(value, said):
    with pytest.raises(NotATracker, match=said):
        named_trackers(value)


def test_the_other_trackers_are_those_that_transformers_has():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert {*trackers.OTHERS, *trackers.TRACKERS} == set(INTEGRATION_TO_CALLBACK)


@pytest.fixture
def logged_out(tmp_path, monkeypatch):
    """A machine on which nobody is logged in to anything; wandb reads its settings anew, before and after."""
    import wandb

    (tmp_path / "home").mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "HF_TOKEN", "TRACKIO_SPACE_ID", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    wandb.teardown()
    yield monkeypatch
    monkeypatch.undo()
    wandb.teardown()


def test_wandb_without_a_key_is_refused_with_what_helps(recipe, logged_out, capsys):
    path = recipe("sft", report_to="wandb")
    with pytest.raises(UserError, match=r"sft.yaml, line \d+, `report_to`: wandb: wandb has no API key .*wandb login"):
        check(path, [])
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        prepare(path, [])
    assert main(["doctor", path]) == 1
    said = capsys.readouterr().out
    assert "not ok  report_to wandb: wandb has no API key" in said and "wandb login" in said


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_that_asks_no_server_needs_no_key(recipe, logged_out, mode):
    logged_out.setenv("WANDB_MODE", mode)
    assert prepare(recipe("sft", report_to="wandb"), []).recipe.config.report_to == ["wandb"]


def test_a_key_that_can_be_none_is_refused_and_any_other_is_taken(recipe, logged_out):
    import wandb

    logged_out.setenv("WANDB_API_KEY", "short")
    path = recipe("sft", report_to="wandb")
    with pytest.raises(UserError, match=r"40\+ characters"):
        prepare(path, [])
    logged_out.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    assert prepare(path, []).recipe.config.report_to == ["wandb"]


def test_trackio_on_a_space_needs_a_login(recipe, logged_out):
    path = recipe("sft", report_to="trackio", trackio_space_id="me/dashboard")
    from huggingface_hub import get_token

    assert get_token() is None
    with pytest.raises(UserError, match=r"Space me/dashboard, and nobody is logged in .*hf auth login"):
        prepare(path, [])
    prepare(recipe("sft", report_to="trackio"), [])


def test_a_package_that_is_missing_is_said_with_the_command(recipe, monkeypatch):
    monkeypatch.setattr(trackers, "TRACKERS", trackers.TRACKERS | {"trackio": "no-such-package"})
    with pytest.raises(UserError, match=r"trackio: the package no-such-package is not installed.*hpt-trl\[tracking\]"):
        prepare(recipe("sft", report_to="trackio"), [])
    prepared = prepare(recipe("sft", report_to=["all"]), ["--report_to", "tensorboard"])
    assert prepared.recipe.config.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("wanbd", "there is no tracker `wanbd`.*Did you mean `wandb`"),
        (["none", "tensorboard"], "`none` stands beside tensorboard"),
        ("mlflow", "the package that mlflow needs is not installed"),
    ],
)
def test_the_place_of_a_mistake_is_said(recipe, value, said):
    with pytest.raises(UserError, match=r"sft.yaml, line \d+, `report_to`: " + said):
        prepare(recipe("sft", report_to=value), [])


def test_an_evaluation_and_an_index_are_checked_alike(evaluation, tmp_path, searched):
    with pytest.raises(UserError, match=r"`report_to`: there is no tracker `tensorbord`"):
        check(evaluation(report_to="tensorbord"), [])
    with pytest.raises(UserError, match=r"`report_to`: mlflow: the stage `evaluate` reports to"):
        check(evaluation(report_to="mlflow"), [])
    path = tmp_path / "index.yaml"
    path.write_text(f"stage: index\npages: {searched.pages}\noutput_dir: {tmp_path / 'out'}\nreport_to: trakio\n")
    with pytest.raises(UserError, match=r"`report_to`: there is no tracker `trakio`.*Did you mean `trackio`"):
        check(str(path), [])


def test_names_and_projects(recipe):
    config = prepare(recipe("sft"), ["--report_to", "null"]).recipe.config
    assert (config.report_to, config.run_name, config.project) == ([], "sft", "hpt-trl")
    config = prepare(recipe("sft", run_name="mine", project="ours", report_to="tensorboard"), []).recipe.config
    assert (config.run_name, config.project) == ("mine", "ours")
