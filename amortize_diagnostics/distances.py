"""Distances of two samples: maximum mean discrepancy and sliced Wasserstein."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_AT_ONCE = 2_000_000  # numbers held together


@dataclass(frozen=True, eq=False)
class TwoSampleTest:
    """A statistic of two samples, and what it is for samples of one law.

    Args:
        statistic: The statistic; larger is further apart.
        null: The statistic after random exchanges between the samples, shape `(num_null,)`.
        p_value: `(1 + #{null >= statistic}) / (1 + num_null)`, exact for exchangeable rows.

    Example:
        >>> print(TwoSampleTest(0.3, np.zeros(99), 0.01))
        0.3 (p = 0.01)
    """

    statistic: float
    null: Array
    p_value: float

    def __str__(self) -> str:
        return f"{self.statistic:.3g} (p = {self.p_value:.2g})"


def squared_mmd(
    samples_p: ArrayLike,
    samples_q: ArrayLike,
    *,
    bandwidths: ArrayLike | None = None,
    is_unbiased: bool = True,
) -> float:
    """Squared maximum mean discrepancy with Gaussian kernels.

    `E k(a, a') + E k(b, b') - 2 E k(a, b)` with `k(a, b)` the mean of `exp(-|a - b|^2 / (2 l^2))`
    over the bandwidths. The unbiased form leaves pairs of a row with itself out and may be
    below zero; the biased one keeps them and works with a single row.

    Use it for a number between samples of any dimension; `mmd_test` says how large is large.

    Args:
        samples_p: Shape `(num_p, dim)`.
        samples_q: Shape `(num_q, dim)`.
        bandwidths: One or several `l`; the median distance of all rows if None. Compare
            numbers only if they have the same.
        is_unbiased: Whether pairs of a row with itself are left out.

    Returns:
        The squared discrepancy, without a unit.

    Raises:
        ValueError: If shapes do not belong together, if a value is not finite, if a bandwidth is
            not positive, or if the unbiased form has a single row.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(400, 1)), 1 + rng.normal(size=(400, 1))
        >>> exact = 2 * 3**-0.5 * (1 - np.exp(-1 / 6))  # l = 1, unit variances, shift 1
        >>> round(squared_mmd(a, b, bandwidths=1.0), 2), round(float(exact), 2)
        (0.19, 0.18)

    References:
        Gretton and others (2012), A kernel two-sample test, Journal of Machine Learning Research
        13, equations 3 and 5.
    """
    first, second = checked_samples(samples_p, samples_q)
    if is_unbiased and min(len(first), len(second)) < 2:
        raise ValueError(
            "samples_p and samples_q: the unbiased form needs two rows of each, got "
            f"{len(first)} and {len(second)}. Pass is_unbiased=False."
        )
    rows = np.concatenate([first, second])
    kernel = _kernel(rows, bandwidths)
    is_first = (np.arange(len(rows)) < len(first)).astype(float)
    return float(_discrepancies(kernel, is_first[None], is_unbiased=is_unbiased)[0])


def mmd_test(
    samples_p: ArrayLike,
    samples_q: ArrayLike,
    rng: np.random.Generator,
    *,
    bandwidths: ArrayLike | None = None,
    num_null: int = 999,
) -> TwoSampleTest:
    """Test whether two samples are from one law, by their maximum mean discrepancy.

    The null is that of rows exchanged between the samples at random. It holds for any sizes, also
    for a single row of one of them; the statistic is the biased one then.

    Use it for independent rows: draws of a guide beside a reference posterior, or embedded
    data beside embedded simulations.

    Args:
        samples_p: Shape `(num_p, dim)`.
        samples_q: Shape `(num_q, dim)`.
        rng: Exchanges rows.
        bandwidths: As in `squared_mmd`.
        num_null: Number of exchanges.

    Returns:
        The statistic, its null and p-value.

    Raises:
        ValueError: As `squared_mmd`, and if `num_null` is below 19.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> print(mmd_test(rng.normal(size=(100, 2)), 1 + rng.normal(size=(100, 2)), rng))
        0.162 (p = 0.001)
    """
    first, second = checked_samples(samples_p, samples_q)
    check_num_null(num_null)
    rows = np.concatenate([first, second])
    num, num_first = len(rows), len(first)
    is_unbiased = min(num_first, len(second)) > 1
    kernel = _kernel(rows, bandwidths)
    is_first = (np.arange(num) < num_first).astype(float)
    statistic = _discrepancies(kernel, is_first[None], is_unbiased=is_unbiased)[0]
    parts = []
    block = max(_AT_ONCE // num, 1)
    for start in range(0, num_null, block):
        labels = np.tile(is_first, (min(block, num_null - start), 1))
        parts.append(_discrepancies(kernel, rng.permuted(labels, axis=1), is_unbiased=is_unbiased))
    return compared(float(statistic), np.concatenate(parts))


def compared(statistic: float, null: Array) -> TwoSampleTest:
    """A statistic beside its null, with rounding on the side of the null."""
    slack = 1e-12 * max(abs(statistic), float(np.abs(null).max()))
    count = int(np.count_nonzero(null >= statistic - slack))
    return TwoSampleTest(statistic, null, (1 + count) / (1 + len(null)))


def check_num_null(num_null: int) -> None:
    """Raise a ValueError if a null has too few values for a p-value of 0.05."""
    if num_null < 19:
        raise ValueError(
            f"num_null: expected at least 19, got {num_null}. Fewer cannot reach a p-value of 0.05."
        )


def _kernel(rows: Array, bandwidths: ArrayLike | None) -> Array:
    """The mean of Gaussian kernels between all rows, shape `(num, num)`."""
    norms = np.sum(rows**2, axis=1)
    squares = np.maximum(norms[:, None] + norms - 2 * rows @ rows.T, 0.0)
    if bandwidths is None:
        upper = squares[np.triu_indices(len(rows), 1)]
        median = np.median(upper)
        widths = np.array([np.sqrt(median if median > 0 else max(upper.mean(), 1.0))])
    else:
        widths = np.atleast_1d(np.asarray(bandwidths, float))
    if not widths.size or np.any(~(widths > 0)):
        raise ValueError(f"bandwidths: expected positive numbers, got {widths}.")
    total = np.zeros_like(squares)
    for width in widths:
        total += np.exp(-0.5 * squares / width**2)
    return total / len(widths)


def _discrepancies(kernel: Array, is_first: Array, *, is_unbiased: bool) -> Array:
    """The squared discrepancy for each labelling, `(num_labellings, num)` of ones and zeros."""
    in_second = 1.0 - is_first
    num_p, num_q = is_first.sum(1), in_second.sum(1)
    toward_p = is_first @ kernel
    within_p = np.sum(toward_p * is_first, 1)
    across = np.sum(toward_p * in_second, 1)
    within_q = np.sum((in_second @ kernel) * in_second, 1)
    if is_unbiased:  # a kernel of a row and itself is 1
        within = (within_p - num_p) / (num_p * (num_p - 1))
        return within + (within_q - num_q) / (num_q * (num_q - 1)) - 2 * across / (num_p * num_q)
    return within_p / num_p**2 + within_q / num_q**2 - 2 * across / (num_p * num_q)


@dataclass(frozen=True)
class SlicedWasserstein:
    """The sliced Wasserstein distance of two samples.

    Args:
        distance: The distance, in units of the samples.
        se: Its standard error from the number of projections.
        num_projections: Number of directions.

    Example:
        >>> print(SlicedWasserstein(0.5, 0.01, 200))
        0.500 ± 0.010 over 200 directions
    """

    distance: float
    se: float
    num_projections: int

    def __str__(self) -> str:
        return f"{self.distance:.3f} ± {self.se:.3f} over {self.num_projections} directions"


def sliced_wasserstein(
    samples_p: ArrayLike,
    samples_q: ArrayLike,
    rng: np.random.Generator,
    *,
    num_projections: int = 200,
) -> SlicedWasserstein:
    """The root mean squared Wasserstein distance of random one-dimensional projections.

    `SW^2 = E_w int_0^1 (F_w^-1(t) - G_w^-1(t))^2 dt` over unit vectors `w`, with the quantile
    functions of the projected samples. For normals that differ by a shift `m` it is
    `|m| / sqrt(dim)`.

    Use it for a distance with the unit of the latents, in which outliers count. Finite
    samples of one law are apart, too, by about `1 / sqrt(num)` standard deviations: compare with
    the distance of two halves of a reference.

    Args:
        samples_p: Shape `(num_p, dim)`.
        samples_q: Shape `(num_q, dim)`.
        rng: Draws the directions.
        num_projections: Number of directions.

    Returns:
        The distance with its standard error.

    Raises:
        ValueError: If shapes do not belong together, if a value is not finite, or if there are
            fewer than 2 directions.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a = rng.normal(size=(500, 4))
        >>> print(sliced_wasserstein(a, a + 1.0, rng))
        0.995 ± 0.035 over 200 directions

    References:
        Bonneel, Rabin, Peyre and Pfister (2015), Sliced and Radon Wasserstein barycenters of
        measures, Journal of Mathematical Imaging and Vision 51.
    """
    first, second = checked_samples(samples_p, samples_q)
    if num_projections < 2:
        raise ValueError(f"num_projections: expected at least 2, got {num_projections}.")
    directions = rng.normal(size=(first.shape[1], num_projections))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(max(len(first), len(second))) + 0.5) / max(len(first), len(second))
    quantiles = [_quantiles(sample @ directions, levels) for sample in (first, second)]
    squares = np.mean((quantiles[0] - quantiles[1]) ** 2, axis=0)
    distance = float(np.sqrt(squares.mean()))
    error = squares.std(ddof=1) / np.sqrt(num_projections)
    return SlicedWasserstein(
        distance, float(error / (2 * distance)) if distance else 0.0, num_projections
    )


def _quantiles(values: Array, levels: Array) -> Array:
    """Quantiles of each column as order statistics, so that equal sizes are matched in order."""
    rows = np.minimum((levels * len(values)).astype(int), len(values) - 1)
    return np.sort(values, axis=0)[rows]


def checked_samples(samples_p: ArrayLike, samples_q: ArrayLike) -> tuple[Array, Array]:
    """Two samples as finite numbers of one dimension, or a ValueError."""
    first, second = np.asarray(samples_p, float), np.asarray(samples_q, float)
    fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1]
    if not fits or not first.size or not second.size:
        raise ValueError(
            "samples_p and samples_q: expected shapes (num_p, dim) and (num_q, dim), got "
            f"{first.shape} and {second.shape}. Put rows first."
        )
    for name, sample in (("samples_p", first), ("samples_q", second)):
        bad = np.flatnonzero(~np.isfinite(sample).all(1))
        if bad.size:
            raise ValueError(
                f"{name}: expected finite numbers, got others in {bad.size} of {len(sample)} rows, "
                f"the first of which is {bad[0]}. Look for what overflows."
            )
    return first, second
