"""`--json`: one valid value on stdout and nothing else, by keys that stay; a mistake is one line and exit code 2."""

import json
import math
import re
import subprocess

import pytest
import yaml

from hpt_trl import as_json
from hpt_trl.cli import main
from hpt_trl.cli.parser import JSON_COMMANDS
from hpt_trl.recipes.bundled import bundled_recipes
from tests.helpers.pages import write_corpus
from tests.helpers.processes import ROOT, hpt_trl
from tests.planning.test_doctor import write_recipe
from tests.runs.test_reporting import lines as metrics
from tests.runs.test_reporting import results

# Keys below which stand names of the run's own, and those whose names have values with keys of ours.
OPEN = {"results", "settings", "facts", "memory_bytes"}
NAMED = {"metrics", "measures"}


def keys_of(value) -> set[str]:
    """All keys of a value that this package has named."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    found = set(value)
    for key, below in value.items():
        if key not in OPEN:
            found |= keys_of(list(below.values()) if key in NAMED and isinstance(below, dict) else below)
    return found


def documented(command: str) -> set[str]:
    """The words that docs/json.md has in the row of a command."""
    rows = [line.split("|")[1:3] for line in (ROOT / "docs" / "json.md").read_text().splitlines() if "|" in line]
    texts = [text for commands, text in rows if f"`{command}`" in commands]
    assert texts, f"docs/json.md has no row of {command}"
    words = set(re.findall(r"`(\w+)`", texts[0]))
    return documented("report") if command in ("run", "eval") else words


@pytest.fixture
def value_of(capfd):
    """The value that a command prints, in this process, of documented keys alone."""

    def read(*words: str, code: int = 0):
        capfd.readouterr()
        assert main([*words, "--json"]) == code
        printed = capfd.readouterr().out
        assert printed.isascii()
        value = json.loads(printed, parse_constant=pytest.fail)
        assert keys_of(value) <= documented(words[0]), keys_of(value) - documented(words[0])
        return value

    return read


def test_a_process_prints_the_value_alone(recipe):
    """What the check tells, and what a process that it starts prints, goes to stderr."""
    done = hpt_trl("check", recipe("grpo", reward_funcs=["tests.test_as_json.prints"]), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rewards"] == [{"name": "prints", "weight": 1.0}]
    assert "a reward prints" in done.stderr and "and its process" in done.stderr and "peak memory:" in done.stderr


def prints(completions, **columns) -> list[float]:
    print("a reward prints")
    subprocess.run(["echo", "and its process"], check=True)
    return [0.0] * len(completions)


def test_recipes(value_of):
    found = value_of("list")
    assert len(found) == len(bundled_recipes()) and {tuple(row) for row in found} == {
        ("recipe", "stage", "model", "data", "hardware")
    }
    (chain,) = (row for row in found if row["recipe"] == "pipeline/rlhf-tiny")
    assert chain["model"] is None and chain["stage"] == "pipeline"


def test_a_run_that_finished_and_one_that_did_not(tmp_path, value_of):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in metrics(20))
    broken = results(20)
    broken["after"]["reward"] = math.nan
    (tmp_path / "results.json").write_text(json.dumps(broken))
    found = value_of("report", str(tmp_path))
    assert (found["kind"], found["finished"], found["steps"]) == ("run", True, 20)
    assert found["results"]["after"]["accuracy"] == 0.5 and found["results"]["after"]["reward"] is None
    assert found["metrics"]["hpt/sft_fraction"] == {"first_step": 1, "first": 0.95, "last_step": 20, "last": 0}
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "results.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "re')
    found = value_of("report", str(tmp_path))
    assert (found["finished"], found["results"], found["steps"]) == (False, None, 20)


def test_a_pipeline(tmp_path, value_of):
    stage = {"stage": "sft", "uses": [], "measure": None, "contents": {}, "finished": True, "seconds": 2.5}
    record = {"pipeline": "p.yaml", "order": ["sft", "ppo"], "stages": {"sft": stage}}
    (tmp_path / "pipeline.json").write_text(json.dumps(record))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "results.json").write_text(json.dumps(results(20)))
    found = value_of("report", str(tmp_path))
    assert (found["kind"], found["pipeline"], found["finished"]) == ("pipeline", "p.yaml", False)
    first, second = found["stages"]
    assert (first["name"], first["steps"], first["seconds"], first["finished"]) == ("sft", 20, 2.5, True)
    assert first["measures"]["accuracy"] == {"before": 0.0104, "after": 0.5, "verdict": "better"}
    assert second == {"name": "ppo", "stage": None, "uses": [], "started": False, "finished": False} | {
        "seconds": None,
        "steps": None,
        "measures": {},
    }


def test_pages_that_are_found(tmp_path, value_of):
    index = str(tmp_path / "index")
    assert main(["index", str(write_corpus(tmp_path / "pages")), index]) == 0
    found = value_of("search", index, "the northern coast", "--top_k", "1")
    (hit,) = found["hits"]
    assert (hit["rank"], hit["page"], hit["text"]) == (1, "sub/doc_4", "Weather stations of the northern coast.")
    assert isinstance(hit["score"], float) and found["query"] == "the northern coast"
    assert value_of("search", index, "zebra")["hits"] == []


def test_what_is_installed_and_needed(tmp_path, tiny_model_path, value_of):
    fine = write_recipe(tmp_path, model_name_or_path=tiny_model_path)
    found = value_of("doctor", fine)
    (torch,) = (row for row in found["packages"] if row["package"] == "torch")
    assert torch["extra"] is None and torch["fits"] is True and found["devices"]["cores"] >= 1
    (looked,) = found["recipes"]
    assert looked["can_run"] is True and all(need["met"] for need in looked["needs"])
    bad = write_recipe(tmp_path, model_name_or_path=str(tmp_path / "gone"))
    assert value_of("doctor", bad, code=1)["recipes"][0]["can_run"] is False


def test_what_a_recipe_comes_to(recipe, value_of):
    path = recipe("grpo", eval_samples=3)
    found = value_of("check", path)
    assert found["batch"] == {"processes": 1, "rows_per_process": 4, "accumulation_steps": 1, "rows_per_step": 4}
    assert (found["stage"], found["steps"], found["evaluated_rows"]) == ("grpo", 4, 3)
    assert found["data"]["rows"] == 18 and found["held_out"]["rows"] == 6
    assert found["rewards"] == [{"name": "remainder", "weight": 1.0}]
    assert found["peak_memory_bytes"] >= found["memory_bytes"]["weights"] > 1e5


def test_what_an_evaluation_comes_to(evaluation, value_of):
    measured = value_of("check", evaluation())
    assert measured["measures"] == ["pass@k", "avg@k"] and measured["k"] == [1, 2, 4]
    assert measured["completions_per_row"] == 4 and measured["memory_bytes"]["kv_cache"] > 0


def test_what_a_pipeline_comes_to(tmp_path, recipe, value_of):
    path = tmp_path / "chain.yaml"
    stages = {"one": {"recipe": recipe("sft")}, "two": {"recipe": recipe("dpo"), "model": "from:one"}}
    path.write_text(yaml.safe_dump({"stage": "pipeline", "output_dir": str(tmp_path / "out"), "stages": stages}))
    found = value_of("check", str(path))
    assert [(stage["name"], stage["uses"], stage["action"]) for stage in found["stages"]] == [
        ("one", [], "start"),
        ("two", ["one"], "start"),
    ]


def test_an_evaluation_prints_what_it_measured(evaluation, value_of):
    path = evaluation()
    found = value_of("eval", path)
    measures = found["results"]["measures"]
    assert found["kind"] == "measures" and 0 <= measures["pass@2"] <= 1 and len(measures["pass@2_interval"]) == 2
    # Again, by its folder: nothing is drawn anew, and the figures are the same.
    again = value_of("eval", found["folder"])
    assert again["results"]["measures"] == measures
    assert value_of("report", found["folder"])["results"] == again["results"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere"], "nowhere"),
        (["search", "nowhere", "x"], "holds no index"),
        (["doctor", "quikstart"], "Did you mean `quickstart`?"),
        (["eval", "quickstart"], "allowed here: evaluate"),
    ],
)
def test_a_mistake_is_one_line(words, said, capfd):
    assert main([*words, "--json"]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ") and said in told.err and len(told.err.splitlines()) == 1


def test_commands_without_data_refuse_it():
    done = hpt_trl("merge", "one", "two", "--json")
    assert done.returncode == 2 and "--json" in done.stderr


def test_every_command_with_data_is_documented_and_keys_are_found():
    """`value_of` holds each value that the tests above read to the row of its command."""
    assert all(documented(command) for command in JSON_COMMANDS)
    value = {"kind": "run", "metrics": {"loss": {"first": 1}}, "results": {"own": 1}, "stages": [{"name": "sft"}]}
    assert keys_of([value]) == {"kind", "metrics", "first", "results", "stages", "name"}
    assert not {"first", "hits"} <= documented("search")


def test_what_is_no_number_is_null():
    assert json.loads(as_json.text({"a": math.nan, "b": [math.inf, 1, 0.5], "c": "é"})) == {
        "a": None,
        "b": [None, 1, 0.5],
        "c": "é",
    }
