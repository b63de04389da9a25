"""Value models of a few thousand parameters whose values differ from token to token, and values by hand."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from hpt_trl.models.value_model import HeadSettings, ValueModel, new_value_model


def save_value_model(
    base: str, folder: Path, *, lora: bool = False, seed: int = 0, scale: float = 1.0, objective: str = "pairwise"
) -> str:
    """Writes a value model over a base, its tokenizer beside it, as `stage: critic` leaves it; returns the folder."""
    torch.manual_seed(seed)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    made = new_value_model(base, lambda width: HeadSettings(width, "mlp", 0.2, 0.0, objective), adapter=adapter)
    with torch.no_grad():
        for weight in made.head.parameters():
            weight.normal_(std=scale)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def plain_values(model: ValueModel, example: dict[str, Any]) -> torch.Tensor:
    """Values of a row's tokens in float64, each document by itself."""
    model, found, start = model.double().eval(), [], 0
    for length in example.get("seq_lengths") or [len(example["input_ids"])]:
        hidden = model.trunk(input_ids=torch.tensor([example["input_ids"][start : start + length]])).last_hidden_state
        found.append(model.head.score(hidden)[0, :, 0])
        start += length
    return torch.cat(found)
