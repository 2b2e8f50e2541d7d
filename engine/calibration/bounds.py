"""What a sample of queries says about the mean over all of them: distribution-free, for finite samples.

Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024 (arXiv 2010.09686),
theorem 3: for independent x_i in [0, 1] of mean m, bets l_i that look only at x_1..x_{i-1} make the wealth
prod(1 + l_i (x_i - m)) a nonnegative martingale from 1, so that by Ville's inequality it ever reaches 1/delta with
probability at most delta. A mean at which it did is ruled out.

Where every value is 0 or 1, as the recall of one neighbour is, their sum is binomial and its tail is known: Clopper &
Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 1934. No bound
for such values is higher for every sum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_STEPS = 17  # halvings of [0, 1]: the bound is exact to 8e-6
_MOST = np.array(
    [[0.75], [0.9], [0.98]]
)  # of the largest bet, which could lose everything; where means are near 1, bold ones pay


def lower_bound(values: NDArray[np.float64], delta: float) -> float:
    """A number that the mean of the distribution exceeds with probability at least 1 - delta.

    `values` float64 [n] in [0, 1]: independent draws, or exchangeable ones in random order. 0 for an empty sample.
    Never above the sample's mean less its standard error: a lucky beginning may decide bets, and should not be trusted.
    """
    if not len(values):
        return 0.0
    bets = _bets(values, delta)
    low, high = 0.0, float(values.mean() - values.std() / math.sqrt(len(values)))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _ruled_out(values, bets, middle, delta):
            low = middle
        else:
            high = middle
    return low


def binomial_lower_bound(values: NDArray[np.float64], delta: float) -> float:
    """`lower_bound` of independent draws, each 0 or 1, float64 [n]: the mean under which sums as high have probability
    delta. Their order does not matter."""
    n, ones = len(values), int(np.count_nonzero(values))
    if not ones:
        return 0.0
    misses = np.arange(n - ones + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ways = logs[n] - logs[misses] - logs[n - misses]
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tail = np.logaddexp.reduce(ways + misses * math.log1p(-middle) + (n - misses) * math.log(middle))
        if tail < math.log(delta):
            low = middle
        else:
            high = middle
    return low


def _bets(values: NDArray[np.float64], delta: float) -> NDArray[np.float64]:
    """Predictable bets: those that a normal distribution of the mean and variance seen so far would ask for."""
    n = len(values)
    count = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(values)) / (count + 1)
    variances = (0.25 + np.cumsum(np.square(values - means))) / (count + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.sqrt(2 * math.log(1 / delta) / (n * before))


def _ruled_out(values: NDArray[np.float64], bets: NDArray[np.float64], mean: float, delta: float) -> bool:
    """Whether a true mean of at most `mean` would have made the wealth reach 1/delta.

    The wealth is shared among some bettors: a mean of martingales is one.
    """
    if mean <= 0:
        return True
    logs = np.cumsum(np.log1p(np.minimum(bets, _MOST / mean) * (values - mean)), axis=1)
    wealth = np.logaddexp.reduce(logs) - math.log(len(_MOST))
    return bool(wealth.max() >= math.log(1 / delta))
