"""Training runs in an environment whose turns are fixed, so that trainers can be compared on the same rollouts.

Only the sampling is replaced: a turn's text follows from the row's prompt, the member of its group, the turn and the
step, whatever the weights and the number of processes. The rest of `.train()` is the trainer's own.
"""

import zlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from trl import GRPOConfig, ModelConfig, SFTConfig

from hpt_trl import HybridPostConfig, HybridPostTrainer
from hpt_trl.data.layouts import Splits
from hpt_trl.data.rendering import Encoder
from hpt_trl.environments.acting import Acting
from hpt_trl.environments.episode import Episode
from hpt_trl.environments.factory import TurnEnvironments
from hpt_trl.environments.protocol import Messages, Observation, Turn
from hpt_trl.methods.sft.acted import build_acted
from hpt_trl.methods.sft.stage import SftArguments
from hpt_trl.recipes.recipe import StageInputs
from hpt_trl.rollouts.acting import ActingTrainer
from tests.helpers.environments import Doors
from tests.helpers.qwen_vl import QwenImagesProcessor  # noqa: F401 - `AutoProcessor` finds it once it is imported
from tests.helpers.rollouts import LEARNING_RATE

GROUP, MAX_TURNS, SYSTEM = 4, 3, "Open doors."
WORDS = ["red", "open", "left", "many apples", "answer 8", "the sum"]


def fixed_turn(prompt: str, member: int, turn: int, step: int) -> tuple[str, bool]:
    """Text of a turn, and whether it is cut before its end; one with `out` in it ends the rollout.

    A prompt that begins with `A short` is left at once.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(str((prompt, member, turn, step)).encode()))

    def drawn(below: int) -> int:
        return int(torch.randint(0, below, (), generator=generator))

    words = [WORDS[drawn(len(WORDS))] for _ in range(1 + drawn(3))]
    kind = drawn(8)
    if kind < 2 or prompt.startswith("A short"):
        words.append("out")
    return " ".join(words), kind == 7


class Rooms(Doors):
    """Doors, where a row may say that they are texts, and facts tell what the model said.

    Args:
        pictures: whether doors are images, of rows that do not say it themselves.
    """

    def prompt(self, messages: Messages) -> Messages:
        return [{"role": "system", "content": SYSTEM}, *messages]

    def start(self, row: dict[str, Any]) -> None:
        super().start(row)
        self.said = ""
        self.short = "short" in row["prompt"][0]["content"]
        if row.get("pictures") is not None:
            self.pictures = row["pictures"]

    def act(self, turn: Turn) -> Observation | str:
        self.said += turn.text
        return "answer" if self.short and "out" not in turn.text else super().act(turn)

    def facts(self) -> dict[str, Any]:
        return {"opened": self.opened, "said": self.said}


def reward_of(kind: str, said: str, opened: int) -> float:
    """1 or 0: by the row's kind (`fail`, `solve`), else by the parity of what was said and seen."""
    return {"fail": 0.0, "solve": 1.0}.get(kind, float((len(said) + opened) % 2))


def said_reward(completions: list[Any], kind: list[str], said: list[str], opened: list[int], **_: Any) -> list[float]:
    return [reward_of(*one) for one in zip(kind, said, opened, strict=True)]


KINDS = ["fail", "mixed", "solve", "mixed"]


def room_rows(
    kinds: list[str] = KINDS,
    *,
    short: list[int] | tuple[int, ...] = (),
    pictures: list[bool] | None = None,
    images: bool = False,
) -> Dataset:
    """Rows with a trajectory each, of one to three turns.

    Args:
        short: rows whose rollouts have one turn.
        pictures: whether the doors of each row are images.
        images: whether each row has an image of its own, which its prompt shows.
    """
    rows = []
    for place, kind in enumerate(kinds):
        turns = [f"open {place}", f"open more {place}", f"out {place}"][2 - place % 3 :]
        row = {
            "prompt": [{"role": "user", "content": f"A {'short' if place in short else 'long'} way, number {place}."}],
            "completion": [{"role": "assistant", "content": text} for text in turns],
            "kind": kind,
        }
        if pictures is not None:
            row["pictures"] = pictures[place]
        if images:
            row["images"] = [Image.new("RGB", (32, 32), (40 * place, 90, 255 - 40 * place))]
        rows.append(row)
    return Dataset.from_list(rows)


