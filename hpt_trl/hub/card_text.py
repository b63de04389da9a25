"""The text of a card, part by part."""

from typing import Any

import yaml

from hpt_trl.hub.citations import method_of
from hpt_trl.hub.destination import HUB_KEYS
from hpt_trl.hub.figures import Measure
from hpt_trl.hub.loading_code import loading_code
from hpt_trl.hub.public import model_name, public_value, shown_data
from hpt_trl.hub.run_folder import RunFolder
from hpt_trl.reading import duration

# Keys that the card says in words of its own, or that say how a run was started.
_ELSEWHERE = ("stage", "output_dir", "overwrite", "resume_from_checkpoint", "report_to", "env", *HUB_KEYS)


def card_text(run: RunFolder, name: str, revision: str | None, measures: list[Measure], licence: dict[str, Any]) -> str:
    """The card without its metadata.

    Args:
        name: of the repository or the folder.
        revision: branch; None for the newest of `main`.
        licence: of the base model, as far as it is known.
    """
    parts = [
        f"# {name.rpartition('/')[2]}",
        _what_it_is(run, licence),
        "## How to load it",
        f"```python\n{loading_code(run, name, revision)}\n```",
        *_beside(run),
        "## What it measured",
        _measured(run, measures),
        "## How it was made",
        _made(run),
        "Every key of its recipe that is not a default:",
        _settings(run),
        "## Citation",
        _citation(run),
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_is(run: RunFolder, licence: dict[str, Any]) -> str:
    said, papers = method_of(run.recipe)
    links = f" ({', '.join(paper.link for paper in papers)})" if papers else ""
    lines = [f"{said}{links}.", "", _base(run)]
    if run.root is None:
        lines.append("No base model on the Hub is known, so none is named, nor a licence.")
    elif licence:
        shown = licence.get("license_name") or licence["license"]
        lines.append(f"Licence of the base model, by its card: {shown}.")
    else:
        lines.append("The base model's card names no licence, or could not be read: none is named here.")
    return "\n".join(lines)


def _base(run: RunFolder) -> str:
    adapter = "An adapter" if run.adapter is not None else "A whole model"
    if run.is_merged:
        adapter = "A whole model, an adapter merged into its base"
    if run.recipe.get("model_name_or_path") is None:
        return f"A whole model, made from random weights ({model_name(run)})."
    if run.base is not None:
        at = "" if run.base.revision is None else f" at `{run.base.revision}`"
        return f"{adapter}, trained from [{run.base.name}](https://huggingface.co/{run.base.name}){at}."
    between = f", over the stages {', '.join(run.chain)} in between" if run.chain else ""
    if run.root is not None:
        return f"{adapter}, whose root is [{run.root.name}](https://huggingface.co/{run.root.name}){between}."
    return f"{adapter}, trained from `{model_name(run)}`{between}."


def _beside(run: RunFolder) -> list[str]:
    """What lies in the repository beside the model itself."""
    kept = []
    if run.has_value_head:
        kept.append("`value_head/` holds PPO's critic: what of it was trained beside the policy.")
    if run.has_future_heads:
        kept.append(
            "`future_heads/` holds the heads for the tokens after the next one; without them the model is plain."
        )
    return [" ".join(kept)] if kept else []


def _measured(run: RunFolder, measures: list[Measure]) -> str:
    if not measures:
        return "Nothing was measured on held-out rows."
    lines = [
        "On rows that were held out, before and after the training; in brackets the 95 % interval, where it is known.",
        "",
        "| measure | before | after |",
        "|---|---|---|",
    ]
    for measure in measures:
        on = "" if measure.on is None else f" on {measure.on}"
        lines.append(f"| {measure.name}{on} | {measure.shown('before')} | {measure.shown('after')} |")
    overlap = (run.results or {}).get("overlap") or {}
    if overlap.get("rows"):
        lines += ["", f"{overlap['rows']} of the {overlap['of']} held-out rows were trained on as well."]
    return "\n".join(lines)


def _made(run: RunFolder) -> str:
    results = run.results or {}
    wall, hardware = results.get("wall_time_s") or {}, results.get("hardware") or {}
    rows = results.get("rows") or {}
    data = shown_data(run.recipe)
    count = f", {rows['training']:,} training rows" if rows.get("training") else ""
    held_out = f", {rows['held_out']:,} held out" if rows.get("held_out") else ""
    lines = [f"- Data: `{data}`{count}{held_out}"]
    if "steps" in results:
        tokens = (results.get("tokens") or {}).get("training")
        trained = f", {tokens:,} tokens" if tokens else ""
        lines.append(f"- Training: {results['steps']:,} optimizer steps{trained}")
    if hardware:
        memory = hardware.get("peak_memory_gib")
        peak = "" if memory is None else f", at most {memory:.3g} GiB in one of them"
        count = hardware.get("processes", 1)
        lines.append(f"- Hardware: {hardware.get('device')}, {count} process{'es' if count > 1 else ''}{peak}")
    if wall:
        lines.append(
            f"- Wall time: {duration(wall['total'])}"
            + (f", of which training {duration(wall['train'])}" if "train" in wall else "")
        )
    if versions := results.get("versions"):
        lines.append("- Versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    lines.append("- To do it again: `hpt-trl run recipe.yaml`, with hpt-trl and the `recipe.yaml` of this repository")
    return "\n".join(lines)


def _settings(run: RunFolder) -> str:
    values = {key: public_value(key, value) for key, value in run.recipe.items() if key not in _ELSEWHERE}
    if "model_name_or_path" in values:
        values["model_name_or_path"] = model_name(run)
    return f"```yaml\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()}\n```"


def _citation(run: RunFolder) -> str:
    papers = method_of(run.recipe)[1]
    if not papers:
        return "The method is no paper's of its own."
    blocks = "\n\n".join(paper.bibtex for paper in papers)
    return f"```bibtex\n{blocks}\n```"
