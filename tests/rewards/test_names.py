"""No two rewards share a name: in the trainer's metrics and completions table, and as a recipe names them."""

from functools import partial

import pytest
from datasets import Dataset

from hpt_trl.data.rendering import Encoder
from hpt_trl.rewards.guarding import guard
from hpt_trl.rewards.names import distinct_names, numbered
from hpt_trl.rollouts.trainer import RolloutTrainer
from hpt_trl.runs.evaluation import evaluate
from tests.helpers.rollouts import build, rows


def constant(completions, value=0.0, **_):
    return [value] * len(completions)


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, completions, **_):
        return [self.value] * len(completions)


def elsewhere():
    def constant(completions, **_):
        return [9.0] * len(completions)

    constant.__module__, constant.__qualname__ = "other", "constant"
    return constant


ONE, TWO = partial(constant, value=1.0), partial(constant, value=2.0)


HERE = "tests.rewards.test_names"


@pytest.mark.parametrize(
    ("rewards", "names"),
    [
        ([constant, Constant(1)], ["constant", "Constant"]),
        ([ONE, TWO], ["constant_1", "constant_2"]),
        ([Constant(1), Constant(2)], ["Constant_1", "Constant_2"]),
        ([constant, elsewhere()], [f"{HERE}.constant", "other.constant"]),
        ([lambda **_: [], lambda **_: []], ["<lambda>_1", "<lambda>_2"]),
    ],
)
def test_rewards_of_one_name_are_told_apart(rewards, names):
    found = distinct_names(rewards)
    assert found == names
    # Guarded, they keep these names, also when they are guarded again.
    guarded = [guard(reward, name) for reward, name in zip(rewards, found, strict=True)]
    assert distinct_names(guarded) == found


def test_a_recipe_names_them_by_its_paths():
    assert distinct_names([ONE, TWO], ["mine.short", "mine.long"]) == ["short", "long"]
    assert distinct_names([ONE, TWO], ["mine.short", "other.short"]) == ["mine.short", "other.short"]
    assert distinct_names([ONE, ONE], ["mine.short", "mine.short"]) == ["short_1", "short_2"]
    assert numbered(["a", "a_1", "a"]) == ["a_2", "a_1", "a_3"]


def test_metrics_and_the_completions_table_have_a_column_for_each(tiny_model_path, tmp_path):
    trainer = build(
        RolloutTrainer,
        tiny_model_path,
        tmp_path,
        reward=[ONE, TWO, Constant(3.0)],
        reward_weights=[1.0, 10.0, 100.0],
        max_completion_length=4,
    )
    trainer.train()
    line = trainer.state.log_history[0]
    names = trainer.reward_func_names
    assert [line[f"rewards/{name}/mean"] for name in names] == [1.0, 2.0, 3.0]
    assert line["reward"] == 321.0
    assert {name: set(values) for name, values in trainer._logs["rewards"].items()} == {
        name: {value} for name, value in zip(names, (1.0, 2.0, 3.0), strict=True)
    }
    result = evaluate(
        trainer.model,
        Encoder(trainer.processing_class),
        Dataset.from_list([{"prompt": row["prompt"]} for row in rows(["fail"])]),
        [ONE, TWO],
        max_new_tokens=2,
        batch_size=1,
        success_reward=names[1],
        success_threshold=2.0,
    )
    assert list(result["rewards"].values()) == [1.0, 2.0] and result["accuracy"] == 1.0
