"""Chains of maps whose parameters are all outputs of one network that reads the context."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import softplus

from numpyro_amortize.densities.base import (
    ConditionalDensity,
    Density,
    FlowDistribution,
    FlowStep,
)
from numpyro_amortize.densities.flow_steps import TriangularAffine
from numpyro_amortize.networks import StackedMLP

_LEAST_SLOPE = 1e-3  # of an invertible map
_NO_CHANGE = math.log(math.expm1(1 - _LEAST_SLOPE))


class ChainMap(Protocol):
    """A kind of map of noise, whose parameters a network gives."""

    def num_parameters(self, event_size: int) -> int:
        """Number of parameters of one map of so many coordinates."""

    def at(self, parameters: Array, number: int) -> FlowStep:
        """The map of that number in the chain, identity where the parameters are zero.

        Args:
            parameters: Shape `(*batch, num_parameters)`.
            number: From 0 on.
        """


def above_minus_one(raw: Array) -> Array:
    """Numbers above -1, so that a map folds nowhere; zero to zero."""
    return _LEAST_SLOPE - 1 + softplus(raw + _NO_CHANGE)


def direction(event_size: int, number: int) -> np.ndarray:
    """A unit vector for each map of a chain: those of as many maps as coordinates are orthogonal.

    Args:
        event_size: Number of coordinates.
        number: Number of the map.
    """
    wave = np.cos(np.pi * (number % event_size) * (np.arange(event_size) + 0.5) / event_size)
    return wave / np.linalg.norm(wave)


@dataclass(frozen=True)
class ChainOfMaps(Density):
    """A diagonal normal pushed through a chain of maps of one kind.

    Args:
        num_transforms: Number of maps; with none it is a diagonal normal.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If `num_transforms < 0`.
    """

    num_transforms: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    kind: ClassVar[ChainMap]

    def __post_init__(self) -> None:
        if self.num_transforms < 0:
            raise ValueError(f"num_transforms: expected at least 0, got {self.num_transforms}")

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        num_outputs = 2 * event_size + self.num_transforms * self.kind.num_parameters(event_size)
        network = StackedMLP(
            num_sites,
            context_size,
            self.hidden_dims,
            num_outputs,
            zero_output=True,
            rng_key=rng_key,
        )
        return ConditionalChain(network, self.kind, event_size, self.num_transforms)


class ConditionalChain(ConditionalDensity):
    """A diagonal normal that is pushed through a chain of maps."""

    network: StackedMLP
    kind: ChainMap = eqx.field(static=True)
    event_size: int = eqx.field(static=True)
    num_transforms: int = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> FlowDistribution:
        """The densities given contexts."""
        outputs, size = self.network(context, index), 2 * self.event_size
        steps: list[FlowStep] = [TriangularAffine(outputs[..., :size], self.event_size)]
        if self.num_transforms:
            parts = jnp.split(outputs[..., size:], self.num_transforms, axis=-1)
            steps += [self.kind.at(part, number) for number, part in enumerate(parts)]
        return FlowDistribution(steps[::-1], outputs.shape[:-1], self.event_size)
