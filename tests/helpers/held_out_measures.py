"""Measures of the trainers on rows of many lengths, in as many processes as a launcher starts."""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer
from trl import DPOConfig, RewardConfig, SFTConfig

from hpt_trl.methods.dpo.trainer import MeasuredDPOTrainer
from hpt_trl.methods.held_out import measure_held_out
from hpt_trl.methods.reward.trainer import ScoringRewardTrainer
from hpt_trl.methods.rho1.config import Rho1Config
from hpt_trl.methods.rho1.trainer import Rho1Trainer
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer

PLAIN = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False}
FLAT = {"eval_packing": True, "packing": True, "max_length": 128}


def rows(count: int = 10) -> list[dict]:
    """Texts of lengths that differ much, so that no two ways to average agree by chance."""
    return [
        {
            "prompt": f"What is {number} + {7 * number}?",
            "completion": " and then".join(f" {number + step}" for step in range(1 + 3 * (number % 4))),
            "chosen": f" It is {8 * number}." * (1 + number % 3),
            "rejected": f" {number}" * (1 + number % 5),
        }
        for number in range(count)
    ]


def trainer_of(
    kind: str, model_path: str, output_dir: str, reference_path: str | None = None, **settings: Any
) -> Trainer:
    """A trainer whose held-out rows are `rows`: `sft`, `flat` (packed, without padding), `rho1`, `dpo` or `reward`."""
    data = Dataset.from_list(rows())
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    common = {"output_dir": output_dir, **PLAIN, **settings}
    if kind == "reward":
        config: Any = RewardConfig(**common)
        model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype="float32")
        # A head that was drawn anew would be another one in each process.
        model.score.weight.data.copy_(model.model.embed_tokens.weight[5:6])
        build: Any = ScoringRewardTrainer
    else:
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
        if kind == "dpo":
            config, build = DPOConfig(**common), MeasuredDPOTrainer
        elif kind == "rho1":
            config, build = Rho1Config(**common, selection="full"), Rho1Trainer
        else:
            config, build = SFTConfig(**common, **(FLAT if kind == "flat" else {})), MeasuredSFTTrainer
    columns = ["prompt", "chosen", "rejected"] if kind in ("dpo", "reward") else ["prompt", "completion"]
    data = data.select_columns(columns)
    more = {}
    if kind == "dpo":
        more["ref_model"] = AutoModelForCausalLM.from_pretrained(reference_path or model_path, dtype="float32")
    return build(model, args=config, train_dataset=data, eval_dataset=data, processing_class=tokenizer, **more)


def main() -> None:
    model_path, reference_path, output_dir, size = sys.argv[1:]
    found = {}
    for kind in ("sft", "flat", "dpo", "reward"):
        trainer = trainer_of(kind, model_path, output_dir, reference_path, per_device_eval_batch_size=int(size))
        found[kind] = measure_held_out(trainer)
    if trainer.is_world_process_zero():
        Path(output_dir, "found.json").write_text(json.dumps(found))
