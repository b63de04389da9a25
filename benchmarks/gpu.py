"""Speed, utilisation and memory on one GPU, each beside the stock TRL trainer in the same run.

    python -m benchmarks.gpu                                       # one GPU, at most about ten minutes
    python -m benchmarks.gpu --shape tiny --steps 1 --rounds 1     # seconds on a CPU: that the script works, no figures
    python -m benchmarks.gpu --sections sft rho1 --minutes 4

Random weights and rows of random tokens: no model hub, no download. Writes benchmarks/results/gpu-<device>.json.

    sft          the stage `sft`                      / trl.SFTTrainer      0.5B; the same class, so a control
    rho1         Rho1Trainer, 60 % of the tokens,     / trl.SFTTrainer      0.5B
                 the reference's losses from disk
    grpo         the stage `grpo`                     / trl.GRPOTrainer     0.5B; every group mixed
    hpt          HybridPostTrainer                    / trl.GRPOTrainer     0.5B; half of the prompts failing, a
                                                                            quarter solved, a quarter mixed
    lora         the stage `sft` with LoRA            / trl.SFTTrainer      TinyLlama-1.1B
    lora-4bit    the same over a 4-bit base           / trl.SFTTrainer      TinyLlama-1.1B; needs bitsandbytes

0.5B is the shape of Qwen2.5-0.5B. Weights are float32 (bfloat16 under adapters), the computation is in bfloat16.
Sampling is replaced by preset completions in `grpo` and `hpt`: their step is everything but generation.

The two sides take turns in one process, in changing order; a turn is one `.train()` of --steps optimizer steps, timed
from its beginning to the end of the last step, and each round gives one ratio ours / stock (below 1 is faster). The
first round warms up and counts for memory alone. Where the time is short, rounds are left out, then sections.

Tokens per second are those of the rows that a step is given, without padding, the same for both sides. Utilisation
(MFU) is of what the side's model passes over, as `Flops` counts it, by the device's dense bfloat16 peak: a side that
leaves rows out has fewer FLOPs as well as less time. Peak memory is the allocator's, less what the other side holds.
"""

import gc
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PrinterCallback,
    Qwen2Config,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from benchmarks.flops import Flops
from benchmarks.gate import now
from benchmarks.shared import ROOT, parser_of, process_bytes, processors, versions, write_report
from benchmarks.update_phase import GROUP, MIXES, rewards
from hpt_trl import HybridPostConfig, HybridPostTrainer, Rho1Config, Rho1Trainer
from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.methods.pretrain.tokenizer import train_tokenizer
from hpt_trl.methods.sft.stage import STAGE as SFT_STAGE
from hpt_trl.models.loading import load_tokenizer
from hpt_trl.planning.devices import peak_flops_of
from hpt_trl.planning.known_models import known_config
from hpt_trl.recipes.recipe import StageInputs
from hpt_trl.rollouts.config import RolloutConfig
from hpt_trl.rollouts.trainer import RolloutTrainer

# Entries of the tokenizer that lies beside the models: special tokens and bytes. Rows are drawn above them.
KNOWN = 300


@dataclass(frozen=True)
class Shape:
    """Sizes of the two models and of the rows."""

    small: dict[str, Any]  # Qwen2
    large: dict[str, Any]  # Llama
    rows: int
    tokens: int
    micro_rows: int  # of a micro-batch in RL
    prompt: int  # characters, a token each
    completion: int


