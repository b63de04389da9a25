"""What tells right from wrong without a critic: length, likelihood under the trunk, and both; on the same pairs.

Each baseline is a difference of the two solutions of a pair, right less wrong; a rule says which sign is preferred.
Rules and the weights of both together are fitted on training pairs, where the labels may be seen.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoModelForCausalLM, PretrainedConfig
from trl.trainer.utils import add_fused_lm_head

from hpt_trl.data.solution_pairs import length_bin
from hpt_trl.evaluation.intervals import wilson
from hpt_trl.models.sharded_weights import spare_from_gathering, whole_weights
from hpt_trl.models.whole_models import load_whole
from hpt_trl.token_scores.kinds import REFERENCE_NLL
from hpt_trl.token_scores.reference_scores import reference_nll
from hpt_trl.token_scores.scoring import Scorer

logger = logging.getLogger(__name__)

# Both solutions of so many pairs in a forward pass.
_BATCH = 4


@dataclass(frozen=True)
class PairMeasures:
    """What is known of a pair's two solutions, right and wrong.

    Attributes:
        tokens: of the solutions.
        likelihood: mean log-probability of a token under the trunk's language model, nats; None where it was not asked.
    """

    tokens: tuple[int, int]
    likelihood: tuple[float, float] | None = None

    @property
    def same_bin(self) -> bool:
        """Whether both are in one bin of lengths."""
        return length_bin(self.tokens[0]) == length_bin(self.tokens[1])


def preferred(gaps: Sequence[float]) -> list[float]:
    """Of each difference, right less wrong: 1 where the right one is higher, 0.5 for a tie, else 0."""
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]


def share(verdicts: Sequence[float]) -> dict[str, Any]:
    """The share of independent pairs that are right, with its 95 % interval."""
    return {"accuracy": fmean(verdicts), "interval": list(wilson(fmean(verdicts), len(verdicts)))}


def difference(one: Sequence[float], other: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error of the difference of two verdicts on the same pairs."""
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    return {
        "difference": fmean(gaps),
        "standard_error": stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None,
    }


def baseline_verdicts(
    train: Sequence[PairMeasures], held_out: Sequence[PairMeasures]
) -> dict[str, tuple[str, list[float]]]:
    """Name -> rule in words and the verdicts on the held-out pairs, of each baseline.

    Args:
        train: pairs that the rules are fitted on.
    """
    lengths = [[float(pair.tokens[0] - pair.tokens[1]) for pair in part] for part in (train, held_out)]
    sign = -1.0 if fmean(preferred(lengths[0])) < 0.5 else 1.0
    found = {"length": ("longer wins" if sign > 0 else "shorter wins", preferred([sign * gap for gap in lengths[1]]))}
    chances = [_likelihoods(part) for part in (train, held_out)]
    if chances[0] is None or chances[1] is None:
        return found
    sign = -1.0 if fmean(preferred(chances[0])) < 0.5 else 1.0
    rule = "likelier wins" if sign > 0 else "less likely wins"
    found["likelihood"] = (rule, preferred([sign * gap for gap in chances[1]]))
    features = [np.array([one, other]).T for one, other in zip(lengths, (chances[0], chances[1]), strict=True)]
    weights = fit_logistic(features[0])
    rule = f"{weights[0]:+.3g} a token, {weights[1]:+.3g} a nat"
    found["length and likelihood"] = (rule, preferred([float(gap) for gap in features[1] @ weights]))
    return found


