"""Training of WeightedMTPTrainer on a few rows, and the method once more, straight from its formula.

The oracle is float64, one document at a time, all logits stacked, and shares nothing with the package: the heads are
run by the model's own layers, whose last one is swapped for a head's.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hpt_trl import WeightedMTPConfig, WeightedMTPTrainer
from tests.helpers.rho1 import demonstrations, documents

LEARNING_RATE = 0.1
ROWS = {"documents": documents, "demonstrations": demonstrations}


def train(
    trainer: Any,
    model: Any,
    output_dir: str | Path,
    *,
    rows: str = "documents",
    dataset: Dataset | None = None,
    lora: bool = False,
    tokenizer: str | None = None,
    resume_from_checkpoint: Any = None,
    change: Any = None,
    eval_dataset: Dataset | None = None,
    **settings: Any,
) -> Any:
    """Train one step (by default) on all eight rows in their order; returns the trainer.

    Args:
        trainer: class of the trainer.
        rows: `documents` or `demonstrations`.
        change: called with the trainer before the training.
        settings: config fields; SGD's update is the gradient times the learning rate.
    """
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 1,
        "learning_rate": LEARNING_RATE,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "seed": 7,
    }
    ours = issubclass(trainer, WeightedMTPTrainer)
    path = tokenizer or (model if isinstance(model, str) else model.config._name_or_path)
    made = trainer(
        model,
        (WeightedMTPConfig if ours else SFTConfig)(**(defaults | settings)),
        train_dataset=dataset if dataset is not None else ROWS[rows](),
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear") if lora else None,
    )
    if change is not None:
        change(made)
    made.train(resume_from_checkpoint=resume_from_checkpoint)
    return made


def mtp(model: Any, output_dir: str | Path, **settings: Any) -> WeightedMTPTrainer:
    return train(WeightedMTPTrainer, model, output_dir, **settings)


def sft(model: Any, output_dir: str | Path, **settings: Any) -> SFTTrainer:
    return train(SFTTrainer, model, output_dir, **settings)


def parts(model_path: str, rows: str) -> list[tuple[list[int], list[bool]]]:
    """Tokens of each row, and which of them have a loss."""
    tokenizer, found = AutoTokenizer.from_pretrained(model_path), []
    for row in ROWS[rows]():
        if rows == "documents":
            ids = tokenizer(row["text"] + tokenizer.eos_token)["input_ids"]
            found.append((ids, [False] + [True] * (len(ids) - 1)))
        else:
            ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
            first = len(tokenizer(row["prompt"])["input_ids"])
            found.append((ids, [place >= first for place in range(len(ids))]))
    return found


class Oracle:
    """All heads' losses of each token of each row, in float64.

    Args:
        count: number of heads; those after the first are copies of the last layer, or matrices.
    """

    def __init__(self, model_path: str, count: int, rows: str = "documents", *, residual: bool = False):
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
        self.count, self.residual = count, residual
        last = self.model.model.layers[-1]
        width = self.model.config.hidden_size
        if residual:
            self.heads = [torch.nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(count - 1)]
            for head in self.heads:
                torch.nn.init.zeros_(head.weight)
        else:
            self.heads = [copy.deepcopy(last) for _ in range(count - 1)]
        self.rows = parts(model_path, rows)

    def load_heads(self, folder: str | Path) -> None:
        weights = load_file(Path(folder) / "future_heads" / "model.safetensors")
        for number, head in enumerate(self.heads):
            prefix = f"layers.{number}."
            own = {name.removeprefix(prefix): value.double() for name, value in weights.items() if prefix in name}
            head.load_state_dict(own)

    def logp(self, ids: list[int], *, detach: bool = False) -> list[torch.Tensor]:
        """Log-probabilities of each head at each position. Shape: (T, V)."""
        decoder, head = self.model.model, self.model.lm_head
        layers, found = decoder.layers, []
        tokens = torch.tensor([ids])
        for number in range(self.count):
            if number == 0:
                state = decoder(tokens).last_hidden_state
            elif self.residual:
                caught = []
                handle = layers[-1].register_forward_hook(
                    lambda module, args, output, caught=caught: caught.append(output)
                )
                decoder(tokens)
                handle.remove()
                state = self._norm(caught[0].detach() if detach else caught[0], self.heads[number - 1], detach)
            else:
                decoder.layers = torch.nn.ModuleList([*layers[:-1], self.heads[number - 1]])
                if detach:
                    handle = decoder.layers[-1].register_forward_pre_hook(lambda module, args: (args[0].detach(),))
                    norm = [parameter.requires_grad_(False) for parameter in decoder.norm.parameters()]
                state = decoder(tokens).last_hidden_state
                decoder.layers = layers
                if detach:
                    handle.remove()
                    for parameter in norm:
                        parameter.requires_grad_(True)
            weight = head.weight.detach() if detach and number > 0 else head.weight
            found.append((state @ weight.t()).log_softmax(-1)[0])
        return found

    def _norm(self, hidden, head, detach):
        norm = self.model.model.norm
        weight = norm.weight.detach() if detach else norm.weight
        hidden = hidden + head(hidden)
        return weight * hidden * (hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    def loss(
        self,
        weights: list[float],
        *,
        token_weights: list[torch.Tensor] | None = None,
        detach: bool = False,
        pick: Any = None,
    ) -> torch.Tensor:
        """L = sum_k weight_k / Z_k * sum_t w[t + k] * nll_k(t), over all rows together.

        Args:
            token_weights: of each row, by token.
            pick: numbers of the rows; all by default.
        """
        sums = [torch.zeros((), dtype=torch.float64) for _ in range(self.count)]
        counts = [0] * self.count
        self.right = [0] * self.count
        for number, (ids, trained) in enumerate(self.rows):
            if pick is not None and number not in pick:
                continue
            logp = self.logp(ids, detach=detach)
            for k in range(1, self.count + 1):
                for place in range(len(ids) - k):
                    if trained[place + k]:
                        w = 1.0 if token_weights is None else token_weights[number][place + k]
                        sums[k - 1] = sums[k - 1] - w * logp[k - 1][place, ids[place + k]]
                        counts[k - 1] += 1
                        self.right[k - 1] += int(logp[k - 1][place].argmax() == ids[place + k])
        self.head_losses = [float(total.detach() / max(count, 1)) for total, count in zip(sums, counts, strict=True)]
        self.counts = counts
        return sum(weight * total / max(count, 1) for weight, total, count in zip(weights, sums, counts, strict=True))

    def updated(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name of each weight -> its value after a step of SGD."""
        named = dict(self.model.named_parameters()) | {
            f"future_heads.layers.{number}.{name}": parameter
            for number, head in enumerate(self.heads)
            for name, parameter in head.named_parameters()
        }
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {
            name: (value - LEARNING_RATE * (torch.zeros_like(value) if grad is None else grad)).detach()
            for (name, value), grad in zip(named.items(), grads, strict=True)
        }


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_same_step(trainer: Any, expected: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """The update is the oracle's, to the rounding of float32."""
    found = weights(trainer)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        update, theirs = value.double() - start[name], expected[name] - start[name]
        assert torch.allclose(update, theirs, rtol=1e-3, atol=2e-6 * max(1.0, float(theirs.abs().max()))), name
