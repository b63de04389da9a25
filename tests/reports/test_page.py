"""The page of `hpt-trl report`: what stands on it is what the files say, of one run, of several, of a pipeline."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from hpt_trl.cli import main
from hpt_trl.evaluation.intervals import Z
from tests.helpers.page_reading import Node, read_page
from tests.reports.conftest import PLANTED, TAKEN


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def change(folder: Path, **values) -> None:
    (folder / "results.json").write_text(json.dumps(results(folder) | values))


def page_of(*folders: Path, output: Path | None = None) -> Node:
    words = [] if output is None else ["--output", str(output)]
    assert main(["report", *map(str, folders), *words]) == 0
    return read_page(output or folders[0] / "report.html")


def shown(page: Node, measure: str, run: int = 0) -> tuple[float | None, float | None, str]:
    """Before, after and the text of a measure's row."""
    (row,) = page.all("tr", data_measure=measure, data_run=str(run))
    sides = []
    for side in ("before", "after"):
        values = [value for cell in row.all("td", class_=side) for value in cell.all("data")]
        sides.append(float(values[0].attributes["value"]) if values else None)
    return sides[0], sides[1], row.text


def drawn(chart: Node) -> Node:
    """The picture of a chart, without its legend's."""
    (picture,) = chart.all("svg", role="img")
    return picture


def headings(page: Node) -> list[tuple[int, str]]:
    found = []

    def walk(node: Node) -> None:
        for child in node.children:
            if isinstance(child, Node):
                if re.fullmatch("h[1-6]", child.tag):
                    found.append((int(child.tag[1]), child.text.strip()))
                walk(child)

    walk(page)
    return found


