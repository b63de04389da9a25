"""The benchmarks of Rho-1 at sizes that say nothing but that they run: every arm, side and figure."""

import json

import pytest

from benchmarks import rho1_gsm8k, rho1_noisy_corpus, rho1_step
from benchmarks.rho1_arms import SEARCH_SEED


def test_noisy_corpus(tmp_path):
    sizes = "--steps 2 --blocks 2 --width 16 --documents 60 --held_out 8 --reference_documents 20 --reference_epochs 1"
    arms = "--arms full random excess --seeds 0 --learning_rates 1e-3 2e-3"
    files = ["--folder", str(tmp_path), "--output", str(tmp_path / "report.json")]
    report = rho1_noisy_corpus.main([*sizes.split(), *arms.split(), *files])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    # Two learning rates in the search and the better one on the seed, in each arm.
    assert len(report["runs"]) == 3 * (2 + 1) and len(report["clean"]) == 1
    assert {(run["seed"], run["final"]) for run in report["runs"]} == {(SEARCH_SEED, False), (0, True)}
    assert len({run["num_tokens"] for run in report["runs"]}) == 2  # the same tokens on the same seed
    excess = next(run for run in report["runs"] if run["arm"] == "excess")
    assert excess["rho1/select_ratio"] == pytest.approx(0.6, abs=0.05)
    found = report["arms"]["excess"]
    assert found["learning_rate"] == min(found["search"], key=lambda pair: pair[1])[0] and found["at_edge"]
    assert found["less_than_full"]["losses"] == [found["losses"][0] - report["arms"]["full"]["losses"][0]]


def test_gsm8k(tmp_path, tiny_model_path):
    right = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(20)]
    solutions = {
        "a": {"is_correct": False, "solution": "9 + 9 = 99\nA: 99"},
        "b": {"is_correct": True, "solution": "18"},
    }
    wrong = [{"question": f"What is {n} + 9?", **solutions} for n in range(20)]
    for name, rows in (("right", right), ("wrong", wrong)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--train", str(tmp_path / "right.jsonl"), "--wrong", str(tmp_path / "wrong.jsonl")]
    files += ["--model", tiny_model_path, "--folder", str(tmp_path / "runs")]
    sizes = "--corpus_rows 6 --clean_rows 8 --held_out_rows 3 --max_length 64 --blocks 1 --dtype float32"
    search = "--reference_epochs 3 --seeds 0 --learning_rates 1e-3"
    report = rho1_gsm8k.main([*files, *sizes.split(), *search.split()])
    assert len(report["runs"]) == 3 * 2 and report["reference"]["loss"] < report["base_loss"]
    assert rho1_gsm8k.text_of("Q? ", "1 + 1 = <<1+1=2>>2\nA: 2") == "Q?\n1 + 1 = 2\n#### 2"


def test_step(tmp_path):
    sizes = f"--layers 1 --vocabulary 400 --rows 2 --tokens 16 --scored_rows 4 --folder {tmp_path}".split()
    settings = "--rounds 1 --no_memory --sides sft cached-0.6 online-0.6"
    report = rho1_step.main([*sizes, *settings.split()])
    assert report["time"]["sft"]["ratio_median"] == 1 and report["time"]["online-0.6"]["ratio_median"] > 0
    assert report["scoring"]["ratio_median"] > 0 and report["scoring"]["bytes_per_token"] < 4
    assert rho1_step.main([*sizes, "--memory_of", "cached-0.6"])["peak_gib"] > 0
