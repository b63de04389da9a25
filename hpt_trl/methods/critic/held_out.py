"""What a trained critic says of held-out pairs, next to what tells them apart without it."""

import json
import random
from pathlib import Path
from typing import Any, cast

import torch

from hpt_trl.data.messages import as_text
from hpt_trl.files import valid_json, write_atomically
from hpt_trl.methods.critic.baselines import is_language_model, language_model, measured_pairs
from hpt_trl.methods.critic.figures import pair_figures
from hpt_trl.methods.critic.results import CURVES_FILE, SHOWN_PAIRS
from hpt_trl.methods.critic.trainer import SIDES, ValueTrainer
from hpt_trl.models.loading import load_config

# Of the settings that the trunk was loaded with, those that its language model is loaded with as well.
_LOADING = ("dtype", "revision", "trust_remote_code", "attn_implementation")


def held_out_results(critic: ValueTrainer) -> dict[str, Any] | None:
    """Write value_curves.jsonl and return the figures of the held-out pairs; all processes call together.

    Returns:
        What `pair_figures` returns, in the first process; None in the others, and without held-out pairs.
    """
    if critic.eval_dataset is None:
        return None
    rows, train, args = cast(Any, critic.eval_dataset), cast(Any, critic.train_dataset), critic.args
    _keep_curves(critic, rows)
    chosen = sorted(random.Random(0).sample(range(len(train)), min(args.baseline_pairs, len(train))))
    settings = cast(dict[str, Any], args.model_init_kwargs or {})
    loading = {key: settings[key] for key in _LOADING if key in settings}
    model = None
    # Of a trunk that was a reward model's there is no likelihood.
    if chosen and _is_language_model(critic.trunk_name, loading):
        model = language_model(critic.trunk_name, critic.accelerator.device, **loading)
    # Together, so that the model is there once and is gone again.
    measured = measured_pairs([*rows, *train.select(chosen)], SIDES, model)
    held_out, fitted = measured[: len(rows)], measured[len(rows) :]
    if not critic.is_world_process_zero():
        return None
    scores = [(row["chosen"], row["rejected"]) for row in critic.scored_rows()]
    return pair_figures(scores, held_out, fitted)


def _is_language_model(name: str, loading: dict[str, Any]) -> bool:
    known = {key: loading[key] for key in ("revision", "trust_remote_code") if key in loading}
    return is_language_model(load_config(name, **known))


def _keep_curves(critic: ValueTrainer, rows: Any) -> None:
    """V after each token of the first held-out pairs' solutions, and after the prompt's last one."""
    shown = [rows[place] for place in range(min(SHOWN_PAIRS, len(rows)))]
    batch = {name: value.to(critic.accelerator.device) for name, value in critic.data_collator(shown).items()}
    model: Any = critic.model_wrapped
    model.eval()
    with torch.no_grad():
        values = model(**batch).token_values.float().cpu()
    if not critic.is_world_process_zero():
        return
    tokenizer: Any = critic.processing_class
    lines = []
    for place, row in enumerate(shown):
        line: dict[str, Any] = {"prompt": as_text(row["prompt"])}
        for name, side, at in zip(("right", "wrong"), SIDES, (place, len(shown) + place), strict=True):
            ids, trained = row[f"{side}_ids"], row[f"{side}_trained"]
            # A prompt may be empty.
            first = max(trained.index(1) - 1, 0)
            line[name] = {
                "tokens": [tokenizer.decode([token]) for token in ids[first:]],
                "values": values[at, first : len(ids)].tolist(),
            }
        lines.append(line)
    text = "".join(json.dumps(valid_json(line), ensure_ascii=False) + "\n" for line in lines)
    write_atomically(Path(str(critic.args.output_dir)) / CURVES_FILE, text)
