"""Recipes of `stage: index`: run, checked, reported, in a pipeline, and refused."""

import json
import re
from pathlib import Path

import pytest
import yaml

from hpt_trl.errors import UserError
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.pipeline.record import Action, plan_steps, read_record
from hpt_trl.planning.check import check
from hpt_trl.planning.hub_needs import Hub
from hpt_trl.planning.machines import Machine
from hpt_trl.planning.needs import needs_of
from hpt_trl.recipes.bundled import find_recipe
from hpt_trl.recipes.resolving import read_recipe
from hpt_trl.retrieval.engine import open_engine
from hpt_trl.runs.reporting import report
from hpt_trl.runs.runner import run
from hpt_trl.runs.working import check_work
from tests.helpers.pages import write_corpus
from tests.helpers.processes import hpt_trl

QUESTIONS = [
    {"query": "weather of the coast", "reference_pages": ["sub/doc_4"]},
    {"query": "Norvik Ltd staff", "reference_pages": ["sub/doc_1"]},
]


@pytest.fixture
def recipe(tmp_path):
    write_corpus(tmp_path / "pages")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))

    def write(name="recipe.yaml", **keys):
        values = {
            "stage": "index",
            "output_dir": str(tmp_path / "out"),
            "pages": str(tmp_path / "pages"),
            "questions": str(tmp_path / "questions.jsonl"),
        }
        values = {key: value for key, value in (values | keys).items() if value is not None}
        (tmp_path / name).write_text(yaml.safe_dump(values))
        return str(tmp_path / name)

    return write


def test_a_recipe_builds_an_index_and_measures_it(recipe, tmp_path, capsys):
    check(recipe(), [])
    assert f"pages:          {tmp_path / 'pages'}" in capsys.readouterr().out and not (tmp_path / "out").exists()
    run(recipe(), [])
    printed = capsys.readouterr().out
    assert "recall@1:      50.0%" in printed and "Pages:   4 of 1 documents" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["stage"] == "index"
    assert results["measures"] == pytest.approx(
        {"pages": 4, "without_text": 0, "skipped": 0, "questions": 2}
        | {"recall@1": 0.5, "recall@5": 1.0, "ndcg@5": (1 + 0.63092975) / 2}
    )
    engine = open_engine(tmp_path / "out")
    assert [hit.name for hit in engine.search(["weather"], 1)[0]] == ["sub/doc_4"]
    report(tmp_path / "out")
    assert f"{Path(recipe()).stem}: index" in (printed := capsys.readouterr().out) and "ndcg@5" in printed
    with pytest.raises(UserError, match="holds a finished run"):
        run(recipe(), [])
    run(recipe(), ["--overwrite", "true", "--language", "none", "--questions", "null"])
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["measures"]) == {
        *("pages", "without_text", "skipped")
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pages": None}, "`pages`.*a recipe needs it"),
        ({"pages": "nowhere"}, "line 2, `pages`: there is no folder nowhere"),
        ({"index_kind": "lexcal"}, "Did you mean `lexical`"),
        ({"language": "englisch"}, "`language`: there is no language `englisch`"),
        ({"embedding_model": "a/b"}, "an index of words has no model"),
        ({"on_bad_page": "ignore"}, "one of error, skip"),
        ({"pdf_dpi": 3}, "`pdf_dpi`: 3"),
        ({"questions": "nowhere.jsonl"}, "`questions`: nowhere.jsonl cannot be read"),
        ({"learning_rate": 1e-4}, "trains nothing"),
        ({"model_name_or_path": "smollm2-135m"}, "trains nothing"),
        ({"dataset_name": "arithmetic"}, "trains nothing"),
        ({"output_dir": None}, "`output_dir`"),
    ],
)
def test_recipes_that_are_refused(recipe, keys, said):
    path = recipe(**keys)
    with pytest.raises(UserError) as raised:
        check_work(read_recipe(find_recipe(path)))
    assert re.search(said, str(raised.value)), raised.value


def test_a_failed_rebuild_leaves_the_former_index(recipe, tmp_path):
    run(recipe(), [])
    (tmp_path / "pages" / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.png"):
        run(recipe(), ["--overwrite", "true"])
    assert len(open_engine(tmp_path / "out").names) == 4 and not (tmp_path / "out" / "results.json").exists()
    (tmp_path / "pages" / "broken.png").unlink()
    run(recipe(), [])
    assert (tmp_path / "out" / "results.json").exists()


def test_a_pipeline_keeps_an_index_until_its_pages_change(recipe, tmp_path):
    stage = {"recipe": recipe()}
    pipeline = tmp_path / "pipeline.yaml"
    stages = {"pages": stage}
    pipeline.write_text(yaml.safe_dump({"stage": "pipeline", "output_dir": str(tmp_path / "chain"), "stages": stages}))
    first = hpt_trl("run", str(pipeline))
    assert first.returncode == 0, first.stderr
    assert len(open_engine(tmp_path / "chain" / "pages").names) == 4
    plan = read_plan(pipeline, [])
    (step,) = plan_steps(plan, read_record(plan.output_dir))
    assert step.action is Action.KEEP
    write_corpus(tmp_path / "more", ["another page"])
    (tmp_path / "more" / "sub" / "doc_1.png").rename(tmp_path / "pages" / "new.png")
    (step,) = plan_steps(plan, read_record(plan.output_dir))
    assert step.action is Action.AGAIN and "pages changed" in step.reason
    run(str(tmp_path / "chain" / "recipes" / "pages.yaml"), ["--overwrite", "true"])
    assert len(open_engine(tmp_path / "chain" / "pages").names) == 5


def test_references_to_an_index_in_a_pipeline(recipe, tmp_path):
    def plan(**keys):
        first = {"recipe": "grpo/stories-tiny", "model": "smollm2-135m"}
        stages = {"pages": {"recipe": recipe()}, "first": first, "train": first | keys}
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump({"stage": "pipeline", "output_dir": str(tmp_path / "chain"), "stages": stages}))
        return read_plan(path, [])

    found = plan(search_index="from:pages")
    assert found.resolved(found.stages[2])["search_index"] == str(tmp_path / "chain" / "pages")
    with pytest.raises(UserError, match="a search index is named as `search_index: from:pages` alone"):
        plan(model="from:pages")
    with pytest.raises(UserError, match="`first` is a `grpo` stage; `search_index` names one of `stage: index`"):
        plan(search_index="from:first")


def test_what_a_recipe_needs_is_told(recipe, tmp_path):
    machine = Machine(gpus=[], other="", cores=2, memory=2**33, instructions=[])

    def needs(**keys):
        return {need.what: need.met for need in needs_of(Path(recipe(**keys)), machine, Hub())}

    assert {"PDFs", "index of words", "stems of words"} <= {what for what, met in needs().items() if met}
    assert "index_kind text_vectors" in needs(index_kind="text_vectors", embedding_model="a/b")
    assert "ocr" in needs(ocr=True)
