"""The page of the tokens' weights: what it shows, how it looks in a browser, and that broken samples are named."""

import json
import re

import pytest

from hpt_trl.cli import main
from hpt_trl.errors import UserError
from hpt_trl.runs import reporting
from hpt_trl.token_scores.weights_page import draw_weights
from tests.helpers.browser import near, seen
from tests.helpers.value_models import save_value_model
from tests.helpers.weighted import train
from tests.methods.rho1.test_rho1_page import Page

SAMPLE = {
    "step": 20,
    "weighting": "verifiable",
    "tokens": ["Q", ":", " 3", " <b>", "\n", " end"],
    "weight": [None, None, 2.0, 0.5, 1.0, 2.0],
    "value": [None, 0.1, 0.4, -0.3, -0.3, 0.5],
    "loss": [None, None, 1.0, 2.0, 0.5, 4.0],
}


def draw(folder, *samples) -> str:
    lines = [sample if isinstance(sample, str) else json.dumps(sample) for sample in samples]
    (folder / "token_weights.jsonl").write_text("\n".join(lines) + "\n")
    return draw_weights(folder).read_text()


def test_tokens_with_their_weights_and_the_curve_under_them(tmp_path):
    text = draw(tmp_path, SAMPLE)
    tokens = Page(text).tokens
    assert [token[0] for token in tokens] == ["Q", ":", " 3", " <b>", "↵\n", " end"]
    # Twice and half of it are as far from 1.
    assert [token[1] for token in tokens] == [["x"], ["x"], ["p5"], ["n5"], [], ["p5"]]
    assert [token[2] for token in tokens][:4] == [
        None,
        "value +0.10",
        "weight 2.00, value +0.40, loss 1.00",
        "weight 0.50, value -0.30, loss 2.00",
    ]
    assert "4 trained tokens with weights from 0.50 to 2.00, mean 1.38" in text
    assert "mean loss 1.88 nats, weighted 2.09" in text and "value, -0.30 to +0.50" in text
    (points,) = re.findall(r'<polyline class="curve" points="([^"]*)"', text)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert [point.split(",")[0] for point in points.split()] == ["0.5", "1.5", "2.5", "3.5", "4.5"]
    # Up is higher, the extremes inside of the box.
    assert heights == pytest.approx([50.0, 15.5, 96.0, 96.0, 4.0])
    assert text.count("<rect") == 5 and "<title>&lt;b&gt;: weight 0.50" in text
    assert not [path for path in tmp_path.iterdir() if path.name not in ("token_weights.jsonl", "token_weights.html")]


def test_weights_without_values_have_no_curve(tmp_path):
    text = draw(tmp_path, SAMPLE | {"value": None, "loss": None, "weighting": "random_matched"})
    assert "<svg viewBox" not in text and "weighted" not in Page(text).tokens[2][2]
    assert Page(text).tokens[2][2] == "weight 2.00"
    assert draw_weights(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "token_weights.jsonl, line 1: not a JSON object with step"),
        (
            json.dumps(SAMPLE | {"weight": [1.0]}),
            "line 1: one entry per token is needed, found 6 of `tokens`, 1 of `we",
        ),
    ],
)
def test_broken_samples_are_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        draw(tmp_path, line, SAMPLE)


def test_a_run_leaves_samples_that_the_report_draws(tiny_model_path, tmp_path, capsys):
    critic = save_value_model(tiny_model_path, tmp_path / "critic")
    trainer = train(tiny_model_path, critic, tmp_path / "run", weighting="verifiable", max_steps=5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "token_weights.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4]
    text = "".join(lines[0]["tokens"])
    assert text.startswith("What is 0 + 0?") and "It is 0" in text
    trained = [token for token, weight in zip(lines[0]["tokens"], lines[0]["weight"], strict=True) if weight]
    assert "".join(trained) == text[text.index(" It is") :]
    assert [w for w in lines[0]["weight"] if w] == pytest.approx([w for w in trainer.seen[0][0].tolist() if w])
    # The value of the prompt's last token is there as well: the first one is compared with it.
    assert sum(value is not None for value in lines[0]["value"]) == len(trained) + 1
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert f"Weights of tokens: {tmp_path / 'run' / 'token_weights.html'}" in capsys.readouterr().out
    assert reporting.report_stage(tmp_path / "nothing") == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_how_it_looks(tmp_path, dark):
    many = {key: value * 12 if isinstance(value, list) else value for key, value in SAMPLE.items()}
    draw(tmp_path, many, SAMPLE | {"step": 40, "value": None})
    pixels = seen(tmp_path / "token_weights.html", tmp_path / f"page-{dark}.png", dark=dark)
    page = (22, 24, 27) if dark else (255, 255, 255)
    assert near(pixels, page) > 0.4 * pixels[..., 0].size
    # The deepest shades over the card that the text lies on, and the curve.
    card = (29, 32, 36) if dark else (250, 250, 250)

    def over(color: tuple[int, int, int], share: float) -> tuple[int, int, int]:
        r, g, b = (round(share * one + (1 - share) * below) for one, below in zip(color, card, strict=True))
        return r, g, b

    assert near(pixels, over((230, 110, 20), 0.62)) > 2000
    assert near(pixels, over((40, 110, 215), 0.58)) > 1000
    assert near(pixels, (47, 143, 78), reach=25) > 400
    # Nothing runs out of the column: its sides are empty.
    assert near(pixels[:, :8], page) == pixels[:, :8, 0].size and near(pixels[:, -8:], page) == pixels[:, -8:, 0].size
