"""Coverage of balls around random points: a joint test from draws alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize_diagnostics.paired import check_no_nan, checked_pair
from amortize_diagnostics.ranks import EcdfTest, ecdf_test, ranks_from_counts

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tarp:
    """Expected coverage of balls around reference points, beside what they promise.

    `print(tarp)` says it in words.

    Args:
        alpha: Promised probabilities, shape `(num_alpha,)`.
        coverage: Fraction of data sets whose credibility is below `alpha`, same shape.
        se: Standard error of `coverage`.
        credibility: Fraction of draws nearer to the reference than the truth, randomised: uniform
            on (0, 1) for the exact posterior, shape `(num_datasets,)`.
        area: Integral of `coverage - alpha` over alpha from 0.5 to 1: above zero the posterior is
            too wide, below it too narrow, if it is not biased.
        test: Whether `credibility` is uniform.
        is_independent: Whether the references know nothing of the data.
    """

    alpha: Array
    coverage: Array
    se: Array
    credibility: Array
    area: float
    test: EcdfTest
    is_independent: bool

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.test.p_value >= 1 - self.test.prob:
            return "covers what it promises"
        if self.is_independent:
            return "too wide" if self.area > 0 else "too narrow or biased"
        return "wrong around points that the data point to"

    def __str__(self) -> str:
        kind = "points that ignore the data" if self.is_independent else "points from the data"
        return f"{self.verdict} (p = {self.test.p_value:.2g}, {kind})"


def tarp(
    draws: ArrayLike,
    truths: ArrayLike,
    rng: np.random.Generator,
    *,
    references: ArrayLike | None = None,
    num_alpha: int = 101,
    prob: float = 0.95,
) -> Tarp:
    """Test joint draws by the coverage of balls around reference points.

    `f_i = (1/S) #{s: |z_is - r_i| < |z_i - r_i|}` is the credibility of the ball around `r_i`
    through the truth; for the exact posterior it is uniform for every reference, and if it is
    for every function `r(x)`, the posterior is exact. Distances are Euclidean, in units
    of the standard deviations of the truths.

    Use it on several latents together, without any density. References must not know the
    truths. Those that ignore the data accept a guide that returns the prior: pass some that
    follow the data too, such as `reference_points` learned from other simulations.

    Args:
        draws: Shape `(num_draws, num_datasets, num_latents)`.
        truths: Shape `(num_datasets, num_latents)`.
        rng: Draws references, and breaks ties.
        references: Points that are functions of the data, shape `(num_datasets, num_latents)`;
            uniform in the box of the truths if None.
        num_alpha: Number of probabilities at which `coverage` is given.
        prob: Probability of the band of the test.

    Returns:
        Coverage and its test.

    Raises:
        ValueError: If shapes do not belong together, if there are fewer than 50 data sets or 20
            draws, if a value is NaN, or if a latent is constant.

    Warns:
        UserWarning: If references ignore the data.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(300, 2))
        >>> x = z + 0.5 * rng.normal(size=(300, 2))
        >>> prior = rng.normal(size=(499, 300, 2))  # a guide that ignores x
        >>> print(tarp(prior, z, rng, references=x).verdict)
        wrong around points that the data point to

    References:
        Lemos, Coogan, Hezaveh and Perreault-Levasseur (2023), Sampling-based accuracy testing of
        posterior estimators for general inference, arXiv:2302.03026, theorem 3 and algorithm 2.
        Their histogram over the observed range of `f` is not used: it hides constant values.
    """
    many, single = checked_pair(draws, truths)
    if single.ndim != 2 or not single.shape[1]:
        raise ValueError(
            "truths: expected shape (num_datasets, num_latents), got "
            f"{single.shape}. Flatten the latents of a data set to one axis."
        )
    scale = single.std(0)
    if np.any(scale == 0):
        raise ValueError(
            f"truths: expected latents that vary, got a constant one at {int(np.argmin(scale))}. "
            "Leave it out."
        )
    if references is None:
        warnings.warn(
            "references: none of them follow the data, so that a guide that returns the prior "
            "passes; pass references that are functions of the data too",
            stacklevel=2,
        )
        points = rng.uniform(single.min(0), single.max(0), size=single.shape)
    else:
        points = checked_references(references, single.shape)
    far = squared_distance(single, points, scale)
    near = squared_distance(many, points, scale)
    return tarp_from_counts(
        np.count_nonzero(near < far, axis=0),
        np.count_nonzero(near == far, axis=0),
        len(many),
        rng,
        is_independent=references is None,
        num_alpha=num_alpha,
        prob=prob,
    )


def checked_references(references: ArrayLike, shape: tuple[int, ...]) -> Array:
    """References as numbers of the shape of the truths, or a ValueError."""
    points = np.asarray(references, float)
    if points.shape != shape:
        raise ValueError(
            f"references: expected a point for each data set, shape {shape}, got {points.shape}. "
            "One point for all would lose power."
        )
    check_no_nan("references", points)
    return points


def squared_distance(values: Array, points: Array, scale: Array) -> Array:
    """Squared distance of values `(..., num_datasets, num_latents)` from the points."""
    return np.sum(((values - points) / scale) ** 2, axis=-1)


def tarp_from_counts(
    nearer: ArrayLike,
    equal: ArrayLike,
    num_draws: int,
    rng: np.random.Generator,
    *,
    is_independent: bool,
    num_alpha: int = 101,
    prob: float = 0.95,
) -> Tarp:
    """`tarp` from how many draws are nearer to the reference than the truth, or as near.

    Args:
        nearer: Number of draws that are nearer, shape `(num_datasets,)`.
        equal: Number of draws as near, same shape.
        num_draws: Number of draws.
        rng: Breaks ties.
        is_independent: Whether references ignore the data.
        num_alpha: Number of probabilities at which coverage is given.
        prob: Probability of the band of the test.
    """
    if num_alpha < 3:
        raise ValueError(f"num_alpha: expected at least 3 probabilities, got {num_alpha}.")
    credibility = ranks_from_counts(nearer, equal, num_draws, rng).pit
    alpha = np.linspace(0, 1, num_alpha)
    coverage = np.mean(credibility[:, None] < alpha, axis=0)
    upper = alpha >= 0.5
    return Tarp(
        alpha=alpha,
        coverage=coverage,
        se=np.sqrt(alpha * (1 - alpha) / len(credibility)),
        credibility=credibility,
        area=float(np.trapezoid((coverage - alpha)[upper], alpha[upper])),
        test=ecdf_test(credibility, prob=prob),
        is_independent=is_independent,
    )


def reference_points(
    data: ArrayLike, past_data: ArrayLike, past_truths: ArrayLike, *, penalty: float = 1.0
) -> Array:
    """Reference points that follow the data: a regression learned from other simulations.

    Kernel ridge regression of the truths on the data with the kernel `(1 + x.x' / d)^2` of
    standardised data, so that squares and products count: a scale shows in them.

    Use it for the `references` of `tarp`. The past simulations must be others than those tested, or
    the points would know the truths.

    Args:
        data: Data of the simulations that are tested, shape `(num_datasets, data_size)`.
        past_data: Data of other simulations, `(num_past, data_size)`.
        past_truths: Their latents, `(num_past, num_latents)`.
        penalty: Added to the diagonal of the kernel matrix.

    Returns:
        A point for each data set, shape `(num_datasets, num_latents)`.

    Raises:
        ValueError: If shapes do not belong together, or if a value is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(400, 1))
        >>> x = z + 0.1 * rng.normal(size=(400, 1))
        >>> points = reference_points(x[200:], x[:200], z[:200])
        >>> bool(np.corrcoef(points[:, 0], z[200:, 0])[0, 1] > 0.95)
        True
    """
    new, past, truths = (np.asarray(each, float) for each in (data, past_data, past_truths))
    shapes = new.shape, past.shape, truths.shape
    fits = all(len(shape) == 2 for shape in shapes) and len(past) == len(truths)
    if not fits or new.shape[1:] != past.shape[1:]:
        raise ValueError(
            "data, past_data and past_truths: expected shapes (num_datasets, data_size), "
            f"(num_past, data_size) and (num_past, num_latents), got {shapes}. Flatten the data of "
            "a data set to one axis."
        )
    for name, values in (("data", new), ("past_data", past), ("past_truths", truths)):
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"{name}: expected finite numbers, got some that are not. Fill missing values "
                "with those of the middle and add an indicator."
            )
    middle = np.median(past, axis=0)
    scale = np.subtract(*np.quantile(past, [0.75, 0.25], axis=0)) / 1.349
    scale = np.where(scale > 0, scale, np.maximum(past.std(0), 1e-300))
    old, now = (np.arcsinh((each - middle) / scale) for each in (past, new))
    centre = truths.mean(0)
    kernel = (1 + old @ old.T / old.shape[1]) ** 2
    weights = np.linalg.solve(kernel + penalty * np.eye(len(old)), truths - centre)
    return centre + (1 + now @ old.T / old.shape[1]) ** 2 @ weights
