"""Robust location and scale of latents, data and inputs, from prior simulations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.structure import ModelStructure

_NORMAL_IQR = 1.3489795003921634  # interquartile range of a standard normal

Moments = tuple[Array, Array]

STANDARDISATION = "amortized$standardisation"  # the constants among parameters of the host


@dataclass(frozen=True)
class Standardisation:
    """Location and scale of everything that a guide reads or draws.

    Args:
        draws: For each latent its coordinates as drawn: unconstrained, after the model's own
            conditional location and scale where the site has them; of a discrete one the
            logarithm of 1 + its number.
        parents: For each latent its unconstrained coordinates as seen by other sites.
        data: For each observed site its flattened event.
        inputs: For each input its flattened event.

    Every entry is a pair of arrays of shape `(size,)`.
    """

    draws: Mapping[str, Moments]
    parents: Mapping[str, Moments]
    data: Mapping[str, Moments]
    inputs: Mapping[str, Moments]

    def vector(self) -> np.ndarray:
        """All constants in one vector, in the order of the structure."""
        pairs = [
            pair
            for group in (self.draws, self.parents, self.data, self.inputs)
            for pair in group.values()
        ]
        flat = [np.ravel(np.asarray(array)) for pair in pairs for array in pair]
        return np.concatenate(flat)

    @classmethod
    def from_vector(cls, structure: ModelStructure, vector: Array) -> Standardisation:
        """The inverse of `vector`.

        Args:
            structure: The structure of the model.
            vector: Shape `(standardisation_size(structure),)`.

        Returns:
            The constants by site.
        """
        start = 0
        groups: list[dict[str, Moments]] = []
        for sizes in _sizes(structure):
            group = {}
            for name, size in sizes.items():
                middle, end = start + size, start + 2 * size
                group[name] = (vector[start:middle], vector[middle:end])
                start = end
            groups.append(group)
        return cls(*groups)

    @classmethod
    def from_params(cls, structure: ModelStructure, params: Mapping[str, Any]) -> Standardisation:
        """The constants of a guide among parameters of the host; no gradient reaches them.

        Args:
            structure: The structure of the model.
            params: Parameters by name.
        """
        vector = jax.lax.stop_gradient(params[STANDARDISATION])
        return cls.from_vector(structure, vector[1:] / vector[0])

    def with_times(self, names: Iterable[str]) -> Standardisation:
        """The same with one location and scale for all steps of inputs that are times.

        Args:
            names: Names of these inputs.
        """
        inputs = dict(self.inputs)
        for name in names:
            if name in inputs:
                loc, _ = inputs[name]
                middle = loc.mean()
                scale = ((loc - middle) ** 2).mean() ** 0.5
                scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
                shape = loc.shape
                inputs[name] = jnp.broadcast_to(middle, shape), jnp.broadcast_to(scale, shape)
        return replace(self, inputs=inputs)


def standardisation_size(structure: ModelStructure) -> int:
    """Length of the vector of constants."""
    return sum(2 * size for sizes in _sizes(structure) for size in sizes.values())


def _sizes(structure: ModelStructure) -> list[dict[str, int]]:
    latents = {site.name: structure.unconstrained_size(site) for site in structure.latents}
    data = {site.name: int(np.prod(site.event_shape)) for site in structure.observed}
    inputs = {item.name: int(np.prod(item.event_shape)) for item in structure.inputs}
    return [latents, latents, data, inputs]


def robust_moments(name: str, arrays: Sequence[Array]) -> Moments:
    """Median and interquartile range / 1.349 of each coordinate, over all other axes.

    Quantiles survive the heavy tails that ruin moments. A coordinate whose quartiles agree
    falls back to its standard deviation, and a constant one to scale 1.

    Args:
        name: Name of the site or input, for errors.
        arrays: Arrays of shape `(..., size)`; rows that are not finite are left out.

    Returns:
        Location and scale, each of shape `(size,)`.

    Raises:
        ValueError: If no row is finite.
    """
    rows = np.concatenate([np.asarray(a).reshape(-1, np.shape(a)[-1]) for a in arrays])
    rows = rows[np.all(np.isfinite(rows), axis=1)]
    if not len(rows):
        raise ValueError(f"site '{name}': no simulation is finite; check the model's priors")
    lower, loc, upper = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    scale = (upper - lower) / _NORMAL_IQR
    scale = np.where(scale > 0, scale, np.std(rows, axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    dtype = jnp.result_type(float)
    return jnp.asarray(loc, dtype), jnp.asarray(scale, dtype)
