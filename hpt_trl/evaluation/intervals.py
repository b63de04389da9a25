"""The error of what was measured: of a share by Wilson's interval, of a ratio of sums by drawing the rows anew.

Wilson's interval says something at 0 and at 100 % as well, where drawing anew finds no spread at all.
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance

import numpy as np

# Two-sided, 95 % of a normal distribution.
Z = 1.959964


def wilson(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` independent trials (Wilson 1927; Brown, Cai, DasGupta 2001).

    A trial may count as half a success, as a tie does: trials vary less then than the formula has it, so the interval
    is wider than it need be, not narrower.

    Returns:
        The lower and the upper bound, both from 0 to 1.
    """
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def clustered(shares: Sequence[float], size: int) -> tuple[float, float]:
    """Wilson's interval of the mean of `shares`, each found by `size` trials that have a cause in common.

    Completions of one prompt succeed and fail together: their number counts as that of independent trials which would
    vary as much as the mean of the prompts' shares does (Kish's effective sample size), and as less where few prompts
    tell how much that is (Korn and Graubard 1998: by Student's t in place of the normal distribution). A prompt counts
    as one trial at least, which is what it is where nothing tells its trials apart.
    """
    share, count = fmean(shares), len(shares)
    if size == 1:
        return wilson(share, count)
    # Of a single prompt, and where all are alike, how they vary is not known.
    varies = variance(shares) / count if count > 1 else 0.0
    if varies == 0:
        return wilson(share, count)
    alike = share * (1 - share) / varies * (Z / _student(count - 1)) ** 2
    return wilson(share, min(count * size, max(count, alike)))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion about the normal one (Abramowitz and Stegun 26.7.5).

    Within 1 % from two degrees of freedom on; of a single one, 11.3 for 12.7.
    """
    x = Z
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def bootstrap(parts: Sequence[tuple[float, float]], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a ratio of sums, by drawing its rows anew (Efron and Tibshirani 1993, ch. 13).

    Args:
        parts: Numerator and denominator of each row, e.g. its loss in nats and its tokens.
        draws: How often rows are drawn.
        seed: Of the draws.
    """
    values = np.asarray(parts, dtype=np.float64)
    generator = np.random.default_rng(seed)
    ratios = np.empty(draws)
    for draw in range(draws):
        tops, bottoms = values[generator.integers(len(values), size=len(values))].sum(0)
        ratios[draw] = tops / bottoms
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
