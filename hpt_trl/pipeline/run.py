"""Runs a pipeline: each stage in a process of its own, finished ones kept, interrupted ones resumed.

The pipeline's process reads and writes small files only; no stage finds memory taken or settings left by another.
"""

import os
import shlex
import time
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from hpt_trl.errors import UserError
from hpt_trl.launching.accelerate import check_startable, launch_words, start
from hpt_trl.launching.options import LaunchOptions
from hpt_trl.launching.processes import call, hpt_trl_command
from hpt_trl.models.folders import is_adapter
from hpt_trl.pipeline.checks import check_early, headline, read_whole
from hpt_trl.pipeline.hub import NOT_BY_ITSELF, push_stage, refuse_unpushed
from hpt_trl.pipeline.plan import RECIPES_FOLDER, Plan, PlannedStage
from hpt_trl.pipeline.record import (
    Action,
    Record,
    StageRecord,
    Step,
    damage,
    has_weights,
    is_whole,
    output_of,
    plan_steps,
    read_record,
    stamp_of,
)
from hpt_trl.placing import clear_left, put_in_place, written_aside
from hpt_trl.recipes.profiles import LAUNCH_OPTIONS, profiles_folder
from hpt_trl.runs.going_on import COMMAND as GOES_ON_BY
from hpt_trl.settings.file import parse_yaml_text, shown
from hpt_trl.settings.masking import masked_command
from hpt_trl.settings.secrets import handed_on, withheld
from hpt_trl.signals import INTERRUPTED, Interrupted, ending_on_signals


def run(path: Path, overrides: list[str]) -> None:
    """Runs a pipeline: `hpt-trl run PIPELINE [--<stage>.<key> value ...]`.

    Raises:
        UserError: a mistake in the pipeline or in one of its recipes, before anything runs; or a stage that failed,
            whose own message stands above. Stages that finished stay, and the same command goes on from there.
    """
    launched = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    if launched:
        raise UserError(
            f"a pipeline starts the processes of its stages by itself ({launched[0]} is set: this is a launcher's "
            "process). Run it plainly, with `--accelerate <file or name>`."
        )
    plan = read_whole(path, overrides)
    if plan.profile is not None:
        check_startable(plan.profile)
    with ending_on_signals():
        steps = plan_steps(plan, read_record(plan.output_dir))
        if any(step.action is not Action.KEEP for step in steps):
            print(f"{shown(path)}: checking {len(steps)} stages ...", flush=True)
            check_early(plan, steps)
            _check_apart(path, overrides)
        plan.output_dir.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(plan.output_dir / ".pipeline.lock", timeout=0):
                _run_steps(plan, masked_command(shlex.join(["hpt-trl", "run", shown(path), *overrides])))
        except Timeout as error:
            raise UserError(f"another process runs a pipeline in {plan.output_dir}; wait for it to end.") from error


def _check_apart(path: Path, overrides: list[str]) -> None:
    """Checks all stages in a process of its own: trainers' configs set variables and devices up as they are made."""
    code, errors = call(hpt_trl_command("check", str(path), *overrides), capture=True)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        _, mark, message = f"\n{errors}".rpartition("\nerror: ")
        raise UserError(message.strip() if mark and code == 2 else f"the check of the stages failed:\n{errors.strip()}")


def _run_steps(plan: Plan, command: str) -> None:
    from hpt_trl.pipeline import summary

    record = read_record(plan.output_dir)
    # Once more under the lock: another pipeline may have ended in the meantime.
    steps = plan_steps(plan, record)
    record.pipeline, record.order = shown(plan.file.path), [step.stage.name for step in steps]
    unpushed: list[str] = []
    for number, step in enumerate(steps, 1):
        mark = f"[{number}/{len(steps)}]"
        if step.action is Action.KEEP:
            _keep(plan, step, record)
            print(f"{mark} {headline(step.stage)}: finished before, not run again", flush=True)
            unpushed += push_stage(plan, step.stage, mark)
            continue
        why = f" ({step.reason})" if step.reason else ""
        print(f"\n{mark} {headline(step.stage)}: {step.action.value}{why}", flush=True)
        _run_step(plan, step, record, mark, command)
        print(f"{mark} {summary.closing_line(record, step.stage.name)}", flush=True)
        unpushed += push_stage(plan, step.stage, mark)
    record.write(measures=summary.measures(record))
    summary.draw(record)
    print(f"\n{summary.table(record)}")
    refuse_unpushed(unpushed)


def _keep(plan: Plan, step: Step, record: Record) -> None:
    known = record.stages[step.stage.name]
    known.measure = step.stage.measure
    known.finished, known.output = True, output_of(plan.folder(step.stage.name))
    record.write()


