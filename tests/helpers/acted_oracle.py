"""The losses in an environment once more: float64, each turn by itself behind the conversation as it then stood.

The conversation is written as messages and rendered by the processor's own chat template, images included. Nothing of
the package's contexts, pieces or folding is used.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from tests.helpers import oracle
from tests.helpers.acted import GROUP, MAX_TURNS, SYSTEM, fixed_turn, loaded, reward_of
from tests.helpers.environments import SHADES
from tests.helpers.rollouts import LEARNING_RATE


@dataclass
class Rollout(oracle.Sequence):
    """The tokens of all turns.

    Attributes:
        old: log-probability of each when it was drawn.
        reference: by the weights of the start.
        cut: whether the last turn has no end.
    """

    old: Tensor
    reference: Tensor
    cut: bool


@dataclass
class Said:
    """A turn behind the conversation as it stood."""

    messages: list[dict[str, Any]]
    images: list[Any]
    text: str
    cut: bool


def conversation(
    row: dict[str, Any], turns: Sequence[tuple[str, bool]], pictures: bool, max_images: int | None
) -> list[Said]:
    """What was said up to the end of a rollout; `turns` are all that could be."""
    own = row.get("images") or []
    spoken: list[str] = []
    found = []
    for text, cut in turns:
        latest = len(spoken) if max_images is None else max(1, max_images - len(own))
        messages = [
            {"role": "system", "content": [_text(SYSTEM)]},
            {"role": "user", "content": [*[{"type": "image"}] * len(own), _text(row["prompt"][0]["content"])]},
        ]
        images = list(own)
        for number, before in enumerate(spoken, start=1):
            shade = SHADES[number % len(SHADES)]
            if not pictures:
                content = [_text(f"A door of shade {shade}.")]
            elif number > len(spoken) - latest:
                content = [_text("A door:"), {"type": "image"}]
                images.append(Image.new("RGB", (32, 32), shade))
            else:
                content = [_text(f"[door {number}]")]
            messages += [{"role": "assistant", "content": [_text(before)]}, {"role": "user", "content": content}]
        found.append(Said(messages, images, text, cut))
        spoken.append(text)
        if cut or "out" in text:
            break
    return found


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class Oracle:
    """A model in float64 and the rollouts of some rows.

    Args:
        path: of the model.
        rows: of `room_rows`.
        max_images: as of the environment.
        group: rollouts of a prompt.
    """

    def __init__(self, path: str, rows: Dataset, max_images: int | None = None, group: int = GROUP):
        self.model, self.processor = loaded(path, torch.float64)
        self.sees = hasattr(self.processor, "image_processor")
        self.tokenizer = self.processor.tokenizer if self.sees else self.processor
        self.rows, self.max_images, self.group = list(rows), max_images, group

    def gradient(self, loss: Callable[[list[oracle.Prompt]], Tensor]) -> dict[str, Tensor]:
        """Gradient of the loss of all prompts at the start, by parameter name; 0 where nothing reaches a weight."""
        if not hasattr(self, "_first"):
            self._first = self.prompts(0)
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        found = torch.autograd.grad(loss(self._first), parameters, retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)
        }

    def trained(
        self, loss: Callable[[list[oracle.Prompt]], Tensor], steps: Sequence[int], learning_rate: float = LEARNING_RATE
    ) -> dict[str, Tensor]:
        """Weights after some steps of SGD.

        Args:
            steps: of each, the number of the step at which its rollouts were drawn.
        """
        model = deepcopy(self.model)
        drawn: dict[int, list[oracle.Prompt]] = {}
        for step in steps:
            prompts = self.prompts(step, model)
            for prompt, before in zip(prompts, drawn.setdefault(step, prompts), strict=True):
                for rollout, first in zip(prompt.rollouts, before.rollouts, strict=True):
                    rollout.old = first.old
            model.zero_grad()
            loss(prompts).backward()
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= learning_rate * p.grad
        return {name: p.detach() for name, p in model.named_parameters()}

    def prompts(self, step: int, model: Any = None) -> list[oracle.Prompt]:
        """All rollouts and trajectories, scored; by a model that was trained since, or that of the start."""
        return [self._prompt(row, step, model or self.model) for row in self.rows]

    def _prompt(self, row: dict[str, Any], step: int, model: Any) -> oracle.Prompt:
        rollouts, rewards = [], []
        for member in range(self.group):
            turns = [fixed_turn(row["prompt"][0]["content"], member, turn, step) for turn in range(MAX_TURNS)]
            said = self._conversation(row, turns)
            scored = self._scored(said, model)
            reference = scored.logp.detach()
            if model is not self.model:
                with torch.no_grad():
                    reference = self._scored(said, self.model).logp
            rollouts.append(Rollout(scored.logp, scored.entropy, scored.logp.detach(), reference, said[-1].cut))
            rewards.append(self._reward(row, said))
        demonstration = self._conversation(row, [(message["content"], False) for message in row["completion"]])
        return oracle.Prompt(
            rollouts=rollouts,
            rewards=torch.tensor(rewards, dtype=torch.float64),
            demonstration=self._scored(demonstration, model),
            demonstration_reward=self._reward(row, demonstration),
        )

    def _conversation(self, row: dict[str, Any], turns: list[tuple[str, bool]]) -> list[Said]:
        pictures = row.get("pictures")
        return conversation(row, turns, self.sees if pictures is None else pictures, self.max_images)

    def _reward(self, row: dict[str, Any], said: list[Said]) -> float:
        # No door opens behind a word that ends the rollout; one that could not be shown is open all the same.
        opened = sum("out" not in turn.text for turn in said)
        return reward_of(row["kind"], "".join(turn.text for turn in said), opened)

    def _scored(self, said: list[Said], model: Any) -> oracle.Sequence:
        scores = [self._score(turn, model) for turn in said]
        return oracle.Sequence(torch.cat([s.logp for s in scores]), torch.cat([s.entropy for s in scores]))

    def _score(self, turn: Said, model: Any) -> oracle.Sequence:
        messages = turn.messages
        if not self.sees:
            messages = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = {"images": [turn.images]} if turn.images else {}
        inputs = dict(self.processor(text=[text], return_tensors="pt", **images))
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].double()
        ids = [*self.tokenizer(turn.text)["input_ids"], *([] if turn.cut else [self.tokenizer.eos_token_id])]
        before = inputs["input_ids"].size(1)
        for name, fill in (
            ("input_ids", ids),
            ("attention_mask", [1] * len(ids)),
            ("mm_token_type_ids", [0] * len(ids)),
        ):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.tensor([fill])], dim=1)
        logp = torch.log_softmax(model(**inputs).logits[0, before - 1 : -1], dim=-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return oracle.Sequence(logp[torch.arange(len(ids)), torch.tensor(ids)], entropy)


def grpo(
    prompts: list[oracle.Prompt],
    loss_type: str,
    *,
    longest: int = 120,
    beta: float = 0.0,
    masks_cut: bool = False,
    among: Callable[[oracle.Prompt], bool] = lambda prompt: True,
) -> Tensor:
    """GRPO's clipped loss of the rollouts: `grpo`, `dapo` or `dr_grpo`, all of them in one step.

    Args:
        beta: weight of the KL term.
        masks_cut: `mask_truncated_completions`.
        among: prompts that are trained on their rollouts; the others still count in the denominators.
    """
    rollouts = [r for p in prompts for r in p.rollouts]
    tokens = sum(len(r.logp) for r in rollouts if not (masks_cut and r.cut))
    total = torch.zeros((), dtype=torch.float64)
    for prompt in filter(among, prompts):
        for rollout, advantage in zip(prompt.rollouts, prompt.advantages(), strict=True):
            if masks_cut and rollout.cut:
                continue
            ratio = torch.exp(rollout.logp - rollout.old)
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            away = rollout.reference - rollout.logp
            # TRL weighs it with the ratio, through which a gradient goes (`use_bias_correction_kl`).
            loss = loss + beta * ratio * (away.exp() - away - 1)
            if loss_type == "grpo":
                total = total + loss.mean() / len(rollouts)
            elif loss_type == "dr_grpo":
                total = total + loss.sum() / (len(rollouts) * longest)
            else:
                total = total + loss.sum() / tokens
    return total
