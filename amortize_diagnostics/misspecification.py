"""Whether observed data look like anything that the model simulates, in an embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from amortize_diagnostics.distances import TwoSampleTest, mmd_test

Array = NDArray[np.float64]

_FEWEST = 100
_RIDGE = 1e-6  # of the mean variance: directions in which no simulation moves count at most so


@dataclass(frozen=True, eq=False)
class Typicality:
    """How far data sets are from the simulations of a model, each by itself.

    `print(found)` names the data sets that are far.

    Args:
        distance: Mahalanobis distance of each embedded data set from the simulations, shape
            `(num_datasets,)`.
        p_value: Fraction of simulations that are as far, same shape: uniform if the data are from
            the model.
        shifts: How many standard deviations each coordinate is from the mean of the simulations,
            shape `(num_datasets, num_features)`.
        threshold: Distance that 5 % of simulations exceed.
    """

    distance: Array
    p_value: Array
    shifts: Array
    threshold: float

    def __str__(self) -> str:
        far = np.flatnonzero(self.p_value < 0.05)
        num = len(self.p_value)
        text = (
            f"{far.size} of {num} data sets are further from the simulations than 95 % of them "
            f"(distance above {self.threshold:.2f}; {0.05 * num:.1f} expected of the model itself)"
        )
        worst = far[np.argsort(self.p_value[far], kind="stable")][:5]
        return "\n".join(
            [text]
            + [
                f"  data set {i}: distance {self.distance[i]:.2f}, p = {self.p_value[i]:.2g}"
                for i in worst
            ]
        )


def typicality(observed: ArrayLike, simulated: ArrayLike) -> Typicality:
    """Judge each data set by its distance from simulations in an embedding.

    `d^2 = (s - m)' C^-1 (s - m)` with the mean and covariance of one half of the simulations; the
    p-value is the rank of `d` among the distances of the other half, `(1 + #{d_sim >= d}) /
    (1 + num)`, which is exact whatever the law of the embedding.

    Use it before an answer of a guide is trusted: outside of its simulations it extrapolates, and
    says nothing. It sees what the embedding sees: a guide that reads means only cannot know
    of a wrong variance. Posterior predictive checks see the rest.

    Args:
        observed: Embedded data sets, shape `(num_datasets, num_features)`.
        simulated: Embedded simulations, shape `(num_simulations, num_features)`, at least 100.

    Returns:
        Distances and p-values.

    Raises:
        ValueError: If shapes do not belong together, if there is no data set, if there are fewer
            than 100 simulations, or if a value is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = typicality([[0.0, 0.0], [6.0, 0.0]], rng.normal(size=(1000, 2)))
        >>> found.p_value.round(3).tolist()
        [0.994, 0.002]

    References:
        Schmitt, Buerkner, Koethe and Radev (2023), Detecting model misspecification in amortized
        Bayesian inference with neural networks, arXiv:2112.08866, whose score for a single data
        set is a discrepancy; the split that makes p-values exact is that of conformal prediction.
    """
    data, simulations = _checked_features(observed, simulated)
    half = len(simulations) // 2
    fitted, others = simulations[:half], simulations[half:]
    middle, spread = fitted.mean(0), fitted.std(0)
    covariance = np.cov(fitted.T).reshape(len(middle), len(middle))
    size = float(np.mean(spread**2)) or 1.0
    factor = cho_factor(covariance + _RIDGE * size * np.eye(len(middle)))

    def distances(rows: Array) -> Array:
        centred = rows - middle
        return np.sqrt(np.sum(centred * cho_solve(factor, centred.T).T, axis=1))

    null, own = distances(others), distances(data)
    count = len(null) - np.searchsorted(np.sort(null), own, side="left")
    return Typicality(
        distance=own,
        p_value=(1 + count) / (1 + len(null)),
        shifts=(data - middle) / np.maximum(spread, np.sqrt(_RIDGE * size)),
        threshold=float(np.quantile(null, 0.95)),
    )


def misspecification_test(
    observed: ArrayLike,
    simulated: ArrayLike,
    rng: np.random.Generator,
    *,
    bandwidths: ArrayLike | None = None,
    num_null: int = 999,
) -> TwoSampleTest:
    """Test whether data sets together look like simulations of the model, in an embedding.

    The statistic is the squared maximum mean discrepancy of observed and simulated embeddings in
    units of the spread of all of them; the null exchanges data sets and simulations, so that it
    holds for any number of data sets. `mmd_test` has the details.

    Use it for several data sets from one source, whose small departures add up; for one by itself
    see `typicality`. Its power is that of the embedding.

    Args:
        observed: Embedded data sets, shape `(num_datasets, num_features)`.
        simulated: Embedded simulations, shape `(num_simulations, num_features)`, at least 100.
        rng: Exchanges rows.
        bandwidths: Widths of the Gaussian kernels after scaling; the median distance if None.
        num_null: Number of exchanges.

    Returns:
        The statistic, its null and p-value.

    Raises:
        ValueError: As `typicality`, and as `mmd_test`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> simulated, observed = rng.normal(size=(500, 3)), 0.8 + rng.normal(size=(20, 3))
        >>> print(misspecification_test(observed, simulated, rng))
        0.182 (p = 0.001)

    References:
        Schmitt, Buerkner, Koethe and Radev (2023), Detecting model misspecification in amortized
        Bayesian inference with neural networks, arXiv:2112.08866, section 3.3.
    """
    data, simulations = _checked_features(observed, simulated)
    rows = np.concatenate([data, simulations])
    spread = rows.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    return mmd_test(
        data / scale, simulations / scale, rng, bandwidths=bandwidths, num_null=num_null
    )


def _checked_features(observed: ArrayLike, simulated: ArrayLike) -> tuple[Array, Array]:
    data, simulations = np.asarray(observed, float), np.asarray(simulated, float)
    fits = data.ndim == simulations.ndim == 2 and data.shape[1] == simulations.shape[1]
    if not fits or not data.size:
        raise ValueError(
            "observed and simulated: expected shapes (num_datasets, num_features) and "
            f"(num_simulations, num_features), got {data.shape} and {simulations.shape}. Flatten "
            "what the embedding gives for one data set to one axis."
        )
    if len(simulations) < _FEWEST:
        raise ValueError(
            f"simulated: expected at least {_FEWEST} simulations, got {len(simulations)}. Fewer "
            "cannot say what is rare."
        )
    for name, values in (("observed", data), ("simulated", simulations)):
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if bad.size:
            raise ValueError(
                f"{name}: expected finite features, got others in {bad.size} of {len(values)} "
                f"rows, the first of which is {bad[0]}. Look at that data set."
            )
    return data, simulations
