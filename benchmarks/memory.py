"""The memory estimate of `hpt-trl check` beside measured peaks.

    python -m benchmarks.memory                                   # every configuration, about a quarter of an hour
    python -m benchmarks.memory --only sft grpo
    python -m benchmarks.memory --output benchmarks/results/memory-cpu.json

A Llama of random weights (8 layers of width 640, 48M parameters with a vocabulary of 16,384) takes two steps of each
stage by `hpt-trl run`'s own code, on a few rows of nearly one length. Each configuration runs in processes of its own.
What is measured is the largest resident size of a process up to the end of its training less the size just before the
model is loaded: weights, gradients, optimizer, activations, and not the libraries. The estimate is what `hpt-trl check`
prints for the same recipe. Of several processes the largest counts.

Freed memory goes back to the system at once here (MALLOC_MMAP_THRESHOLD_): glibc would keep blocks of up to 32 MiB and
its hoard would be measured in place of the tensors.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from benchmarks.shared import ROOT, hardware, parser_of, write_report
from hpt_trl.recipes.profiles import find_profile

# Of the longest row, in tokens; a word of the corpus is one token.
PROMPT, COMPLETION = 96, 288


@dataclass(frozen=True)
class Configuration:
    """A recipe's keys beside the shared ones, and how it is launched."""

    settings: dict[str, Any]
    processes: int = 1
    profile: str | None = None


@dataclass(frozen=True)
class Shape:
    """Of the model and of the rows."""

    hidden: int = 640
    layers: int = 8
    width: int = 1792
    heads: int = 10
    key_value_heads: int = 5
    vocabulary: int = 16384
    rows: int = 4
    prompt: int = PROMPT
    completion: int = COMPLETION


_DEMONSTRATIONS = {"dataset_name": "demonstrations.jsonl", "max_length": PROMPT + COMPLETION}
_COMPARISONS = {"dataset_name": "comparisons.jsonl", "max_length": PROMPT + COMPLETION}
_ROLLOUTS = {
    "dataset_name": "demonstrations.jsonl",
    "reward_funcs": ["benchmarks.memory.every_other"],
    "max_completion_length": COMPLETION,
    "num_generations": 4,
    "steps_per_generation": 1,
}
_LORA = {"use_peft": True, "lora_r": 16, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
_RHO1 = {"stage": "rho1", **_DEMONSTRATIONS, "dataset_layout": "demonstrations", "select_ratio": 0.6}

_CHECKPOINTING = {"gradient_checkpointing": True}

CONFIGURATIONS = {
    "sft": Configuration({"stage": "sft", **_DEMONSTRATIONS}),
    "sft-checkpointing": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}),
    "sft-autocast": Configuration({"stage": "sft", **_DEMONSTRATIONS, "bf16": True}),
    "sft-lora": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_LORA, "dtype": "bfloat16", "bf16": True}),
    "sft-4bit": Configuration(
        {"stage": "sft", **_DEMONSTRATIONS, **_LORA, "dtype": "bfloat16", "bf16": True, "load_in_4bit": True}
    ),
    "sft-accumulation": Configuration(
        {"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING, "gradient_accumulation_steps": 2}
    ),
    "dpo": Configuration({"stage": "dpo", **_COMPARISONS, "per_device_train_batch_size": 2}),
    "reward": Configuration({"stage": "reward", **_COMPARISONS, "per_device_train_batch_size": 2}),
    "grpo": Configuration({"stage": "grpo", **_ROLLOUTS}),
    "hpt": Configuration({"stage": "hpt", **_ROLLOUTS, **_CHECKPOINTING}),
    "ppo": Configuration({"stage": "ppo", **_ROLLOUTS, **_CHECKPOINTING}),
    "ppo-value-model": Configuration({"stage": "ppo", **_ROLLOUTS, "value_model_name_or_path": "model"}),
    "rho1-online": Configuration({**_RHO1, "reference_mode": "online", "reference_model_name_or_path": "reference"}),
    "rho1-cached": Configuration({**_RHO1, "reference_mode": "cached", "reference_model_name_or_path": "reference"}),
    "mtp": Configuration({"stage": "mtp", **_DEMONSTRATIONS, "n_future_tokens": 4}),
    "mtp-checkpointing": Configuration({"stage": "mtp", **_DEMONSTRATIONS, "n_future_tokens": 4, **_CHECKPOINTING}),
    "mtp-lora": Configuration(
        {"stage": "mtp", **_DEMONSTRATIONS, **_LORA, "n_future_tokens": 4, "dtype": "bfloat16", "bf16": True}
    ),
    # DDP lays out its buckets anew in the second step: the third is the first that finds them filled.
    "sft-ddp": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING, "max_steps": 3}, 2, "cpu"),
    "sft-fsdp2": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}, 2, "fsdp2"),
    "sft-zero2": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}, 2, "zero2"),
    "sft-zero3": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}, 2, "zero3"),
}


