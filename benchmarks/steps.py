"""Timed steps: a model of SmolLM2-135M's shape with random weights, trainers of one step, and who trains when."""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback

from benchmarks.gate import now
from hpt_trl.methods.pretrain.tokenizer import train_tokenizer
from hpt_trl.models.loading import load_tokenizer

# Of the tokenizer that lies beside the models and is not used: the rows are token ids.
KNOWN = 300


class StepTimer(TrainerCallback):
    """Wall time from the beginning of a training to the end of its first step, in seconds."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = now() - self._start


def save_models(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes the model and its reference, of one shape and other weights, with a tokenizer."""
    tokenizer = train_tokenizer(["a text"], KNOWN)
    for name, seed in (("model", 0), ("reference", 1)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=arguments.layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def rows(count: int, arguments: argparse.Namespace, seed: int) -> Dataset:
    draw, tokens = random.Random(seed), range(KNOWN, arguments.vocabulary)
    return Dataset.from_list([{"input_ids": draw.choices(tokens, k=arguments.tokens)} for _ in range(count)])


def one_step(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that the trainers of all sides share."""
    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": arguments.rows,
        "max_length": arguments.tokens,
        "max_steps": 1,
        "learning_rate": 1e-9,
        "bf16": arguments.bf16,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def timed(trainer_class: type, config: Any, folder: Path, arguments: argparse.Namespace) -> Any:
    """A trainer on a batch of random rows; its `timer` has the time of the last step."""
    timer = StepTimer()
    trainer = trainer_class(
        str(folder / "model"),
        config,
        train_dataset=rows(arguments.rows, arguments, seed=0),
        processing_class=load_tokenizer(str(folder / "model")),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.timer = timer
    return trainer


def take_turns(trainers: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each trainer's step in each round."""
    times: dict[str, list[float]] = {side: [] for side in trainers}
    sides = list(trainers)
    for turn in range(rounds + 1):
        # Who goes first changes; the very first round warms up.
        first = turn % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            trainer = trainers[side]
            trainer.train()
            if turn:
                times[side].append(trainer.timer.seconds)
            # Each side's optimizer kept at once would be twice its weights for each.
            trainer.accelerator.free_memory()
            for holder in (trainer, trainer.callback_handler):
                holder.optimizer = holder.lr_scheduler = None
    return times