_TINYLLAMA = known_config("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T")
_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_TINYLLAMA = known_config("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T")
SHAPES = {
    "full": Shape(
        small={
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        large={name: getattr(_TINYLLAMA, name) for name in (*_TINY, "tie_word_embeddings")},
        rows=8,
        tokens=1024,
        micro_rows=8,
        prompt=200,
        completion=512,
    ),
    "tiny": Shape(
        small=_TINY | {"tie_word_embeddings": True},
        large=_TINY | {"tie_word_embeddings": False},
        rows=2,
        tokens=32,
        micro_rows=8,
        prompt=24,
        completion=16,
    ),
}
SECTIONS = ("sft", "rho1", "grpo", "hpt", "lora", "lora-4bit")


class Timer(TrainerCallback):
    """Wall time from the beginning of a training to the end of its last step, in seconds."""

    seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            self.seconds = now() - self._start


class Preset:
    """Mixin for a GRPOTrainer: the completions of a prompt are drawn once, from its index in the batch."""

    lengths: tuple[int, int]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        eos, vocabulary = self._tokenizer.eos_token_id, self.model.config.vocab_size  # type: ignore[attr-defined]
        completions = []
        for index in range(len(prompt_ids)):
            draw = random.Random(index)
            count = draw.randrange(*self.lengths)
            completions.append([draw.randrange(KNOWN, vocabulary) for _ in range(count)] + [eos])
        return completions, None


class PresetStock(Preset, GRPOTrainer):
    pass


class PresetGRPO(Preset, RolloutTrainer):
    pass


class PresetHPT(Preset, HybridPostTrainer):
    pass


class Memory:
    """Held and peak bytes: of CUDA's allocator, or of the process (its resident size)."""

    def __init__(self):
        self.cuda = torch.cuda.is_available()

    def held(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else process_bytes("VmRSS")

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.cuda else process_bytes("VmHWM")


class Bench:
    """The models, rows and trainers of a shape.

    Args:
        folder: for models, scores and runs.
        steps: optimizer steps of a turn.
    """

    def __init__(self, shape: Shape, folder: Path, steps: int):
        self.shape, self.folder, self.steps = shape, folder, steps
        self.gpu = torch.cuda.is_available()
        self._made: set[str] = set()

    def model(self, name: str) -> str:
        """The folder of `small`, of its `reference` (other weights) or of `large`; made when it is first asked for."""
        path = self.folder / name
        if name not in self._made:
            tokenizer = train_tokenizer(["a text"], KNOWN)
            special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
            sizes: dict[str, Any] = {"max_position_embeddings": 8192, **special}
            large = name == "large"
            config = LlamaConfig(**self.shape.large, **sizes) if large else Qwen2Config(**self.shape.small, **sizes)
            torch.manual_seed(0 if name != "reference" else 1)
            with torch.device("cuda" if self.gpu else "cpu"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            del model
            self._made.add(name)
        return str(path)

    def _text(self, draw: random.Random, count: int) -> str:
        """Text of so many tokens: the tokenizer has no merges for these letters."""
        return "".join(draw.choices("abcdefgh", k=count))

    def whole_rows(self) -> Dataset:
        draw, tokens = random.Random(0), self.shape.tokens - 2  # and the two that begin and end a row
        return Dataset.from_list(
            [
                {"prompt": self._text(draw, tokens // 4), "completion": self._text(draw, tokens - tokens // 4)}
                for _ in range(self.shape.rows * self.steps)
            ]
        )

    def prompt_rows(self, kinds: list[str]) -> Dataset:
        """Prompts of a mix for each step, with demonstrations."""
        draw = random.Random(0)
        lengths = [(longest // 2, longest) for longest in (self.shape.prompt, self.shape.completion)]
        return Dataset.from_list(
            [
                {
                    "prompt": self._text(draw, draw.randrange(*lengths[0])),
                    "completion": self._text(draw, draw.randrange(*lengths[1])),
                    "kind": kind,
                }
                for _ in range(self.steps)
                for kind in kinds
            ]
        )

    def common(self, **settings: Any) -> dict[str, Any]:
        return {
            "output_dir": str(self.folder / "run"),
            "max_steps": self.steps,
            "learning_rate": 1e-9,
            "bf16": self.gpu,
            "use_cpu": not self.gpu,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1000,
            "report_to": "none",
            "disable_tqdm": True,
            "model_init_kwargs": {"dtype": "float32"},
            **settings,
        }

    def finish(self, trainer: Any) -> Any:
        trainer.remove_callback(PrinterCallback)
        trainer.timer = Timer()
        trainer.add_callback(trainer.timer)
        trainer.flops = Flops(trainer.model)
        return trainer

    def text_trainer(self, side: str, *, rho1: bool = False, model_args: ModelConfig | None = None) -> Any:
        """A trainer on whole rows; with `model_args` an adapter over the larger model."""
        path = self.model("small" if model_args is None else "large")
        rows, tokenizer = self.whole_rows(), load_tokenizer(path)
        settings = self.common(
            per_device_train_batch_size=self.shape.rows, max_length=self.shape.tokens, completion_only_loss=False
        )
        model_args = model_args or ModelConfig(dtype="float32")
        settings["model_init_kwargs"] = {"dtype": model_args.dtype}
        if side == "ours" and rho1:
            config = Rho1Config(
                **settings,
                select_ratio=0.6,
                reference_mode="cached",
                reference_model_name_or_path=self.model("reference"),
                reference_cache_dir=str(self.folder / "scores"),
            )
            return self.finish(Rho1Trainer(path, config, train_dataset=rows, processing_class=tokenizer))
        if side == "ours":
            inputs = StageInputs(
                model=path,
                tokenizer=tokenizer,
                encoder=Encoder(tokenizer),
                config=SFTConfig(**settings),
                model_args=model_args,
                arguments=SFT_STAGE.argument_class(dataset_name="rows"),
                splits=Splits(rows, None, "rows", "", layout="demonstrations"),
            )
            return self.finish(SFT_STAGE.build(inputs))
        return self.finish(
            SFTTrainer(
                path,
                SFTConfig(**settings),
                train_dataset=rows,
                processing_class=tokenizer,
                peft_config=get_peft_config(model_args),
                quantization_config=get_quantization_config(model_args),
            )
        )

    def rollout_trainer(self, side: str, mix: str) -> Any:
        """A trainer on preset rollouts of `MIXES`' prompts."""
        kinds: list[str] = MIXES[mix][0]  # type: ignore[assignment]
        hybrid: dict[str, Any] = MIXES[mix][1]  # type: ignore[assignment]
        path = self.model("small")
        settings = self.common(
            num_generations=GROUP,
            per_device_train_batch_size=self.shape.micro_rows,
            gradient_accumulation_steps=GROUP * len(kinds) // self.shape.micro_rows,
            max_completion_length=self.shape.completion,
            loss_type="grpo",
        )
        classes: tuple[type, type] = (PresetStock, GRPOConfig)
        if side == "ours":
            classes = (PresetHPT, HybridPostConfig) if mix == "hpt" else (PresetGRPO, RolloutConfig)
            settings |= hybrid if mix == "hpt" else {}
        config = classes[1](**settings)
        trainer = classes[0](path, rewards, config, self.prompt_rows(kinds), processing_class=load_tokenizer(path))
        trainer.lengths = (self.shape.completion // 4, self.shape.completion)
        return self.finish(trainer)

    def build(self, section: str, side: str) -> Any:
        """The trainer of a side, ready to train."""
        if section in MIXES_OF:
            return self.rollout_trainer(side, MIXES_OF[section])
        model_args = None
        if section.startswith("lora"):
            model_args = ModelConfig(
                dtype="bfloat16" if self.gpu else "float32",
                use_peft=True,
                lora_r=16,
                lora_dropout=0.0,
                lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                load_in_4bit=section == "lora-4bit",
                use_bnb_nested_quant=True,
            )
        return self.text_trainer(side, rho1=section == "rho1", model_args=model_args)


MIXES_OF = {"grpo": "no", "hpt": "hpt"}


def measure(section: str, bench: Bench, rounds: int, until: float, peak_flops: float | None) -> dict[str, Any]:
    """Builds both sides of a section, and lets them take turns.

    Args:
        rounds: at most, after the one that warms up.
        until: time (`time.perf_counter`) after which no further round begins, once there is one.
    """
    memory, sides = Memory(), ("ours", "stock")
    trainers, own, peaks = {}, dict.fromkeys(sides, 0), dict.fromkeys(sides, 0)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    flops: dict[str, float] = {}
    tokens = 0.0

    def watched(side: str, action: Callable[[], Any]) -> Any:
        """Does something for a side, and sees what it holds then, and held at most, beside the other side."""
        before = memory.held()
        memory.start()
        result = action()
        peaks[side] = max(peaks[side], memory.peak() - before + own[side])
        own[side] += memory.held() - before
        return result

    for side in sides:
        trainers[side] = watched(side, partial(bench.build, section, side))
    turn = 0
    while turn <= 1 or (turn <= rounds and now() < until):
        for side in sides if turn % 2 else reversed(sides):
            trainers[side].flops.take()
            watched(side, trainers[side].train)
            flops[side] = trainers[side].flops.take()
            if turn:
                seconds[side].append(trainers[side].timer.seconds)
        turn += 1
    tokens = trainers["stock"].flops.trained_tokens
    ratios = [ours / stock for ours, stock in zip(seconds["ours"], seconds["stock"], strict=True)]
    found: dict[str, Any] = {
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "memory_ratio": round(peaks["ours"] / max(peaks["stock"], 1), 4),
        "rounds": len(ratios),
        "tokens_per_step": round(tokens / bench.steps),
    }
    for side in sides:
        median = statistics.median(seconds[side])
        found[side] = {
            "seconds_per_step": round(median / bench.steps, 5),
            "tokens_per_second": round(tokens / median, 1),
            "tflops_per_second": round(flops[side] / median / 1e12, 6),
            "mfu": None if peak_flops is None else round(flops[side] / median / peak_flops, 4),
            "peak_memory_gib": round(peaks[side] / 2**30, 3),
        }
    return found


def skipped(section: str) -> str | None:
    """Why a section cannot run here."""
    if section == "lora-4bit" and find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install bitsandbytes"
    return None


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = parser_of(__doc__, output="file for the figures; by default benchmarks/results/gpu-<device>.json")
    parser.add_argument("--shape", default="full", choices=list(SHAPES))
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="at most, after the one that warms up")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the whole run")
    parser.add_argument("--rows", type=int, help="of a step on whole rows; by default the shape's")
    parser.add_argument("--micro_rows", type=int, help="rollouts of a micro-batch; by default the shape's")
    arguments = parser.parse_args(words)
    started = time.perf_counter()
    gpu, shape = torch.cuda.is_available(), SHAPES[arguments.shape]
    if arguments.shape == "full" and not gpu:
        parser.error("--shape full needs a GPU; `--shape tiny --steps 1` shows on a CPU that the script works.")
    if torch.cuda.device_count() > 1:
        parser.error("one process sees several GPUs; show it one: CUDA_VISIBLE_DEVICES=0 python -m benchmarks.gpu")
    if arguments.rows:
        shape = replace(shape, rows=arguments.rows)
    if arguments.micro_rows:
        shape = replace(shape, micro_rows=arguments.micro_rows)
    device = torch.cuda.get_device_name() if gpu else "cpu"
    peak = peak_flops_of(device) if gpu else None
    report: dict[str, Any] = {
        "device": device,
        "processor": processors()[0],
        "driver_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if gpu else None,
        "peak_tflops": None if peak is None else peak / 1e12,
        "python": platform.python_version(),
        "versions": versions(),
        "settings": {key: getattr(arguments, key) for key in ("shape", "steps", "rounds", "minutes")},
        "shape": asdict(shape),
        "sections": {},
    }
    end = started + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(shape, Path(temporary), arguments.steps)
        for number, section in enumerate(arguments.sections):
            reached = time.perf_counter()
            if (reason := skipped(section)) is None and reached > end:
                reason = f"the {arguments.minutes:g} minutes were over"
            if reason is not None:
                report["sections"][section] = {"skipped": reason}
            else:
                # What earlier sections left of their time goes to the later ones.
                until = reached + (end - reached) / (len(arguments.sections) - number)
                report["sections"][section] = measure(section, bench, arguments.rounds, until, peak)
                gc.collect()
                if gpu:
                    torch.cuda.empty_cache()
            show(section, report["sections"][section])
    report["seconds"] = round(time.perf_counter() - started, 1)
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    output = Path(arguments.output or ROOT / "benchmarks" / "results" / f"gpu-{name}.json")
    if arguments.shape == "full" or arguments.output:
        write_report(report, output)
        print(f"written to {output}")
    return report


def show(section: str, found: dict[str, Any]) -> None:
    """Prints a section."""
    if "skipped" in found:
        print(f"{section:<10} skipped: {found['skipped']}", flush=True)
        return
    for side in ("ours", "stock"):
        own = found[side]
        used = "" if own["mfu"] is None else f", MFU {own['mfu']:.1%}"
        print(
            f"{section:<10} {side:<6} {own['tokens_per_second']:10.0f} tokens/s{used}, "
            f"peak {own['peak_memory_gib']:.2f} GiB"
        )
    print(
        f"{section:<10} ours/stock {found['ratio_median']:.3f} ({found['ratio_min']:.3f} to {found['ratio_max']:.3f}, "
        f"{found['rounds']} rounds), memory {found['memory_ratio']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
