"""Pipelines: whatever stands in them, one answer, soon, which names every stage's line that was planted wrong."""

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpt_trl.errors import UserError
from hpt_trl.pipeline.checks import check_early, read_whole
from hpt_trl.pipeline.record import plan_steps, read_record
from tests.fuzz.bounds import CORPUS, bounded, examples, is_short
from tests.fuzz.recipe_strategies import BESIDE, PIPELINES, changed_recipes, pipelines

PIPELINE = Path("pipeline.yaml")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where the pipelines lie and are checked."""
    before, place = Path.cwd(), tmp_path_factory.mktemp("pipelines")
    os.chdir(place)
    for name, text in BESIDE.items():
        Path(name).write_text(text)
    yield place
    os.chdir(before)


def told(content: bytes) -> list[str]:
    """What is said of a pipeline before torch is imported; empty where nothing is."""
    PIPELINE.write_bytes(content)
    try:
        with bounded("pipelines", content, ".yaml"):
            plan = read_whole(PIPELINE, [])
            check_early(plan, plan_steps(plan, read_record(plan.output_dir)))
    except UserError as error:
        assert is_short(error), str(error)[:2000]
        return [str(one) for one in error.every]
    return []


@pytest.mark.parametrize("path", sorted((CORPUS / "pipelines").iterdir()), ids=lambda path: path.name)
def test_what_was_found(path):
    assert told(path.read_bytes())


@examples(15, 0.4)
@given(changed_recipes(PIPELINES))
def test_changed_pipelines(text):
    told(text.encode(errors="replace"))


@examples(30, 0.5)
@given(pipelines())
def test_any_pipelines(values):
    told(yaml.safe_dump(values, allow_unicode=True).encode(errors="replace"))


@examples(5, 0.1)
@given(st.data())
def test_every_planted_mistake_is_told(data):
    lines = data.draw(st.sampled_from(PIPELINES)).read_text().splitlines()
    stages = [at for at, line in enumerate(lines) if re.match(r"  \w+: \{", line)]
    wrong = data.draw(st.sets(st.sampled_from(stages), min_size=1))
    for at in wrong:
        lines[at] = lines[at].replace("{", "{max_stepz: 3, seed: many, ", 1)
    said = told("\n".join(lines).encode())
    for at in wrong:
        for key in ("max_stepz", "seed"):
            place = f"pipeline.yaml, line {at + 1}, `stages.{lines[at].split(':')[0].strip()}.{key}`: "
            assert sum(one.startswith(place) for one in said) == 1, said
