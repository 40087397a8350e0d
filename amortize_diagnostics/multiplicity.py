"""Several tests at once, and one test of several ranks that depend on each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize_diagnostics.paired import check_no_nan

Array = NDArray[np.float64]

_POINTS = np.linspace(0.05, 0.95, 37)
_NUM_NULL = 20_000


def holm(p_values: ArrayLike) -> Array:
    """P-values of several tests, raised so that the smallest speaks for all of them.

    The i-th smallest of m is multiplied by `m - i + 1`, and none gets below a smaller one. The
    chance that any true hypothesis has an adjusted p-value below `a` is at most `a`, however the
    tests depend on each other.

    Args:
        p_values: Shape `(num_tests,)`.

    Returns:
        Adjusted p-values, same shape and order.

    Raises:
        ValueError: If a value is no probability.

    Example:
        >>> holm([0.01, 0.5, 0.02]).tolist()
        [0.03, 0.5, 0.04]

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal
        of Statistics 6.
    """
    values = np.asarray(p_values, float)
    if values.ndim != 1 or np.any(~((values >= 0) & (values <= 1))):
        raise ValueError(
            f"p_values: expected probabilities of shape (num_tests,), got {p_values!r}."
        )
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


def pooled_uniformity(pit: ArrayLike, rng: np.random.Generator) -> float:
    """P-value of uniformity of ranks that are pooled over the elements of each data set.

    `D_i(v)` is the fraction of data set i's ranks below `v`, minus `v`. Data sets are independent,
    the elements of one are not; so the statistic is the largest `|mean_i D_i(v)| / s(v)` over 37
    points, with `s(v)^2 = c v (1 - v)` and one factor `c` from the spread over data sets, and its
    null weighs the data sets at random.

    Use it for local latents of a plate: an error that all elements share adds up. The p-value is
    right for many data sets, not exactly.

    Args:
        pit: Shape `(num_datasets, num_elements)`.
        rng: Draws the weights.

    Returns:
        The p-value, at least 1 / 20001.

    Raises:
        ValueError: If the shape is another, if there are fewer than 50 data sets, or if a value is
            NaN.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> shared = rng.uniform(size=(300, 1))  # the same rank in all elements: still fine
        >>> bool(pooled_uniformity(shared * np.ones((1, 8)), rng) > 0.05)
        True
    """
    values = np.asarray(pit, float)
    if values.ndim != 2 or len(values) < 50 or not values.shape[1]:
        raise ValueError(
            "pit: expected shape (num_datasets, num_elements) with at least 50 data sets, got "
            f"{values.shape}. Put the data sets first."
        )
    check_no_nan("pit", values)
    below = np.mean(values[:, :, None] <= _POINTS, axis=1) - _POINTS
    # The spread of each point alone is small where a low count is: all points share one factor.
    single = _POINTS * (1 - _POINTS)
    factor = max(float(np.mean(below.var(0, ddof=1) / single)), 1e-12)
    mean, spread = below.mean(0), np.sqrt(factor * single)
    root = np.sqrt(len(values))
    statistic = np.max(np.abs(mean) / spread) * root
    scaled = (below - mean) / (spread * root)
    # Weights that are normal give sums that are normal: only their covariance is needed.
    sizes, vectors = np.linalg.eigh(scaled.T @ scaled)
    spreads = vectors * np.sqrt(np.maximum(sizes, 0.0))
    noise = rng.normal(size=(_NUM_NULL, len(_POINTS)))
    null = np.max(np.abs(noise @ spreads.T), axis=1)
    return float((1 + np.count_nonzero(null >= statistic)) / (1 + _NUM_NULL))
