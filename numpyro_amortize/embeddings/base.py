"""What an embedding is: networks that turn the data of one observed site into contexts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import equinox as eqx
from jax import Array


class EmbeddingNetwork(eqx.Module):
    """The built form of an embedding."""

    @abstractmethod
    def __call__(self, values: Array, axes: Sequence[int]) -> list[Array]:
        """Contexts at every plate set of a pooling chain.

        Args:
            values: Standardised events, flattened, then inputs, shape
                `(*batch, *aligned plates, size)`.
            axes: Plate axes (negative, feature axis included) in the order of pooling.

        Returns:
            One array for each level, the unpooled one first, pooled axes kept with length 1.
        """


class Embedding(ABC):
    """A specification of an embedding; sizes come from the model."""

    @abstractmethod
    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, num_plates: int, rng_key: Array
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site.

        Args:
            event_shape: Event shape of the site.
            num_inputs: Number of standardised input values beside each event.
            num_plates: Number of plates to pool.
            rng_key: Key of the initial weights.

        Returns:
            The networks.
        """

    @abstractmethod
    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, num_plates: int
    ) -> tuple[int, ...]:
        """Number of context features at every level of the chain."""
