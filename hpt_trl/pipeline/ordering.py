"""Whether a pipeline's references lead anywhere, and in what order its stages run."""

from collections.abc import Iterable, Iterator

from hpt_trl.errors import Collector, UserError
from hpt_trl.pipeline.plan import PlannedStage
from hpt_trl.pipeline.references import references_of
from hpt_trl.recipes.pipeline_keys import FROM
from hpt_trl.settings.values import did_you_mean

# The key of stages that search, which names an index.
INDEX_KEY = "search_index"


def in_order(stages: list[PlannedStage], others: Iterable[str], mistakes: Collector) -> list[PlannedStage]:
    """Returns the stages, each after those it uses, where every reference leads somewhere.

    Args:
        stages: in the file's order. others: names of stages that could not be read.
        mistakes: takes references that do not name another stage, or one of a kind that the key does not take, and
            circles of stages; the stages then stay as they are.
    """
    kinds = {**dict.fromkeys(others, ""), **{stage.name: stage.kind for stage in stages}}
    found = Collector()
    for stage, key, used in _uses(stages):
        with found.noted():
            _check_reference(stage, key, used, kinds)
    placed = stages
    # A stage that names itself is told of by its reference; references that lead nowhere are in no circle.
    if not any(used == stage.name for stage, _, used in _uses(stages)):
        with found.noted():
            placed = ordered(stages)
    for error in found.errors:
        mistakes.note(error)
    return placed if not found.errors else stages


def _check_reference(stage: PlannedStage, key: str, used: str, kinds: dict[str, str]) -> None:
    where = stage.places[key]
    evaluations = {name for name, kind in kinds.items() if kind == "evaluate"}
    if used not in kinds:
        raise where.error(
            f"`{FROM}{used}` names no stage of this pipeline.{did_you_mean(used, kinds)} Stages: {', '.join(kinds)}."
        )
    if used == stage.name:
        raise where.error("the stage names its own output; name an earlier stage, or a model.")
    if not kinds[used]:
        # Its own mistake is told.
        return
    if key == "reward_model_name_or_path" and kinds[used] != "reward":
        rewards = [name for name, kind in kinds.items() if kind == "reward"]
        instead = f"name one of: {', '.join(rewards)}" if rewards else "the pipeline has no stage of that kind"
        raise where.error(
            f"`{used}` is a `{kinds[used]}` stage, whose output scores nothing; a reward model comes from "
            f"a `reward` stage ({instead})."
        )
    if (kinds[used] == "index") != (key == INDEX_KEY):
        raise where.error(
            f"`{used}` is a `{kinds[used]}` stage; "
            + (
                f"`{INDEX_KEY}` names one of `stage: index`."
                if key == INDEX_KEY
                else f"a search index is named as `{INDEX_KEY}: {FROM}{used}` alone."
            )
        )
    if (used in evaluations) != (key == "against"):
        raise where.error(
            f"`{used}` is a `{kinds[used]}` stage; "
            + (
                "`against` names one of `stage: evaluate`."
                if key == "against"
                else "an evaluation leaves no model. Name the stage whose model it measures."
            )
        )
    if kinds[used] == "critic" and key.endswith("model_name_or_path") and key != "value_model_name_or_path":
        raise where.error(
            f"`{used}` is a value model, which generates no text and scores no answer; a stage takes it "
            f"as `value_model: {FROM}{used}`."
        )
    if kinds[used] == "reward" and stage.kind != "reward":
        needs = {
            "model_name_or_path": f"`{stage.kind}` trains a language model. Did you mean `reward_model: {FROM}{used}`?",
            "reference_model_name_or_path": "a reference gives tokens a likelihood. Name a stage that leaves a "
            "language model, e.g. one of `stage: ref_tuning`.",
        }
        if key in needs:
            raise where.error(f"`{used}` is a reward model, which generates no text; {needs[key]}")


def _uses(stages: list[PlannedStage]) -> Iterator[tuple[PlannedStage, str, str]]:
    for stage in stages:
        for key, value in stage.values.items():
            for used in references_of(value):
                yield stage, key, used


def ordered(stages: list[PlannedStage]) -> list[PlannedStage]:
    """Returns the stages, each after those it uses, otherwise in the file's order.

    Raises:
        UserError: stages use each other in a circle.
    """
    left, done = list(stages), []
    while left:
        names = {stage.name for stage in left}
        ready = next((stage for stage in left if not names & set(stage.uses)), None)
        if ready is None:
            raise _cycle(left)
        left.remove(ready)
        done.append(ready)
    return done


def _cycle(stages: list[PlannedStage]) -> UserError:
    """The error about stages of which none can be the first."""
    by_name = {stage.name: stage for stage in stages}
    path = [stages[0].name]
    while path.count(path[-1]) < 2:
        path.append(next(used for used in by_name[path[-1]].uses if used in by_name))
    path = path[path.index(path[-1]) :]
    stage = by_name[path[0]]
    key = next(key for key, value in stage.values.items() if path[1] in references_of(value))
    return stage.places[key].error(
        f"the stages use each other in a circle: {' uses '.join(path)}. One of them must start "
        "from a model or a finished run."
    )
