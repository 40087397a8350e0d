"""Posterior predictive checks: whether data look like what a posterior predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class PredictiveChecks:
    """How data lie among data that a posterior predicts, statistic by statistic.

    Args:
        p_values: By check, such as `"y: sd"`, two-sided p-values of shape `(num_datasets,)`.
        num_draws: Number of predicted data sets for each.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> predicted = {"y": rng.normal(size=(999, 1, 20))}
        >>> print(predictive_checks({"y": 3 * rng.normal(size=(1, 20))}, predicted))
        1 data sets; smallest p-value of 4 checks, times their number
        data set 0: 0.008 (y: sd)
    """

    p_values: dict[str, Array]
    num_draws: int

    @property
    def lowest(self) -> Array:
        """The smallest p-value of each data set, times the number of checks, at most 1."""
        values = np.stack(list(self.p_values.values()))
        return np.minimum(len(values) * values.min(0), 1.0)

    @property
    def lowest_name(self) -> list[str]:
        """The check with the smallest p-value, for each data set."""
        names = list(self.p_values)
        return [names[row] for row in np.argmin(np.stack(list(self.p_values.values())), axis=0)]

    def __str__(self) -> str:
        lowest, names = self.lowest, self.lowest_name
        head = (
            f"{len(lowest)} data sets; smallest p-value of {len(self.p_values)} checks, "
            "times their number"
        )
        worst = np.argsort(lowest, kind="stable")[:5]
        return "\n".join([head, *(f"data set {i}: {lowest[i]:.3f} ({names[i]})" for i in worst)])


def predictive_checks(
    observed: Mapping[str, ArrayLike], predicted: Mapping[str, ArrayLike]
) -> PredictiveChecks:
    """Compare statistics of data with those of data that a posterior predicts.

    For each site mean, standard deviation, minimum and maximum over all of its values; of a single
    value only itself. `p = 2 min(#{T >= t}, #{T <= t})`, each `(1 + count) / (1 + num_draws)`.

    Use it on draws of the exact posterior, weighted or of a Markov chain: draws of a guide that is
    too wide predict too widely, and nothing is then seen. As the data have been used twice, p is
    seldom small if the model is right: rarer than its value says.

    Args:
        observed: Data by site, shape `(num_datasets, ...)`; NaN is missing.
        predicted: Predicted data by site, shape `(num_draws, num_datasets, ...)`.

    Returns:
        The p-values.

    Raises:
        ValueError: If there are no sites, or if shapes do not belong together.

    Example:
        >>> found = predictive_checks({"y": [1.0]}, {"y": [[0.0], [2.0], [3.0]]})
        >>> found.p_values["y: value"].tolist()
        [1.0]

    References:
        Gelman, Meng and Stern (1996), Posterior predictive assessment of model fitness via realized
        discrepancies, Statistica Sinica 6, eq. 5.
    """
    if not observed:
        raise ValueError("observed: expected data of one site at least, got none")
    p_values: dict[str, Array] = {}
    num_draws = 0
    for name, value in observed.items():
        data, draws = np.asarray(value, float), np.asarray(predicted[name], float)
        if data.ndim < 1 or draws.shape[1:] != data.shape or not len(draws):
            raise ValueError(
                f"predicted '{name}': expected shape (num_draws, *{data.shape}), got "
                f"{draws.shape}. Put the draws first and the data sets second."
            )
        num_draws = len(draws)
        flat = data.reshape(len(data), -1)
        replicas = draws.reshape(num_draws, len(data), -1)
        replicas = np.where(np.isnan(flat), np.nan, replicas)
        for label, measure in _statistics(flat.shape[1]).items():
            p_values[f"{name}: {label}"] = _two_sided(measure(flat), measure(replicas))
    return PredictiveChecks(p_values, num_draws)


def _statistics(size: int) -> dict[str, Statistic]:
    if size == 1:
        return {"value": lambda values: values[..., 0]}
    return {
        "mean": _of_present(np.nanmean),
        "sd": _of_present(np.nanstd),
        "min": _of_present(np.nanmin),
        "max": _of_present(np.nanmax),
    }


def _of_present(measure: Callable[..., Any]) -> Statistic:
    """A statistic over the values that are there; NaN where none is."""

    def compute(values: Array) -> Array:
        is_empty = np.asarray(np.isnan(values).all(-1))
        filled = np.where(is_empty[..., None], 0.0, values)
        return np.where(is_empty, np.nan, measure(filled, axis=-1))

    return compute


def _two_sided(observed: Array, replicas: Array) -> Array:
    """Both tails include ties; 1 where nothing was observed."""
    above = (1 + np.sum(replicas >= observed, axis=0)) / (1 + len(replicas))
    below = (1 + np.sum(replicas <= observed, axis=0)) / (1 + len(replicas))
    return np.where(np.isnan(observed), 1.0, np.minimum(2 * np.minimum(above, below), 1.0))
