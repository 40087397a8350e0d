"""What flows of several steps share: networks, coupling steps and autoregressive ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, FlowDistribution
from numpyro_amortize.densities.gaussian import solve_lower
from numpyro_amortize.networks import MaskedMLP, StackedMLP, positive
from numpyro_amortize.pooling import join_features

KINDS = ("coupling", "autoregressive")
_FULL_AFFINE_MAX = 32  # beyond it the outer affine layer is diagonal

Pattern = tuple[int, ...]


class Elementwise(Protocol):
    """A monotone map of single coordinates whose parameters a network gives."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters of each coordinate."""

    @property
    def is_affine(self) -> bool:
        """Whether the map is affine for given parameters."""

    def to_noise(self, value: Array, parameters: Array) -> tuple[Array, Array]:
        """Image and log derivative, shape `(*batch,)`; parameters `(*batch, num_parameters)`."""

    def from_noise(self, noise: Array, parameters: Array) -> tuple[Array, Array]:
        """Preimage and log derivative of `to_noise` there."""


def check_steps(kind: str, num_transforms: int) -> None:
    """Refuse options that no flow has.

    Raises:
        ValueError: If `kind` is unknown or `num_transforms < 1`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected 'coupling' or 'autoregressive', got {kind!r}")
    if num_transforms < 1:
        raise ValueError(f"num_transforms: expected at least 1, got {num_transforms}")


def step_patterns(kind: str, event_size: int, num_transforms: int) -> tuple[Pattern, ...]:
    """Which coordinates move in each step, or in which order.

    Args:
        kind: Coupling steps or autoregressive ones.
        event_size: Number of coordinates.
        num_transforms: Number of steps; one coordinate needs one.

    Returns:
        A mask for each coupling step, an order for each autoregressive one, every second one
        reversed.

    Example:
        >>> step_patterns("autoregressive", 3, 2)
        ((0, 1, 2), (2, 1, 0))
    """
    if kind == "coupling" or event_size == 1:
        return coupling_masks(event_size, num_transforms)
    order = tuple(range(event_size))
    return tuple(order[:: -1 if step % 2 else 1] for step in range(num_transforms))


def coupling_masks(event_size: int, num_transforms: int) -> tuple[tuple[bool, ...], ...]:
    """Which coordinates each coupling step moves.

    The steps go through the binary digits of the coordinate's index, so that every pair of
    coordinates is separated by some step; one coordinate needs one step that moves it.

    Args:
        event_size: Number of coordinates.
        num_transforms: Number of steps.

    Returns:
        One mask per step.

    Example:
        >>> coupling_masks(2, 2)
        ((True, False), (False, True))
    """
    if event_size == 1:
        return ((True,),)
    digits = (event_size - 1).bit_length()
    return tuple(
        tuple((i >> (step % digits)) % 2 == (step // digits) % 2 for i in range(event_size))
        for step in range(num_transforms)
    )


def build_flow(
    num_sites: int,
    event_size: int,
    context_size: int,
    *,
    kind: str,
    num_transforms: int,
    hidden_dims: Sequence[int],
    transform: Elementwise,
    rng_key: Array,
) -> ConditionalDensity:
    """A triangular affine map followed by steps; all of it starts at zero parameters.

    Args:
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Number of context features.
        kind: Coupling steps or autoregressive ones.
        num_transforms: Number of steps for two or more coordinates. One coordinate has one step,
            with an affine map in it, or the affine map alone if the step would be no more.
        hidden_dims: Widths of the hidden layers.
        transform: What a step does to each coordinate.
        rng_key: Key of the initial weights.

    Returns:
        The conditional density.
    """
    patterns = step_patterns(kind, event_size, num_transforms)
    if event_size == 1 and transform.is_affine:
        patterns = ()
    keys = jax.random.split(rng_key, num_transforms + 1)
    couplings: list[StackedMLP] = []
    for key, pattern in zip(keys[1:], patterns, strict=False):
        if kind == "autoregressive" and event_size > 1:
            network: StackedMLP = MaskedMLP(
                num_sites, context_size, event_size, hidden_dims, transform.num_parameters, key
            )
        else:
            moved = sum(pattern)
            network = StackedMLP(
                num_sites,
                context_size + event_size - moved,
                hidden_dims,
                moved * transform.num_parameters,
                zero_output=True,
                rng_key=key,
            )
        couplings.append(network)
    affine = None
    if event_size > 1 or not patterns:
        affine = affine_network(num_sites, event_size, context_size, hidden_dims, keys[0])
    return ConditionalFlow(couplings, affine, patterns, transform, event_size)


def affine_network(
    num_sites: int,
    event_size: int,
    context_size: int,
    hidden_dims: Sequence[int],
    rng_key: Array,
) -> StackedMLP:
    """The network of a `TriangularAffine`, the identity at the start; diagonal for long events.

    Args:
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Number of context features.
        hidden_dims: Widths of the hidden layers.
        rng_key: Key of the initial weights.
    """
    below = event_size * (event_size - 1) // 2 if event_size <= _FULL_AFFINE_MAX else 0
    size = 2 * event_size + below
    return StackedMLP(num_sites, context_size, hidden_dims, size, zero_output=True, rng_key=rng_key)


class ConditionalFlow(ConditionalDensity):
    """The built form of flows of several steps."""

    couplings: list[StackedMLP]  # of all kinds of steps, by the name in saved files
    affine: StackedMLP | None
    patterns: tuple[Pattern, ...] = eqx.field(static=True)
    transform: Elementwise = eqx.field(static=True)
    event_size: int = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> dist.Distribution:
        """The densities given contexts."""
        steps: list[Any] = []
        if self.affine is not None:
            steps.append(TriangularAffine(self.affine(context, index), self.event_size))
        for network, pattern in zip(self.couplings, self.patterns, strict=True):
            if isinstance(network, MaskedMLP):
                steps.append(Autoregressive(network, index, context, pattern, self.transform))
            else:
                steps.append(Coupling(network, index, context, pattern, self.transform))
        return FlowDistribution(steps, context.shape[:-1], self.event_size)


class TriangularAffine:
    """A conditional triangular affine map: `z = (I + M) (u - loc) / scale`.

    Args:
        outputs: Locations, scales and the entries of `M` before their constraints.
        size: Number of coordinates.
    """

    def __init__(self, outputs: Array, size: int) -> None:
        self.loc = outputs[..., :size]
        self.scale = positive(outputs[..., size : 2 * size])
        self.lower = None
        if outputs.shape[-1] > 2 * size:
            below = np.flatnonzero(np.tri(size, k=-1))
            place = np.eye(size * size)[below]  # a product in place of a scatter
            square = outputs[..., 2 * size :] @ jnp.asarray(place, outputs.dtype)
            self.lower = square.reshape(*outputs.shape[:-1], size, size)

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant."""
        noise = (coordinates - self.loc) / self.scale
        if self.lower is not None:
            noise = noise + jnp.einsum("...ij,...j->...i", self.lower, noise)
        return noise, -jnp.sum(jnp.log(self.scale), axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""
        log_det = -jnp.sum(jnp.log(self.scale), axis=-1)
        if self.lower is not None:
            noise = solve_lower(self.lower, noise, has_unit_diagonal=True)
        return self.loc + self.scale * noise, log_det


class Coupling:
    """A coupling step: the masked coordinates move given the context and the others.

    Args:
        network: From the context and the others to the parameters.
        index: The one site to evaluate, or None.
        context: As given to the density.
        mask: Which coordinates move.
        transform: How each of them moves.
        features: What the network reads of the others; their values if None.
    """

    def __init__(
        self,
        network: StackedMLP,
        index: int | None,
        context: Array,
        mask: Pattern,
        transform: Elementwise,
        features: Callable[[Array], Array] | None = None,
    ) -> None:
        self.network, self.index, self.context = network, index, context
        self.moved = [i for i, moves in enumerate(mask) if moves]
        self.kept = [i for i, moves in enumerate(mask) if not moves]
        self.order = jnp.argsort(jnp.asarray(self.moved + self.kept))
        self.transform, self.features = transform, features

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant."""
        kept = coordinates[..., jnp.asarray(self.kept, int)]
        parameters = self._parameters(kept)
        moved = coordinates[..., jnp.asarray(self.moved)]
        moved, log_slope = self.transform.to_noise(moved, parameters)
        return self._join(moved, kept), jnp.sum(log_slope, axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""
        kept = noise[..., jnp.asarray(self.kept, int)]
        parameters = self._parameters(kept)
        moved = noise[..., jnp.asarray(self.moved)]
        moved, log_slope = self.transform.from_noise(moved, parameters)
        return self._join(moved, kept), jnp.sum(log_slope, axis=-1)

    def _parameters(self, kept: Array) -> Array:
        seen = kept if self.features is None else self.features(kept)
        inputs = join_features([self.context, seen]) if self.kept else self.context
        outputs = self.network(inputs, self.index)
        return outputs.reshape(*outputs.shape[:-1], len(self.moved), -1)

    def _join(self, moved: Array, kept: Array) -> Array:
        return join_features([moved, kept])[..., self.order]


class Autoregressive:
    """A step that moves each coordinate given the context and the coordinates before it.

    Towards the noise all coordinates move at once; from it they follow one after the other.

    Args:
        network: From the context and the coordinates in order to the parameters.
        index: The one site to evaluate, or None.
        context: As given to the density.
        order: The coordinates, the first one first.
        transform: How each of them moves.
    """

    def __init__(
        self,
        network: MaskedMLP,
        index: int | None,
        context: Array,
        order: Pattern,
        transform: Elementwise,
    ) -> None:
        self.network, self.index, self.context = network, index, context
        self.order, self.places = np.array(order), np.argsort(order)
        self.transform = transform

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant, by one pass of the network."""
        value = coordinates[..., self.order]
        outputs = self.network(join_features([self.context, value]), self.index)
        parameters = outputs.reshape(*outputs.shape[:-1], len(self.order), -1)
        noise, log_slope = self.transform.to_noise(value, parameters)
        return noise[..., self.places], jnp.sum(log_slope, axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there, by one pass for each coordinate."""
        value, log_slope = self.network.one_by_one(
            self.context, noise[..., self.order], self.transform.from_noise, self.index
        )
        return value[..., self.places], jnp.sum(log_slope, axis=-1)