def _run_step(plan: Plan, step: Step, record: Record, mark: str, command: str) -> None:
    stage, folder = step.stage, plan.folder(step.stage.name)
    for used in stage.uses:
        _require_output(plan, stage, used)
        if _needs_merged(plan, stage, used):
            _merge(plan, used, record, mark)
    known = record.stages.get(stage.name)
    if known is None or step.action is not Action.RESUME:
        fresh = StageRecord(stage.kind, stage.uses, stage.measure, step.contents, stamp=stamp_of(folder))
        fresh.merged = None if known is None else known.merged
        known = record.stages[stage.name] = fresh
    record.write()
    recipe = _write_recipe(plan, stage)
    secrets = handed_on(recipe, withheld(plan.resolved(stage))[1])
    own = NOT_BY_ITSELF if stage.is_pushed else {}
    extra = [word for key, words in (stage.words | step.words | own).items() for word in (f"--{key}", *words)]
    words = ["run", str(recipe), *extra]
    started, before = time.perf_counter(), known.seconds
    try:
        code = _start(plan, words, {GOES_ON_BY: command, **secrets})
    finally:
        known.seconds = before + time.perf_counter() - started
        record.write()
    if code == INTERRUPTED:
        # Its own message stands above.
        raise Interrupted
    if code != 0:
        for used in stage.uses:
            _require_output(plan, stage, used)
        raise _failure(stage, record, f"failed with exit code {code}; its own message stands above")
    if not is_whole(stage, folder):
        what = "a model and results" if stage.leaves_model else "results"
        raise _failure(stage, record, f"ended without {what} in {folder}")
    known.finished, known.output = True, output_of(folder)
    record.write()


def _start(plan: Plan, words: list[str], variables: dict[str, str]) -> int:
    """Runs a stage in the processes of the pipeline's profile; returns the exit code."""
    if plan.profile is None or plan.profile.path is None:
        return call(hpt_trl_command(*words), variables=variables)[0]
    path = plan.profile.path
    name = plan.profile.name if path.parent == profiles_folder() else str(path)
    options = LaunchOptions(accelerate=name, num_processes=plan.profile.num_processes)
    return start(launch_words(plan.profile, words), {**variables, LAUNCH_OPTIONS: shlex.join(options.words())})


def _failure(stage: PlannedStage, record: Record, what: str) -> UserError:
    kept = ", ".join(name for name in record.order if name in record.stages and record.stages[name].finished)
    said = f" Finished stages are kept: {kept}." if kept else ""
    return UserError(f"stage `{stage.name}` {what}.{said} The same command goes on from here.")


def _require_output(plan: Plan, stage: PlannedStage, used: str) -> None:
    folder = plan.folder(used)
    source = next(one for one in plan.stages if one.name == used)
    if not is_whole(source, folder):
        raise UserError(
            f"stage `{stage.name}` uses `{used}`, but the output of `{used}` in {folder} is gone: it was removed while "
            f"the pipeline ran. Run the same command again: `{used}` runs again, other finished stages are kept."
        )


def _needs_merged(plan: Plan, stage: PlannedStage, used: str) -> bool:
    """Whether a stage takes another's adapter merged; see `Plan.resolved`."""
    merged, values = str(plan.merged_folder(used)), plan.resolved(stage).values()
    named = any(merged in value if isinstance(value, list) else merged == value for value in values)
    return named and is_adapter(str(plan.folder(used)))


def _merge(plan: Plan, used: str, record: Record, mark: str) -> None:
    """Merges a stage's adapter into its base model, unless that is done already."""
    folder, merged, known = plan.folder(used), plan.merged_folder(used), record.stages[used]
    if known.merged == known.output and has_weights(merged) and damage(merged) is None:
        return
    if known.merged is None and merged.exists() and any(merged.iterdir()):
        raise UserError(
            f"the adapter of stage `{used}` is merged into {merged}, which holds something that this pipeline did not "
            "write; move it away."
        )
    known.merged = ""
    record.write()
    print(f"{mark} {used}: its adapter is merged into {merged}", flush=True)
    clear_left(merged)
    with written_aside(merged) as new:
        code, _ = call(hpt_trl_command("merge", str(folder), str(new)))
        if code == INTERRUPTED:
            raise Interrupted
        if code == 0 and has_weights(new):
            put_in_place(new, merged)
    if code != 0 or not has_weights(merged):
        raise UserError(f"the adapter of stage `{used}` could not be merged into {merged}; the message stands above.")
    known.merged = known.output
    record.write()


def _write_recipe(plan: Plan, stage: PlannedStage) -> Path:
    """Writes the recipe that the stage's process reads: one that runs alone as well, each key with where it is from."""
    path = plan.output_dir / RECIPES_FOLDER / f"{stage.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    lines = [f"# Stage `{stage.name}` of {shown(plan.file.path)}, written anew at each start of the pipeline."]
    for key, value in withheld(plan.resolved(stage))[0].items():
        # `recipes/x.yaml, line 3`: the words before the key.
        place = str(stage.places[key]).partition(", `")[0] if key in stage.places else "the pipeline's own"
        lines.append(f"{key}: {_as_written(value, stage.texts.get(key))}  # {place}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _as_written(value: object, text: str | None) -> str:
    """A value in YAML on one line; a plain scalar as the user wrote it, since `1.10` may be meant as text."""
    try:
        plain = text is not None and type(parse_yaml_text(text)) is type(value) and parse_yaml_text(text) == value
    except ValueError:
        plain = False
    if text is not None and plain:
        return text
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n...\n").rstrip()
    )
