"""Elements of a plate that hang together: a rank-one correlation of their noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import FlowDistribution, OwnLoss, as_flow
from numpyro_amortize.networks import StackedMLP, positive


class RankOneCoupling(eqx.Module):
    """Correlates the elements of a plate whose posterior is not independent.

    `e = n + (k - 1) v (v . n) / (v . v)` with independent noise `n`, a positive weight `v_j` of
    each element from its own context and one positive strength `k` from what is common to all;
    the determinant is `k`. A diagonal scale outside makes it exact for every Gaussian whose
    covariance is a diagonal and one rank, such as item effects given their data once the
    student effects are integrated out. Equivariant to permutations, and nothing at the start.

    Args:
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Features of one element.
        common_size: Features common to all elements.
        hidden_dims: Widths of the hidden layers.
        rng_key: Key of the initial weights.
    """

    weights: StackedMLP
    strengths: StackedMLP

    def __init__(
        self,
        num_sites: int,
        event_size: int,
        context_size: int,
        common_size: int,
        hidden_dims: Sequence[int],
        rng_key: Array,
    ) -> None:
        first, second = jax.random.split(rng_key)
        self.weights = StackedMLP(
            num_sites, context_size, hidden_dims, event_size, zero_output=True, rng_key=first
        )
        self.strengths = StackedMLP(
            num_sites, common_size, hidden_dims, event_size, zero_output=True, rng_key=second
        )

    def __call__(
        self,
        density: dist.Distribution,
        context: Array,
        common: Array,
        axes: Sequence[int],
        index: int | None = None,
        present: Array | None = None,
    ) -> dist.Distribution:
        """A density of independent elements with their noise correlated.

        Args:
            density: What a conditional density gave for `context`.
            context: As given to the density.
            common: Features common to all elements, axes of the plates of length 1.
            axes: Axes of the plates, negative, the event axis included.
            index: The one site to evaluate, or None.
            present: Which elements exist, if the plates are padded; all if None.

        Returns:
            The coupled density; the given one if its noise cannot be reached, or if its own loss
            would leave the coupling untrained.
        """
        flow = as_flow(density)
        if flow is None or isinstance(density, OwnLoss):
            return density
        step = _RankOne(
            positive(self.weights(context, index)),
            positive(self.strengths(common, index)),
            tuple(axes),
            present,
        )
        return FlowDistribution([*flow.steps, step], flow.batch_shape, flow.event_shape[0])


class _RankOne:
    """The map between coupled and independent noise."""

    def __init__(
        self, weight: Array, strength: Array, axes: tuple[int, ...], present: Array | None
    ) -> None:
        if present is not None:
            weight = jnp.where(present, weight, 0.0)
        self.weight = weight / jnp.sqrt(jnp.sum(weight**2, axis=axes, keepdims=True))
        self.strength, self.axes = strength, axes
        num_elements: Any = 1
        for axis in axes:
            num_elements *= weight.shape[axis]
        if present is not None:
            num_elements = jnp.sum(present)
        self.share = jnp.sum(jnp.log(strength), axis=-1) / num_elements

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        return self._stretch(coordinates, 1 / self.strength), -self.share

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        return self._stretch(noise, self.strength), -self.share

    def _stretch(self, noise: Array, factor: Array) -> Array:
        common = jnp.sum(self.weight * noise, axis=self.axes, keepdims=True)
        return noise + (factor - 1) * self.weight * common
