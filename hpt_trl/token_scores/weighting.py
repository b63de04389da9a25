"""The weight of each token of an optimizer step, for a trainer: made, normalised, measured, and gone on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpt_trl.errors import UserError
from hpt_trl.files import write_atomically
from hpt_trl.token_scores.advantages import advantages, document_starts, td_errors
from hpt_trl.token_scores.cache import as_bits, scores_of
from hpt_trl.token_scores.correlations import Correlation
from hpt_trl.token_scores.kinds import VALUES, scored_positions
from hpt_trl.token_scores.samples import FirstSequence
from hpt_trl.token_scores.selection import groups_by_token
from hpt_trl.token_scores.weighting_config import VALUED, TokenWeightingConfig
from hpt_trl.token_scores.weights import exponential_weights, matched_normal, random_weights, relative_bins, shuffled
from hpt_trl.token_scores.whitening import MovingStatistics

# Of a batch: (rows, tokens) float32, the weight of each target token, 0 where there is no label.
WEIGHTS = "token_weights"
STATE_FILE = "token_weights.json"
# Parts of a sequence that `position` has a weight for.
POSITION_BINS = 20


class TokenWeights:
    """Gives the batches of each optimizer step their tokens' weights, by a `TokenWeightingConfig`.

    All processes call it together. What it does depends neither on how the rows of a step are spread over processes and
    micro-batches (but for `batch_permuted`, which permutes what a process holds), nor on the random state of the run.

    Args:
        config: the trainer's; its `weighting` is not `uniform`, which weighs nothing.
        all_sum: adds a tensor up over all processes.
        score: of a batch, the values of a value model that runs beside the training, see `token_values`; None where the
            batches carry values (`WithScores`), or none are needed.
        decode: token ids to text, for messages.
    """

    def __init__(
        self,
        config: TokenWeightingConfig,
        *,
        all_sum: Callable[[Tensor], Tensor],
        score: Callable[[dict[str, Any]], Tensor] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ):
        self.config = config
        self.statistics = MovingStatistics(config.weight_momentum, config.weight_warmup_steps)
        self._all_sum, self._score, self._decode = all_sum, score, decode
        self._position_means: list[float] = []
        self._metrics: dict[str, float] = {}
        self._nll = Correlation()
        # Of the last step's first micro-batch.
        self._first: FirstSequence | None = None
        if config.weighting == "random_matched":
            self._normal = matched_normal(
                config.random_weight_mean,
                config.random_weight_std,
                low=config.weight_clip_low,
                high=config.weight_clip_high,
            )

    def weigh(self, batches: list[dict[str, Any]], *, step: int) -> list[Tensor]:
        """Give the tokens of an optimizer step their weights, and take the values out of its micro-batches.

        Args:
            batches: those of this process, with `input_ids`, `labels` and, without padding, `position_ids`.
            step: optimizer steps done so far.

        Returns:
            (rows, tokens) float32 of each, by target token, 0 where there is no label.

        Raises:
            UserError: a weight is not finite; the message shows its row.
        """
        masks = [scored_positions(batch["labels"]) for batch in batches]
        self._first = FirstSequence(batches[0], masks[0])
        if self.config.weighting == "random_matched":
            weights = [self._random(batch, mask, step) for batch, mask in zip(batches, masks, strict=True)]
        else:
            weights = self._by_values(batches, masks, step)
        self._refuse_no_numbers(batches, masks, weights, step)
        weights = self._normalized(batches, masks, weights)
        self._first.note("weight", weights[0])
        return weights

    def _random(self, batch: dict[str, Any], mask: Tensor, step: int) -> Tensor:
        centre, spread = self._normal
        return random_weights(
            mask,
            batch["input_ids"],
            groups_by_token(batch),
            centre=centre,
            spread=spread,
            low=self.config.weight_clip_low,
            high=self.config.weight_clip_high,
            seed=self.config.seed,
            step=step,
        )

    def _by_values(self, batches: list[dict[str, Any]], masks: list[Tensor], step: int) -> list[Tensor]:
        config, device = self.config, masks[0].device
        values = [self._values(batch) for batch in batches]
        if self._first is not None:
            self._first.note("value", values[0], VALUES.positions(batches[0]["labels"]))
        found = [self._advantages(*each) for each in zip(batches, values, masks, strict=True)]
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        weights, clipped = [], torch.zeros((), dtype=torch.float64, device=device)
        sign = -1.0 if config.weighting == "inverted" else 1.0
        for advantage, mask in zip(found, masks, strict=True):
            one, beyond = exponential_weights(
                sign * advantage,
                mask,
                mean=sign * self.statistics.mean,
                std=self.statistics.std,
                temperature=config.weight_temperature,
                low=config.weight_clip_low,
                high=config.weight_clip_high,
            )
            weights.append(one)
            clipped += beyond.sum()
            valid = advantage[mask].double()
            sums += torch.stack([valid.sum(), valid.square().sum(), mask.sum().double()])
        total, squares, count, beyond_count = self._all_sum(torch.cat([sums, clipped[None]])).tolist()
        # What this step is whitened by are the steps before it.
        self.statistics.update(total, squares, count)
        self._metrics["weight_clipped"] = beyond_count / max(count, 1.0)
        if config.weighting == "shuffled":
            each = zip(weights, masks, batches, strict=True)
            return [
                shuffled(one, mask, batch["input_ids"], groups_by_token(batch), seed=config.seed, step=step)
                for one, mask, batch in each
            ]
        if config.weighting == "batch_permuted":
            return self._permuted(batches, masks, weights, step)
        if config.weighting == "position":
            return self._by_position(batches, masks, weights)
        return weights

    def _values(self, batch: dict[str, Any]) -> Tensor:
        if VALUES.name not in batch:
            if self._score is None:
                raise ValueError("the batch carries no values, and there is no value model to ask.")
            batch[VALUES.name] = as_bits(self._score(batch))
        values = scores_of(batch, VALUES)
        del batch[VALUES.name]
        return values

    def _advantages(self, batch: dict[str, Any], values: Tensor, mask: Tensor) -> Tensor:
        starts = document_starts(batch["labels"], batch.get("position_ids"))
        config = self.config
        errors = td_errors(
            values,
            mask,
            starts,
            gamma=config.td_gamma,
            terminal=config.td_terminal,
            first_baseline=config.td_first_baseline,
        )
        return advantages(errors, mask, starts, gamma=config.td_gamma, lam=config.td_lambda)

    def _permuted(
        self, batches: list[dict[str, Any]], masks: list[Tensor], weights: list[Tensor], step: int
    ) -> list[Tensor]:
        """All weights of this process's step in another order, as if its tokens were one sequence."""
        ids, valid, flat = (
            torch.cat([part.flatten() for part in parts])[None]
            for parts in ([batch["input_ids"] for batch in batches], masks, weights)
        )
        mixed = shuffled(flat, valid, ids, torch.zeros_like(ids), seed=self.config.seed, step=step)[0]
        return [part.view_as(one) for part, one in zip(mixed.split([w.numel() for w in weights]), weights, strict=True)]

    def _by_position(self, batches: list[dict[str, Any]], masks: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """The moving average over the steps of the mean weight at each relative position."""
        bins = [
            relative_bins(mask, groups_by_token(batch), POSITION_BINS)
            for mask, batch in zip(masks, batches, strict=True)
        ]
        sums = torch.zeros(2, POSITION_BINS, dtype=torch.float64, device=masks[0].device)
        for found, mask, one in zip(bins, masks, weights, strict=True):
            sums[0].scatter_add_(0, found[mask], one[mask].double())
            sums[1].scatter_add_(0, found[mask], torch.ones_like(one[mask], dtype=torch.float64))
        totals, counts = self._all_sum(sums).tolist()
        known = self._position_means or [1.0] * POSITION_BINS
        share = self.config.weight_momentum if self._position_means else 1.0
        self._position_means = [
            (1 - share) * old + share * total / count if count else old
            for old, total, count in zip(known, totals, counts, strict=True)
        ]
        means = torch.tensor(self._position_means, device=masks[0].device)
        return [torch.where(mask, means[found], 0.0) for found, mask in zip(bins, masks, strict=True)]

    def _normalized(self, batches: list[dict[str, Any]], masks: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """The weights with mean 1 over the tokens of the step; the metrics are those of before."""
        place = Correlation()
        for batch, mask, one in zip(batches, masks, weights, strict=True):
            place.add(one[mask], _relative_positions(mask, groups_by_token(batch)))
        found = place.over_all(self._all_sum)
        self._metrics |= {"weight_mean": found.mean_x, "weight_std": found.std_x}
        self._metrics["weight_position_correlation"] = found.pearson
        if not self.config.normalize_weights or not found.mean_x > 0:
            return weights
        return [one / found.mean_x for one in weights]

    def _refuse_no_numbers(
        self, batches: list[dict[str, Any]], masks: list[Tensor], weights: list[Tensor], step: int
    ) -> None:
        broken = [(mask & ~one.isfinite()).any(-1) for mask, one in zip(masks, weights, strict=True)]
        count = torch.stack([rows.sum() for rows in broken]).sum()
        if not self._all_sum(count):
            return
        if not count:
            raise UserError("token_weights: another process has weights that are no numbers; see its message.")
        batch, row = next((b, int(rows.nonzero()[0])) for b, rows in zip(batches, broken, strict=True) if rows.any())
        ids = batch["input_ids"][row].tolist()
        shown = repr(self._decode(ids)[:120]) if self._decode is not None else f"tokens {ids[:20]}"
        raise UserError(
            f"token_weights: in step {step + 1} the weights of row {row + 1} of a batch are no numbers: {shown}. The "
            "values that they are made of are damaged: remove the folder of `value_cache_dir`, or name another value "
            "model."
        )

    # What is measured.

    def note_nll(self, batch: dict[str, Any], nll: Tensor) -> None:
        """Add a micro-batch to the correlation of weights and losses.

        Args:
            batch: with its weights.
            nll: (rows, tokens), the loss of each target token under the model that is trained.
        """
        mask = scored_positions(batch["labels"])
        self._nll.add(batch[WEIGHTS][mask], nll.detach()[mask])
        if self._first is not None:
            self._first.note("loss", nll.detach())

    def pop_metrics(self) -> dict[str, float]:
        """Return what was measured since the last call; all processes call together.

        `weight_mean` and `weight_std` before the normalisation, `weight_clipped` (share of the tokens),
        `weight_position_correlation` and `weight_nll_correlation` (Pearson's, with the relative position in the
        sequence and with the token's loss).
        """
        metrics, self._metrics = self._metrics, {}
        nll, self._nll = self._nll.over_all(self._all_sum), Correlation()
        return metrics | ({"weight_nll_correlation": nll.pearson} if nll.count else {})

    def sample(self) -> tuple[list[int], dict[str, Any]] | None:
        """Return token ids and figures of the last step's first sequence, for `TokenSamples.write`; once for a step."""
        first, self._first = self._first, None
        if first is None:
            return None
        return first.sample(weighting=self.config.weighting, value=None, loss=None)

    # What a resumed run goes on with.

    @property
    def has_state(self) -> bool:
        """Whether a resumed run needs a file."""
        return self.config.weighting in VALUED

    def save(self, folder: str | Path) -> None:
        """Write the moving statistics into a checkpoint; one process does."""
        if self.has_state:
            state = {"statistics": self.statistics.state_dict(), "position_means": self._position_means}
            write_atomically(Path(folder) / STATE_FILE, json.dumps(state, indent=2) + "\n")

    def load(self, folder: str | Path) -> None:
        """Go on from a checkpoint's statistics.

        Raises:
            UserError: they are missing or damaged.
        """
        if not self.has_state:
            return
        file = Path(folder) / STATE_FILE
        advice = "Resume from another checkpoint, or start anew: a run that goes on without would weight other tokens."
        if not file.is_file():
            raise UserError(f"resume_from_checkpoint: {file}, the moving mean and spread, is missing. {advice}")
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            self.statistics.load_state_dict(state["statistics"])
            self._position_means = [float(mean) for mean in state["position_means"]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"resume_from_checkpoint: {file} is damaged ({error!r}). {advice}") from error


def _relative_positions(mask: Tensor, groups: Tensor) -> Tensor:
    """Where each valid token stands in its sequence, 0 to below 1. Shape: (valid tokens,)."""
    return relative_bins(mask, groups, 1000)[mask].double() / 1000
