"""Where a guide is wrong: a classifier that tells truths from draws given the data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize_diagnostics.classifier import Classifiers

Array = NDArray[np.float64]

_MOST_SCALARS = 16
_MOST_SUMMARIES = 8
_NUM_PILOT = 16  # draws at least, of which medians and quartiles are taken
_NUM_PAIRED = 4  # draws of each data set beside its truth
_NUM_NETWORKS = 3
_LEAST_SPREAD = 1e-3  # of a guide's draws, relative to the prior's


class LocalErrors:
    """A network that has learned, on simulations, to tell draws of a guide from truths.

    `d(u, x)` is the probability that a latent at data x is a draw and no truth; at its best it is
    `q / (q + p)`, so that `E_q (d - 1/2)^2` is zero exactly where the guide is exact. The network
    reads `u = (z - m) / s` with the median m and the spread s of the guide's own draws at x, these
    two, and principal components of summaries of x. At other simulations the ranks of the truth's
    log odds among those of draws are uniform if the guide is exact, whatever the network, and low
    in the mean if it has learned an error: a null without networks of the null.

    Use it on simulations that training has not seen. Errors in a part of the data that cancel over
    all of them are what it sees and ranks of latents do not. For a p-value at one data set
    without a known truth see `LocalC2ST`.

    Args:
        truths: Latents of simulations by site, `(num_simulations, ...)`.
        draws: Draws of the guide at their data by site, `(num_draws, num_simulations, ...)`, 20 or
            more; four are paired with truths and the others give m and s.
        summaries: Their data, or what networks make of them, `(num_simulations, num_summaries)`.
        rng: Initial weights and batches.
        num_steps: Steps of training.

    Raises:
        ValueError: If there are fewer than 100 simulations or 20 draws, if shapes do not belong
            together, if a value is not finite, or if no latent varies.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(400, 1))
        >>> x = z + rng.normal(size=(400, 1))
        >>> wrong = {"z": x + rng.normal(size=(20, 400, 1))}  # they belong around x / 2
        >>> found = LocalErrors({"z": z}, wrong, x, rng, num_steps=200)
        >>> at = found.at({"z": np.full((20, 1, 1), 2.0) + rng.normal(size=(20, 1, 1))}, [[2.0]])
        >>> bool(at({"z": [[1.0]]}) < at({"z": [[3.0]]}))  # above: more mass than there should be
        True

    References:
        Linhart, Gramfort and Rodrigues (2023), L-C2ST: local diagnostics for posterior
        approximations in simulation-based inference, arXiv:2306.03580, equation 9, for the
        statistic; Yao and Domke (2023), Discriminative calibration: check Bayesian computation
        from simulations and flexible classifier, arXiv:2305.14593, for classifiers as checks. Ranks
        in place of a null of retrained networks are ours.
    """

    def __init__(
        self,
        truths: Mapping[str, ArrayLike],
        draws: Mapping[str, ArrayLike],
        summaries: ArrayLike,
        rng: np.random.Generator,
        *,
        num_steps: int = 300,
    ) -> None:
        flat, drawn, data = _checked(truths, draws, summaries)
        low, middle, high = np.quantile(flat, [0.25, 0.5, 0.75], axis=0)
        spread = np.where(high > low, high - low, flat.std(0) * 1.349) / 1.349
        moving = np.flatnonzero(spread > 0)
        if not moving.size:
            raise ValueError("truths: expected latents that vary, got constants only.")
        chosen = np.linspace(0, len(moving) - 1, min(len(moving), _MOST_SCALARS)).astype(int)
        self._columns = moving[chosen]
        self.num_left_out = len(moving) - len(self._columns)
        self._middle, self._spread = middle[self._columns], spread[self._columns]
        self._centre = data.mean(0)
        deviation = data.std(0)
        self._scale = np.where(deviation > 0, deviation, 1.0)
        _, _, axes = np.linalg.svd((data - self._centre) / self._scale, full_matrices=False)
        self._axes = axes[:_MOST_SUMMARIES].T
        pilot = self._pilot(drawn[_NUM_PAIRED:], data)
        rows = [self._rows(value, pilot) for value in (flat, *drawn[:_NUM_PAIRED])]
        inputs = np.concatenate([*[rows[0]] * _NUM_PAIRED, *rows[1:]])
        labels = np.repeat([0.0, 1.0], _NUM_PAIRED * len(flat))
        labels = np.tile(labels, (_NUM_NETWORKS, 1))
        self._networks = Classifiers(inputs, labels, np.ones_like(labels), rng, num_steps=num_steps)

    def at(self, draws: Mapping[str, ArrayLike], summaries: ArrayLike) -> ErrorsAtData:
        """The network at data sets.

        Args:
            draws: Draws of the guide there, `(num_draws, num_datasets, ...)`, 16 or more, that are
                not judged themselves.
            summaries: Their data or summaries, `(num_datasets, num_summaries)`.

        Returns:
            A function of latents at these data.
        """
        values = np.asarray(summaries, float)
        return ErrorsAtData(self, self._pilot(_flat(draws, 2), values))

    def _pilot(self, draws: Array, summaries: Array) -> tuple[Array, Array, Array]:
        """Median and spread of draws, and features of each data set."""
        low, middle, high = np.quantile(draws[..., self._columns], [0.25, 0.5, 0.75], axis=0)
        spread = np.maximum((high - low) / 1.349, _LEAST_SPREAD * self._spread)
        features = [
            np.arcsinh((middle - self._middle) / self._spread),
            np.log(spread / self._spread),
            ((summaries - self._centre) / self._scale) @ self._axes,
        ]
        return middle, spread, np.concatenate(features, axis=-1)

    def _rows(self, latents: Array, pilot: tuple[Array, Array, Array]) -> Array:
        """Inputs of the network, `(*batch, num_inputs)`."""
        middle, spread, features = pilot
        deviations = np.arcsinh((latents[..., self._columns] - middle) / spread)
        given = np.broadcast_to(features, (*deviations.shape[:-1], features.shape[-1]))
        return np.concatenate([deviations, given], axis=-1)

    def log_odds(self, latents: Array, pilot: tuple[Array, Array, Array]) -> Array:
        """Log odds that latents are draws, the mean of a few networks."""
        rows = self._rows(latents, pilot)
        odds = self._networks.log_odds(rows.reshape(-1, rows.shape[-1])).mean(0)
        return odds.reshape(rows.shape[:-1])


class ErrorsAtData:
    """The network of `LocalErrors` at data sets.

    Args:
        network: The network.
        pilot: What it reads of each data set.
    """

    def __init__(self, network: LocalErrors, pilot: tuple[Array, Array, Array]) -> None:
        self._network, self._pilot = network, pilot
        self.num_left_out = network.num_left_out

    def __call__(self, latents: Mapping[str, ArrayLike], *, batch_dims: int = 1) -> Array:
        """Log odds that latents are draws of the guide and no truths.

        Args:
            latents: By site, `([num_draws,] num_datasets, ...)`.
            batch_dims: 2 with an axis of draws, else 1.

        Returns:
            Shape `([num_draws,] num_datasets)`; above zero the guide puts too much mass there.
        """
        return self._network.log_odds(_flat(latents, batch_dims), self._pilot)


def _flat(latents: Mapping[str, ArrayLike], batch_dims: int) -> Array:
    """All scalars side by side, `(*batch, num_scalars)`."""
    arrays = [np.asarray(latents[name], float) for name in sorted(latents)]
    return np.concatenate(
        [array.reshape(*array.shape[:batch_dims], -1) for array in arrays], axis=-1
    )


def _checked(
    truths: Mapping[str, ArrayLike], draws: Mapping[str, ArrayLike], summaries: ArrayLike
) -> tuple[Array, Array, Array]:
    """Arrays of truths, draws and summaries, or a ValueError."""
    if not truths or set(truths) != set(draws):
        raise ValueError(
            f"draws: expected the sites {sorted(truths)} of the truths, got {sorted(draws)}."
        )
    flat, drawn, data = _flat(truths, 1), _flat(draws, 2), np.asarray(summaries, float)
    fits = drawn.shape[1:] == flat.shape and data.ndim == 2 and len(data) == len(flat)
    if not fits or len(flat) < 100 or len(drawn) < _NUM_PAIRED + _NUM_PILOT:
        raise ValueError(
            "truths, draws and summaries: expected (num_simulations, ...), (num_draws, "
            "num_simulations, ...) and (num_simulations, num_summaries) with at least 100 "
            f"simulations and {_NUM_PAIRED + _NUM_PILOT} draws, got {flat.shape}, {drawn.shape} "
            f"and {data.shape} with all latents side by side."
        )
    for name, array in (("truths", flat), ("draws", drawn), ("summaries", data)):
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{name}: expected finite numbers, got some that are not.")
    return flat, drawn, data
