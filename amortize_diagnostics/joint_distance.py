"""Distances of joint draws from reference points, each latent on the scale of its prior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize_diagnostics.tarp import reference_points

Array = NDArray[np.float64]

_MOST_SCALARS = 64


class JointDistance:
    """How far joint draws are from points, for the coverage of balls around these.

    Every scalar is replaced by its prior probability `F(z)`, estimated from other simulations, so
    that the prior is uniform on a cube, whatever the space or the tails of a latent.

    Args:
        past: Latents of other simulations by site, `(num_past, ...)`.
        num_datasets: Number of data sets.
        rng: Draws the points that ignore the data.
        data: Data of the data sets, `(num_datasets, data_size)`, NaN where missing; None for no
            points that follow the data.
        past_data: Data of the other simulations.

    Example:
        >>> past = {"z": np.linspace(0, 1, 100)}
        >>> near = JointDistance(past, 3, np.random.default_rng(0))
        >>> near({"z": np.full((20, 3), 0.5)}, batch_dims=2)["tarp_independent"].shape
        (20, 3)
    """

    def __init__(
        self,
        past: Mapping[str, ArrayLike],
        num_datasets: int,
        rng: np.random.Generator,
        *,
        data: ArrayLike | None = None,
        past_data: ArrayLike | None = None,
    ) -> None:
        flat = _flat(past, 1)
        moving = np.flatnonzero(np.any(flat != flat[:1], axis=0))
        spread = np.linspace(0, len(moving) - 1, min(len(moving), _MOST_SCALARS)).astype(int)
        self._columns = moving[spread]
        self._sorted = np.sort(flat[:, self._columns], axis=0)
        self.num_left_out = len(moving) - len(self._columns)
        size = (num_datasets, len(self._columns))
        self._points = {"tarp_independent": rng.uniform(size=size)}
        if data is not None and past_data is not None:
            new, old = _without_gaps(np.asarray(data, float), np.asarray(past_data, float))
            self._points["tarp_data"] = reference_points(new, old, self._cube(flat))

    @property
    def num_scalars(self) -> int:
        """Number of scalars that are read, spread evenly over all that vary."""
        return len(self._columns)

    def __call__(
        self, latents: Mapping[str, ArrayLike], *, batch_dims: int = 1
    ) -> dict[str, Array]:
        """Squared distances by kind of point.

        Args:
            latents: By site in the order of `past`, `([num_draws,] num_datasets, ...)`.
            batch_dims: 2 with an axis of draws, else 1.

        Returns:
            Shape `([num_draws,] num_datasets)` for each kind.
        """
        cube = self._cube(_flat(latents, batch_dims))
        return {
            kind: np.sum((cube - points) ** 2, axis=-1) for kind, points in self._points.items()
        }

    def _cube(self, flat: Array) -> Array:
        """Prior probabilities below each value, half of those equal to it."""
        cube = np.empty((*flat.shape[:-1], len(self._columns)))
        for place, column in enumerate(self._columns):
            values, known = flat[..., column], self._sorted[:, place]
            below, up_to = (np.searchsorted(known, values, side) for side in ("left", "right"))
            cube[..., place] = 0.5 * (below + up_to) / len(known)
        return cube


def _flat(latents: Mapping[str, ArrayLike], batch_dims: int) -> Array:
    """All scalars side by side, `(*batch, num_scalars)`."""
    arrays = [np.asarray(value, float) for value in latents.values()]
    return np.concatenate(
        [array.reshape(*array.shape[:batch_dims], -1) for array in arrays], axis=-1
    )


def _without_gaps(data: Array, past: Array) -> tuple[Array, Array]:
    """Data with the medians of the past in place of what is missing, and indicators of it."""
    is_missing = np.isnan(np.concatenate([data, past]))
    columns = np.flatnonzero(is_missing.any(0))
    if not columns.size:
        return data, past
    there = np.where(is_missing.all(0), 0.0, np.concatenate([data, past]))
    middle = np.nanmedian(there, axis=0)
    return tuple(  # type: ignore[return-value]
        np.concatenate([np.where(np.isnan(each), middle, each), np.isnan(each)[:, columns]], axis=1)
        for each in (data, past)
    )
