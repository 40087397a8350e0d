"""What an embedding is: networks that turn the data of one observed site into contexts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import equinox as eqx
from jax import Array

from numpyro_amortize.pooling import Pooling


class EmbeddingNetwork(eqx.Module):
    """The built form of an embedding."""

    @abstractmethod
    def __call__(self, values: Array, pooling: Pooling) -> list[Array]:
        """Contexts at every level.

        Args:
            values: Standardised events, flattened, then inputs, shape
                `(*batch, *aligned plates, size)`.
            pooling: The levels and how to get from one to the next.

        Returns:
            One array for each level, the unpooled one first, pooled axes kept with length 1.
        """

    @property
    @abstractmethod
    def num_learned(self) -> int:
        """How many features of each level, its first, are a network's; others skip it."""


class Embedding(ABC):
    """A specification of an embedding; sizes come from the model."""

    @abstractmethod
    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int], rng_key: Array
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site.

        Args:
            event_shape: Event shape of the site.
            num_inputs: Number of standardised input values beside each event.
            sources: For each level but the first the number of the level that it pools.
            rng_key: Key of the initial weights.

        Returns:
            The networks.
        """

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there.

        Args:
            site: Name of the observed site.

        Raises:
            ValueError: If this one reads whole events only.
        """
        raise ValueError(
            f"embedding of site '{site}': {type(self).__name__} reads whole events, and the mask "
            f"is for each position; pass embedding={{'{site}': SequenceEmbedding()}}, or a mask "
            "for each event"
        )

    def for_latents(self, num_values: int) -> Embedding:
        """The embedding with the sizes that are left to the model.

        Args:
            num_values: Number of unconstrained latent values: all sites, one element of each
                plate.
        """
        return self

    def for_inputs(
        self, site: str, event_shape: tuple[int, ...], places: Mapping[str, tuple[int, int]]
    ) -> Embedding:
        """The embedding that knows where each covariate is in what it gets.

        Args:
            site: Name of the observed site.
            event_shape: Its event shape.
            places: For each input its start and its number of values, after the event.
        """
        return self

    @abstractmethod
    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> tuple[int, ...]:
        """Number of context features at every level."""
