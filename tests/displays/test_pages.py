"""Selected tokens, weights and trajectories in a notebook: without frames, told also where styles are taken out."""

import json
import re

import pytest
from IPython.core.formatters import DisplayFormatter

import hpt_trl
from hpt_trl.displays.showing import Page, scoped
from tests.displays.test_output import Balanced
from tests.helpers import devtools
from tests.helpers.trajectories import trajectory, write_trajectories
from tests.methods.rho1.test_rho1_page import SAMPLE as SELECTION
from tests.reports.test_in_browser import luminance
from tests.token_scores.test_weights_page import SAMPLE as WEIGHTS

NAMES = ("selections", "weights", "trajectory")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What a notebook keeps of each display, by type, as IPython makes it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text("stage: sft\n")
    (folder / "selections.jsonl").write_text(json.dumps(SELECTION) + "\n")
    (folder / "token_weights.jsonl").write_text(json.dumps(WEIGHTS) + "\n")
    write_trajectories(folder, trajectory())
    run = hpt_trl.Run(folder)
    shown = dict(zip(NAMES, (run.selections, run.weights, run.trajectories[0]), strict=True))
    return {name: DisplayFormatter().format(one)[0] for name, one in shown.items()}


def bare(page: str) -> str:
    """HTML as a strict reader of notebooks leaves it: no styles, scripts, frames or drawings, and no attributes."""
    page = re.sub(r"<(style|script|iframe|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"<(\w+)(?: [^>]*)?>", r"<\1>", page)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_piece_of_the_notebook_with_styles_of_its_own(bundles, name):
    page = bundles[name]["text/html"]
    shown = Balanced(page)
    assert not {"iframe", "script", "html", "head", "body", "link"} & set(shown.tags)
    assert not re.search(r"<[^>]* on\w+=", page)
    (own,) = re.findall(r'^<div class="(hpt-trl-[0-9a-f]{8}) ', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    selectors = [part.strip() for rule in re.findall(r"([^{}]+)\{", style) for part in rule.split(",")]
    rules = [part for part in selectors if not part.startswith("@")]
    assert len(rules) > 20 and all(re.match(rf"\.{own}\b", part) for part in rules)


def test_each_kind_of_page_has_styles_of_its_own(bundles):
    assert len({bundles[name]["text/html"].split('"')[1] for name in NAMES}) == len(NAMES)


def test_the_page_as_a_file_is_a_whole_document(tmp_path):
    page = Page(
        "<!doctype html>\n<html><head><style>b { top: 0 }</style></head><body>&lt;/body&gt; x</body></html>", "x"
    )
    assert page.write(tmp_path / "page.html").read_text() == page.text
    assert "&lt;/body&gt; x" in page._repr_html_() and "<html" not in page._repr_html_()


def test_rules_are_those_of_an_element():
    style = """/* a, b { } */
:root { --a: 1; } body { color: red; }
@media (max-width: 40rem) { :root { --a: 2; } h1, .x > b:hover { top: 0; } }
"""
    assert " ".join(scoped(style, ".me").split()) == (
        ".me { --a: 1; }.me { color: red; } "
        "@media (max-width: 40rem) {.me { --a: 2; }.me h1, .me .x > b:hover { top: 0; } }"
    )


def test_without_styles_selected_tokens_are_bold_and_unscored_ones_slanted(bundles):
    page = bare(bundles["selections"]["text/html"])
    assert (
        "<pre><em>&lt;b&gt;</em><strong> Tom</strong><span> &amp;</span><span>↵\n</span><strong>cat</strong></pre>"
        in page
    )
    assert "<strong>selected</strong>" in page and "50.0 % of 4 scored tokens" in page


def test_without_styles_heavy_tokens_are_bold(bundles):
    page = bare(bundles["weights"]["text/html"])
    assert "<em>:</em><strong> 3</strong><span> &lt;b&gt;</span><span>↵\n</span><strong> end</strong></pre>" in page
    assert "<strong>weight of 1.41 or more</strong>" in page


def test_selections_as_text(bundles):
    assert bundles["selections"]["text/plain"] == (
        "Selected tokens: 1 text, of step 20\n"
        "Step 20: excess, ratio 0.5 of each micro-batch; here 50.0 % of 4 scored tokens, threshold 0.250. "
        "⟦…⟧: selected.\n"
        "<b>⟦ Tom⟧ &↵\n⟦cat⟧\n"
        "selected: 2 tokens, mean loss 3.50, reference 1.00, excess +2.50\n"
        "not selected: 2 tokens, mean loss 1.50, reference 1.75, excess -0.25"
    )


def test_weights_as_text(bundles):
    assert bundles["weights"]["text/plain"] == (
        "Weights of tokens: 1 text, of step 20\n"
        "Step 20: verifiable; 4 trained tokens with weights from 0.50 to 2.00, mean 1.38 here; mean loss 1.88 nats, "
        "weighted 2.09. ⟦…⟧: weight of 1.41 or more.\n"
        "Q:⟦ 3⟧ <b>↵\n⟦ end⟧\n"
        "heaviest: ' end' 2.00, ' 3' 2.00, '\\n' 1.00, ' <b>' 0.50\n"
        "lightest: ' <b>' 0.50, '\\n' 1.00, ' 3' 2.00, ' end' 2.00\n"
        "value: -0.30 to +0.50"
    )


def test_a_trajectory_as_text(bundles):
    assert bundles["trajectory"]["text/plain"] == (
        "Trajectory eval_after/3, evaluation after, step 20; ended by: answer\n"
        "system: (74 characters)\n"
        "user: What was the revenue in 2019?\n"
        "1. model: <think>I need the report & its table.</think>\n<search>revenue 2019 < 2020</search>\n"
        "2. environment: Page 1 of the ranking:\n"
        "   [page report_1; 1000 × 1400 pixels, shown as 500 × 700]\n"  # noqa: RUF001
        "3. model: <think>The table is small.</think><bbox>[75, 260, 350, 420]</bbox>\n"
        "4. environment:\n"
        "   [crop of report_1, box 150, 520, 700, 840; 550 × 320 pixels, shown as 275 × 160]\n"  # noqa: RUF001
        "5. model: <think>It says 12.</think><answer>12 million</answer>\n"
        "rewards: answer_match 1, action_format 1, page_ndcg 0.631, crop_overlap none"
    )


def test_what_has_neither_values_nor_prompt_nor_turns_is_text_as_well(tmp_path):
    (tmp_path / "recipe.yaml").write_text("stage: sft\n")
    none = [None] * 2
    bare_one = {"step": 1, "weighting": "random", "tokens": ["a", ""], "weight": none, "value": None, "loss": None}
    (tmp_path / "token_weights.jsonl").write_text(json.dumps(bare_one) + "\n")
    write_trajectories(tmp_path, trajectory(prompt=[], turns=[], rewards={}, step=None, facts={}))
    run = hpt_trl.Run(tmp_path)
    assert repr(run.weights).splitlines()[2:] == ["a∅"]
    assert repr(run.trajectories[0]).splitlines() == [
        "Trajectory eval_after/3, evaluation after",
        "prompt: none",
        "rewards: none",
    ]


# Of each text its colour and what lies below it, as they are on the screen.
_SEEN = """[...document.querySelectorAll('.output *')].filter(element => !element.closest('svg, style, .frame') &&
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), layers = [];
  for (let one = element; one; one = one.parentElement) layers.unshift(getComputedStyle(one).backgroundColor);
  const drawn = layer => { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1) };
  const found = () => 'rgb(' + [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join(', ') + ')';
  layers.forEach(drawn);
  const below = found();
  drawn(getComputedStyle(element).color);
  return [element.outerHTML.slice(0, 60), below, found()] })"""
# How what stands beside the displays looks.
_BESIDE = """JSON.stringify(['a', 'b', 'c'].map(id => { const found = getComputedStyle(document.getElementById(id));
  return [found.font, found.color, found.padding, found.margin, found.borderBottom, found.backgroundColor] }))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_readable_in_a_notebook_whatever_the_system_prefers(bundles, tmp_path, dark):
    """Contrast of 4.5 or more, as WCAG 2 asks for of text; the theme is the notebook's, the system has the other."""
    theme = "background: #111; color: #ddd" if dark else "background: #fff; color: #222"
    head = f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><style>body {{ {theme} }}</style>'
    beside = '<h1 id="a">a</h1><p class="legend" id="b">b</p><pre class="text" id="c">c</pre>'
    outputs = "".join(f'<div class="output">{bundles[name]["text/html"]}</div>' for name in NAMES)
    page = tmp_path / "notebook.html"
    with devtools.opened(tmp_path / "profile") as tab:
        page.write_text(head + beside)
        tab.open(page, width=1000, dark=not dark)
        alone = tab.ask(_BESIDE)
        page.write_text(head + beside + outputs)
        tab.open(page, width=1000, dark=not dark)
        # The styles stay inside.
        assert tab.ask(_BESIDE) == alone
        assert tab.complaints() == [] and tab.ask("document.documentElement.scrollWidth") <= 1000
        texts = tab.ask(_SEEN)
    assert len(texts) > 60
    assert len({below for _, below, _ in texts}) > 5
    for what, below, text in texts:
        darker, brighter = sorted(luminance(colour) for colour in (below, text))
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, (what, below, text)
