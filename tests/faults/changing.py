"""Runs that go on with another recipe, or in another number of processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults.outcomes import outcome
from tests.faults.stages import write_recipe
from tests.faults.verdicts import (
    ACCEPTED_CHANGE,
    DIVERGED,
    IDENTICAL,
    REFUSED,
    RESUME,
    UNTOLD,
    Verdict,
    error_of,
    fault_of,
    last_words,
)
from tests.faults.workshop import Workshop

# Largest distance of two updates, as a share of the update: sums in another order, see tests/methods/test_matrix.py.
_TOLERANCE = 5e-6

# Name -> keys and whether a run may go on with them: what it is trained on and how may not change under it.
CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "learning_rate": ({"learning_rate": 1e-4}, False),
    "weight_decay": ({"weight_decay": 0.1}, False),
    "seed": ({"seed": 4}, False),
    "data": ({"dataset_name": "{inputs}/others.jsonl"}, False),
    "split": ({"test_split_size": 4}, False),
    "batch": ({"per_device_train_batch_size": 2}, False),
    "accumulation": ({"gradient_accumulation_steps": 2}, False),
    "scheduler": ({"lr_scheduler_type": "linear"}, False),
    "warmup": ({"warmup_steps": 3}, False),
    "model": ({"model_name_or_path": "{inputs}/reference"}, False),
    "optimizer": ({"optim": "sgd"}, False),
    "clipping": ({"max_grad_norm": 0.1}, False),
    "length": ({"max_length": 16}, False),
    "stage": ({"stage": "dpo"}, False),
    "lora": ({"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj"]}, False),
    "saving": ({"save_steps": 1}, True),
    "limit": ({"save_total_limit": 5}, True),
    "progress": ({"disable_tqdm": True}, True),
    "workers": ({"dataloader_num_workers": 1}, True),
    "note": ({"run_name": "again"}, True),
}


@dataclass(frozen=True)
class Changed:
    """A run that was stopped goes on with other keys.

    Attributes:
        change: a key of `CHANGES`.
    """

    change: str
    run: str = "sft"
    kind: str = "other recipe"

    @property
    def id(self) -> str:
        return f"changed/{self.run}/{self.change}"

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Changes, goes on and judges."""
        whole, folder = shop.reference(self.run), shop.stopped(self.run)
        keys, safe = CHANGES[self.change]
        if self.change == "data":
            rows = (shop.inputs / "sums.jsonl").read_text().splitlines(keepends=True)
            (shop.inputs / "others.jsonl").write_text("".join(reversed(rows)))
        write_recipe(self.run, shop.inputs, folder, **keys)
        ended, from_step = shop.going_on(self.run, folder)(RESUME)
        verdict = Verdict("", went_on_from=from_step, said=error_of(ended.said) if ended.code else "")
        if (wrong := fault_of(ended)) is not None:
            verdict.word, verdict.said = wrong, last_words(ended.said)
        elif ended.code:
            named = any(key in verdict.said for key in keys)
            verdict.word = REFUSED if named and not safe else UNTOLD
        elif not safe:
            verdict.word = ACCEPTED_CHANGE
        else:
            same = outcome(folder / "out")["model.safetensors"] == whole.outcome["model.safetensors"]
            verdict.word = IDENTICAL if same else DIVERGED
        return verdict, {"safe": safe}


@dataclass(frozen=True)
class Moved:
    """A run that was stopped goes on in another number of processes, or under another profile.

    Attributes:
        before: the profile under which it was stopped; None for one process.
        after: the one under which it goes on.
    """

    run: str
    before: str | None
    after: str | None
    kind: str = "other processes"

    @property
    def id(self) -> str:
        return f"moved/{self.run}/{self.before or 'one'}-to-{self.after or 'one'}"

    def do(self, shop: Workshop) -> tuple[Verdict, dict[str, Any]]:
        """Goes on elsewhere and judges: the same weights but for the order of sums, or refused."""
        whole, folder = shop.reference(self.run, self.before), shop.stopped(self.run, self.before)
        ended, from_step = shop.going_on(self.run, folder, self.after)(RESUME)
        verdict = Verdict("", went_on_from=from_step, said=error_of(ended.said) if ended.code else "")
        if (wrong := fault_of(ended)) is not None:
            verdict.word, verdict.said = wrong, last_words(ended.said)
        elif ended.code:
            verdict.word = REFUSED if "process" in verdict.said or "profile" in verdict.said else UNTOLD
        else:
            apart = distance(folder / "out", whole.folder / "out", shop.inputs / "model")
            verdict.word, verdict.said = IDENTICAL if apart < _TOLERANCE else DIVERGED, f"updates apart by {apart:.1e}"
        return verdict, {}


def distance(one: Path, other: Path, start: Path) -> float:
    """Distance of two updates of a model's weights, as a share of the second."""
    found, expected, begun = (load_file(folder / "model.safetensors") for folder in (one, other, start))
    # Some write out a tied head.
    names = [name for name in expected if name in found and name in begun]
    apart = torch.cat([(found[name] - expected[name]).flatten() for name in names])
    moved = torch.cat([(expected[name] - begun[name]).flatten() for name in names])
    return float(apart.norm() / moved.norm())


def changes() -> list[Changed | Moved]:
    """All changes, each once."""
    ways = [(None, "cpu"), ("cpu", None), ("fsdp2", None), ("cpu", "fsdp2"), ("zero2", None), (None, "zero2")]
    found: list[Changed | Moved] = [Changed(change) for change in CHANGES]
    return found + [Moved(run, before, after) for run in ("sft-moved", "hpt-moved") for before, after in ways]
