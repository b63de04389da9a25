"""The memory estimate of `hpt-trl check` beside measured peaks.

    python -m benchmarks.memory                                   # every configuration, about a quarter of an hour
    python -m benchmarks.memory --only sft grpo
    python -m benchmarks.memory --output benchmarks/results/memory-cpu.json
    python -m benchmarks.memory --output build/memory.json --minutes 5     # until they are over; again: goes on

A Llama of random weights (8 layers of width 640, 48M parameters with a vocabulary of 16,384) takes a few steps of each
stage by `hpt-trl run`'s own code. Rows are about as long as the configuration's `Rows` allow; where these are unlike,
as of batches that are padded, every fourth is much shorter; where they are crossed, long prompts have short answers,
and no row is as long as the longest prompt with the longest answer. Each configuration runs in processes of its own.
What is measured is the largest resident size of a process up to the end of its training less the size just before the
model is loaded: weights, gradients, optimizer, activations, and not the libraries. The estimate is what `hpt-trl check`
prints for the same recipe. Of several processes the largest counts.

Freed memory goes back to the system at once here (MALLOC_MMAP_THRESHOLD_): glibc would keep blocks of up to 32 MiB and
its hoard would be measured in place of the tensors.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.shared import ROOT, hardware, parser_of, process_bytes, write_report
from hpt_trl.recipes.profiles import find_profile

# Of the longest row, in tokens; a word of the corpus is one token.
PROMPT, COMPLETION = 96, 288


@dataclass(frozen=True)
class Rows:
    """How long prompts and answers are.

    Attributes:
        unlike: one of four rows is much shorter.
        crossed: one of four rows has a long prompt and a short answer, the others the contrary.
        completion: longest completion that is drawn, as a share of the longest answer of the rows.
    """

    unlike: bool = False
    crossed: bool = False
    completion: float = 1.0


@dataclass(frozen=True)
class Configuration:
    """A recipe's keys beside the shared ones, how it is launched, and the rows that it reads."""

    settings: dict[str, Any]
    processes: int = 1
    profile: str | None = None
    rows: Rows = Rows()


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


