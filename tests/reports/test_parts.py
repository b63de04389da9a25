"""The parts of a page: scales, secrets, verdicts' rows, the lanes of a chain."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hpt_trl.pipeline.record import Record, StageRecord
from hpt_trl.reports.chain import LANE, chain_of
from hpt_trl.reports.figures import groups_of
from hpt_trl.reports.run import Run
from hpt_trl.reports.scales import segments, spread_apart, thinned, ticks
from hpt_trl.settings.masking import MASK, masked, masked_command, masked_text


@pytest.mark.parametrize(
    ("low", "high", "whole", "found"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.94, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.3, 0.2, False, [-0.3, -0.2, -0.1, 0, 0.1, 0.2]),
        (1, 4, True, [1, 2, 3, 4]),
        (10, 120, True, [0, 50, 100, 150]),
        (7, 7, True, [7]),
    ],
)
def test_ticks_are_round(low, high, whole, found):
    assert ticks(low, high, whole=whole) == pytest.approx(found)


def test_ticks_of_any_range_hold_it_and_are_few():
    generator = random.Random(0)
    for _ in range(500):
        low = generator.uniform(-1, 1) * 10 ** generator.uniform(-8, 8)
        high = low + 10 ** generator.uniform(-6, 8)
        found = ticks(low, high)
        spread = found[1] - found[0]
        assert found[0] <= low + spread * 1e-6 and found[-1] >= high - spread * 1e-6 and 2 <= len(found) <= 8


def test_a_long_curve_keeps_its_peaks():
    points = [(float(x), 0.0) for x in range(10_000)]
    points[4321], points[777] = (4321.0, 9.0), (777.0, -5.0)
    kept = thinned(points)
    assert len(kept) <= 260 and (4321.0, 9.0) in kept and (777.0, -5.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert thinned(points[:100]) == points[:100]


def test_labels_move_apart_and_stay_inside():
    generator = random.Random(1)
    for _ in range(200):
        heights = [generator.uniform(10, 180) for _ in range(generator.randint(1, 8))]
        placed = spread_apart(heights, 12, 10, 180)
        ordered = sorted(placed)
        assert all(later - earlier >= 12 - 1e-9 for earlier, later in pairwise(ordered))
        assert min(placed) >= 10 - 1e-9 and max(placed) <= 180 + 1e-9
    assert spread_apart([20, 100], 12, 10, 180) == [20, 100]


def test_a_metric_that_is_not_in_a_line_makes_no_gap():
    lines = [
        {"step": 1, "a": 1.0},
        {"step": 1, "b": 5},
        {"step": 2, "a": None},
        {"step": 3, "a": 2},
        {"step": 4, "a": 3},
    ]
    assert segments(lines, "a") == [[(1, 1.0)], [(3, 2), (4, 3)]]
    assert segments(lines, "c") == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"hub_token": "abc", "seed": 3}, {"hub_token": MASK, "seed": 3}),
        ({"eos_token": "<|im_end|>", "token": "abc"}, {"eos_token": "<|im_end|>", "token": MASK}),
        ({"judge_api_key_env": "JUDGE_API_KEY"}, {"judge_api_key_env": "JUDGE_API_KEY"}),
        ({"a": {"api_key": "k", "b": ["hf_0123456789ab"]}}, {"a": {"api_key": MASK, "b": [MASK]}}),
        ({"hub_token": None, "password": ""}, {"hub_token": None, "password": ""}),
        (
            {"max_tokens": 5, "url": "http://me:pass@127.0.0.1/x"},
            {"max_tokens": 5, "url": f"http://{MASK}@127.0.0.1/x"},
        ),
    ],
)
def test_secrets_are_masked(given, shown):
    assert masked(given) == shown


def test_commands_and_texts_are_masked():
    assert masked_command("run a --hub_token x y --seed 3") == f"run a --hub_token {MASK} {MASK} --seed 3"
    assert masked_command("run a --hub-token=x 'b c'") == f"run a --hub-token={MASK} 'b c'"
    assert masked_command("run 'unclosed hf_0123456789") == f"run 'unclosed {MASK}"
    inside = """run a --kwargs '{"token": "p\\"w", "a": {eos_token: x, password: p w}}' '--x={api_key: k}' {token: w}"""
    left = masked_command(inside)
    assert left.count(MASK) == 4 and "eos_token: x" in left
    assert not any(word in left for word in ("p\\", "p w", "k}", "w}"))
    assert masked_text("no secrets: hf_1, risky-business") == "no secrets: hf_1, risky-business"


def test_every_number_of_an_evaluation_has_its_name():
    evaluation = {
        "accuracy": 0.5,
        "accuracy_interval": [0.4, 0.6],
        "reward": 0.7,
        "reward_error": 0.1,
        "rewards": {"a.b": 0.1, "c": None},
        "unscored": 0,
        "held_out": {"loss": 2.0, "accuracy": 0.75},
        "held_out_errors": {"loss": 0.5},
        "held_out_intervals": {"accuracy": [0.6, 0.9]},
        "held_out_rows": 6,
        "evaluations": {"sums-2.5": {"pass@1": 0.25, "pass@1_interval": [0.1, 0.5], "rows": 8}},
    }
    run = Run(Path("run"), {}, [], (), None, None, evaluation, [], None)
    figures = {row.key: row.pairs[0].after for rows in groups_of([run]).values() for row in rows}
    found = {name: (one.value, one.low, one.high) for name, one in figures.items()}
    assert found == {
        "accuracy": (0.5, 0.4, 0.6),
        "reward": (0.7, pytest.approx(0.504, abs=1e-3), pytest.approx(0.896, abs=1e-3)),
        "rewards.a.b": (0.1, None, None),
        "held_out.loss": (2.0, pytest.approx(1.02, abs=1e-3), pytest.approx(2.98, abs=1e-3)),
        "held_out.accuracy": (0.75, 0.6, 0.9),
        "evaluations.sums-2.5.pass@1": (0.25, 0.1, 0.5),
    }
    assert groups_of([replace(run, after=None)]) == {}


def test_arrows_of_a_chain_do_not_lie_on_each_other(tmp_path):
    uses = {"a": [], "b": ["a"], "c": ["b"], "d": ["b", "c"], "e": ["b", "c"], "f": ["a"]}
    stages = {name: StageRecord("sft", used, None, {}) for name, used in uses.items()}
    chain = chain_of(Record(tmp_path, "chain", list(uses), stages))
    assert len(chain.arrows) == sum(map(len, uses.values()))
    down, around = [one for one in chain.arrows if not one.look], [one for one in chain.arrows if one.look]
    assert len(down) == 3
    # Three lanes: of a (to the last), of b (to the fourth and fifth), of c (to the fifth), each with its own dashes.
    assert len({one.look for one in around}) == 3 and chain.width > 3 * LANE
    assert chain.words == (
        "b goes on from a; c goes on from b; d goes on from b and c; e goes on from b and c; f goes on from a"
    )
