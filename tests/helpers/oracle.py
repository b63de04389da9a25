"""The methods once more, straight from their papers: float64, one row at a time, no padding, nothing shared.

Each function returns the gradient of one optimizer step on the fixed rollouts of `tests/helpers/rollouts.py`. Nothing
here imports the package.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.rollouts import fixed_completion, parity_reward


@dataclass
class Sequence:
    logp: torch.Tensor  # (tokens,) float64, with gradient
    entropy: torch.Tensor  # (tokens,)

    def at(self, places: list[int]) -> "Sequence":
        return Sequence(self.logp[places], self.entropy[places])


@dataclass
class Prompt:
    rollouts: list[Sequence]
    rewards: torch.Tensor  # (group,)
    demonstration: Sequence
    demonstration_reward: float  # by the reward of the rollouts

    @property
    def solved(self) -> int:
        return int((self.rewards >= 1).sum())

    def advantages(self, scale: str = "group") -> torch.Tensor:
        centred = self.rewards - self.rewards.mean()
        return centred / (self.rewards.std() + 1e-4) if scale == "group" else centred

    def union(self, scale: str = "group", reward: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages of rollouts and demonstration; `reward`: of the demonstration, None: as it is graded."""
        own = torch.tensor([self.demonstration_reward if reward is None else reward], dtype=torch.float64)
        rewards = torch.cat([self.rewards, own])
        centred = rewards - rewards.mean()
        if scale == "group":
            centred = centred / (rewards.std() + 1e-4)
        return centred[:-1], centred[-1]


def gradient(
    model_path: str,
    dataset,
    loss: Callable[[list[Prompt]], torch.Tensor],
    *,
    group: int = 4,
    max_completion_length: int = 12,
    max_demonstration_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Gradient of `loss` of all prompts at the model's weights, by parameter name."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    prompts = []
    for row in dataset:
        text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text)["input_ids"]
        completions = [
            fixed_completion(prompt_ids, m, 0, max_completion_length, tokenizer.vocab_size, tokenizer.eos_token_id)
            for m in range(group)
        ]
        rewards = parity_reward(completions, [row["kind"]] * group)
        demonstration, trained = _demonstration(row["completion"], tokenizer, max_demonstration_length)
        prompts.append(
            Prompt(
                rollouts=[_score(model, prompt_ids, completion) for completion in completions],
                rewards=torch.tensor(rewards, dtype=torch.float64),
                demonstration=_score(model, prompt_ids, demonstration).at(trained),
                demonstration_reward=parity_reward([demonstration], [row["kind"]])[0],
            )
        )
    loss(prompts).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _demonstration(messages: list[dict[str, str]], tokenizer, longest: int | None) -> tuple[list[int], list[int]]:
    """Ids of a demonstration, and the places of those with a loss: each answer and its EOS, in ChatML."""
    ids, trained, ends = [], [], []
    for message in messages:
        if message["role"] == "assistant":
            answer = [*tokenizer(message["content"])["input_ids"], tokenizer.eos_token_id]
            if longest is not None and not ends and len(answer) > longest:
                answer = [*answer[: longest - 1], tokenizer.eos_token_id]
            trained += range(len(ids), len(ids) + len(answer))
            ids += answer
            ends.append(len(ids))
        else:
            text = f"\n<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n<|im_start|>assistant\n"
            ids += tokenizer(text)["input_ids"]
    last = max(end for end in ends if longest is None or end <= longest)
    return ids[:last], [place for place in trained if place < last]


def _score(model, prompt_ids: list[int], completion: list[int]) -> Sequence:
    logits = model(torch.tensor([prompt_ids + completion])).logits[0, len(prompt_ids) - 1 : -1]
    logp = torch.log_softmax(logits, dim=-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return Sequence(logp[torch.arange(len(completion)), torch.tensor(completion)], entropy)


def ratio(sequence: Sequence) -> torch.Tensor:
    """The first update's importance ratio: 1, with the gradient of log p."""
    return torch.exp(sequence.logp - sequence.logp.detach())


class Normalizer:
    """Sum over rows of a per-token loss under TRL's denominators, for one step of all rollouts."""

    def __init__(self, loss_type: str, prompts: list[Prompt], max_completion_length: int = 12):
        self.loss_type, self.max_completion_length = loss_type, max_completion_length
        self.rows = sum(len(p.rollouts) for p in prompts)
        self.tokens = sum(len(s.logp) for p in prompts for s in p.rollouts)

    def __call__(self, per_token: torch.Tensor) -> torch.Tensor:
        if self.loss_type == "grpo":
            return per_token.mean() / self.rows
        if self.loss_type == "dr_grpo":
            return per_token.sum() / (self.rows * self.max_completion_length)
        return per_token.sum() / self.tokens  # dapo


def grpo_rows(
    prompts: list[Prompt], normalizer: Normalizer, advantages: Callable[[Prompt], torch.Tensor]
) -> torch.Tensor:
    """GRPO's loss of the rollouts, with the advantages of each prompt."""
    return sum(
        normalizer(-ratio(rollout) * advantage)
        for prompt in prompts
        for rollout, advantage in zip(prompt.rollouts, advantages(prompt), strict=True)
    )


def off_policy(prompt: Prompt, normalizer: Normalizer, advantage: float | torch.Tensor) -> torch.Tensor:
    """LUFFY's term of a demonstration, p / (p + 0.1) on its tokens."""
    p = prompt.demonstration.logp.exp()
    return normalizer(-advantage * p / (p + 0.1))


def token_mean_nll(prompts: list[Prompt], weight: Callable[[Prompt], float | torch.Tensor]) -> torch.Tensor:
    """Sum of weighted negative log-likelihoods over the tokens of all demonstrations with a weight."""
    used = [p for p in prompts if not isinstance(weight(p), float) or weight(p) != 0]
    tokens = sum(len(p.demonstration.logp) for p in used)
    return sum((weight(p) * -p.demonstration.logp).sum() for p in used) / max(tokens, 1)


def srft(
    prompts: list[Prompt],
    normalizer: Normalizer,
    takes_part: Callable[[Prompt, int], bool],
    rewards: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """SRFT's loss with a demonstration of reward 1; `rewards`: of each prompt where not all rollouts are scored."""
    total = token_mean_nll(prompts, lambda p: 0.5 * torch.exp(-p.demonstration.entropy.mean().detach()))
    for i, prompt in enumerate(prompts):
        scored = prompt.rewards if rewards is None else rewards[i]
        union = torch.cat([scored, torch.ones(1).double()])
        union = union[~union.isnan()]
        if len(set(union.tolist())) > 1:
            total = total + off_policy(prompt, normalizer, (1.0 - union.mean()) / (union.std() + 1e-4))
        for member, (rollout, reward) in enumerate(zip(prompt.rollouts, scored, strict=True)):
            if takes_part(prompt, member) and not reward.isnan():
                sign = 0.1 * torch.exp(rollout.entropy.mean().detach()) if reward == 1 else -1.0
                total = total + normalizer(-sign * rollout.logp)
    return total