_ROWS = {"max_length": PROMPT + COMPLETION}
_PADDED = {"padding_free": False}
_DEMONSTRATIONS = {"dataset_name": "demonstrations.jsonl", **_ROWS}
_COMPARISONS = {"dataset_name": "comparisons.jsonl", "per_device_train_batch_size": 2, **_ROWS}
_ROLLOUTS = {
    "dataset_name": "demonstrations.jsonl",
    "reward_funcs": ["benchmarks.memory.every_other"],
    "max_completion_length": COMPLETION,
    "num_generations": 4,
    "steps_per_generation": 1,
    # One prompt a step: the fourth is the first long one that finds the optimizer's states.
    "max_steps": 4,
}
# Of two prompts of a micro-batch one calls for its demonstration; in five steps one of these is a long one.
_DEMONSTRATED = {
    **_ROLLOUTS,
    "reward_funcs": ["benchmarks.memory.every_fourth"],
    "num_generations": 2,
    "max_steps": 5,
}
_SOFT = {**_ROLLOUTS, "unify_strategy": "soft", "soft_table": "on_sft"}
_UNLIKE, _CROSSED = Rows(unlike=True), Rows(crossed=True)
_LONG_DEMONSTRATIONS = Rows(crossed=True, completion=1 / 3)
_LORA = {"use_peft": True, "lora_r": 16, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
_RHO1 = {"stage": "rho1", **_DEMONSTRATIONS, "dataset_layout": "demonstrations", "select_ratio": 0.6}

_CHECKPOINTING = {"gradient_checkpointing": True}
_TWO_BATCHES = {"gradient_accumulation_steps": 2, "steps_per_generation": 2, "max_steps": 3}

CONFIGURATIONS = {
    "sft": Configuration({"stage": "sft", **_DEMONSTRATIONS}),
    "sft-padded": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_PADDED}, rows=_UNLIKE),
    "sft-checkpointing": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}),
    "sft-autocast": Configuration({"stage": "sft", **_DEMONSTRATIONS, "bf16": True}),
    "sft-lora": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_LORA, "dtype": "bfloat16", "bf16": True}),
    "sft-4bit": Configuration(
        {"stage": "sft", **_DEMONSTRATIONS, **_LORA, "dtype": "bfloat16", "bf16": True, "load_in_4bit": True}
    ),
    "sft-accumulation": Configuration(
        {"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING, "gradient_accumulation_steps": 2}
    ),
    "sft-crossed": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING, **_PADDED}, rows=_CROSSED),
    "sft-packing": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING, "packing": True}),
    "dpo-crossed": Configuration({"stage": "dpo", **_COMPARISONS, **_PADDED}, rows=_CROSSED),
    "dpo": Configuration({"stage": "dpo", **_COMPARISONS}),
    "dpo-padded": Configuration({"stage": "dpo", **_COMPARISONS, **_PADDED}, rows=_UNLIKE),
    "reward": Configuration({"stage": "reward", **_COMPARISONS}),
    "reward-padded": Configuration({"stage": "reward", **_COMPARISONS, **_PADDED}, rows=_UNLIKE),
    "grpo": Configuration({"stage": "grpo", **_ROLLOUTS}),
    "grpo-padded": Configuration({"stage": "grpo", **_ROLLOUTS, **_PADDED}, rows=_UNLIKE),
    # Rollouts of four prompts in two micro-batches: those of a prompt come together.
    "grpo-dealt": Configuration({"stage": "grpo", **_ROLLOUTS, "num_generations": 2, **_TWO_BATCHES}),
    # Of two optimizer steps: a micro-batch may have four prompts.
    "grpo-shuffled": Configuration({"stage": "grpo", **_ROLLOUTS, "num_generations": 2, "steps_per_generation": 2}),
    "grpo-kl": Configuration({"stage": "grpo", **_ROLLOUTS, "beta": 0.04}),
    "grpo-lora": Configuration({"stage": "grpo", **_ROLLOUTS, **_LORA, **_CHECKPOINTING}),
    "hpt": Configuration({"stage": "hpt", **_ROLLOUTS, **_CHECKPOINTING}),
    "hpt-long-demonstrations": Configuration({"stage": "hpt", **_DEMONSTRATED}, rows=_LONG_DEMONSTRATIONS),
    "hpt-soft": Configuration({"stage": "hpt", **_SOFT}),
    "hpt-soft-long-demonstrations": Configuration({"stage": "hpt", **_SOFT, "max_steps": 5}, rows=_LONG_DEMONSTRATIONS),
    "hpt-soft-padded": Configuration({"stage": "hpt", **_SOFT, **_PADDED}, rows=_UNLIKE),
    "hpt-long-demonstrations-padded": Configuration(
        {"stage": "hpt", **_DEMONSTRATED, **_PADDED}, rows=_LONG_DEMONSTRATIONS
    ),
    "hpt-entropy": Configuration({"stage": "hpt", **_DEMONSTRATED, "entropy_coef": 0.001}, rows=_LONG_DEMONSTRATIONS),
    "hpt-kl": Configuration({"stage": "hpt", **_DEMONSTRATED, "beta": 0.04}, rows=_LONG_DEMONSTRATIONS),
    "ppo": Configuration({"stage": "ppo", **_ROLLOUTS, **_CHECKPOINTING}),
    "ppo-value-model": Configuration({"stage": "ppo", **_ROLLOUTS, "value_model_name_or_path": "model"}),
    "ppo-branch": Configuration({"stage": "ppo", **_ROLLOUTS, "critic": "branch"}),
    "ppo-lora-value-model": Configuration({"stage": "ppo", **_ROLLOUTS, **_LORA, "critic": "value_model"}),
    "ppo-padded": Configuration({"stage": "ppo", **_ROLLOUTS, **_CHECKPOINTING, **_PADDED}, rows=_UNLIKE),
    "rho1-online": Configuration({**_RHO1, "reference_mode": "online", "reference_model_name_or_path": "reference"}),
    "rho1-cached": Configuration({**_RHO1, "reference_mode": "cached", "reference_model_name_or_path": "reference"}),
    "mtp": Configuration({"stage": "mtp", **_DEMONSTRATIONS, "n_future_tokens": 4}, rows=_UNLIKE),
    "mtp-checkpointing": Configuration(
        {"stage": "mtp", **_DEMONSTRATIONS, "n_future_tokens": 4, **_CHECKPOINTING}, rows=_UNLIKE
    ),
    "mtp-lora": Configuration(
        {"stage": "mtp", **_DEMONSTRATIONS, **_LORA, "n_future_tokens": 4, "dtype": "bfloat16", "bf16": True},
        rows=_UNLIKE,
    ),
    # DDP lays out its buckets anew in the second step: the third is the first that finds them filled.
    "sft-ddp": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING, "max_steps": 3}, 2, "cpu"),
    "dpo-ddp": Configuration({"stage": "dpo", **_COMPARISONS, "max_steps": 3}, 2, "cpu"),
    "sft-fsdp2": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}, 2, "fsdp2"),
    "sft-zero2": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}, 2, "zero2"),
    "sft-zero3": Configuration({"stage": "sft", **_DEMONSTRATIONS, **_CHECKPOINTING}, 2, "zero3"),
}


