"""A push as its users make it: by the command line, in a process of its own."""

import pytest

from hpt_trl.runs import runner
from tests.helpers.hub import READ_TOKEN, TOKEN, serve_hub, variables
from tests.helpers.processes import hpt_trl
from tests.helpers.stage_runs import weights


@pytest.fixture
def served():
    """A Hub that this process knows nothing of."""
    with serve_hub() as hub:
        yield hub


def test_a_finished_run_is_pushed_by_the_command_or_refused_in_a_line(served, recipe, tmp_path):
    runner.run(recipe("sft", max_steps=1), [])
    folder, before = tmp_path / "sft", weights(tmp_path / "sft")
    known = variables(served, tmp_path / "home")
    words = ("push", str(folder), "--hub_model_id", "me/tiny", "--private", "true")
    refused = hpt_trl(*words, **known | {"HF_TOKEN": READ_TOKEN})
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1, refused.stderr
    assert "the token may read only" in refused.stderr and READ_TOKEN not in refused.stderr
    theirs = hpt_trl("push", str(folder), "--hub_model_id", "them/tiny", **known)
    assert theirs.returncode == 2 and theirs.stderr.count("\n") == 1 and "them/tiny" in theirs.stderr
    assert not served.repos and not served.uploads

    done = hpt_trl(*words, **known)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Pushed: {served.address}/me/tiny (") and TOKEN not in done.stdout + done.stderr
    repo = served.repos["me/tiny"]
    assert repo.private and repo.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert weights(folder) == before
