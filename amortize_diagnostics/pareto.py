"""Generalised Pareto tails of importance weights, for many data sets at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]

# Below this the tail of `num_draws / 5` weights is too short for a fit.
MIN_DRAWS = 25
# Largest weights closer than this (in nats) are equal up to the rounding of float32 densities.
_EQUAL_WEIGHTS = 1e-3
# The fit divides by the lower quartile of the excesses, in units of the largest weight.
_LEAST_QUARTILE = 1e-280
_PRIOR_SCALE, _PRIOR_DRAWS, _PRIOR_SHAPE = 3, 10, 0.5
_NUMBERS_AT_ONCE = 2**22


def smooth_tails(log_weights: Array) -> tuple[Array, Array]:
    """Normalised log weights with smoothed tails, and the shapes of the tails.

    Args:
        log_weights: Shape `(num_datasets, num_draws)`, in nats, with a finite one in each row;
            `-inf` is a weight of zero.

    Returns:
        The same shape, and `khat`, `(num_datasets,)`; see `psis` for where it is undefined.
    """
    smoothed = log_weights - logsumexp(log_weights, axis=1, keepdims=True)
    khat = np.full(len(log_weights), np.nan)
    positive = np.isfinite(smoothed)  # zero weights say nothing about the upper tail
    counts = positive.sum(1)
    for count in np.unique(counts[counts >= MIN_DRAWS]):
        tail_size = int(min(count / 5, 3 * np.sqrt(count)))
        at_once = max(1, _NUMBERS_AT_ONCE // (tail_size * _num_candidates(tail_size)))
        (rows,) = np.nonzero(counts == count)
        for some in np.split(rows, range(at_once, len(rows), at_once)):
            is_positive = positive[some]
            values = smoothed[some][is_positive].reshape(-1, count)
            values, khat[some] = _smooth(values, tail_size)
            block = smoothed[some]
            block[is_positive] = values.reshape(-1)
            smoothed[some] = block
    return smoothed, khat


def _smooth(values: Array, tail_size: int) -> tuple[Array, Array]:
    """`smooth_tails` of finite normalised log weights, `(num_datasets, num_draws)`."""
    tails = np.argsort(values, axis=1)[:, -tail_size - 1 :]
    ordered = np.take_along_axis(values, tails, axis=1)
    cutoff, largest = ordered[:, 0], ordered[:, -1]
    sizes = np.exp(ordered - largest[:, None])
    excesses = sizes[:, 1:] - sizes[:, :1]

    khat = np.zeros(len(values))
    differ = largest - cutoff >= _EQUAL_WEIGHTS
    has_quartile = excesses[:, _quartile(tail_size)] > _LEAST_QUARTILE
    tied = ordered[:, 1 + _quartile(tail_size)] == cutoff
    khat[differ & ~has_quartile] = np.where(tied, np.nan, np.inf)[differ & ~has_quartile]

    fitted = differ & has_quartile
    shape, scale = _fit(excesses[fitted])
    khat[fitted] = shape
    quantiles = sizes[fitted, :1] + _quantiles(shape, scale, tail_size)
    new = np.minimum(np.log(quantiles) + largest[fitted, None], largest[fitted, None])
    replaced = values[fitted]
    np.put_along_axis(replaced, tails[fitted, 1:], new, axis=1)
    values[fitted] = replaced - logsumexp(replaced, axis=1, keepdims=True)
    return values, khat


def _fit(excesses: Array) -> tuple[Array, Array]:
    """Shape and scale of each row of sorted positive excesses over a threshold.

    The empirical Bayes estimate of Zhang and Stephens (2009), with the shape drawn towards 0.5 as
    ten more excesses of that shape would do (Vehtari and others 2024, appendix C).
    """
    tail_size = excesses.shape[1]
    number = np.arange(1, _num_candidates(tail_size) + 1) - 0.5
    spread = _PRIOR_SCALE * excesses[:, _quartile(tail_size), None]
    candidates = (1 - np.sqrt(len(number) / number)) / spread + 1 / excesses[:, -1:]
    shapes = np.log1p(-candidates[..., None] * excesses[:, None]).mean(-1)
    profile = tail_size * (np.log(-candidates / shapes) - shapes - 1)
    weights = np.exp(profile - logsumexp(profile, axis=1, keepdims=True))
    rate = (weights * candidates).sum(1)
    shape = np.log1p(-rate[:, None] * excesses).mean(1)
    drawn = (tail_size * shape + _PRIOR_DRAWS * _PRIOR_SHAPE) / (tail_size + _PRIOR_DRAWS)
    return drawn, -shape / rate


def _quantiles(shape: Array, scale: Array, tail_size: int) -> Array:
    """Those of `(j - 0.5) / tail_size` for each row."""
    survival = -np.log1p(-(np.arange(tail_size) + 0.5) / tail_size)
    shape, scale = shape[:, None], scale[:, None]
    exponential = np.abs(shape) < 1e-12
    growth = np.expm1(np.where(exponential, 1.0, shape) * survival)
    return scale * np.where(exponential, survival, growth / np.where(exponential, 1.0, shape))


def _quartile(tail_size: int) -> int:
    return int(tail_size / 4 + 0.5) - 1


def _num_candidates(tail_size: int) -> int:
    return 30 + int(np.sqrt(tail_size))
