"""PPO's learning curves: what is said of the arms, by hand; a record that goes on; the rule as TRL 1.12 reads it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import ppo_against_trl, ppo_curves
from benchmarks.paired import Mean, difference, verdict
from benchmarks.ppo_scorers import RuleModel, Scorer, WordScorer
from benchmarks.ppo_tasks import STOCK, Refused, read_arms, setup_of
from benchmarks.shared import ROOT
from tests.helpers.tiny import save_tiny_model


def run(scores: list[float], kl: float, seconds: float) -> ppo_curves.Run:
    count = len(scores)
    flat = {"kl": kl, "explained_variance": 0.5, "tokens": 10.0, "seconds": 9.0, "cpu_seconds": seconds}
    return {"score": scores, **{name: [value] * count for name, value in flat.items()}}


def test_a_verdict_takes_more_than_two_standard_errors():
    found = difference([3.0, 5.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0])
    # Of 2, 3, 4 and 5: mean 3.5, variance 5/3.
    assert found.mean == 3.5 and found.error == pytest.approx((5 / 3 / 4) ** 0.5)
    assert verdict(Mean(2.01, 1.0, 6)) == "better" and verdict(Mean(-2.01, 1.0, 6)) == "worse"
    assert verdict(Mean(2.0, 1.0, 6)) == verdict(Mean(0.0, 0.0, 6)) == "no difference found"
    assert verdict(difference([1.0], [0.0])) == "one seed"


def test_an_arm_is_read_where_it_was_when_the_fastest_had_drawn_its_last_completions():
    # One unit of score an update, a second each: its last completions are drawn at 4 s. The other one needs two each.
    fast, slow = run([0.0, 1.0, 2.0, 3.0, 4.0], 0.0, 1.0), run([0.0, 1.0, 2.0, 3.0, 4.0], 0.0, 2.0)
    found = ppo_curves.at_equal_time({"fast": fast, "slow": slow}, 0.1, "cpu_seconds")
    assert found == {"fast": pytest.approx(3.5), "slow": pytest.approx(1.75)}
    # At two nats a score is worth 0.2 less.
    kl = ppo_curves.at_equal_time({"fast": run(fast["score"], 2.0, 1.0), "slow": slow}, 0.1, "cpu_seconds")
    assert kl["fast"] == pytest.approx(3.3)


def test_only_seeds_of_all_arms_are_compared(tmp_path):
    arms = {"a": {}, "b": {"lam": 1.0}}
    record = ppo_curves.Record(tmp_path / "ppo.json", "stories", {"updates": 4}, arms)
    for arm, seed, score in (("a", 0, 1.0), ("b", 0, 1.5), ("a", 1, 2.0), ("b", 1, 2.5), ("a", 2, 99.0)):
        record.add(arm, seed, run([score] * 4, 1.0, 1.0))
    summary = ppo_curves.summarize(record, arms, [0, 1, 2], "a", 0.5, "cpu_seconds")
    assert summary.seeds == [0, 1]
    assert summary.means["a"]["objective"] == Mean(1.0, 0.5, 2) and summary.means["b"]["time"].mean == 4
    for name in ("objective", "at_equal_time"):
        assert summary.differences["b"][name].mean == pytest.approx(0.5)
    text = ppo_curves.table(summary, 4, 0.5, "cpu_seconds")
    assert "| b | 2.000 ± 0.500 | 1.00 ± 0.00 | 1.500 ± 0.500 | 0.50 ± 0.00 | 40 | 4 | 1.500 ± 0.500 |" in text
    assert "| b | +0.500 ± 0.000 | better | +0.500 ± 0.000 | better |" in text


def test_a_record_goes_on_with_the_same_settings_alone(tmp_path):
    path, arms = tmp_path / "ppo.json", {"a": {"lam": 1.0}, STOCK: None}
    path.write_text('{"speed": {"of": "before"}}')
    ppo_curves.Record(path, "stories", {"updates": 4}, arms).add("a", 0, run([1.0] * 4, 1.0, 1.0))
    assert json.loads(path.read_text())["speed"] == {"of": "before"}
    assert "[1.0, 1.0, 1.0, 1.0]" in path.read_text()
    again = ppo_curves.Record(path, "stories", {"updates": 4}, arms)
    assert again.has("a", 0) and not again.has("a", 1) and not again.has(STOCK, 0)
    with pytest.raises(Refused, match=r"other settings: updates 4 \(now 5\)"):
        ppo_curves.Record(path, "stories", {"updates": 5}, arms)
    with pytest.raises(Refused, match="an arm `a` with"):
        ppo_curves.Record(path, "stories", {"updates": 4}, {"a": {"lam": 0.9}})
    # Another task is another record.
    assert not ppo_curves.Record(path, "positive-words", {"updates": 5}, {"a": {}}).has("a", 0)


def test_arms(tmp_path):
    (tmp_path / "arms.yaml").write_text("long: {lam: 1.0, kl_coef: 2e-1}\nplain:\n")
    found = read_arms(["head", "far: learning_rate=1e-3 num_iterations=2"], str(tmp_path / "arms.yaml"), stock=True)
    assert found == {
        STOCK: None,
        "head": {},
        "far": {"learning_rate": 0.001, "num_iterations": 2},
        "long": {"lam": 1.0, "kl_coef": 0.2},
        "plain": {},
    }
    # Those that come with the benchmark are taken on both tasks.
    shipped: dict = {}
    for name in ("ppo_arms", "ppo_critic_options"):
        shipped |= read_arms([], str(ROOT / "benchmarks" / f"{name}.yaml"), stock=False)
    sizes = dict.fromkeys(("updates", "batch", "mini_batches", "epochs", "response", "lora_r"), 1)
    paths = dict.fromkeys(("value_model", "tokenizer", "rows", "output_dir"), str(tmp_path))
    rates = {"learning_rate": 1e-3, "kl_coef": 0.1, "vf_coef": 0.1, "cliprange": 0.2, "cliprange_value": 0.2}
    prepared = {
        **sizes,
        **paths,
        **rates,
        "model": "policy",
        "gamma": 1.0,
        "lam": 0.95,
        "bf16": False,
        "same_allocator": False,
    }
    for reward_model in ("reward", None):
        given = prepared | {"reward_model": reward_model}
        setups = {name: setup_of(given, name, overrides, 0) for name, overrides in shipped.items()}
        assert setups["value model"].overrides["value_model_name_or_path"] == reward_model
    for words in (["head", "head"], ["head: lam"], [": lam=1"]):
        with pytest.raises(Refused):
            read_arms(words, None, stock=False)


def test_the_rule_scores_the_same_as_a_model(tiny_model_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    prompts = [tokenizer(text)["input_ids"] for text in ("I feel so", "I feel", "This makes me")]
    completions = [tokenizer(text)["input_ids"] for text in (" happy", " so sad", " Smile!")]
    counts: list[int] = []
    scorer, pad = WordScorer(tokenizer, counts.append), tokenizer.pad_token_id
    scores = scorer(completions, prompts)
    assert scores == [1.0, -1.0, 1.0]
    before, after = max(map(len, prompts)), max(map(len, completions))
    rows = torch.tensor(
        [
            [pad] * (before - len(prompt)) + prompt + own + [pad] * (after - len(own))
            for prompt, own in zip(prompts, completions, strict=True)
        ]
    )
    mask = rows != pad
    model = RuleModel(scorer, prompts)
    output = getattr(model, model.base_model_prefix)(
        input_ids=rows.masked_fill(~mask, 0), attention_mask=mask, position_ids=None, output_hidden_states=True
    )
    read = model.score(output.hidden_states[-1])
    assert read.shape == (3, before + after, 1) and read[:, -1, 0].tolist() == scores
    assert counts == [int(mask.sum())] * 2


def command(model: str, report: Path, *words: str) -> list[str]:
    sizes = "--updates 2 --batch 4 --mini-batches 1 --epochs 2 --response 4 --lora-r 2 --seeds 1 --no-stock"
    task = ["curve", "--task", "positive-words", "--model", model, "--json", str(report)]
    return [*task, *sizes.split(), *words]


def test_curve(tmp_path, tiny_model_path, capsys):
    report = tmp_path / "ppo.json"
    ppo_against_trl.main(command(tiny_model_path, report, "--arm", "short: lam=0.9"))
    found = json.loads(report.read_text())["curves"]["positive-words"]
    (run,) = found["arms"]["short"]["runs"].values()
    assert run.keys() == set(ppo_curves.FIGURES) and all(len(values) == 2 for values in run.values())
    assert run["kl"][0] == pytest.approx(0, abs=1e-4) and all(-1 <= score <= 1 for score in run["score"])
    assert all(cpu > 0 for cpu in run["cpu_seconds"])
    assert (tmp_path / "ppo-positive-words.png").is_file()
    assert "| short |" in capsys.readouterr().out
    # What has been run is not run again.
    ppo_against_trl.main(command(tiny_model_path, report, "--arm", "short: lam=0.9"))
    assert json.loads(report.read_text())["curves"]["positive-words"] == found
    with pytest.raises(SystemExit, match=r"The arm `wrong`.*lamm"):
        ppo_against_trl.main(command(tiny_model_path, report, "--arm", "wrong: lamm=1"))


def test_a_reward_model_is_read_at_the_last_own_token(tmp_path):
    base = save_tiny_model(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    prompts, completions, counts = [[5, 6, 7], [5, 6], [9, 8, 7, 6]], [[3, 4], [0, 2, 11, 3, 4], [2]], []
    rows = [torch.tensor([prompt + own]) for prompt, own in zip(prompts, completions, strict=True)]
    with torch.no_grad():
        alone = [float(model.score(model.base_model(row).last_hidden_state[0, -1])) for row in rows]
    assert Scorer(model, counts.append)(completions, prompts) == pytest.approx(alone, abs=1e-6)
    assert counts == [17]
