"""The rewards of `benchmarks.ppo_against_trl`, a model and a rule: each as either side takes it, with equal scores."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from hpt_trl.models.padding_free.trunks import take_packed_rows
from hpt_trl.rewards.positive_words import PositiveWords


class Scorer:
    """The reward model as a reward function on token ids, read where TRL 1.12 reads it: at the last own token.

    A reward model that is passed to the trainer would be given the text, tokenized anew.

    Args:
        count: told the tokens that are scored.
    """

    __name__ = "reward_model"

    def __init__(self, model: Any, count: Callable[[int], None]):
        self.model, self.count = model.eval(), count
        take_packed_rows(model.base_model)  # as a trainer does

    @torch.no_grad()
    def __call__(self, completion_ids: list[list[int]], prompt_tokens: list[list[int]], **_: Any) -> list[float]:
        self.count(sum(map(len, prompt_tokens + completion_ids)))
        rows = [torch.tensor(prompt + own) for prompt, own in zip(prompt_tokens, completion_ids, strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        ids = pad_sequence(rows, batch_first=True).to(self.model.device)
        mask = torch.arange(ids.size(1), device=ids.device) < lengths[:, None]
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        return self.model.score(hidden[range(len(rows)), lengths - 1])[:, 0].float().tolist()


class WordScorer:
    """The rule of the positive words as a reward function on token ids.

    Args:
        count: told the tokens that are scored.
    """

    __name__ = "positive_words"

    def __init__(self, tokenizer: Any, count: Callable[[int], None]):
        self.tokenizer, self.count = tokenizer, count
        self._rule = PositiveWords(prints_finds=False)

    def __call__(self, completion_ids: list[list[int]], prompt_tokens: list[list[int]], **_: Any) -> list[float]:
        self.count(sum(map(len, prompt_tokens + completion_ids)))
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return self._rule([""] * len(texts), texts)


class _RuleTrunk(nn.Module):
    def __init__(self, score: WordScorer, prompts: list[list[int]]):
        super().__init__()
        self._score, self._prompts = score, sorted(prompts, key=len, reverse=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        prompts, completions = zip(*map(self._split, input_ids, attention_mask), strict=True)
        scores = torch.tensor(self._score([*completions], [*prompts]), device=input_ids.device)
        hidden = scores[:, None, None].expand(*input_ids.shape, 1)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))

    def _split(self, row: Tensor, own: Tensor) -> tuple[list[int], list[int]]:
        """A row's prompt and completion, without the padding on either side."""
        first = int(own.int().argmax())
        ids = row[first : first + int(own[first:].int().cumprod(0).sum())].tolist()
        prompt = next(prompt for prompt in self._prompts if ids[: len(prompt)] == prompt)
        return prompt, ids[len(prompt) :]


class RuleModel(nn.Module):
    """A rule where TRL 1.12 takes a reward model only: a trunk whose hidden state is the score, at every position.

    Args:
        prompts: token ids of all of them, by which a row is told apart into prompt and completion.
    """

    base_model_prefix = "trunk"

    def __init__(self, score: WordScorer, prompts: list[list[int]]):
        super().__init__()
        self.trunk, self.score = _RuleTrunk(score, prompts), nn.Identity()
