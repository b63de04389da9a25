"""The error of a share: Wilson's interval, which also says something at 0 and at 100 %."""

import math
from collections.abc import Sequence
from statistics import fmean, pvariance

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
    vary as much as the mean of the prompts' shares does (Kish's effective sample size).
    """
    share, count = fmean(shares), len(shares)
    if size == 1:
        return wilson(share, count)
    varies, alone = pvariance(shares) / count, share * (1 - share)
    # All at 0 or at 1: nothing tells the trials of one prompt apart.
    effective = count if alone == 0 else count * size if varies == 0 else min(count * size, alone / varies)
    return wilson(share, effective)