def check_form(page: Node) -> None:
    """What holds for every page: one title, headings in order, nothing asked for, names for all that is not text."""
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    assert [title.text for title in page.all("title")] != [""]
    levels = [level for level, _ in headings(page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    ids = [value for tag in ("h1", "h2", "h3", "h4") for node in page.all(tag) if (value := node.attributes.get("id"))]
    assert len(ids) == len(set(ids))
    assert not any(page.all(tag) for tag in ("script", "img", "iframe", "object", "embed"))
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    assert not any("://" in (link.attributes["href"] or "") for link in page.all("a"))
    for picture in page.all("svg"):
        assert picture.attributes.get("aria-label") or picture.attributes.get("aria-hidden") == "true"
    assert all(cell.attributes.get("scope") for cell in page.all("th"))
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text


def test_figures_are_those_of_the_results(copy):
    folder = copy("one")
    page, found = page_of(folder), results(folder)
    check_form(page)
    before, after = found["before"], found["after"]
    old, new, text = shown(page, "accuracy")
    assert (old, new) == (before["accuracy"], after["accuracy"])
    low, high = after["accuracy_interval"]
    assert f"{low:.1%} to {high:.1%}".replace("%", "\N{NO-BREAK SPACE}%") in text
    old, new, text = shown(page, "reward")
    assert (old, new) == (before["reward"], after["reward"])
    bounds = [f"{after['reward'] + sign * Z * after['reward_error']:.4g}" for sign in (-1, 1)]
    assert " to ".join(bounds) in text
    for name in ("solved", "length"):
        assert shown(page, f"rewards.{name}")[:2] == (before["rewards"][name], after["rewards"][name])
    assert shown(page, "mean_length")[:2] == (before["mean_length"], after["mean_length"])
    everything = page.text
    assert f"{found['steps']}" in everything and found["versions"]["trl"] in everything
    assert f"{found['tokens']['training']:,} in training" in everything


def test_curves_are_those_of_the_metrics(copy):
    folder = copy("one")
    page = page_of(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [(line["step"], line["reward"]) for line in lines if "reward" in line]
    (row,) = [row for row in page.all("tr") if row.text.startswith("Rewards of the rollouts")]
    first, last, lowest, highest = [float(value.attributes["value"]) for value in row.all("data")]
    values = [value for _, value in rewards]
    assert (first, last, lowest, highest) == (values[0], values[-1], min(values), max(values))
    (chart,) = [figure for figure in page.all("figure") if "Rewards of the rollouts" in figure.text]
    (curve,) = drawn(chart).all("path", class_="line")
    # Right to left no point of it lies elsewhere than the numbers do: x grows, and y falls where a value grows.
    points = [tuple(map(float, pair.split(","))) for pair in curve.attributes["d"].strip("M").split("L")]
    assert len(points) == len(rewards)
    for (one, two), ((x1, y1), (x2, y2)) in zip(pairwise(values), pairwise(points), strict=True):
        assert x2 > x1 and (y2 - y1) * (two - one) <= 0
    said = [title.text for title in chart.all("title")]
    assert said == [f"mean reward, step {step}: {value:.4g}" for step, value in rewards]
    assert f"{rewards[-1][1]:.4g} at step {rewards[-1][0]}" in drawn(chart).attributes["aria-label"]


def test_samples_stand_beside_each_other(copy):
    folder = copy("one")
    page, found = page_of(folder), results(folder)
    samples = page.all("article", class_="sample")
    assert len(samples) == len(found["after"]["completions"]) == 6
    for sample, old, new in zip(samples, found["before"]["completions"], found["after"]["completions"], strict=True):
        assert sample.all("p", class_="prompt")[0].text.strip() == old["prompt"] == new["prompt"]
        assert f"Right answer: {new['answer']}" in sample.text
        answers = sample.all("div", class_="answer")
        for answer, side in zip(answers, (old, new), strict=True):
            (text,) = answer.all("p", class_="text")
            # What a random model writes that no browser shows stands there as a sign.
            visible = re.sub(
                r"[\x00-\x08\x0b-\x1f]", lambda sign: chr(0x2400 + ord(sign[0])), side["completion"].strip()
            )
            assert text.text.strip() == (visible or "(empty)")
            assert ("✓ solved" in answer.text) == side["solved"]
            assert f"reward {side['reward']:.4g}" in answer.text


def test_what_a_model_writes_is_shown_and_not_run(copy):
    folder = copy("one")
    found = results(folder)
    text = "<script>document.title = 'taken'</script><b>&amp;</b>\x00 </p></div>"
    prompt = found["after"]["completions"][0]["prompt"]
    found["after"]["completions"][0]["completion"] = text
    for side in ("before", "after"):
        found[side]["completions"][0]["answer"] = "<i>5</i>"
    change(folder, before=found["before"], after=found["after"], model="<script>1</script>")
    page = page_of(folder)
    check_form(page)
    (sample,) = [one for one in page.all("article") if one.all("p", class_="prompt")[0].text == prompt]
    assert sample.all("p", class_="text")[-1].text == text.replace("\x00", "\N{SYMBOL FOR NULL}")
    assert "<i>5</i>" in page.text and "<script>1</script>" in page.text


def test_several_runs_side_by_side(made, copy, tmp_path):
    one, two, sft = copy("one"), copy("two"), copy("sft")
    page = page_of(one, two, sft, output=tmp_path / "compared.html")
    check_form(page)
    assert not (one / "report.html").exists()
    for place, folder in enumerate((one, two)):
        assert shown(page, "accuracy", place)[1] == results(folder)["after"]["accuracy"]
    assert shown(page, "held_out.loss", 2)[1] == results(sft)["after"]["held_out"]["loss"]
    (table,) = page.all("table", class_="settings")
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tr")[1:]}
    recipes = [yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in (one, two, sft)]
    differing = {key for recipe in recipes for key in recipe if len({str(other.get(key)) for other in recipes}) > 1} - {
        "output_dir"
    }
    # Mappings are shown by their keys: where the modules of the rewards lie, here.
    assert set(rows) == differing - {"env"} | {"env.HPT_TRL_RECIPE_FOLDERS"}
    assert rows["learning_rate"] == ["0.003", "0.0001", "0.003"] and rows["stage"] == ["grpo", "grpo", "sft"]
    # A run has the same letter at its curve, in the legend and in its row.
    (chart,) = [figure for figure in page.all("figure") if "Rewards of the rollouts" in figure.text]
    assert [text.text for text in chart.all("text", class_="letter")] == ["A", "B"]
    assert len(drawn(chart).all("path", class_="line")) == 2
    (legend,) = page.all("ul", class_="stay")
    assert [" ".join(item.text.split()) for item in legend.all("li")] == ["A one", "B two", "C sft"]


def test_the_same_answer_of_several_runs_is_shown_once(copy, tmp_path):
    page = page_of(copy("one"), copy("one", "again"), output=tmp_path / "compared.html")
    assert "The recipes are the same in every key" in page.text
    # Both trainings began with one model, and went the same way.
    for answer in page.all("article", class_="sample")[0].all("div", class_="answer"):
        assert answer.text.strip().startswith("A B")


def test_a_secret_is_on_no_page(made, copy, tmp_path):
    folder = copy("two")
    stored = (folder / "recipe.yaml").read_text()
    assert PLANTED not in stored and "hub_token" not in stored and "••••" in stored
    # As a run of an earlier version left it.
    (folder / "recipe.yaml").write_text(f"{stored.replace('••••', PLANTED)}hub_token: {TAKEN}\n")
    command = f"hpt-trl run two.yaml --hub_token {PLANTED} --wandb_api_key=0123456789abcdef --max_steps 4"
    change(folder, command=command, warnings=[{"step": 1, "kind": "hub", "message": f"{PLANTED} has no rights"}])
    page = page_of(folder)
    everything = (folder / "report.html").read_text()
    assert "planted" not in everything and "0123456789abcdef" not in everything
    assert "hub_token: ••••" in page.text and "  token: ••••" in page.text
    assert "--hub_token •••• --wandb_api_key=•••• --max_steps 4" in page.text
    page_of(folder, copy("one"), output=tmp_path / "both.html")
    assert "planted" not in (tmp_path / "both.html").read_text()


def test_a_run_that_was_killed(copy, capsys):
    folder = copy("one")
    (folder / "results.json").unlink()
    (folder / "before.json").unlink()
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()[:4]
    path.write_text("\n".join([*lines[:3], lines[3][: len(lines[3]) // 2]]))
    (folder / "warnings.jsonl").write_text('{"step": 2, "kind": "constant_rewards", "message": "all rewards are 0"}\n')
    page = page_of(folder)
    check_form(page)
    (notices,) = page.all("ul", class_="notices")
    step = json.loads(lines[2])["step"]
    assert f"{step} of 4 steps are logged" in notices.text
    assert "metrics.jsonl ends in half a line" in notices.text
    assert "constant rewards: Step 2: all rewards are 0" in " ".join(notices.text.split())
    assert "metrics.jsonl ends in half a line" in capsys.readouterr().out
    assert page.all("figure") and not page.all("table", class_="results")


def test_a_finished_run_whose_metrics_were_cut_at_a_line_s_end_is_told(copy, capsys):
    folder = copy("one")
    path = folder / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if json.loads(line)["step"] < 3))
    (notices,) = page_of(folder).all("ul", class_="notices")
    assert "metrics.jsonl ends at step 2, and the run took 4" in notices.text
    assert "metrics.jsonl ends at step 2, and the run took 4" in capsys.readouterr().out


def test_a_value_that_is_not_finite_is_a_gap(copy):
    folder = copy("sft")
    losses = [1.0, 2.0, None, 2.5, 3.0, None, 1.5, None]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses, start=1))
    )
    page = page_of(folder)
    (chart,) = [figure for figure in page.all("figure") if "Losses" in figure.text]
    (curve,) = drawn(chart).all("path", class_="line")
    assert [part.count("L") for part in curve.attributes["d"].split("M")[1:]] == [1, 1]
    # The value between two gaps has no line to its neighbours, only its marker.
    assert len(drawn(chart).all("path", class_="mark")[0].attributes["d"].split("M")) == 1 + 5
    (row,) = [row for row in page.all("tr") if row.text.startswith("Losses")]
    assert row.all("td")[-1].text == "2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trained": False, "why_untrained": "no row had a token"}, "Nothing was trained: no row had a token."),
        ({"overlap": {"rows": 3, "of": 6, "share": 0.5}}, "3 of 6 held-out rows (50.0%) were trained on as well"),
        ({"warnings": [{"step": None, "kind": "kl", "message": "KL is 90"}]}, "kl: KL is 90"),
        ({}, "wide interval: accuracy is known to"),
    ],
)
def test_what_must_be_known_stands_above_the_figures(copy, changes, said):
    folder = copy("one")
    change(folder, **changes)
    (notices,) = page_of(folder).all("ul", class_="notices")
    assert said in " ".join(notices.text.split())


