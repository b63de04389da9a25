"""The reward shift diagnostic: against numbers worked out by hand, and from the files that a run leaves."""

import json
import math

import pytest
import yaml

from benchmarks.gsm8k_reward_model import split_pairs
from hpt_trl.errors import UserError
from hpt_trl.methods.reward.shift import measure_shift, read_scores, report_shift, spread
from hpt_trl.rewards.reward_model import RewardModel
from hpt_trl.runs import reporting, runner


def comparison(prompt, chosen, rejected, names="cr"):
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_key": names[0],
        "rejected_key": names[1],
    }


def write_scores(folder, lines):
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_components_of_variance():
    # Means 2 and 6 about 4; inside 4 / 2 = 2; between 16; (16 - 2) / 2 = 7.
    found = spread([[1, 3], [5, 7]])
    assert (found.between, found.within, found.means) == pytest.approx((math.sqrt(7), math.sqrt(2), math.sqrt(8)))
    assert found.share == pytest.approx(7 / 9)
    # Groups of two sizes about the grand mean 4: inside 2 / 1; between 2 * 9 + 36 = 54; size 3 - 5 / 3 = 4 / 3.
    found = spread([[0, 2], [10]])
    assert (found.between, found.within) == pytest.approx((math.sqrt(52 / (4 / 3)), math.sqrt(2)))
    # The means differ by less than chance makes them: no shift.
    assert spread([[0, 4], [1, 5]]).between == 0 and spread([[0, 4], [1, 5]]).means > 0
    assert spread([[1, 1], [1, 1]]).share == 0
    for groups in ([[1, 2, 3]], [[1], [2]]):
        with pytest.raises(ValueError, match="needed: two prompts"):
            spread(groups)


def test_shift_before_and_after_centring():
    found = measure_shift([comparison("a", 3, 1), comparison("b", 7, 5)])
    assert (found.raw.share, found.centred.share, found.centred.means) == (pytest.approx(7 / 9), 0, 0)
    assert found.centred.within == pytest.approx(found.raw.within)
    # a's chosen one (3) is below b's rejected one (5); without the means it is above.
    assert (found.inside, found.across, found.across_centred) == (1, 0.5, 1)
    # A constant for each prompt changes the spread between prompts and nothing inside of them.
    moved = measure_shift([comparison("a", 103, 101), comparison("b", 7, 5)])
    assert moved.raw.within == found.raw.within and moved.raw.share > 0.99 and moved.inside == 1
    # A completion of two comparisons is one completion: 5 > 3 > 1.
    found = measure_shift([comparison("a", 5, 3, "xy"), comparison("a", 3, 1, "yz"), comparison("b", 4, 4)])
    assert (found.prompts, found.completions, found.inside) == (2, 5, 2.5 / 3)


def test_report_of_scores_alone(tmp_path, capsys):
    assert report_shift(tmp_path) == []
    lines = [comparison(f"prompt {i}", 10 * i + 1, 10 * i) for i in range(6)]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    write_scores(tmp_path, [*lines, comparison("prompt 6", None, 1)])
    reporting.report(tmp_path)
    printed = capsys.readouterr().out
    assert "12 held-out completions of 6 prompts" in printed and "`center_rewards_coefficient`" in printed
    assert "chosen above rejected, same prompt" in printed and (tmp_path / "reward_shift.png").stat().st_size > 5000
    write_scores(tmp_path, [comparison(f"prompt {i}", 1, 0) for i in range(6)])
    assert "Little shift" in "\n".join(report_shift(tmp_path))
    write_scores(tmp_path, lines[:1])
    assert "cannot be measured on 2 scores of 1 prompts" in report_shift(tmp_path)[0]
    write_scores(tmp_path, [lines[0], {"prompt": "half"}])
    with pytest.raises(UserError, match=r"scores\.jsonl, line 2"):
        report_shift(tmp_path)


def test_a_run_leaves_the_scores_of_its_held_out_rows(tmp_path, tiny_model_path, capsys):
    rows = [
        {"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}{end}", "rejected": f"No idea, {i}"}
        for i in range(8)
        for end in (".", "!")
    ]
    data, out = tmp_path / "sums.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "stage": "reward",
        "model_name_or_path": tiny_model_path,
        "dataset_name": str(data),
        "test_split_size": 6,
        "output_dir": str(out),
        "dtype": "float32",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "conversational": False,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        # The last batch is a smaller one.
        "per_device_eval_batch_size": 4,
        "learning_rate": 3e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    }
    path = tmp_path / "reward.yaml"
    path.write_text(yaml.safe_dump(recipe))
    runner.run(str(path), [])
    # The rejected completion of a prompt is in both of its comparisons, and one completion.
    assert "Scores of 9 held-out completions of 3 prompts" in capsys.readouterr().out
    lines = read_scores(out)
    texts = {(row["prompt"], row["rejected"]) for row in rows}
    model = RewardModel(str(out))
    for line in lines:
        (text,) = (text for prompt, text in texts if prompt == line["prompt"])
        assert model(prompts=[line["prompt"]], completions=[text]) == pytest.approx([line["rejected"]], abs=1e-5)
    (out / "reward_shift.png").unlink()
    reporting.report(out)
    assert "spread inside a prompt" in capsys.readouterr().out and (out / "reward_shift.png").exists()
    runner.run(str(path), ["--overwrite", "true", "--test_split_size", "null"])
    assert not (out / "scores.jsonl").exists() and not (out / "reward_shift.png").exists()


def test_pairs_of_held_out_questions_stay_out_of_training():
    def solution(text, right):
        return {"is_correct": right, "solution": text}

    rows = [
        {
            "question": f"question {i}",
            "a": solution(f"{i} <<1+1=2>>2", True),
            "b": solution(f"{i} 2", True),
            "c": solution(f"{i} 3", False),
            "d": solution(f"{i} 4", i == 0),
        }
        for i in range(6)
    ]
    everyone_right = {"question": "easy", "a": solution("1", True), "b": solution("2", True)}
    train, test = split_pairs([*rows, everyone_right], 6, 2, lambda pair: pair["rejected"] != "5 4")
    questions = [{pair["prompt"] for pair in part} for part in (train, test)]
    assert len(questions[0]) == 4 and len(questions[1]) == len(test) == 2 and not questions[0] & questions[1]
    # Without its calculator marks the first solution is the second one.
    assert all("<<" not in pair["chosen"] for pair in train)
    assert len({tuple(pair.values()) for pair in train}) == 6
    with pytest.raises(SystemExit, match="pairs are left for training"):
        split_pairs(rows, 60, 2, lambda pair: True)