def fit_logistic(gaps: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Weights w that maximise the mean of log sigmoid(w . gap), by Newton's method; the sides are alike: no intercept.

    Args:
        gaps: (pairs, features), right less wrong.
        ridge: penalty on the weights of features of unit spread, so that pairs which can be told apart without a fault
            have weights all the same.
    """
    scale = np.sqrt((gaps**2).mean(0))
    scale[scale == 0] = 1.0
    x, weights = gaps / scale, np.zeros(gaps.shape[1])
    for _ in range(50):
        right = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (1 - right) / len(x) - ridge * weights
        curvature = (x * (right * (1 - right))[:, None]).T @ x / len(x) + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return weights / scale


def _likelihoods(pairs: Sequence[PairMeasures]) -> list[float] | None:
    if any(pair.likelihood is None for pair in pairs):
        return None
    return [pair.likelihood[0] - pair.likelihood[1] for pair in pairs if pair.likelihood is not None]


def is_language_model(config: PretrainedConfig) -> bool:
    """Whether a model that has this config gives tokens a likelihood."""
    return any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in config.architectures or [])


def language_model(name: str, device: torch.device, **loading: Any) -> Scorer:
    """The model that likelihoods are under, loaded when it is first asked; each process has it whole.

    Args:
        loading: of `from_pretrained`.
    """

    def load() -> torch.nn.Module:
        with whole_weights():
            model: Any = load_whole(AutoModelForCausalLM.from_pretrained, name, **loading)
        add_fused_lm_head(model)
        spare_from_gathering(model)
        return model.to(device).eval().requires_grad_(False)

    return Scorer(REFERENCE_NLL, load, reference_nll, device, nullcontext)


def measured_pairs(
    rows: Sequence[dict[str, Any]], sides: tuple[str, str], model: Scorer | None = None
) -> list[PairMeasures]:
    """Lengths and likelihoods of pairs; all processes call together, and each asks the model about its share.

    Where the model cannot be asked, say for want of memory, a warning says so and there are lengths alone.

    Args:
        rows: encoded pairs.
        model: see `language_model`; its weights are given back. None for lengths alone.
    """
    lengths = [PairMeasures((sum(row[f"{sides[0]}_trained"]), sum(row[f"{sides[1]}_trained"]))) for row in rows]
    if model is None:
        return lengths
    state, failed = PartialState(), []
    mine = list(range(state.process_index, len(rows), state.num_processes))
    found: list[tuple[int, tuple[float, float]]] = []
    try:
        for start in range(0, len(mine), _BATCH):
            places = mine[start : start + _BATCH]
            chances = _likelihoods_of([rows[place] for place in places], sides, model)
            found += zip(places, chances, strict=True)
    except (RuntimeError, OSError, ValueError) as error:
        # The training is done: its results are not to be lost to a baseline.
        failed = [str(error).strip().partition("\n")[0]]
    finally:
        model.unload()
    failed, chance = gather_object(failed), dict(gather_object(found))
    if failed:
        if state.is_main_process:
            logger.warning(
                "The trunk's language model cannot be asked (%s): no likelihoods beside the critic.", failed[0]
            )
        return lengths
    return [replace(pair, likelihood=chance[place]) for place, pair in enumerate(lengths)]


def _likelihoods_of(rows: list[dict[str, Any]], sides: tuple[str, str], model: Scorer) -> list[tuple[float, float]]:
    """Mean log-probabilities of the outputs' tokens, of both sides of each pair."""
    each = [(row[f"{side}_ids"], row[f"{side}_trained"]) for row in rows for side in sides]
    longest = max(len(ids) for ids, _ in each)
    batch = {
        "input_ids": torch.zeros(len(each), longest, dtype=torch.long),
        "attention_mask": torch.zeros(len(each), longest, dtype=torch.long),
        "labels": torch.full((len(each), longest), -100),
    }
    for place, (ids, trained) in enumerate(each):
        batch["input_ids"][place, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][place, : len(ids)] = 1
        batch["labels"][place, : len(ids)] = torch.tensor(ids).where(torch.tensor(trained) == 1, -100)
    nll, count = model(batch).float().sum(-1).cpu(), (batch["labels"][:, 1:] != -100).sum(-1)
    means = (-nll / count.clamp(min=1)).tolist()
    return list(zip(means[::2], means[1::2], strict=True))