def test_an_evaluation(copy):
    folder = copy("measured")
    page, found = page_of(folder), results(folder)["measures"]
    check_form(page)
    for name in ("pass@1", "pass@2"):
        old, new, text = shown(page, name)
        assert (old, new) == (None, found[name])
        low, high = found[f"{name}_interval"]
        assert f"{low:.1%} to {high:.1%}".replace("%", "\N{NO-BREAK SPACE}%") in text
    assert "Measures" in [name for _, name in headings(page)] and len(page.all("article")) == 8
    assert "scored.jsonl" in [link.attributes["href"] for link in page.all("a")]


def test_other_pages_are_linked_from_where_the_page_lies(copy, tmp_path):
    folder = copy("one", "a run & more")
    (folder / "selections.html").write_text("tokens")
    (folder / "trajectories").mkdir()
    (folder / "trajectories" / "index.html").write_text("list")
    (tmp_path / "pages").mkdir()
    page = page_of(folder, output=tmp_path / "pages" / "one.html")
    links = {link.text: link.attributes["href"] for link in page.all("a")}
    assert links["Selected tokens"] == "../a%20run%20%26%20more/selections.html"
    assert links["Trajectories"] == "../a%20run%20%26%20more/trajectories/index.html"


def test_a_pipeline_is_a_chain(chain, capsys):
    page = page_of(chain)
    check_form(page)
    assert "held_out.loss" in capsys.readouterr().out
    (stages,) = page.all("ol")
    said = [" ".join(item.text.split()) for item in stages.all("li")]
    assert said[0].startswith("sft finished from nothing before it · 12 s held_out.loss")
    assert said[1].startswith("one grpo finished model from sft · 1 min 15 s reward")
    assert said[2] == "later not run yet from nothing before it"
    (picture,) = page.all("div", class_="chain")[0].all("svg")
    assert picture.attributes["aria-label"] == "one goes on from sft." and len(picture.all("path", class_="arrow")) == 1
    assert len(picture.all("circle")) == 3 and len(picture.all("circle", class_="done")) == 2
    targets = {node.attributes.get("id") for node in page.all("h2")}
    assert {f"stage-{name}" for name in ("sft", "one")} <= targets
    assert {link.attributes["href"] for link in stages.all("a")} == {"#stage-sft", "#stage-one"}
    sections = page.all("section", class_="stage")
    assert shown(sections[0], "held_out.loss")[1] == results(chain / "sft")["after"]["held_out"]["loss"]
    assert shown(sections[1], "reward")[1] == results(chain / "one")["after"]["reward"]


def test_a_page_is_written_anew_and_goes_with_an_overwritten_run(copy):
    folder = copy("sft")
    page_of(folder)
    first = (folder / "report.html").read_text()
    page_of(folder)
    assert (folder / "report.html").read_text() == first
    assert not list(folder.glob(".*"))
    words = ["run", str(folder / "recipe.yaml"), "--output_dir", str(folder), "--overwrite", "true"]
    # What was secret in it is not stored.
    assert main([*words, "--model_init_kwargs", "{}"]) == 0
    assert not (folder / "report.html").exists()


def test_a_finished_run_without_a_curve(copy):
    folder = copy("sft")
    (folder / "metrics.jsonl").write_text('{"step": 4, "train_loss": 1.0}\n')
    page = page_of(folder)
    assert not page.all("figure") and page.all("table", class_="results")
