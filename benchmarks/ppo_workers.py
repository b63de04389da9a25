"""One side of `benchmarks.ppo_against_trl`: a PPO trainer that goes one update at a time, when it is told to.

    python -m benchmarks.ppo_workers settings.json FD      # started by the benchmark, not by hand

Each line `go` on stdin lets the trainer run one PPO update inside of its own `.train()`: prompts, generation, scores,
all epochs. What it took is a line of JSON on the file descriptor FD, since trainers print on stdout. Anything else on
stdin, or its end, ends the worker. The side `theirs` runs in an environment that has no hpt_trl: that is imported by
`ours` only.
"""

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)


@dataclass(frozen=True)
class Setup:
    """What both sides are given.

    Attributes:
        side: `ours` or `theirs`.
        model, reward_model, tokenizer: folders (or Hub ids).
        rows: JSON file, a list of {"prompt": text, "prompt_tokens": ids}.
        output_dir: where the trainer may write.
        batch: completions per PPO update, one per prompt.
        mini_batches: optimizer steps per epoch; each mini-batch is one forward and backward pass.
    """

    side: str
    model: str
    reward_model: str
    tokenizer: str
    rows: str
    output_dir: str
    seed: int
    updates: int
    batch: int
    mini_batches: int
    epochs: int
    response: int
    learning_rate: float
    kl_coef: float
    vf_coef: float
    cliprange: float
    cliprange_value: float
    gamma: float
    lam: float
    bf16: bool
    separate_value_model: bool

    @property
    def common(self) -> dict[str, Any]:
        """Settings of `TrainingArguments` that are the same on both sides."""
        return {
            "output_dir": self.output_dir,
            "seed": self.seed,
            "temperature": 1.0,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "kl_coef": self.kl_coef,
            "vf_coef": self.vf_coef,
            "cliprange_value": self.cliprange_value,
            "gamma": self.gamma,
            "lam": self.lam,
            "bf16": self.bf16,
            "use_cpu": not torch.cuda.is_available(),
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }


class Finished(Exception):
    """The benchmark wants no further update."""


class Gate(TrainerCallback):
    """Holds the trainer before each PPO update until it may go, and reports the one that is over.

    Attributes:
        figures: taken along into the next report.
    """

    def __init__(self, steps_per_update: int, kl: str, score: str, reports: Any):
        self.steps_per_update, self.reports = steps_per_update, reports
        self._names = {kl: "kl", score: "score"}
        self.figures: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._wait()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.figures |= {name: logs[key] for key, name in self._names.items() if key in (logs or {})}

    def on_step_end(self, args, state, control, **kwargs):
        # A step of the stock trainer is an update, one of ours an optimizer step.
        if state.global_step % self.steps_per_update == 0:
            print(json.dumps({"seconds": _now() - self._start, **self.figures}), file=self.reports, flush=True)
            self.figures = {}
            self._wait()

    def count_tokens(self, reward_model: torch.nn.Module) -> None:
        """Report the tokens that are scored (prompts and completions), which says whether the sides do equal work."""

        def count(trunk: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            tokens = int(kwargs["attention_mask"].sum())
            self.figures["tokens"] = self.figures.get("tokens", 0) + tokens

        model: Any = reward_model
        model.base_model.register_forward_pre_hook(count, with_kwargs=True)

    def _wait(self) -> None:
        if sys.stdin.readline().strip() != "go":
            raise Finished
        self._start = _now()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Scorer:
    """The reward model as a reward function on token ids, read where TRL 1.12 reads it: at the last own token.

    A reward model that is passed to the trainer would be given the text, tokenized anew.
    """

    __name__ = "reward_model"

    def __init__(self, model: Any, pad: int):
        self.model, self.pad = model.eval(), pad

    @torch.no_grad()
    def __call__(self, completion_ids: list[list[int]], prompt_tokens: list[list[int]], **_: Any) -> list[float]:
        before, after = max(map(len, prompt_tokens)), max(map(len, completion_ids))
        rows = [
            [self.pad] * (before - len(prompt)) + prompt + own + [self.pad] * (after - len(own))
            for prompt, own in zip(prompt_tokens, completion_ids, strict=True)
        ]
        ids = torch.tensor(rows, device=self.model.device)
        mask = ids != self.pad
        positions = mask.cumsum(1) - mask.long()
        hidden = self.model.base_model(
            input_ids=ids.masked_fill(~mask, 0), attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        last = [before + len(own) - 1 for own in completion_ids]
        return self.model.score(hidden[range(len(rows)), last])[:, 0].float().tolist()


def _classifier(setup: Setup) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(setup.reward_model, num_labels=1, dtype=torch.float32)


def ours(setup: Setup, rows: list[dict[str, Any]], reports: Any) -> Any:
    """PPOTrainer of this package: value head on the policy's trunk, or a value model of its own."""
    from hpt_trl import PPOConfig, PPOTrainer

    steps = setup.epochs * setup.mini_batches
    config = PPOConfig(
        **setup.common,
        max_steps=setup.updates * steps,
        num_generations=1,
        per_device_train_batch_size=setup.batch // setup.mini_batches,
        gradient_accumulation_steps=1,
        steps_per_generation=setup.mini_batches,
        num_iterations=setup.epochs,
        max_completion_length=setup.response,
        epsilon=setup.cliprange,
        loss_type="dapo",
        # The stock trainer neither clips gradients nor filters what it samples.
        max_grad_norm=0.0,
        top_k=0,
        disable_dropout=True,
        value_model_name_or_path=setup.reward_model if setup.separate_value_model else None,
    )
    tokenizer = AutoTokenizer.from_pretrained(setup.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    gate = Gate(steps, "ppo/kl", "ppo/score", reports)
    scorer = Scorer(_classifier(setup).to("cpu" if config.use_cpu else "cuda"), tokenizer.pad_token_id)
    gate.count_tokens(scorer.model)
    return PPOTrainer(
        model, scorer, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[gate]
    )


def theirs(setup: Setup, rows: list[dict[str, Any]], reports: Any) -> Any:
    """TRL 1.12's PPOTrainer as its example sets it up: the value model starts as a copy of the reward model."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        **setup.common,
        total_episodes=setup.updates * setup.batch,
        # With accumulation its optimizer would step once per epoch, however many mini-batches there are.
        per_device_train_batch_size=setup.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=setup.mini_batches,
        num_ppo_epochs=setup.epochs,
        local_rollout_forward_batch_size=setup.batch,
        response_length=setup.response,
        stop_token="eos",
        cliprange=setup.cliprange,
        num_sample_generations=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(setup.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    dataset = Dataset.from_list([{"input_ids": row["prompt_tokens"]} for row in rows])
    gate = Gate(1, "objective/kl", "objective/scores", reports)
    reward_model = _classifier(setup)
    gate.count_tokens(reward_model)
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=reward_model,
        value_model=_classifier(setup),
        train_dataset=dataset,
        eval_dataset=dataset,  # asked for by its constructor, never used
        callbacks=[gate],
    )


def main() -> None:
    setup = Setup(**json.loads(Path(sys.argv[1]).read_text()))
    rows = json.loads(Path(setup.rows).read_text())
    with os.fdopen(int(sys.argv[2]), "w") as reports:
        # The stock trainer shuffles by numpy's generator, which it does not seed.
        set_seed(setup.seed)
        trainer = {"ours": ours, "theirs": theirs}[setup.side](setup, rows, reports)
        trainer.remove_callback(PrinterCallback)
        with suppress(Finished):
            trainer.train()


if __name__ == "__main__":
    main()
