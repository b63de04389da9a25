"""`hpt-trl check` of a pipeline: every stage's keys, values, data and rewards, before any of them runs."""

from pathlib import Path

from hpt_trl.errors import Collector
from hpt_trl.models.folders import is_adapter
from hpt_trl.pipeline.plan import Plan, PlannedStage
from hpt_trl.pipeline.reading import read_plan
from hpt_trl.pipeline.record import Action, Step, plan_steps, read_record
from hpt_trl.recipes.early import look_at_sources
from hpt_trl.settings.file import shown
from hpt_trl.terminal import flow


def check(path: Path, overrides: list[str]) -> tuple[Plan, list[Step]]:
    """Checks a pipeline and prints what it would do: `hpt-trl check PIPELINE [--<stage>.<key> value ...]`.

    A stage whose model comes from a stage that is still to run is checked as far as that goes without the model.

    Returns:
        The pipeline, and what is to be done with each stage.

    Raises:
        UserError: the mistakes found.
    """
    plan = read_whole(path, overrides)
    steps = plan_steps(plan, read_record(plan.output_dir))
    check_early(plan, steps)
    lines = [f"pipeline: {shown(plan.file.path)}, {len(steps)} stages, in {plan.output_dir}"]
    finished: set[str] = set()
    mistakes = Collector()
    for number, step in enumerate(steps, 1):
        with mistakes.noted():
            lines.append(f"[{number}/{len(steps)}] {_check_step(plan, step, finished)}")
    mistakes.settle()
    print(flow(lines))
    return plan, steps


def read_whole(path: Path, overrides: list[str]) -> Plan:
    """Reads a pipeline; where something is wrong with it, the mistakes of its stages' recipes are told as well.

    Raises:
        UserError: the mistakes found; see `read_plan`.
    """
    mistakes = Collector()
    plan = read_plan(path, overrides, mistakes)
    if mistakes.errors:
        _note_stages(plan, [(stage, {}) for stage in plan.stages], mistakes)
    mistakes.settle()
    return plan


def check_early(plan: Plan, steps: list[Step]) -> None:
    """Checks what shows of the stages that are to run without torch.

    Raises:
        UserError: the mistakes found, of all stages.
    """
    mistakes = Collector()
    left = [(step.stage, step.words) for step in steps if step.action is not Action.KEEP]
    _note_stages(plan, left, mistakes)
    mistakes.settle()


def _note_stages(plan: Plan, stages: list[tuple[PlannedStage, dict[str, list[str]]]], mistakes: Collector) -> None:
    """Notes what shows of stages without torch.

    Args:
        stages: each with the runner's keys.
    """
    world_size = 1 if plan.profile is None else plan.profile.num_processes
    names = {name for stage in plan.stages for name in (stage.name, *stage.uses)}
    made = {str(folder(name)) for name in names for folder in (plan.folder, plan.merged_folder)}
    for stage, words in stages:
        look_at_sources(plan.sources(stage, words), world_size, mistakes, made, is_staged=bool(stage.kind))


def headline(stage: PlannedStage) -> str:
    """A stage in a few words: `ppo: ppo by ppo/stories-tiny, from sft and reward`."""
    recipe = f" by {stage.recipe}" if stage.recipe else ""
    uses = f", from {' and '.join(stage.uses)}" if stage.uses else ""
    return f"{stage.name}: {stage.kind}{recipe}{uses}"


def _check_step(plan: Plan, step: Step, finished: set[str]) -> str:
    """Checks one stage; adds it to the finished ones if it is. Returns its line."""
    stage = step.stage
    if step.action is Action.KEEP:
        finished.add(stage.name)
        return f"{headline(stage)}; {step.action.value}, not run again"

    from hpt_trl.recipes.resolving import resolve_recipe
    from hpt_trl.runs.preparation import check_without_model, prepare_recipe
    from hpt_trl.runs.working import check_work

    world_size = 1 if plan.profile is None else plan.profile.num_processes
    recipe = resolve_recipe(plan.sources(stage, step.words), world_size, plan.profile)
    if recipe.stage.work is not None:
        check_work(recipe)
    elif all(used in finished and not is_adapter(str(plan.folder(used))) for used in stage.uses):
        prepare_recipe(recipe)
    else:
        check_without_model(recipe)
    return f"{headline(stage)}; {step.action.value}{f' ({step.reason})' if step.reason else ''}"