def every_other(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """1 for every other completion, so that each group has a gradient."""
    return [float(index % 2) for index in range(len(completion_ids))]


def every_fourth(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """1 for every fourth completion: of two pairs the first is not solved, the second is in part."""
    return [float(index % 4 == 3) for index in range(len(completion_ids))]


def lengths_of(number: int, rows: Rows, shape: Shape) -> tuple[int, int]:
    """Tokens of a row's prompt and answer, which differ a little, as rows do: batches are padded."""
    prompt, completion = shape.prompt - number % 3, shape.completion - 1 - number % 5
    if rows.crossed:
        return (prompt, completion // 4) if number % 4 == 0 else (prompt // 4, completion)
    return (prompt // 4, completion // 4) if rows.unlike and number % 4 == 0 else (prompt, completion)


def write_inputs(folder: Path, shape: Shape) -> None:
    """Writes the model, a reference of other weights, and rows of each kind."""
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

    for rows in {replace(configuration.rows, completion=1.0) for configuration in CONFIGURATIONS.values()}:
        of_rows = _folder_of(folder, rows)
        of_rows.mkdir(exist_ok=True)
        demonstrations, comparisons = [], []
        for number in range(64):
            # The trainer ends a completion with its own token.
            length, answer = lengths_of(number, rows, shape)
            prompt, completion = text(length), " " + text(answer)
            demonstrations.append({"prompt": prompt, "completion": completion})
            comparisons.append({"prompt": prompt, "chosen": completion, "rejected": " " + text(answer)})
        for name, written in (("demonstrations", demonstrations), ("comparisons", comparisons)):
            (of_rows / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))


def _folder_of(folder: Path, rows: Rows) -> Path:
    return folder / ("crossed" if rows.crossed else "unlike" if rows.unlike else "alike")


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
    rows = CONFIGURATIONS[name].rows
    keys["dataset_name"] = str(_folder_of(folder, rows) / keys["dataset_name"])
    for key in ("value_model_name_or_path", "reference_model_name_or_path"):
        if key in keys:
            keys[key] = str(folder / keys[key])
    if keys["stage"] == "rho1":
        keys["reference_cache_dir"] = str(folder / "scores")
    drawn = round(rows.completion * shape.completion)
    for key, value in (("max_length", shape.prompt + shape.completion), ("max_completion_length", drawn)):
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
            found["peak"] = process_bytes("VmHWM")

    # What every trainer has from the beginning: `run` builds it, not this script.
    cast(list[Any], DEFAULT_CALLBACKS).append(AtTrainEnd)
    found: dict[str, Any] = {"estimate": asdict(estimate) | {"total": estimate.total}}
    found["before"] = process_bytes("VmRSS")
    # From here on VmHWM is the largest size since.
    Path("/proc/self/clear_refs").write_text("5")
    runner.run(recipe, [])
    found |= {"peak_with_save": process_bytes("VmHWM")}
    (folder / f"process-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


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
    parser.add_argument(
        "--minutes", type=float, help="begin no configuration after them; those that --output has of this code stay"
    )
    for field in fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--folder", help="for models and runs; by default a temporary one")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.memory_of:
        memory_of(arguments.memory_of, Path(arguments.folder))
        return {}
    if arguments.minutes and not arguments.output:
        parser.error("--minutes goes on where the last slice ended: name the file by --output")
    shape = Shape(**{field.name: getattr(arguments, field.name) for field in fields(Shape)})
    report: dict[str, Any] = {"hardware": hardware(), "shape": asdict(shape), "code": code_digest()}
    earlier = _read(Path(arguments.output)) if arguments.output else None
    same = ("hardware", "shape", *(["code"] if arguments.minutes else []))
    known = earlier["configurations"] if earlier and all(earlier.get(key) == report[key] for key in same) else {}
    report["configurations"] = known
    names = [name for name in arguments.only if not (arguments.minutes and name in known)]
    print(f"{'configuration':<30}{'processes':>9}{'estimate':>14}{'measured':>14}{'ratio':>8}")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        write_inputs(folder, shape)
        for place, name in enumerate(names):
            if arguments.minutes and time.monotonic() - begin > 60 * arguments.minutes:
                print(f"{len(names) - place} configurations are left: the same command goes on.")
                break
            found = report["configurations"][name] = measure(name, folder, shape)
            print(
                f"{name:<30}{found['processes']:>9}{found['estimate_mib']:>10.0f} MiB{found['measured_mib']:>10.0f} MiB"
                f"{found['ratio']:>8.2f}",
                flush=True,
            )
            write_report(report, arguments.output)
    return report


def code_digest() -> str:
    """Of the sources that a measurement depends on: the package's and this script."""
    digest = hashlib.blake2b(digest_size=8)
    for path in [*sorted((ROOT / "hpt_trl").rglob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
