"""The page of the selected tokens: what it shows, and that broken samples are named."""

import json
from html.parser import HTMLParser

import pytest

from hpt_trl.errors import UserError
from hpt_trl.methods.rho1.page import draw_selections
from hpt_trl.runs import reporting

SAMPLE = {
    "step": 20,
    "select_ratio": 0.5,
    "scope": "micro_batch",
    "selection": "excess",
    "threshold": 0.25,
    "tokens": ["<b>", " Tom", " &", "\n", "cat"],
    "loss": [None, 3.0, 2.0, 1.0, 4.0],
    "reference_loss": [None, 1.0, 2.5, 1.0, 1.0],
    "selected": [None, True, False, False, True],
}


class Page(HTMLParser):
    """The tokens of a page: (text, classes, tooltip)."""

    def __init__(self, text: str):
        super().__init__()
        self.tokens: list[list] = []
        self.depth = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "pre" and attributes.get("class") == "text":
            self.depth = 1
        elif self.depth:
            self.tokens.append(["", (attributes.get("class") or "").split(), attributes.get("title")])
        assert "src" not in attributes and "href" not in attributes  # self-contained

    def handle_endtag(self, tag):
        if tag == "pre":
            self.depth = 0

    def handle_data(self, data):
        if self.depth:
            # Outside of the tokens there is nothing, or a reader would take it for text of the sample.
            self.tokens[-1][0] += data


def draw(folder, *samples) -> str:
    lines = [sample if isinstance(sample, str) else json.dumps(sample) for sample in samples]
    (folder / "selections.jsonl").write_text("\n".join(lines) + "\n")
    return draw_selections(folder).read_text()


def test_tokens_in_reading_order_with_marks_colours_and_figures(tmp_path):
    text = draw(tmp_path, SAMPLE)
    tokens = Page(text).tokens
    assert [token[0] for token in tokens] == ["<b>", " Tom", " &", "↵\n", "cat"]
    assert [token[1] for token in tokens] == [["x"], ["s", "p5"], ["n1"], [], ["s", "p5"]]
    assert tokens[0][2] is None
    assert tokens[1][2] == "loss 3.00, reference 1.00, excess +2.00; selected"
    assert tokens[2][2] == "loss 2.00, reference 2.50, excess -0.50; not selected"
    assert "50.0 % of 4 scored tokens, threshold 0.250" in text and "of each micro-batch" in text
    assert "<td>2</td><td>3.50</td><td>1.00</td><td>+2.50</td>" in text  # means of the selected ones
    assert not [path for path in tmp_path.iterdir() if path.name not in ("selections.jsonl", "selections.html")]


def test_without_a_reference_there_is_no_colour(tmp_path):
    sample = SAMPLE | {"reference_loss": None, "threshold": None, "selection": "random"}
    text = draw(tmp_path, sample, SAMPLE | {"step": 30, "reference_loss": None})
    assert "no reference model" in text and "Step 30" in text
    assert [token[1] for token in Page(text).tokens][:5] == [["x"], ["s"], [], [], ["s"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1: not a JSON object with step"),
        (json.dumps({"step": 1}), "line 1: not a JSON object with step"),
        (json.dumps(SAMPLE | {"loss": [1.0]}), "line 1: one entry per token is needed, found 5 of `tokens`, 1 of `lo"),
    ],
)
def test_broken_samples_are_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        draw(tmp_path, line, SAMPLE)


def test_report_draws_the_page_and_the_curves_of_the_selection(tmp_path, capsys):
    keys = ("selected_loss", "unselected_loss", "select_ratio", "mean_excess", "threshold")
    lines = [{"step": step, "loss": 1.0, **{f"rho1/{key}": 0.5 / step for key in keys}} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "selections.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    reporting.report(tmp_path)
    printed = capsys.readouterr().out
    assert all(f"rho1/{key}" in printed for key in keys)
    assert f"Selected tokens: {tmp_path / 'selections.html'}" in printed
    assert (tmp_path / "curves.png").exists() and (tmp_path / "selections.html").exists()


def test_no_samples_no_page(tmp_path):
    assert draw_selections(tmp_path) is None
    assert not (tmp_path / "selections.html").exists()
