"""A run's folder read back: what is shown of it, as HTML and as text, and what is said where something is missing."""

import json
import shutil
from html.parser import HTMLParser

import pytest
import yaml

import hpt_trl
from hpt_trl.cli import main
from hpt_trl.errors import UserError
from tests.helpers.trajectories import trajectory, write_trajectories

NASTY = "<script>alert(1)</script> & </div>\"'"


class Balanced(HTMLParser):
    """Fails where tags are not balanced; keeps tags and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("br", "img", "meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_path):
    """A run of `sft` by the command line, whose prompts hold markup."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"prompt": f"{NASTY} {n}", "completion": f"It is {n}.", "answer": str(n)} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "stage": "sft",
        "model_name_or_path": tiny_model_path,
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "out"),
        "test_split_size": 6,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "max_steps": 3,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "reward_funcs": ["tests.helpers.stage_runs.remainder"],
        "eval_samples": 4,
        "eval_max_new_tokens": 4,
        "eval_success_threshold": 3,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(folder / "recipe.yaml")]) == 0
    return folder / "out"


def test_a_run_of_the_command_line_is_read_back(finished):
    run = hpt_trl.Run(finished)
    stored = json.loads((finished / "results.json").read_text())
    assert run.results == stored and run.recipe["max_steps"] == 3
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2, 3]
    found = run.measures["held_out.loss"]
    assert (found["before"], found["after"]) == tuple(stored[side]["held_out"]["loss"] for side in ("before", "after"))
    shown = Balanced(run._repr_html_())
    assert f"{found['before']:.4g}" in shown.text and f"{found['after']:.4g}" in shown.text
    assert ".curves, .samples" in shown.text and ".trajectories" not in shown.text
    assert "held_out.loss" not in repr(run) and "Held-out loss" in repr(run)


def test_pictures_are_png_and_have_a_text(finished, tmp_path):
    run = hpt_trl.Run(finished)
    assert run.curves._repr_png_().startswith(b"\x89PNG\r\n")
    assert "loss" in repr(run.curves) and "(step 3)" in repr(run.curves)
    assert run.plot("loss", "grad_norm")._repr_png_().startswith(b"\x89PNG\r\n")
    both = run.plot("loss", beside=[hpt_trl.Run(shutil.copytree(finished, tmp_path / finished.name))])
    assert both._repr_png_().startswith(b"\x89PNG\r\n")
    assert repr(both) == f"{finished}: loss, {tmp_path / finished.name}: loss over the steps"
    with pytest.raises(UserError, match=r"none of hpt/nothing was logged; there are .*\bloss\b"):
        run.plot("hpt/nothing")


def test_a_picture_leaves_the_notebooks_own_pictures_alone(finished):
    import matplotlib
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    hpt_trl.Run(finished).curves._repr_png_()
    assert matplotlib.get_backend() == before and plt.get_fignums() == []


def test_samples_stand_side_by_side_and_are_escaped(finished):
    samples = hpt_trl.Run(finished).samples
    stored = json.loads((finished / "results.json").read_text())
    assert len(samples) == 4 and len(samples[:2]) == 2
    shown = Balanced(samples._repr_html_())
    assert "script" not in shown.tags and shown.text.count("<script>alert(1)</script>") == 4
    for side in ("before", "after"):
        for line in stored[side]["completions"]:
            # Told in words, not by a colour alone.
            said = f"reward {line['reward']:g}"
            assert (f"solved, {said}" if line["solved"] else said) in shown.text
    assert "[before, reward" in repr(samples) and "[after, reward" in repr(samples[:1])


@pytest.mark.parametrize("name", ["selections", "weights", "value_curves", "shift", "trajectories"])
def test_what_a_run_has_not_is_said(finished, name):
    with pytest.raises(UserError, match=r"has no "):
        getattr(hpt_trl.Run(finished), name)


def test_a_run_that_was_stopped_shows_what_is_there(finished, tmp_path):
    (tmp_path / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    run = hpt_trl.Run(tmp_path)
    assert run.results is None and run.metrics == [] and run.parts == []
    assert "not finished" in Balanced(run._repr_html_()).text
    # Cut in the middle of a line, as a killed run leaves it.
    lines = (finished / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines + lines[: len(lines) // 3])
    assert len(run.metrics) >= 3 and run.parts == ["curves"]
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        run.measures  # noqa: B018


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not the output folder of a run: it has no recipe.yaml"):
        hpt_trl.Run(tmp_path)
    with pytest.raises(UserError, match=r"not the output folder of a pipeline"):
        hpt_trl.Chain(tmp_path)


def test_trajectories_are_a_table_and_pages(finished, tmp_path):
    (tmp_path / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    lines = [trajectory(id=f"one {NASTY}", mode="train"), trajectory(id="two", mode="eval_after")]
    write_trajectories(tmp_path, *lines)
    found = hpt_trl.Run(tmp_path).trajectories
    assert len(found) == 2 and len(found.played("eval_after")) == 1
    assert "script" not in Balanced(found._repr_html_()).tags
    page = found[0]
    assert "All trajectories" not in page.text and "&lt;script&gt;" in page.text
    shown = Balanced(page._repr_html_())
    assert not {"script", "iframe", "body", "html"} & set(shown.tags) and f"one {NASTY}" in shown.text
    assert page.write(tmp_path / "page.html").read_text() == page.text
    assert repr(found.played("eval_after")[0]).startswith(
        "Trajectory two, evaluation after, step 20; ended by: answer\n"
    )
