"""Ranks of truths among draws, and an exact test of whether they are uniform."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from amortize_diagnostics.paired import check_no_nan, checked_pair

Array = NDArray[np.float64]

_MOST_POINTS = 300
_SURE, _LIKELY = 3.0, 2.0  # standard errors from which an error is named


@dataclass(frozen=True, eq=False)
class RankStatistics:
    """Where each truth lies among the draws of its data set.

    Args:
        ranks: Number of draws below the truth plus a random share of those equal to it, from 0 to
            `num_draws`, shape `(num_datasets, ...)`.
        pit: `(rank + U) / (num_draws + 1)` with one uniform `U` each: exactly uniform on (0, 1)
            for the exact posterior, same shape.
        num_draws: Number of draws of each data set.
    """

    ranks: NDArray[np.int64]
    pit: Array
    num_draws: int


def posterior_ranks(
    draws: ArrayLike, truths: ArrayLike, rng: np.random.Generator
) -> RankStatistics:
    """Rank the truths of simulations among the draws that a guide gives for their data.

    `r_i = sum_s 1[f(z_is, x_i) < f(z_i, x_i)]` plus a uniform share of the ties, for any scalar
    `f`: if the draws are from the exact posterior, all `num_draws + 1` ranks are equally likely.

    Use it on independent draws; a Markov chain must be thinned first, or it looks too narrow.
    Pass a latent for `f`, and also the log likelihood of the data: ranks of latents alone accept
    a guide that returns the prior.

    Args:
        draws: `f` at the draws, shape `(num_draws, num_datasets, ...)`; further axes are
            further quantities.
        truths: `f` at the latents that the data were simulated from, `(num_datasets, ...)`.
        rng: Breaks ties, and makes ranks continuous.

    Returns:
        Ranks and their uniform form.

    Raises:
        ValueError: If the shapes do not belong together, if there are fewer than 50 data sets or
            20 draws, if a value is NaN, or if a quantity is constant.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = posterior_ranks(rng.normal(size=(99, 200)), rng.normal(size=200), rng)
        >>> found.ranks.shape, int(found.ranks.max()) <= 99
        ((200,), True)
        >>> print(ecdf_test(found.pit))
        uniform (p = 0.1 over 200 data sets)

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference
        algorithms with simulation-based calibration, arXiv:1804.06788, theorem 1; Modrak and
        others (2023), Simulation-based calibration checking for Bayesian computation: the choice
        of test quantities shapes sensitivity, arXiv:2211.02383, on quantities that read the data.
    """
    many, single = checked_pair(draws, truths)
    same = np.all(many == single, axis=0) & (single == single[:1])
    if np.any(np.all(same, axis=0)):
        raise ValueError(
            "draws: expected a quantity that varies, got one with a single value in all draws and "
            "truths. It has nothing to rank; leave it out."
        )
    below = np.count_nonzero(many < single, axis=0)
    equal = np.count_nonzero(many == single, axis=0)
    return ranks_from_counts(below, equal, len(many), rng)


def ranks_from_counts(
    below: ArrayLike, equal: ArrayLike, num_draws: int, rng: np.random.Generator
) -> RankStatistics:
    """The ranks of truths from how many draws are below them and equal to them.

    Args:
        below: Number of draws below each truth, any shape.
        equal: Number of draws equal to it, same shape.
        num_draws: Number of draws.
        rng: Breaks ties, and makes ranks continuous.
    """
    below, equal = np.asarray(below, np.int64), np.asarray(equal, np.int64)
    ranks = below + rng.integers(0, equal, endpoint=True)
    return RankStatistics(
        ranks, (ranks + rng.uniform(size=ranks.shape)) / (num_draws + 1), num_draws
    )


@dataclass(frozen=True, eq=False)
class EcdfTest:
    """How far an empirical distribution is from the uniform one, with a band for all of it.

    `print(test)` says it in words. Above zero and then below it the posterior is too narrow; below
    and then above, too wide; on one side only, it is biased.

    Args:
        points: Where the distribution is compared, shape `(num_points,)`.
        difference: Empirical minus uniform distribution function there.
        lower: Lower edge of the band, in the units of `difference`.
        upper: Upper edge of the band.
        prob: Probability that uniform numbers stay inside the band everywhere.
        p_value: Probability that uniform numbers leave as far somewhere.
        num: Number of values.
        offset: Mean minus 1/2, in standard errors: above zero the draws are too low.
        spread: Variance around 1/2 minus 1/12, in standard errors: above zero the draws are
            too narrow.
    """

    points: Array
    difference: Array
    lower: Array
    upper: Array
    prob: float
    p_value: float
    num: int
    offset: float
    spread: float

    @property
    def is_inside(self) -> bool:
        """Whether the distribution stays inside the band everywhere."""
        return bool(np.all((self.difference >= self.lower) & (self.difference <= self.upper)))

    @property
    def shape(self) -> str:
        """What is wrong with the posterior whose ranks these are, in words."""
        return shape_words(self.offset, self.spread)

    def __str__(self) -> str:
        verdict = "uniform" if self.p_value >= 1 - self.prob else self.shape
        return f"{verdict} (p = {self.p_value:.2g} over {self.num} data sets)"


def shape_words(offset: float, spread: float) -> str:
    """What is wrong with draws whose ranks are not uniform.

    Args:
        offset: As in `EcdfTest`.
        spread: As in `EcdfTest`.
    """
    named = {
        "too low": offset,
        "too high": -offset,
        "too narrow": spread,
        "too wide": -spread,
    }
    ranked = sorted(named, key=lambda word: -named[word])
    sure = [word for word in ranked if named[word] > _SURE]
    likely = [word for word in ranked[:1] if named[word] > _LIKELY]
    return " and ".join(sure or likely) or "of another shape"


def ecdf_test(pit: ArrayLike, *, prob: float = 0.95, num_points: int | None = None) -> EcdfTest:
    """Test whether numbers are uniform, everywhere at once and exactly.

    At points `v_k = k / K` the number of values below `v_k` is binomial. With
    `g = 2 min_k min(P(B_k <= n_k), P(B_k >= n_k))`, the p-value is the probability of a `g` that is
    as small, and the band is the set of counts that no `g` below its `1 - prob` quantile allows.
    Both are computed by running through the points with the number of values as the state of a
    chain, not by simulation.

    Use it on the `pit` of `posterior_ranks`, on credibilities, or on p-values. Values must be
    independent: of one data set one value. It has power against all shapes, bias and wrong
    widths first.

    Args:
        pit: Values in (0, 1), shape `(num,)`.
        prob: Probability of the band.
        num_points: Number of intervals `K`; 300 or as many as there are values if None.

    Returns:
        The comparison.

    Raises:
        ValueError: If the shape is another, if a value is outside of [0, 1], if there are fewer
            than 50, or if `prob` or `num_points` is out of range.

    Example:
        >>> squeezed = 0.25 + 0.5 * np.random.default_rng(0).uniform(size=300)
        >>> print(ecdf_test(squeezed))
        too wide (p = 2e-35 over 300 data sets)

    References:
        Saeilynoja, Buerkner and Vehtari (2022), Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison, Statistics and
        Computing 32, section 2; they find the band by simulation or an optimisation.
    """
    values = np.asarray(pit, float)
    if values.ndim != 1 or values.size < 50:
        raise ValueError(
            f"pit: expected shape (num,) with at least 50 values, got {values.shape}. Test one "
            "quantity at a time."
        )
    check_no_nan("pit", values)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"pit: expected values from 0 to 1, got {values.min():.3g} to {values.max():.3g}. "
            "Pass the pit of posterior_ranks, not the ranks."
        )
    if not 0 < prob < 1:
        raise ValueError(f"prob: expected a probability between 0 and 1, got {prob}.")
    num = values.size
    num_points = min(num, _MOST_POINTS) if num_points is None else num_points
    if num_points < 2:
        raise ValueError(f"num_points: expected at least 2 intervals, got {num_points}.")
    points = np.arange(1, num_points) / num_points
    counts = np.searchsorted(np.sort(values), points, side="right")
    at_most, at_least = _tails(num, num_points)
    rows = np.arange(num_points - 1)
    level = float(2 * min(at_most[rows, counts].min(), at_least[rows, counts].min()))
    lower, upper = _bounds(num, num_points, _band_level(num, num_points, prob))
    return EcdfTest(
        points=points,
        difference=counts / num - points,
        lower=lower / num - points,
        upper=upper / num - points,
        prob=prob,
        p_value=_p_value(num, num_points, level),
        num=num,
        offset=float((values.mean() - 0.5) * np.sqrt(12 * num)),
        spread=float((np.mean((values - 0.5) ** 2) - 1 / 12) * np.sqrt(180 * num)),
    )


@lru_cache(maxsize=4)
def _tails(num: int, num_points: int) -> tuple[Array, Array]:
    """`P(B <= n)` and `P(B >= n)` at each inner point, shape `(num_points - 1, num + 1)`."""
    binomial = stats.binom(num, np.arange(1, num_points)[:, None] / num_points)
    counts = np.arange(num + 1)
    return binomial.cdf(counts), binomial.sf(counts - 1)


def _bounds(num: int, num_points: int, level: float) -> tuple[NDArray, NDArray]:
    """The least and the largest count at each inner point with both tails above half a level."""
    at_most, at_least = _tails(num, num_points)
    lower = np.count_nonzero(2 * at_most <= level, axis=1)
    return lower, num - np.count_nonzero(2 * at_least <= level, axis=1)


def _probability_inside(num: int, num_points: int, level: float) -> float:
    """Probability that the counts of uniform numbers are inside such bounds at all points.

    Counts are those of a Poisson process with `num` events expected, given that it has `num`: its
    increments are independent, so that one convolution leads from point to point.
    """
    lower, upper = _bounds(num, num_points, level)
    if np.any(lower > upper):
        return 0.0
    rate = num / num_points
    # Beyond this the probabilities are below 1e-18.
    step = stats.poisson.pmf(np.arange(int(rate + 12 * np.sqrt(rate)) + 20), rate)
    state, start = np.ones(1), 0
    for low, high in zip([*lower, num], [*upper, num], strict=True):
        reached = np.convolve(state, step)  # from `start` on
        first, last = max(low, start), min(high, start + len(reached) - 1)
        if first > last:
            return 0.0
        state, start = reached[first - start : last - start + 1], first
    return float(state[0] / stats.poisson.pmf(num, num))


def _p_value(num: int, num_points: int, level: float) -> float:
    """Probability of a count whose tail is as small, somewhere."""
    p_value = 1.0 - _probability_inside(num, num_points, level)
    if p_value > 1e-9:
        return float(min(p_value, 1.0))
    return float(min((num_points - 1) * level, 1e-9))  # rounding has eaten the difference


@lru_cache(maxsize=32)
def _band_level(num: int, num_points: int, prob: float) -> float:
    """The largest level at which the band holds with at least this probability."""
    low, high = np.log(1 - prob) - np.log(num_points) - 1.0, np.log(1 - prob)
    for _ in range(30):
        middle = 0.5 * (low + high)
        is_wide = _probability_inside(num, num_points, float(np.exp(middle))) >= prob
        low, high = (middle, high) if is_wide else (low, middle)
    return float(np.exp(low))
