"""Which figures of a finished run are worth a line, and what they were before and after the training."""

from collections.abc import Sequence
from typing import Any

from hpt_trl.evaluation.figures import figures_of
from hpt_trl.runs.verdicts import verdict

# Measures in the order in which they are preferred where none is named.
_USUAL = {
    "pretrain": ("held_out.loss",),
    "sft": ("held_out.loss",),
    "reward": ("held_out.accuracy",),
    "critic": ("held_out.accuracy",),
    "dpo": ("held_out.rewards/accuracies",),
}
_COMMON = ("reward", "accuracy", "held_out.loss")
# Of a stage that only measures.
_MEASURED = ("pass@", "avg@", "maj@", "win_rate", "perplexity")
_MOST = 3


def values_of(results: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Measure -> before and after, of every number that results have on both sides.

    A stage that only measures has one side, which stands for both.
    """
    if "measures" in results:
        return {key: (value, value) for key, value in _flat(results["measures"]).items()}
    before, after = _flat(results.get("before")), _flat(results.get("after"))
    return {key: (before[key], after[key]) for key in before if key in after}


def telling_measures(results: dict[str, Any], stage: str, named: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Returns the few measures that tell most, the most telling first: `before`, `after` and `verdict` of each.

    Args:
        results: results.json.
        stage: The training stage (`sft`, ...).
        named: Measures that come first.
    """
    values = values_of(results)
    measured = [key for key in values if key.startswith(_MEASURED)] if "measures" in results else []
    found: dict[str, dict[str, Any]] = {}
    for measure in [*named, *measured, *_USUAL.get(stage, ()), *_COMMON]:
        # A reward of 0 or 1 is the accuracy under another name.
        is_new = measure in named or values.get(measure) not in [values[other] for other in found]
        if measure in values and is_new and len(found) < _MOST:
            before, after = values[measure]
            if "measures" in results:
                found[measure] = {"before": None, "after": after, "verdict": ""}
            else:
                said = verdict(measure, results["before"], results["after"])
                found[measure] = {"before": before, "after": after, "verdict": said}
    return found


def _flat(values: dict[str, Any] | None) -> dict[str, float]:
    return {".".join(path): float(figure.value) for path, figure in figures_of(values).items()}
