"""What all embeddings of this package share: a network on each event, then plates pooled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from pyro_amortize.embeddings.pooled_features import (
    EventFeatures,
    build_pooled_features,
    pooled_sizes,
)

_LEAST_FEATURES, _MOST_FEATURES, _STEP_OF_FEATURES = 32, 128, 8


class PooledEmbedding(Embedding):
    """Features of each event, pooled plate by plate.

    Sizes that are None follow the model: `feature_dim` is twice the number of unconstrained
    latent values, all sites and one element of each plate, in steps of 8, at least 32 and at most
    128; `hidden_dims` is two layers of twice `feature_dim`, at least 64.
    """

    feature_dim: int | None
    hidden_dims: tuple[int, ...] | None

    @abstractmethod
    def event_features(self, event_shape: tuple[int, ...], feature_dim: int) -> EventFeatures:
        """The network on whole events, with what skips it.

        Args:
            event_shape: Event shape of the site.
            feature_dim: Number of features per event.
        """

    @abstractmethod
    def num_skipped(self, event_shape: tuple[int, ...]) -> int:
        """Number of values of an event that skip its network."""

    def num_times(self, event_shape: tuple[int, ...]) -> int:
        """Number of inputs that the network on whole events reads as times."""
        return 0

    def for_latents(self, num_values: int) -> Embedding:
        """The embedding with the sizes that are left to the model."""
        if self.feature_dim is not None:
            return self
        wanted = -(-2 * num_values // _STEP_OF_FEATURES) * _STEP_OF_FEATURES
        feature_dim = min(max(wanted, _LEAST_FEATURES), _MOST_FEATURES)
        return cast(Embedding, replace(cast(Any, self), feature_dim=feature_dim))

    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        feature_dim, hidden_dims = self.own_sizes()
        num_inputs -= self.num_times(event_shape)
        event = self.event_features(event_shape, feature_dim)
        return build_pooled_features(feature_dim, hidden_dims, num_inputs, sources, event)

    def own_sizes(self) -> tuple[int, tuple[int, ...]]:
        """Number of features, and widths of the hidden layers."""
        feature_dim = self.feature_dim or _LEAST_FEATURES
        width = 2 * max(feature_dim, _LEAST_FEATURES)
        return feature_dim, (width, width) if self.hidden_dims is None else self.hidden_dims

    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> tuple[int, ...]:
        """Number of context features at every level."""
        num_skipped = self.num_skipped(event_shape) + num_inputs - self.num_times(event_shape)
        return pooled_sizes(self.own_sizes()[0], num_skipped, sources)


def check_sizes(name: str, **sizes: int | tuple[int, ...] | None) -> None:
    """Raise a ValueError for sizes below 1.

    Args:
        name: Of the embedding, for the error.
        **sizes: Sizes by argument; of layers a tuple; None for one that follows the model.
    """
    for argument, value in sizes.items():
        many = value if isinstance(value, tuple) else (value,)
        if any(size is not None and size < 1 for size in many):
            raise ValueError(f"{name}: expected {argument} of 1 or more, got {value}; raise it")


def times_start(
    site: str, times: str, num_steps: int, places: Mapping[str, tuple[int, int]]
) -> int:
    """Where the times of a series start in what an embedding gets after the event.

    Args:
        site: Name of the observed site.
        times: Name of the input that has them.
        num_steps: Number of steps of the series.
        places: For each input its start and its number of values.

    Raises:
        ValueError: If there is no such input, or it has another number of values.
    """
    start, size = places.get(times, (0, 0))
    if size != num_steps:
        got = f"one of {size} values" if size else f"inputs {sorted(places)}"
        raise ValueError(
            f"embedding of site '{site}': expected times='{times}' to be an input of {num_steps} "
            f"values in plates of the site, one for each step, got {got}; declare "
            f"inputs={{'{times}': plate}} with the argument that has them"
        )
    return start
