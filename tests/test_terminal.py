"""Tables and lines at 80, 100 and 160 columns: none is wider, no word is broken, nothing is lost."""

import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from rich.cells import cell_len

from hpt_trl.cli import main
from hpt_trl.methods.critic.results import figure_lines
from hpt_trl.methods.reward.shift import measure_shift, shift_lines
from hpt_trl.recipes.bundled import bundled_recipes, summarize
from hpt_trl.terminal import Column, flow, pairs, printable, side_by_side, table, wrapped
from tests.helpers.processes import ENVIRONMENT
from tests.helpers.terminals import Terminal
from tests.planning.test_doctor import write_recipe
from tests.runs.test_reporting import lines as metrics
from tests.runs.test_reporting import results

WIDTHS = [80, 100, 160]


def words_of(text: str) -> Counter[str]:
    """The words, with those that were folded at a `/` cut at each `/`, whether they were folded or not."""
    return Counter(part.rstrip(",") for word in text.split() for part in re.findall(r"[^/]*/|[^/]+", word))


def check_width(text: str, columns: int) -> None:
    for line in text.splitlines():
        assert cell_len(line) <= columns, line
        assert line == line.rstrip(), "blanks at the end"


def same_words(narrow: str, wide: str, columns: int) -> None:
    """The narrow text is the wide one in other lines."""
    check_width(narrow, columns)
    assert words_of(narrow) == words_of(wide)


def printed(capsys, monkeypatch, columns: int, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_list_of_recipes(capsys, monkeypatch, columns):
    text = printed(capsys, monkeypatch, columns, "list")
    check_width(text, columns)
    flat = " ".join(text.split())
    found = words_of(text)
    for path in bundled_recipes():
        row = summarize(path)
        # What is copied stands whole on its line.
        assert re.search(rf"^{re.escape(row.recipe)} +{row.stage}\b", text, re.MULTILINE), row
        assert all(found[word] for cell in row if cell != "-" for word in words_of(cell)), row
        if columns == 80:
            assert row.model == "-" or f"model {row.model}" in flat
    # At 160 columns a recipe's model stands on its line.
    assert (len(text.splitlines()) < 1.5 * len(bundled_recipes())) == (columns == 160)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_report_of_a_run(tmp_path, capsys, monkeypatch, columns):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(20)))
    (tmp_path / "results.json").write_text(json.dumps(results(20)))
    wide = printed(capsys, monkeypatch, 1000, "report", str(tmp_path))
    text = printed(capsys, monkeypatch, columns, "report", str(tmp_path))
    same_words(text, wide, columns)
    assert re.search(r"^hpt/sft_fraction +0\.95 +1 +0 +20$", text, re.MULTILINE), text


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_table_of_a_pipeline(tmp_path, capsys, monkeypatch, columns):
    """Long names, a stage with several measures, one that did not finish and one that did not run."""
    names = ["sft_with_a_long_name", "ppo_with_a_longer_name_still", "broken_off", "not_yet"]
    stages = {
        name: {"stage": "ppo", "uses": names[:place], "measure": None, "contents": {}, "finished": place < 2}
        | {"seconds": 100.0 * place}
        for place, name in enumerate(names[:3])
    }
    record = {"pipeline": "pipeline/of-long-names.yaml", "order": names, "stages": stages}
    (tmp_path / "pipeline.json").write_text(json.dumps(record))
    for name in names[:2]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(20)))
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(3)))
    wide = printed(capsys, monkeypatch, 1000, "report", str(tmp_path))
    text = printed(capsys, monkeypatch, columns, "report", str(tmp_path))
    check_width(text, columns)
    assert not words_of(wide) - words_of(text) - words_of("KIND FROM -")
    assert "sft_with_a_long_name" in text.split() and re.search(r"accuracy +0\.0104 +0\.5 +better", text), text


@pytest.mark.parametrize("columns", WIDTHS)
def test_what_check_and_doctor_say(recipe, tmp_path, tiny_model_path, capsys, monkeypatch, columns):
    path = recipe("grpo")
    for words in (["check", path], ["doctor", write_recipe(tmp_path, model_name_or_path=tiny_model_path)]):
        wide = printed(capsys, monkeypatch, 1000, *words)
        text = printed(capsys, monkeypatch, columns, *words)
        if words[0] == "check":
            same_words(text, wide, columns)
        else:
            check_width(text, columns)
            assert not words_of(wide) - words_of(text)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_table_of_a_critic(monkeypatch, columns):
    share = {"accuracy": 0.75, "interval": [0.6, 0.9]}
    rule = share | {"rule": "+0.0123 a token, -1.23 a nat", "critic_less_this": {"difference": 0.1}}
    rule["critic_less_this"]["standard_error"] = 0.05
    figures = {"pairs": 40, "critic": share, "mean_tokens": [10.0, 12.0]}
    figures |= {"baselines": {"chance": {"accuracy": 0.5}, "length and likelihood": rule}}
    monkeypatch.setenv("COLUMNS", "1000")
    wide = "\n".join(figure_lines(figures))
    monkeypatch.setenv("COLUMNS", str(columns))
    same_words("\n".join(figure_lines(figures)), wide, columns)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_table_of_a_shift_from_prompt_to_prompt(monkeypatch, columns):
    # A large part between prompts, little inside of them.
    pairs = [{"prompt": f"p{n}", "chosen": 10.0 * n + 0.5, "rejected": 10.0 * n + 0.25 * (n % 3)} for n in range(8)]
    lines = [pair | {"chosen_key": f"{n}c", "rejected_key": f"{n}r"} for n, pair in enumerate(pairs)]
    shift = measure_shift(lines)
    monkeypatch.setenv("COLUMNS", "1000")
    wide = "\n".join(shift_lines(shift))
    monkeypatch.setenv("COLUMNS", str(columns))
    same_words("\n".join(shift_lines(shift)), wide, columns)


