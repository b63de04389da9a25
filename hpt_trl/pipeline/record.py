"""pipeline.json: which stages a pipeline has started and finished, and from what; and what is to be done with each.

The record is written before a stage starts and after it ends, each time in one go, so a pipeline that was killed
knows on its next start which folders are its own and whether they hold what the recipe asks for.
"""

import enum
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpt_trl.errors import UserError
from hpt_trl.files import valid_json, write_atomically
from hpt_trl.models.whole_files import refuse_damaged_files
from hpt_trl.pipeline.fingerprint import changes, contents_of, fingerprint
from hpt_trl.pipeline.plan import Plan, PlannedStage
from hpt_trl.run_files import PIPELINE_FILE, RECIPE_FILE, RESULTS_FILE
from hpt_trl.runs.checkpoints import complete_checkpoints
from hpt_trl.settings.masking import masked

# As in `hpt_trl.evaluation.samples`.
CONDITIONS_FILE = "samples.json"


class Action(enum.Enum):
    """What a pipeline does with a stage."""

    KEEP = "finished before"
    START = "runs"
    RESUME = "goes on"
    AGAIN = "runs again"


@dataclass
class StageRecord:
    """What is known of one stage.

    Attributes:
        stage: the training stage (`sft`, ...).
        uses: stages whose output it takes.
        measure: the measure that the recipe names; None for the usual one.
        contents: all that its result depends on, see `contents_of`.
        finished: whether it ran to its end.
        output: hash of its results.json, which names this very run; empty until it finished.
        merged: `output` of the run whose adapter lies merged in `<stage>-merged`; empty while it is written, None where
            there is none.
        seconds: wall time of its process, over all attempts.
        stamp: time of change of the folder's recipe.yaml before its last start from nothing: as long as it is the same,
            what lies in the folder is an older run's.
    """

    stage: str
    uses: list[str]
    measure: str | None
    contents: dict[str, Any]
    finished: bool = False
    output: str = ""
    merged: str | None = None
    seconds: float = 0.0
    stamp: int = 0


@dataclass
class Record:
    """The stages of an output folder, by name; `order` lists those of the pipeline as it is now."""

    folder: Path
    pipeline: str = ""
    order: list[str] = field(default_factory=list)
    stages: dict[str, StageRecord] = field(default_factory=dict)

    def write(self, **more: Any) -> None:
        """Writes the record, with whatever else belongs beside it."""
        values = {"pipeline": self.pipeline, "order": self.order} | more
        values["stages"] = {name: asdict(stage) for name, stage in self.stages.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(valid_json(values), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / PIPELINE_FILE, text)


@dataclass
class Step:
    """One stage and what is to be done with it.

    Attributes:
        reason: why it runs again; empty otherwise.
        checkpoint: where it goes on, None where it starts anew.
    """

    stage: PlannedStage
    contents: dict[str, Any]
    action: Action
    reason: str = ""
    checkpoint: Path | None = None

    @property
    def words(self) -> dict[str, list[str]]:
        """The runner's keys that this takes."""
        if self.action is Action.RESUME:
            # An evaluation goes on by itself.
            return {"resume_from_checkpoint": ["true"]} if self.stage.leaves_model else {}
        return {"overwrite": ["true"]} if self.action is Action.AGAIN else {}


def read_record(folder: Path) -> Record:
    """Reads the record of an output folder; an empty one where there is none.

    Raises:
        UserError: the file is not what `Record.write` writes.
    """
    path = folder / PIPELINE_FILE
    if not path.exists():
        return Record(folder)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stages = {name: StageRecord(**stage) for name, stage in values["stages"].items()}
        return Record(folder, values["pipeline"], list(values["order"]), stages)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not the record of a pipeline: {error!r}. Name another `output_dir`, or remove the "
            "file and start anew with `--overwrite true`."
        ) from error


def plan_steps(plan: Plan, record: Record) -> list[Step]:
    """Decides what is to be done with each stage, in their order.

    Raises:
        UserError: a stage's folder holds something that this pipeline did not write.
    """
    known: dict[str, str] = {}
    steps = []
    for stage in plan.stages:
        contents = contents_of(stage, known)
        known[stage.name] = fingerprint(contents)
        steps.append(_step(plan, stage, contents, record.stages.get(stage.name)))
    return steps


def _step(plan: Plan, stage: PlannedStage, contents: dict[str, Any], known: StageRecord | None) -> Step:
    folder = plan.folder(stage.name)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        reason = f"{folder} is gone" if known is not None and known.finished else ""
        return Step(stage, contents, Action.START, reason)
    if plan.overwrite:
        return Step(stage, contents, Action.AGAIN, "`overwrite`")
    if known is None or (known.finished and output_of(folder) not in ("", known.output)):
        raise UserError(
            f"stage `{stage.name}` writes to {folder}, which holds something that this pipeline did not write. Name "
            "another `--output_dir`, move the folder away, or write `--overwrite true` to run every stage anew."
        )
    # A former version noted secrets as well.
    changed = changes(masked(known.contents), contents)
    if changed:
        return Step(stage, contents, Action.AGAIN, changed)
    # A pipeline that was killed in between may have left a stage finished and not noted so.
    opened = known.finished or stamp_of(folder) != known.stamp
    if opened and is_whole(stage, folder):
        return Step(stage, contents, Action.KEEP)
    if not stage.leaves_model and opened and (folder / CONDITIONS_FILE).is_file():
        return Step(stage, contents, Action.RESUME, "from the completions that are there")
    if known.finished:
        why = damage(folder) or f"its output in {folder} is no longer complete"
        return Step(stage, contents, Action.AGAIN, why.removesuffix("."))
    checkpoints = complete_checkpoints(folder) if opened else []
    if checkpoints:
        return Step(stage, contents, Action.RESUME, f"from {checkpoints[-1].name}", checkpoints[-1])
    return Step(stage, contents, Action.AGAIN, "it was interrupted before its first checkpoint")


def output_of(folder: Path) -> str:
    """Hash of a finished run's results.json, which names the run; empty where there is none, or it trained nothing.

    One that is broken is not of a run that finished.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        return ""
    contents = path.read_bytes()
    try:
        results = json.loads(contents)
    except ValueError:
        return ""
    trained = isinstance(results, dict) and results.get("trained", True)
    return hashlib.sha256(contents).hexdigest() if trained else ""


def is_whole(stage: PlannedStage, folder: Path) -> bool:
    """Whether a folder holds all that a finished stage leaves."""
    return bool(output_of(folder)) and (not stage.leaves_model or (has_weights(folder) and damage(folder) is None))


def damage(folder: Path) -> str | None:
    """What is wrong with a stage's own files, whose contents are read; None where nothing is.

    The base of an adapter is another stage's, which is looked at by itself.
    """
    try:
        refuse_damaged_files(folder)
    except UserError as error:
        return str(error)
    return None


def stamp_of(folder: Path) -> int:
    """When a run last opened the folder; 0 where none did."""
    path = folder / RECIPE_FILE
    return path.stat().st_mtime_ns if path.is_file() else 0


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a whole model or adapter: its config, and every file of its weights."""
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return False
    for index in (*folder.glob("model.safetensors.index.json"), *folder.glob("pytorch_model.bin.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return all((folder / shard).is_file() for shard in shards)
    names = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
    return any((folder / name).is_file() for name in names)
