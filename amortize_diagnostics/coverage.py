"""Coverage of credible regions, and how far posteriors are from the truth and from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize_diagnostics.paired import checked_pair
from amortize_diagnostics.ranks import EcdfTest, ecdf_test, posterior_ranks, ranks_from_counts

Array = NDArray[np.float64]

_LEVELS = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often credible regions hold the truth, beside what they promise.

    `print(coverage)` says it in words.

    Args:
        levels: Promised probabilities, shape `(num_levels,)`.
        coverage: Fraction of data sets whose region of that probability holds the truth.
        se: Standard error of `coverage`.
        credibility: Probability of the smallest region that holds the truth, for each data set:
            uniform for the exact posterior, shape `(num_datasets,)`.
        test: Whether `credibility` is uniform.
    """

    levels: Array
    coverage: Array
    se: Array
    credibility: Array
    test: EcdfTest

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.test.p_value >= 1 - self.test.prob:
            return "covers what it promises"
        if abs(self.test.offset) < 2.0:
            return "covers other than promised"
        return "overconfident" if self.test.offset > 0 else "conservative"

    def __str__(self) -> str:
        found = ", ".join(
            f"{100 * coverage:.0f} ± {100 * se:.0f} % in regions of {100 * level:.0f} %"
            for level, coverage, se in zip(self.levels, self.coverage, self.se, strict=True)
            if round(100 * level) in (50, 90)
        )
        return f"{self.verdict} (p = {self.test.p_value:.2g}): {found}"


def hpd_coverage(
    log_prob_draws: ArrayLike,
    log_prob_truths: ArrayLike,
    rng: np.random.Generator,
    *,
    prob: float = 0.95,
) -> Coverage:
    """Coverage of the regions of highest density of a guide.

    The credibility of a truth is the probability of all that the guide holds denser:
    `c_i = (1/S) #{s: log q(z_is | x_i) > log q(z_i | x_i)}`. Regions of probability `a` hold the
    truth in a fraction `a` of the data sets if the guide is exact; more is conservative.

    Use it where the guide has a density: it judges all latents jointly. It depends on the space in
    which densities are measured, and a guide that returns the prior passes.

    Args:
        log_prob_draws: `log q` of the guide's own draws, shape `(num_draws, num_datasets)`, in
            nats.
        log_prob_truths: `log q` of the truths, shape `(num_datasets,)`. `-inf` is a truth that
            the guide excludes.
        rng: Breaks ties, and makes ranks continuous.
        prob: Probability of the band of the test.

    Returns:
        Coverage at 19 levels, and its test.

    Raises:
        ValueError: As `posterior_ranks`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, draws = rng.normal(size=300), 0.7 * rng.normal(size=(999, 300))
        >>> print(hpd_coverage(-(draws**2), -(z**2), rng))
        overconfident (p = 4.4e-16): 33 ± 3 % in regions of 50 %, 73 ± 2 % in regions of 90 %

    References:
        Hermans and others (2022), A trust crisis in simulation-based inference? Your posterior
        approximations can be unfaithful, arXiv:2110.06581, equation 6.
    """
    names = ("log_prob_draws", "log_prob_truths")
    draws, truths = checked_pair(log_prob_draws, log_prob_truths, names)
    if truths.ndim != 1:
        raise ValueError(
            f"log_prob_truths: expected shape (num_datasets,), got {truths.shape}. Sum over the "
            "latents of a data set."
        )
    above = np.count_nonzero(draws > truths, axis=0)
    equal = np.count_nonzero(draws == truths, axis=0)
    return coverage_of(ranks_from_counts(above, equal, len(draws), rng).pit, prob=prob)


def central_coverage(
    draws: ArrayLike, truths: ArrayLike, rng: np.random.Generator, *, prob: float = 0.95
) -> Coverage:
    """Coverage of central intervals of one scalar.

    The credibility of a truth is `|2 u - 1|` with its randomised rank `u`: the probability of the
    central interval that just reaches it.

    Use it to say what an error of ranks means for intervals. It sees widths, and bias only beside
    them: a shift of the posterior to one side makes the other side right.

    Args:
        draws: Shape `(num_draws, num_datasets)`.
        truths: Shape `(num_datasets,)`.
        rng: Breaks ties, and makes ranks continuous.
        prob: Probability of the band of the test.

    Returns:
        Coverage at 19 levels, and its test.

    Raises:
        ValueError: As `posterior_ranks`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z, draws = rng.normal(size=300), 1.4 * rng.normal(size=(999, 300))
        >>> print(central_coverage(draws, z, rng))
        conservative (p = 5.4e-11): 63 ± 3 % in regions of 50 %, 97 ± 2 % in regions of 90 %
    """
    if np.ndim(truths) != 1:
        raise ValueError(
            f"truths: expected shape (num_datasets,), got {np.shape(truths)}. Pass one scalar at a "
            "time."
        )
    return coverage_of(np.abs(2 * posterior_ranks(draws, truths, rng).pit - 1), prob=prob)