class FixedWords:
    """Mixin for an `ActingTrainer` whose turns are those of `fixed_turn`; it keeps its episodes under `played`."""

    def _draw(self, episodes: list[Episode]) -> None:
        first = self.accelerator.process_index * len(self._episodes)
        members = {id(one): (first + place) % self.num_generations for place, one in enumerate(self._episodes)}
        for episode in episodes:
            prompt = episode.row["prompt"][-1]["content"]
            text, cut = fixed_turn(prompt, members[id(episode)], episode.turns, self.state.global_step)
            ends = [] if cut else [self._tokenizer.eos_token_id]
            episode.take([*self._tokenizer(text)["input_ids"], *ends])

    def _rollouts(self, *args: Any) -> dict[str, Any]:
        fields = super()._rollouts(*args)
        self.played = list(self._episodes)
        return fields


class FixedActing(FixedWords, ActingTrainer):
    pass


class FixedActedHPT(FixedWords, HybridPostTrainer):
    pass


def environments(pictures: bool = True, **limits: int) -> TurnEnvironments:
    return TurnEnvironments(lambda: Rooms(pictures), **{"max_turns": MAX_TURNS} | limits)


DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_steps": 1,
    "learning_rate": LEARNING_RATE,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "seed": 7,
}
ROLLOUTS = {"num_generations": GROUP, "max_completion_length": 120, "loss_type": "grpo"}


class EndsAnywhere:
    """Mixin for an `ActingTrainer` that draws its own turns: every token ends one."""

    def _draw(self, episodes: list[Episode]) -> None:
        ends = list(range(len(self._tokenizer)))
        self.eos_token_ids = self._acting.encoder.encoder.end_ids = self.generation_config.eos_token_id = ends
        super()._draw(episodes)


class DrawingHPT(EndsAnywhere, HybridPostTrainer):
    pass


TRAINERS = {"hpt": FixedActedHPT, "grpo": FixedActing, "drawing": DrawingHPT}


def sees(path: str) -> bool:
    """Whether a folder holds a vision-language model."""
    return "vision_config" in AutoConfig.from_pretrained(path).to_dict()


def loaded(path: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model, and tokenizer or processor, of a folder."""
    if sees(path):
        return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype), AutoProcessor.from_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)


def start_of(path: str) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in loaded(path)[0].named_parameters()}


def build(
    trainer: str | type,
    path: str,
    output_dir: str | Path,
    *,
    rows: Any = None,
    limits: dict[str, int] | None = None,
    environment: TurnEnvironments | None = None,
    reward: Any = said_reward,
    lora: bool = False,
    **settings: Any,
) -> Any:
    """A trainer of one step (by default) on all prompts at once.

    Args:
        trainer: a class, `hpt`, `grpo`, or `sft` for the trainer on trajectories.
        rows: a dataset, or the arguments of `room_rows`.
        limits: of the environment.
        settings: config fields.
    """
    model, processor = loaded(path)
    data = room_rows(**rows or {}) if isinstance(rows, dict | None) else rows
    if environment is None:
        environment = environments(sees(path), **limits or {})
    settings = {"output_dir": str(output_dir)} | DEFAULTS | settings
    if trainer == "sft":
        return _sft(model, processor, data, environment, settings)
    trainer_class = TRAINERS[trainer] if isinstance(trainer, str) else trainer
    config_class = HybridPostConfig if issubclass(trainer_class, HybridPostTrainer) else GRPOConfig
    return trainer_class(
        model,
        reward,
        config_class(**ROLLOUTS | settings),
        data,
        processing_class=processor,
        environment=environment,
        peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear") if lora else None,
    )


def train(*args: Any, resume_from_checkpoint: str | None = None, **settings: Any) -> Any:
    """Trains what `build` returns; returns the trainer."""
    trainer = build(*args, **settings)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer


def _sft(model: Any, processor: Any, rows: Dataset, environment: TurnEnvironments, settings: dict[str, Any]) -> Any:
    """The trainer of the stage `sft`, with the limits that a recipe would give it."""
    encoder = Encoder(processor, end_ids=[getattr(processor, "tokenizer", processor).eos_token_id])
    return build_acted(
        StageInputs(
            model,
            processor,
            encoder,
            SFTConfig(**settings),
            ModelConfig(),
            SftArguments(dataset_name="rooms"),
            Splits(rows, None, "rooms", "rooms"),
            acting=Acting(environment, encoder, drawn=1, positions=None),
        )
    )