QUERY = "school library hall town week year people"


@pytest.mark.parametrize("columns", WIDTHS)
def test_what_index_and_search_show(searched, tmp_path, capsys, monkeypatch, columns):
    wide = printed(capsys, monkeypatch, 1000, "search", str(searched.index), QUERY)
    text = printed(capsys, monkeypatch, columns, "search", str(searched.index), QUERY)
    assert len(wide.splitlines()) == 3
    same_words(text, wide, columns)
    built = []
    for width in (1000, columns):
        said = printed(capsys, monkeypatch, width, "index", str(searched.pages), str(tmp_path / str(width)))
        check_width(said, width)
        built.append(words_of(re.sub(r"[\d.]+\s+s\)", "s)", said.replace(f"/{width}", "/"))))
    assert built[0] == built[1]


def test_random_tables_lose_nothing_at_any_width():
    draw = random.Random(0)
    letters = "abcdefg"
    for _ in range(60):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 14))) for _ in range(20)]
        words += ["/".join(draw.choices(words, k=4)), "日本語" * draw.randint(1, 4)]
        columns = [f"T{place}" for place in range(draw.randint(1, 6))]
        rows = [[" ".join(draw.choices(words, k=draw.randint(0, 8))) for _ in columns] for _ in range(5)]
        for room in (*WIDTHS, draw.randint(70, 200)):
            text = table(columns, rows, room=room)
            check_width(text, room)
            cells = Counter()
            for cell in [cell for row in rows for cell in row]:
                cells += words_of(cell)
            assert not cells - words_of(text), (room, rows, text)


@pytest.mark.parametrize("room", [4, 10, 23, 39])
def test_narrow_terminals_lose_no_character(room):
    rows = [
        ["a/long/path/of/a/recipe-file.yaml", "12", "several words in a cell"],
        ["https://" + "x" * 90, "", "日本語" * 9],
    ]
    text = table(["PATH", Column("N", right=True), Column("TEXT", below=True)], rows, room=room)
    check_width(text, room)
    squeezed = re.sub(r"\s", "", text)
    assert all(re.sub(r"\s", "", cell) in squeezed for row in rows for cell in row)


def test_numbers_stand_at_the_right_edge():
    text = table(["NAME", Column("COUNT", right=True)], [["a", "1"], ["b", "22222"], ["c", "333333"]], room=80)
    assert text.splitlines() == ["NAME   COUNT", "a          1", "b      22222", "c     333333"]


def test_what_goes_on_stands_below_its_text():
    assert flow(["Kept:  outputs/x is here", "  plain words that go on"], 22) == (
        "Kept:  outputs/x is\n       here\n  plain words that go\n    on"
    )
    assert flow(["Samples: /tmp/folder/file.jsonl"], 24) == "Samples:\n  /tmp/folder/file.jsonl"
    assert flow(["Samples: /tmp/folder/file.jsonl"], 28) == "Samples: /tmp/folder/\n         file.jsonl"
    assert (
        pairs([("a", "one two three"), ("long", "x\n  y")], 12)
        == "a:    one\n      two\n      three\nlong: x\n        y"
    )
    assert wrapped("  indented text here", 12) == ["  indented", "  text here"]
    assert wrapped("", 10) == [""] and wrapped("a\n\nb", 10) == ["a", "", "b"]


def test_two_texts_beside_each_other_stay_in_their_halves():
    lines = side_by_side(["日本", "a"], ["right", "more", "still"], 23)
    assert [cell_len(line.partition("|")[0]) for line in lines] == [11, 11, 11]


def test_a_completion_cannot_tell_the_terminal_to_do_something():
    bad = "red \x1b[31m bell \x07 back \x9b1A tab\tend\r\nnext\rhidden"
    assert printable(bad) == "red \\x1b[31m bell \\x07 back \\x9b1A tab\tend\nnext\\x0dhidden"
    assert "\x1b" not in table(["A"], [[bad]], room=80) and "\x1b" not in flow([bad], 80)


def test_colour_is_for_terminals_and_no_color_is_heard(tmp_path):
    plain = subprocess.run(
        [sys.executable, "-m", "hpt_trl", "list"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"COLUMNS": "80", "FORCE_COLOR": "1"},
    )
    assert plain.returncode == 0 and "\x1b" not in plain.stdout
    shown, silent = Terminal("-m", "hpt_trl", "list", columns=100), Terminal("-m", "hpt_trl", "list", NO_COLOR="1")
    assert shown.ended() == silent.ended() == 0
    assert "\x1b[1mRECIPE" in shown.seen and "\x1b" not in silent.seen
    without = re.sub(r"\x1b\[\d*m", "", shown.seen)
    assert max(map(len, without.splitlines())) > 80 and all(len(line) <= 100 for line in without.splitlines())
    check_width(re.sub(r" +$", "", silent.seen.replace("\r", ""), flags=re.MULTILINE), 80)


def test_the_width_is_80_where_it_is_not_known():
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "COLUMNS"}
    words = [sys.executable, "-m", "hpt_trl", "list"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    check_width(done.stdout, 80)
    assert max(map(len, done.stdout.splitlines())) > 70


def test_an_evaluation_and_its_samples(evaluation, capsys, monkeypatch):
    path = evaluation()
    for columns in (1000, 80):
        text = printed(capsys, monkeypatch, columns, "eval", path)
        shown = text[text.index("pass@1") :]
        if columns == 1000:
            wide = shown
        else:
            same_words(re.sub(r" in \d+ s", "", shown), re.sub(r" in \d+ s", "", wide), columns)
