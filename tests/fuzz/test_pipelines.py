"""Pipelines: whatever stands in them, one answer, soon, which names every stage's line that was planted wrong."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpt_trl.pipeline.checks import check_early, read_whole
from hpt_trl.pipeline.record import plan_steps, read_record
from tests.fuzz.bounds import CORPUS, examples, told_by
from tests.fuzz.recipe_strategies import PIPELINES, changed_recipes, pipelines

PIPELINE = Path("pipeline.yaml")
pytestmark = pytest.mark.usefixtures("files_beside")


def told(content: bytes) -> list[str]:
    """What is said of a pipeline before torch is imported."""
    PIPELINE.write_bytes(content)
    return told_by("pipelines", content, _check)


def _check() -> None:
    plan = read_whole(PIPELINE, [])
    check_early(plan, plan_steps(plan, read_record(plan.output_dir)))


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
