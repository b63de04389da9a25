"""How a critic tells right from wrong on held-out pairs, next to what does so without it: results.json's `critic`."""

from statistics import fmean
from typing import Any

from hpt_trl.methods.critic.baselines import PairMeasures, baseline_verdicts, difference, preferred, share


def pair_figures(
    scores: list[tuple[float, float]], held_out: list[PairMeasures], train: list[PairMeasures]
) -> dict[str, Any]:
    """The accuracies on the held-out pairs, of the critic and of each baseline.

    Args:
        scores: mean values of the right and the wrong solution of each held-out pair.
        held_out, train: what else is known of the pairs; of no training pairs there are no baselines.
    """
    verdicts = preferred([right - wrong for right, wrong in scores])
    figures: dict[str, Any] = {
        "pairs": len(verdicts),
        "critic": share(verdicts),
        "mean_tokens": [fmean(pair.tokens[side] for pair in held_out) for side in (0, 1)],
    }
    same = [verdict for verdict, pair in zip(verdicts, held_out, strict=True) if pair.same_bin]
    if same:
        figures["same_length_bin"] = {"pairs": len(same), **share(same)}
    if train:
        figures["baselines"] = {"chance": {"accuracy": 0.5}}
        for name, (rule, others) in baseline_verdicts(train, held_out).items():
            found = {"rule": rule, **share(others), "critic_less_this": difference(verdicts, others)}
            figures["baselines"][name] = found
    return figures
