"""Time of a step of the stages on rows without padding, beside the same trainer that pads them.

    python -m benchmarks.padding --output benchmarks/results/padding-cpu.json

A Llama of SmolLM2-135M's shape (30 layers, width 576, a vocabulary of 49,152) with random weights, on random letters,
each a token, in rows of unlike lengths: prompts of 8 to 40 tokens, answers of 8 to 128, whose logarithm is drawn
uniformly. A step is `--rows` rows, or as many comparisons.

Both sides of a stage take turns in one process; each turn is one `.train()` of one optimizer step, timed from the
beginning of the training to the end of the step. Each round gives a ratio, without padding / padded; their median is
printed, below 1 is faster. `computed` is the same ratio of the tokens that a trunk computes in a step.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from string import ascii_letters
from typing import Any

from datasets import Dataset
from transformers import LlamaModel, PrinterCallback

from benchmarks.shared import hardware, parser_of, write_report
from benchmarks.steps import StepTimer, one_step, save_models, take_turns
from hpt_trl import Rho1Config, Rho1Trainer
from hpt_trl.methods.dpo.trainer import MeasuredDPOTrainer
from hpt_trl.methods.padding_free import PaddingFreeDPOConfig, PaddingFreeRewardConfig, PaddingFreeSFTConfig
from hpt_trl.methods.reward.trainer import ScoringRewardTrainer
from hpt_trl.methods.sft.trainer import MeasuredSFTTrainer
from hpt_trl.models.loading import load_tokenizer

STAGES: dict[str, tuple[type, type]] = {
    "sft": (MeasuredSFTTrainer, PaddingFreeSFTConfig),
    "dpo": (MeasuredDPOTrainer, PaddingFreeDPOConfig),
    "reward": (ScoringRewardTrainer, PaddingFreeRewardConfig),
    "rho1": (Rho1Trainer, Rho1Config),
}
SIDES = {"padded": False, "padding-free": None}


def rows_of(stage: str, arguments: argparse.Namespace) -> Dataset:
    """Rows of random letters, each of which is a token."""
    draw = random.Random(0)

    def text(tokens: float) -> str:
        return "".join(draw.choices(ascii_letters, k=round(tokens)))

    def row() -> dict[str, str]:
        names = ("completion",) if stage in ("sft", "rho1") else ("chosen", "rejected")
        return {"prompt": text(draw.randint(8, 40))} | {name: text(2 ** draw.uniform(3, 7)) for name in names}

    return Dataset.from_list([row() for _ in range(arguments.rows)])


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """While open, trunks that are made count their tokens; the function says how many since it was last asked."""
    stock, tokens = LlamaModel.forward, [0]

    @wraps(stock)
    def forward(trunk: Any, input_ids: Any = None, **others: Any) -> Any:
        tokens.append(input_ids.numel())
        return stock(trunk, input_ids, **others)

    def since() -> int:
        total = sum(tokens)
        tokens.clear()
        return total

    LlamaModel.forward = forward
    try:
        yield since
    finally:
        LlamaModel.forward = stock


def build(stage: str, side: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """The trainer of a side; its `timer` has the time of the last step."""
    trainer_class, config_class = STAGES[stage]
    settings = one_step(folder, arguments) | {"padding_free": SIDES[side]}
    if stage == "rho1":
        settings |= {
            "reference_model_name_or_path": str(folder / "reference"),
            "reference_cache_dir": str(folder / "scores"),
        }
    timer = StepTimer()
    trainer = trainer_class(
        model=str(folder / "model"),
        args=config_class(**settings),
        train_dataset=rows_of(stage, arguments),
        processing_class=load_tokenizer(str(folder / "model")),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.timer = timer
    return trainer


def measure(stage: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    with counted() as tokens:
        trainers = {side: build(stage, side, folder, arguments) for side in SIDES}
        times = take_turns(trainers, arguments.rounds)
        computed = {}
        for side, trainer in trainers.items():
            tokens()
            trainer.train()
            computed[side] = tokens()
    ratios = [free / padded for padded, free in zip(times["padded"], times["padding-free"], strict=True)]
    return {
        "seconds_padded": round(statistics.median(times["padded"]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "computed": round(computed["padding-free"] / computed["padded"], 3),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    arguments.tokens = 256  # more than any row has
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), arguments)
        for stage in arguments.stages:
            found[stage] = measure(stage, Path(folder), arguments)
            print(stage, found[stage], flush=True)
    settings = {name: getattr(arguments, name) for name in ("rows", "rounds", "layers", "vocabulary", "bf16")}
    write_report({"hardware": hardware(), "settings": settings, "stages": found}, arguments.output)


if __name__ == "__main__":
    main()
