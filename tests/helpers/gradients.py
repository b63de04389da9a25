"""Which tokens of a training have a gradient, seen where the model's log-probabilities come out."""

from typing import Any

import torch
from trl import GRPOTrainer


class Watched:
    """Keeps the gradient of the log-probabilities of every forward pass of `GRPOTrainer` that has one."""

    def __init__(self, monkeypatch: Any):
        self.passes: list[tuple[torch.Tensor, torch.Tensor]] = []
        stock = GRPOTrainer._get_per_token_logps_and_entropies

        def watched(trainer, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            result = stock(trainer, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
            if result[0].requires_grad:
                result[0].retain_grad()
                self.passes.append((input_ids, result[0]))
            return result

        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", watched)

    def runs(self, tokenizer: Any) -> list[str]:
        """Texts of the runs of tokens with a gradient, sorted."""
        found = []
        for input_ids, logps in self.passes:
            places = torch.zeros_like(input_ids, dtype=torch.bool)
            places[:, -logps.size(1) :] = logps.grad != 0
            found += trained_runs(input_ids, places, tokenizer)
        return sorted(found)


def trained_runs(input_ids: torch.Tensor, trained: torch.Tensor, tokenizer: Any) -> list[str]:
    """Texts of the runs of trained tokens of some rows."""
    found = []
    for ids, marks in zip(input_ids.tolist(), trained.tolist(), strict=True):
        run: list[int] = []
        for token, mark in zip([*ids, 0], [*marks, False], strict=True):
            if mark:
                run.append(token)
            elif run:
                found.append(tokenizer.decode(run))
                run = []
    return found
