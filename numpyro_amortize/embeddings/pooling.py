"""The pooling of features plate by plate, shared by all embeddings that have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.embeddings.base import EmbeddingNetwork
from numpyro_amortize.networks import StackedMLP

_SPREAD_FLOOR = 1e-2  # in units of the prior predictive spread


class EventFeatures(eqx.Module):
    """A network on whole events, and the moments of an event that skip it.

    The moments are the mean and the spread of each channel over its positions, in place of
    the values themselves, which are too many where events are series or images.

    Args:
        network: Maps one squashed event `layout` to features `(num_features,)`.
        layout: Shape in which the network reads an event.
        channel_axis: Axis of the layout that holds channels; None if the event is one channel.
        num_features: Number of features that the network gives.
    """

    network: eqx.Module
    layout: tuple[int, ...] = eqx.field(static=True)
    channel_axis: int | None = eqx.field(static=True)
    num_features: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Number of values of an event."""
        return math.prod(self.layout)

    @property
    def num_moments(self) -> int:
        """Number of values that skip the network."""
        return 2 * (1 if self.channel_axis is None else self.layout[self.channel_axis])

    def __call__(self, values: Array) -> tuple[Array, Array]:
        """Features and moments of flattened events.

        Args:
            values: Shape `(*batch, size)`, standardised.

        Returns:
            Shapes `(*batch, num_features)` and `(*batch, num_moments)`.
        """
        batch = values.shape[:-1]
        events = values.reshape(-1, *self.layout)
        network: Any = self.network
        features = jax.vmap(network)(jnp.arcsinh(events))
        if self.channel_axis is None:
            channels = events[:, None]
        else:
            channels = jnp.moveaxis(events, 1 + self.channel_axis, 1)
        channels = channels.reshape(*channels.shape[:2], -1)
        mean = jnp.mean(channels, axis=-1)
        centred = channels - mean[..., None]
        spread = jnp.sqrt(jnp.mean(centred**2, axis=-1) + 1e-12)
        moments = jnp.concatenate([mean, spread], axis=-1)
        return features.reshape(*batch, -1), moments.reshape(*batch, -1)


class PooledFeatures(EmbeddingNetwork):
    """Features of every event, pooled plate by plate with the moments of what skips the network.

    Args:
        features: Maps each event, or the features of its own network, with the inputs.
        pooled: One network for each plate.
        event: A network on whole events; None if `features` reads their values.
    """

    features: StackedMLP
    pooled: list[StackedMLP]
    event: EventFeatures | None = None

    def __call__(self, values: Array, axes: Sequence[int]) -> list[Array]:
        """Contexts at every plate set of a pooling chain."""
        if self.event is None:
            squashed = jnp.arcsinh(values)
            features = self.features(squashed, 0)
        else:
            extracted, moments = self.event(values[..., : self.event.size])
            inputs = values[..., self.event.size :]
            values = jnp.concatenate([moments, inputs], axis=-1)
            squashed = jnp.arcsinh(values)
            read = jnp.concatenate([extracted, jnp.arcsinh(inputs)], axis=-1)
            features = self.features(read, 0)
        levels = [jnp.concatenate([features, squashed], axis=-1)]
        for axis, network in zip(axes, self.pooled, strict=True):
            count = values.shape[axis]
            mean = jnp.mean(values, axis=axis, keepdims=True)
            centred = values - mean
            spread = jnp.sqrt(jnp.mean(centred**2, axis=axis, keepdims=True) + 1e-12)
            log_count = jnp.full((*mean.shape[:-1], 1), jnp.log1p(count), mean.dtype)
            skipped = jnp.concatenate(
                [jnp.arcsinh(mean), jnp.log(_SPREAD_FLOOR + spread), log_count], axis=-1
            )
            pooled = jnp.mean(features, axis=axis, keepdims=True)
            features = network(jnp.concatenate([pooled, skipped], axis=-1), 0)
            levels.append(jnp.concatenate([features, skipped], axis=-1))
            values = jnp.concatenate([mean, spread], axis=-1)
        return levels


def pooled_sizes(feature_dim: int, num_skipped: int, num_plates: int) -> tuple[int, ...]:
    """Number of context features at every level of the chain.

    Args:
        feature_dim: Number of features per event and per pooled set.
        num_skipped: Number of values of an event that skip the networks.
        num_plates: Number of plates to pool.

    Returns:
        One number for each level, the unpooled one first.
    """
    skipped = [num_skipped] + [num_skipped * 2**level + 1 for level in range(1, num_plates + 1)]
    return tuple(feature_dim + size for size in skipped)


def build_pooled_features(
    feature_dim: int,
    hidden_dims: Sequence[int],
    num_values: int,
    num_plates: int,
    event: EventFeatures | None = None,
    *,
    rng_key: Array,
) -> PooledFeatures:
    """The networks of one observed site.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        num_values: Number of values beside those that `event` reads: all, or the inputs.
        num_plates: Number of plates to pool.
        event: A network on whole events, or None.
        rng_key: Key of the initial weights.

    Returns:
        The networks.
    """
    num_skipped = num_values if event is None else num_values + event.num_moments
    num_read = num_values if event is None else num_values + event.num_features
    sizes = pooled_sizes(feature_dim, num_skipped, num_plates)
    keys = jax.random.split(rng_key, num_plates + 1)
    features = StackedMLP(1, num_read, hidden_dims, feature_dim, rng_key=keys[0])
    pooled = [
        StackedMLP(1, size, hidden_dims, feature_dim, rng_key=key)
        for size, key in zip(sizes[1:], keys[1:], strict=True)
    ]
    return PooledFeatures(features, pooled, event)
