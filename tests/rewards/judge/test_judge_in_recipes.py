"""The judge in recipes: what `check` says without asking it, and runs that it scores, or that end as it is down."""

import json
import re
from pathlib import Path

import pytest

from hpt_trl.cli import main
from tests.helpers.judge_service import Answer, judge_service, reply
from tests.helpers.stage_runs import recipe  # noqa: F401

KEY = "sk-not-for-anybody-27182818"


@pytest.fixture
def episodes(tmp_path, recipe):  # noqa: F811
    """Writes a GRPO recipe whose rows bring an episode's answer as a column, as an environment does."""
    rows = [
        {"prompt": f"What is {i} + 1?", "answer": str(i + 1), "final_answer": f"{i + i % 2}", "invalid_actions": i % 2}
        for i in range(16)
    ]
    data = tmp_path / "episodes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**changes) -> str:
        own = "tests.helpers.stage_runs.remainder"
        keys = {"reward_funcs": ["judged_answer", "action_format", own], "reward_weights": [0.7, 0.1, 0.2]}
        keys |= {"dataset_name": str(data), "test_split_size": None, "judge_model": "grader", "judge_retries": 0}
        return recipe("grpo", **keys | {"scale_rewards": "none", "max_steps": 3} | changes)

    return write


def test_check_names_the_judge_and_does_not_ask_it(episodes, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with judge_service(lambda *_: reply("correct")) as service:
        words = ["check", episodes(judge_url=service.url, judge_api_key_env="JUDGE_API_KEY")]
        # Nor does a measured step, which is refused once the recipe is checked.
        assert main([*words, "--measure"]) == 2
        out, refused = capsys.readouterr()
        assert f"--measure: grader at {service.url} would judge the step's rollouts, which may cost money." in refused
        assert f"grader at {service.url}, 60 s a question, 8 at a time in each process, verdicts kept in memory" in out
        assert KEY not in out and service.asked == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "the recipe has no `judge_url`"),
        ({"judge_url": "http://localhost:1/v1", "judge_model": None}, "the recipe has no `judge_model`"),
        ({"judge_url": "http://localhost:1/v1", "judge_api_key_env": KEY}, "no name of an environment variable"),
        ({"judge_url": "http://localhost:1/v1", "judge_timeout": 0}, "judge_timeout.*allowed: above 0"),
        ({"judge_url": "http://localhost:1/v1", "judge_concurrency": 0}, "judge_concurrency.*allowed: 1 or more"),
    ],
)
def test_check_refuses_what_cannot_be_asked(episodes, capsys, keys, message):
    assert main(["check", episodes(**keys)]) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err) and KEY not in said.err + said.out


def test_a_run_is_scored_by_the_judge(episodes, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)

    def right(_, question):
        text = question["messages"][0]["content"]
        reference = text.split("<reference>\n")[1].split("\n")[0]
        given = text.split("<answer>\n")[1].split("\n")[0]
        return (
            reply("perhaps") if given == reference == "8" else reply("correct" if given == reference else "incorrect")
        )

    with judge_service(right) as service:
        keys = {"judge_url": service.url, "judge_api_key_env": "JUDGE_API_KEY", "judge_cache": str(tmp_path / "kept")}
        assert main(["run", episodes(**keys, max_steps=8)]) == 0
        # 16 rows, each asked once though it has two completions: one without a verdict is asked again.
        assert 16 <= len(service.asked) <= 17 and set(service.authorization) == {f"Bearer {KEY}"}
    lines = [json.loads(line) for line in (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "judge/unscored" in line]
    assert len(steps) == 8
    # Of each batch of two rows; the one that has no verdict is in one of them, and lowers no mean.
    assert sorted(line["judge/unscored"] for line in steps) == [0] * 7 + [0.5]
    means = [line["rewards/judged_answer/mean"] for line in steps]
    assert set(means) <= {0.0, 0.5, 1.0} and len(set(means)) > 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_judge_that_is_down_ends_the_run_with_a_message(episodes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    down = Answer({"error": f"who is {KEY}?"}, status=401)
    with judge_service(lambda *_: down) as service:
        assert main(["run", episodes(judge_url=service.url, judge_api_key_env="JUDGE_API_KEY")]) == 2
    said = capsys.readouterr()
    assert f"judged_answer: the judge at {service.url} answered no question of the first batch" in said.err
    assert "401" in said.err and "Traceback" not in said.err and KEY not in said.err + said.out
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
