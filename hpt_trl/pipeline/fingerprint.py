"""What a stage's result depends on, so that a finished stage is run again only where something of it changed."""

import hashlib
import json
from typing import Any

from hpt_trl.hub.destination import HUB_KEYS
from hpt_trl.pipeline.plan import PlannedStage
from hpt_trl.runs.inputs import digests_of_inputs
from hpt_trl.settings.imported import seeing
from hpt_trl.settings.masking import masked
from hpt_trl.version import __version__


def contents_of(stage: PlannedStage, inputs: dict[str, str]) -> dict[str, Any]:
    """Everything that decides a stage's result, by name, without secrets; values that are equal mean an equal result.

    Args:
        inputs: fingerprint of each stage that this one uses.
    """
    with seeing(stage.folders):
        digests = digests_of_inputs(stage.values)
    return {
        "hpt_trl": __version__,
        **{f"`{key}`": masked(value) for key, value in sorted(stage.values.items()) if key not in HUB_KEYS},
        **{f"stage `{used}`": inputs[used] for used in stage.uses},
        **{f"the files of {path}": digest for path, digest in sorted(digests.items())},
    }


def fingerprint(contents: dict[str, Any]) -> str:
    """One hash of it all."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two contents, for reading: `max_steps` 5 -> 6."""
    said = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if json.dumps(before, default=str) == json.dumps(after, default=str):
            continue
        if name.startswith("`") or name == "hpt_trl":
            said.append(f"{name}: {_short(before)} -> {_short(after)}")
        else:
            said.append(f"{name} changed")
    return "; ".join(said)


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
