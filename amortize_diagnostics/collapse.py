"""Posterior collapse: which latents carry information about the data, and which must not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_BURDA = 0.01  # variance of the means above which a unit is active
_TYPE = 0.1  # how near to 0 or 1, and how constant, the variances of a typed unit are
_FEW_ROWS = 100
_EQUAL = 1e-10  # eigenvalues this close to the threshold, relative to the largest, are on it


@dataclass(frozen=True, eq=False)
class ActiveUnits:
    """What an encoder's means and variances say about each latent unit.

    Three views, because none implies the others: the rate says how much a unit costs, the flag
    of Burda and others whether its mean follows the data, the type of Bonheme and Grzes whether
    it is also precise. `print(units)` shows them side by side.

    Args:
        rate: `E_x KL(q(z_u | x) || Normal(0, 1))` of each unit in nats, shape `(num_units,)`.
        variance_of_means: `Var_x E[z_u | x]`, same shape.
        is_active: Whether that is above 0.01, same shape.
        kinds: "active", "passive" or "mixed", by the variances of `q`, same shape.
    """

    rate: Array
    variance_of_means: Array
    is_active: NDArray[np.bool_]
    kinds: NDArray[np.str_]

    @property
    def num_active(self) -> int:
        """Number of units whose mean follows the data."""
        return int(np.count_nonzero(self.is_active))

    def __str__(self) -> str:
        lines = [f"{self.num_active} of {len(self.rate)} units active (variance of means > 0.01)"]
        lines += [
            f"  unit {unit}: rate {self.rate[unit]:.3f} nats, variance of means "
            f"{self.variance_of_means[unit]:.3g}, {self.kinds[unit]}"
            for unit in range(len(self.rate))
        ]
        return "\n".join(lines)


def active_units(means: ArrayLike, variances: ArrayLike) -> ActiveUnits:
    """Tell latent units that carry information from units that have collapsed to the prior.

    Per unit `u`, over the rows `x` of a data set:

    - rate: the mean of `(m_u(x)^2 + v_u(x) - 1 - log v_u(x)) / 2`, in nats;
    - active by Burda and others: `Var_x m_u(x) > 0.01`;
    - type by Bonheme and Grzes: with the mean and the variance over `x` of `v_u(x)`, "active" if
      the mean is at most 0.1 and "passive" if it is within 0.1 of 1, in both cases only if the
      variance is below 0.1; everything else is "mixed".

    Use it on units with a standard normal prior and a normal `q`, from any encoder. Rate and
    type mean nothing under another prior: there take `site_rates`. Means and variances estimated
    from draws add (variance / number of draws) to the variance of the means, so that Burda's flag
    needs a thousand draws or more.

    Args:
        means: Means of `q(z | x)`, shape `(num_rows, num_units)`, a row for each `x`.
        variances: Variances of `q(z | x)`, same shape: not log variances, nor scales.

    Returns:
        The three views of each unit.

    Raises:
        ValueError: If the shapes differ or are not `(num_rows, num_units)`, if a number is not
            finite, or if a variance is not positive.

    Warns:
        UserWarning: If there are fewer than 100 rows.

    Example:
        >>> means = np.stack([np.linspace(-2, 2, 100), np.zeros(100)], axis=1)
        >>> units = active_units(means, np.tile([0.05, 1.0], (100, 1)))
        >>> units.is_active.tolist(), units.kinds.tolist(), units.rate.round(2).tolist()
        ([True, False], ['active', 'passive'], [1.7, 0.0])

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, appendix C,
        arXiv:1509.00519; Bonheme and Grzes (2021), Be more active! Understanding the differences
        between mean and sampled representations of variational autoencoders, arXiv:2109.12679.
    """
    mean, variance = _numbers("means", means), _numbers("variances", variances)
    if mean.shape != variance.shape or mean.ndim != 2 or not mean.size:
        raise ValueError(
            "means and variances: expected two arrays of one shape (num_rows, num_units), got "
            f"{mean.shape} and {variance.shape}. Pass a row for each datum and a column for each "
            "unit."
        )
    num_bad = int(np.count_nonzero(variance <= 0))
    if num_bad:
        raise ValueError(
            f"variances: expected positive numbers, got {num_bad} of {variance.size} that are not. "
            "If they are log variances, pass np.exp(log_variances)."
        )
    if len(mean) < _FEW_ROWS:
        warnings.warn(
            f"means: {len(mean)} rows say little about variances over data; encode {_FEW_ROWS} or "
            "more",
            stacklevel=2,
        )
    level, spread = variance.mean(0), variance.var(0)
    is_constant = spread < _TYPE
    variance_of_means = mean.var(0)
    return ActiveUnits(
        rate=0.5 * np.mean(mean**2 + variance - 1.0 - np.log(variance), axis=0),
        variance_of_means=variance_of_means,
        is_active=variance_of_means > _BURDA,
        kinds=np.select(
            [is_constant & (level <= _TYPE), is_constant & (np.abs(level - 1.0) <= _TYPE)],
            ["active", "passive"],
            "mixed",
        ),
    )


@dataclass(frozen=True, eq=False)
class LinearVAE:
    """The optimum of a linear variational auto-encoder, one direction of the data per entry.

    Args:
        threshold: `beta s^2`: directions with a larger variance are active.
        eigenvalues: Variances of the data along their principal directions, largest first,
            shape `(num_directions,)`.
        squared_weights: `w_i^2` of the decoder, same shape.
        encoder_slopes: Slope of the encoder's mean along each direction, same shape.
        encoder_variances: Variance of the encoder, same shape; 1, that of the prior, where
            nothing is encoded.
        num_active: Number of directions that are encoded.
    """

    threshold: float
    eigenvalues: Array
    squared_weights: Array
    encoder_slopes: Array
    encoder_variances: Array
    num_active: int


def linear_vae_threshold(
    covariance: ArrayLike,
    beta: float = 1.0,
    noise: float = 1.0,
    *,
    conditioned_on: Sequence[int] = (),
    num_units: int | None = None,
) -> LinearVAE:
    """How many units a linear variational auto-encoder keeps, in closed form.

    For `x | z ~ Normal(W z, s^2 I)`, `z ~ Normal(0, I)`, a normal encoder with a learned diagonal
    covariance and the Kullback-Leibler term weighed by `beta`: with the eigenvalues `l_i` of the
    covariance of the data, unit `i` is active if and only if `l_i > beta s^2`, and
    `w_i^2 = max(0, l_i - beta s^2)`, the encoder's slope is `w_i / (w_i^2 + beta s^2)` and its
    variance `beta s^2 / (w_i^2 + beta s^2)`.

    A conditional auto-encoder `y | x, z ~ Normal(W z + V x, s^2 I)` follows the same rule with
    the covariance of `y` that `x` does not explain, `S_yy - S_yx S_xx^-1 S_xy`: a condition that
    predicts `y` well collapses `z`. The covariance of `y` itself would promise units that are
    not there.

    Use it to choose `beta` or the noise before training, or as the truth in a test of a training
    loop. Nonlinear decoders have other thresholds.

    Args:
        covariance: Covariance of the data, shape `(num_dims, num_dims)`; with a condition, the
            joint covariance of data and condition.
        beta: Weight of the Kullback-Leibler term.
        noise: Standard deviation `s` of the decoder.
        conditioned_on: Which coordinates of `covariance` are the condition `x`.
        num_units: Number of latent units, if fewer than directions.

    Returns:
        The optimum, for each direction of the data, largest variance first.

    Raises:
        ValueError: If the covariance is not square, symmetric, finite and positive semi-definite,
            if `beta` or `noise` is not positive, if `num_units` is negative, or if
            `conditioned_on` does not name some of the coordinates, each once.

    Example:
        >>> optimum = linear_vae_threshold(np.diag([4.0, 1.5, 0.5]), beta=1.0, noise=1.0)
        >>> optimum.num_active, optimum.squared_weights.tolist()
        (2, [3.0, 0.5, 0.0])

    References:
        Lucas, Tucker, Grosse and Norouzi (2019), Don't blame the ELBO!, arXiv:1911.02469; Dang and
        others (2024), Beyond vanilla variational autoencoders: detecting posterior collapse in
        conditional and hierarchical variational autoencoders, arXiv:2306.05023.
    """
    _check_positive("beta", beta)
    _check_positive("noise", noise)
    if num_units is not None and num_units < 0:
        raise ValueError(f"num_units: expected at least 0, got {num_units}. Pass None for all.")
    matrix = _residual(_checked_covariance(covariance), conditioned_on)
    # Rounding may take an eigenvalue of zero below it.
    eigenvalues = np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0.0)
    threshold = float(beta * noise**2)
    excess = eigenvalues - threshold
    excess[excess <= _EQUAL * max(eigenvalues[0], threshold)] = 0.0
    excess[len(excess) if num_units is None else num_units :] = 0.0
    precision = excess + threshold
    return LinearVAE(
        threshold=threshold,
        eigenvalues=eigenvalues,
        squared_weights=excess,
        encoder_slopes=np.sqrt(excess) / precision,
        encoder_variances=threshold / precision,
        num_active=int(np.count_nonzero(excess)),
    )


def _residual(covariance: Array, conditioned_on: Sequence[int]) -> Array:
    """The covariance of the other coordinates that these do not explain."""
    given = sorted(conditioned_on)
    known = set(range(len(covariance)))
    if len(set(given)) < len(given) or not known.issuperset(given) or len(given) == len(known):
        raise ValueError(
            f"conditioned_on: expected some, not all, of 0 to {len(covariance) - 1}, each once, "
            f"got {list(conditioned_on)}. Leave the coordinates that the model encodes out of it."
        )
    kept = sorted(known.difference(given))
    across = covariance[np.ix_(kept, given)]
    inverse = np.linalg.pinv(covariance[np.ix_(given, given)], hermitian=True)
    return covariance[np.ix_(kept, kept)] - across @ inverse @ across.T


def _checked_covariance(covariance: ArrayLike) -> Array:
    matrix = _numbers("covariance", covariance)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"covariance: expected shape (num_dims, num_dims), got {matrix.shape}. Pass "
            "np.cov(data.T) for rows of data."
        )
    size = np.abs(matrix).max()
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    if np.abs(matrix - matrix.T).max() > 1e-6 * size or lowest < -1e-6 * size:
        raise ValueError(
            "covariance: expected a symmetric positive semi-definite matrix, got one with lowest "
            f"eigenvalue {lowest:.3g}. Pass np.cov(data.T) for rows of data."
        )
    return matrix


def _check_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive number, got {value}. Pass one above 0.")


def _numbers(name: str, values: ArrayLike) -> Array:
    numbers = np.asarray(values, dtype=np.float64)
    num_bad = int(np.count_nonzero(~np.isfinite(numbers)))
    if num_bad:
        raise ValueError(
            f"{name}: expected finite numbers, got {num_bad} of {numbers.size} that are not. Look "
            "for an encoder that overflows, or drop these rows."
        )
    return numbers