def every_other(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """1 for every other completion, so that each group has a gradient."""
    return [float(index % 2) for index in range(len(completion_ids))]


def write_inputs(folder: Path, shape: Shape) -> None:
    """Writes the model, a reference of other weights, and rows of fixed length."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [f"w{index}" for index in range(shape.vocabulary - 3)]
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    for name, seed in (("model", 0), ("reference", 1)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    demonstrations, comparisons = [], []
    for number in range(64):
        # Lengths differ a little, as rows do: batches are padded. The trainer ends a completion with its own token.
        length = shape.completion - 1 - number % 8
        prompt, completion = text(shape.prompt - number % 4), " " + text(length)
        demonstrations.append({"prompt": prompt, "completion": completion})
        comparisons.append({"prompt": prompt, "chosen": completion, "rejected": " " + text(length)})
    for name, rows in (("demonstrations", demonstrations), ("comparisons", comparisons)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(name: str, folder: Path, shape: Shape) -> Path:
    """Writes the recipe of a configuration (JSON is YAML)."""
    keys = {
        "output_dir": str(folder / "runs" / name),
        "model_name_or_path": str(folder / "model"),
        "per_device_train_batch_size": shape.rows,
        "gradient_checkpointing": False,
        "dtype": "float32",
        "bf16": False,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "overwrite": True,
        "dataloader_pin_memory": False,
        **CONFIGURATIONS[name].settings,
    }
    for key in ("dataset_name", "value_model_name_or_path", "reference_model_name_or_path"):
        if key in keys:
            keys[key] = str(folder / keys[key])
    if keys["stage"] == "rho1":
        keys["reference_cache_dir"] = str(folder / "scores")
    for key, value in (("max_length", shape.prompt + shape.completion), ("max_completion_length", shape.completion)):
        if key in keys:
            keys[key] = value
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(keys, indent=1))
    return path


def memory_of(recipe: str, folder: Path) -> None:
    """Runs a recipe in this process, and writes its estimate and its peak to the folder."""
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    from hpt_trl.planning import facts
    from hpt_trl.runs import runner
    from hpt_trl.runs.preparation import prepare

    prepared = prepare(recipe, [])
    estimate = facts.estimate_of(prepared)
    del prepared
    gc.collect()

    class AtTrainEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            found["peak"] = _status("VmHWM")

    # What every trainer has from the beginning: `run` builds it, not this script.
    cast(list[Any], DEFAULT_CALLBACKS).append(AtTrainEnd)
    found: dict[str, Any] = {"estimate": asdict(estimate) | {"total": estimate.total}}
    found["before"] = _status("VmRSS")
    # From here on VmHWM is the largest size since.
    Path("/proc/self/clear_refs").write_text("5")
    runner.run(recipe, [])
    found |= {"peak_with_save": _status("VmHWM")}
    (folder / f"process-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def measure(name: str, folder: Path, shape: Shape) -> dict[str, Any]:
    """Runs a configuration in processes of its own; returns estimate and peak in bytes."""
    configuration = CONFIGURATIONS[name]
    recipe = write_recipe(name, folder, shape)
    command = [sys.executable, "-m"]
    if configuration.profile is not None:
        command += [
            *("accelerate.commands.launch", "--config_file", str(find_profile(configuration.profile))),
            *("--num_processes", str(configuration.processes), "--main_process_port", "0", "-m"),
        ]
    command += ["benchmarks.memory", "--memory_of", str(recipe), "--folder", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-4000:]}")
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("process-*.json"))]
    for path in folder.glob("process-*.json"):
        path.unlink()
    assert len(found) == configuration.processes, f"{name}: {len(found)} processes"
    most = max(found, key=lambda one: one["peak"] - one["before"])
    measured, parts = most["peak"] - most["before"], most["estimate"]
    estimated, phases = parts.pop("total"), parts.pop("phases")
    return {
        "processes": configuration.processes,
        "estimate_mib": round(estimated / 2**20, 1),
        "measured_mib": round(measured / 2**20, 1),
        "ratio": round(estimated / measured, 3),
        "with_save_mib": round((most["peak_with_save"] - most["before"]) / 2**20, 1),
        "parts_mib": {part: round(size / 2**20, 1) for part, size in parts.items() if size},
        "phases_mib": {phase: round(size / 2**20, 1) for phase, size in phases.items()},
    }


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__, output="JSON for the figures; others of the same machine and shape stay in it")
    parser.add_argument("--only", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    for field in fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--folder", help="for models and runs; by default a temporary one")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.memory_of:
        memory_of(arguments.memory_of, Path(arguments.folder))
        return {}
    shape = Shape(**{field.name: getattr(arguments, field.name) for field in fields(Shape)})
    report: dict[str, Any] = {"hardware": hardware(), "shape": asdict(shape), "configurations": {}}
    earlier = _read(Path(arguments.output)) if arguments.output else None
    if earlier and all(earlier[key] == report[key] for key in ("hardware", "shape")):
        report["configurations"] = earlier["configurations"]
    print(f"{'configuration':<24}{'processes':>9}{'estimate':>14}{'measured':>14}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        write_inputs(folder, shape)
        for name in arguments.only:
            found = report["configurations"][name] = measure(name, folder, shape)
            print(
                f"{name:<24}{found['processes']:>9}{found['estimate_mib']:>10.0f} MiB{found['measured_mib']:>10.0f} MiB"
                f"{found['ratio']:>8.2f}",
                flush=True,
            )
            write_report(report, arguments.output)
    return report


if __name__ == "__main__":
    main()
