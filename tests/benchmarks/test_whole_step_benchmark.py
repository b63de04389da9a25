"""The benchmark of whole steps on a tiny model: what a step is made of, by hand, and its ratios."""

import io
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks import whole_step
from benchmarks.gate import Finished
from benchmarks.phases import PHASES
from benchmarks.step_workers import STAGES, Setup, trainer_of
from benchmarks.update_phase import GROUP, rows


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny model that takes the benchmark's demonstrations."""
    from tests.helpers.tiny import build_model, build_tokenizer

    folder = str(tmp_path_factory.mktemp("models") / "long")
    tokenizer = build_tokenizer()
    made: LlamaForCausalLM = build_model(tokenizer)
    made.config.max_position_embeddings = 1024
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def steps_of(side: str, model: str, tmp_path: Path, monkeypatch, stage: str = "hpt", **profiled: str) -> list[dict]:
    """Reports of two steps of a side, in this process."""
    setup = Setup(stage, side, model, str(tmp_path / "run"), steps=2, completion=6, bf16=False, profiled=None)
    setup = Setup(**vars(setup) | profiled)
    reports = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 2))
    with suppress(Finished):
        trainer_of(setup, reports).train()
    return [json.loads(line) for line in reports.getvalue().splitlines()]


def test_positions_and_phases_of_a_stock_step_by_hand(model, tmp_path, monkeypatch):
    first, second = steps_of("stock", model, tmp_path, monkeypatch, profiled=str(tmp_path / "profile.txt"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in rows(STAGES["hpt"].kinds)
    ]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    prompts, count = GROUP * sum(lengths), GROUP * len(lengths)
    for step in (first, second):
        completions = round(count * step["mean_length"])
        # The longest completion has six tokens; the last of each is not fed. A few are the padding token itself.
        generated = pytest.approx(prompts + completions - count, rel=1e-3)
        assert step["positions"] == {
            "generation": [count * (max(lengths) + 5), generated],
            "forward": [count * (max(lengths) + 6), prompts + completions],
        }
        assert step["phases"].keys() == set(PHASES)
        assert sum(step["phases"].values()) == pytest.approx(step["seconds"], rel=0.05)
        assert all(step["phases"][phase] > 0 for phase in PHASES)
        assert step["peak_gib"] > 0
    assert "aten::mm" in (tmp_path / "profile.txt").read_text()


@pytest.mark.parametrize("stage", ["hpt", "ppo"])
def test_our_steps_compute_the_rows_that_matter(model, tmp_path, monkeypatch, stage):
    (step, _) = steps_of("ours", model, tmp_path, monkeypatch, stage=stage)
    computed, tokens = step["positions"]["forward"]
    assert tokens <= computed
    if stage == "hpt":
        # Half failing, of each a demonstration; a quarter mixed, of each all rollouts.
        assert step["rows_kept"] == (4 + 2 * GROUP) / (8 * GROUP)
        assert "scoring" not in step["positions"]
    else:
        # Policy and reference.
        assert step["positions"]["scoring"][1] >= 2 * tokens


def test_ratios_by_hand():
    def step(seconds: float, generation: float, positions: list[int]) -> dict:
        phases = dict.fromkeys(PHASES, 0.0) | {"generation": generation, "forward": 0.5, "rewards": 0.5}
        return {"seconds": seconds, "phases": phases, "positions": {"forward": positions}, "mean_length": 3.0}

    ours = [step(1.0, 0.5, [50, 40]), step(3.0, 0.5, [30, 30]), step(1.0, 0.5, [40, 40])]
    stock = [step(2.0, 1.0, [100, 50])] * 3
    found = whole_step.summarize({"ours": ours, "stock": stock})
    assert (found["ratio_median"], found["ratio_min"], found["ratio_max"]) == (0.5, 0.5, 1.5)
    assert found["phases"]["generation"]["ratio_median"] == 0.5
    assert found["phases"]["update"]["ours_s"] == 0.5 and found["phases"]["all but generation"]["ours_s"] == 1
    # Of no time no ratio is made.
    assert found["phases"]["backward"]["ratio_median"] is None
    assert found["positions"]["ours"]["all"] == {"positions": 40, "padding": round(10 / 120, 4)}
    assert found["positions_ratio"] == 0.4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whole_step(model, tmp_path):
    words = ["--model", model, "--stages", "hpt", "--rounds", "1", "--completion", "6", "--float32"]
    words += ["--output", str(tmp_path / "report.json"), "--profile", str(tmp_path / "profile.txt")]
    report = whole_step.main(words)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    found = report["stages"]["hpt"]
    assert found["rounds"] == 1 and found["ratio_median"] > 0 and found["peak_gib"]["ratio"] > 0
    text = (tmp_path / "profile.txt").read_text()
    assert "hpt, ours" in text and "hpt, stock" in text