def coverage_of(credibility: Array, *, prob: float = 0.95) -> Coverage:
    """Coverage from the credibility of each truth.

    Args:
        credibility: Shape `(num_datasets,)`, continuous on (0, 1).
        prob: Probability of the band of the test.
    """
    found = np.mean(credibility[:, None] <= _LEVELS, axis=0)
    se = np.sqrt(_LEVELS * (1 - _LEVELS) / len(credibility))  # of the exact posterior
    return Coverage(_LEVELS, found, se, credibility, ecdf_test(credibility, prob=prob))


@dataclass(frozen=True, eq=False)
class Recovery:
    """How posteriors lie to the truths and to the prior, data set by data set and in the mean.

    For the exact posterior `z` has mean 0 and mean square 1, and the squared correlation of
    posterior means and truths equals the mean contraction. A contraction without correlation is
    an answer to other data; no contraction at all is the prior.

    Args:
        zscore: `(posterior mean - truth) / posterior sd`, shape `(num_datasets, ...)`.
        contraction: `1 - posterior variance / prior variance`, same shape.
        mean_zscore: Mean over data sets, shape `(...)`.
        mean_zscore_se: Its standard error.
        mean_square: Mean square of `zscore`.
        mean_square_se: Its standard error.
        mean_contraction: Mean over data sets.
        mean_contraction_se: Its standard error.
        correlation: Correlation of posterior means and truths over data sets, shape `(...)`.
    """

    zscore: Array
    contraction: Array
    mean_zscore: Array
    mean_zscore_se: Array
    mean_square: Array
    mean_square_se: Array
    mean_contraction: Array
    mean_contraction_se: Array
    correlation: Array


def recovery(
    draws: ArrayLike, truths: ArrayLike, *, prior_variance: ArrayLike | None = None
) -> Recovery:
    """Posterior z-scores and contractions of scalars.

    `z = (mean_s z_s - z) / sd_s` and `1 - var_s / var_prior`. By the law of total variance the
    mean contraction of the exact posterior is the fraction of the prior variance that posterior
    means explain.

    Use it beside ranks, to see whether the data matter at all and in which units an error is. It
    needs posteriors and a prior with a variance: pass the logarithm of what has none.

    Args:
        draws: Shape `(num_draws, num_datasets, ...)`.
        truths: Shape `(num_datasets, ...)`.
        prior_variance: Of each scalar, shape `(...)`; the variance of `truths` if None.

    Returns:
        Both numbers for each data set, and their means.

    Raises:
        ValueError: If shapes do not belong together, if there are fewer than 50 data sets or 20
            draws, if a value is NaN, or if a prior variance is not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=4000)
        >>> means = (z + rng.normal(size=4000)) / 2  # the exact posterior at noise 1
        >>> found = recovery(means + 0.5**0.5 * rng.normal(size=(99, 4000)), z)
        >>> round(float(found.mean_contraction), 2), round(float(found.correlation**2), 2)
        (0.5, 0.49)

    References:
        Betancourt (2018), Calibrating model-based inferences and decisions, arXiv:1803.08393,
        section 4.3; Schad, Betancourt and Vasishth (2021), Toward a principled Bayesian workflow,
        Psychological Methods 26.
    """
    many, single = checked_pair(draws, truths)
    variance = np.var(many, axis=0, ddof=1)
    return recovery_of(many.mean(0), variance, single, len(many), prior_variance)


def recovery_of(
    means: Array,
    variances: Array,
    truths: Array,
    num_draws: int,
    prior_variance: ArrayLike | None = None,
) -> Recovery:
    """`recovery` from posterior moments.

    Args:
        means: Means of the draws, shape `(num_datasets, ...)`.
        variances: Unbiased variances of the draws, same shape.
        truths: Same shape.
        num_draws: Number of draws behind the moments.
        prior_variance: As in `recovery`.
    """
    prior = np.asarray(truths.var(0, ddof=1) if prior_variance is None else prior_variance, float)
    if np.any(~(prior > 0)):
        raise ValueError(
            "prior_variance: expected positive numbers, got some that are not. Leave constant "
            "quantities out."
        )
    num = len(truths)
    # The mean of the draws is off by sd / sqrt(S) itself; where all agree, truths are very far.
    noise = np.sqrt(1 + 1 / num_draws)
    zscore = (means - truths) / (noise * np.maximum(np.sqrt(variances), 1e-9 * np.sqrt(prior)))
    with np.errstate(divide="ignore", invalid="ignore"):
        centred, others = means - means.mean(0), truths - truths.mean(0)
        correlation = np.sum(centred * others, 0) / np.sqrt(
            np.sum(centred**2, 0) * np.sum(others**2, 0)
        )
    contraction = 1 - variances / prior
    root = np.sqrt(num)
    return Recovery(
        zscore=zscore,
        contraction=contraction,
        mean_zscore=zscore.mean(0),
        mean_zscore_se=zscore.std(0, ddof=1) / root,
        mean_square=np.mean(zscore**2, 0),
        mean_square_se=np.std(zscore**2, 0, ddof=1) / root,
        mean_contraction=contraction.mean(0),
        mean_contraction_se=contraction.std(0, ddof=1) / root,
        correlation=np.nan_to_num(correlation, nan=0.0),
    )
