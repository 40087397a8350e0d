"""Features pooled from level to level, shared by all embeddings that do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.embeddings.base import EmbeddingNetwork
from numpyro_amortize.embeddings.set_attention import SetAttention
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import Pooling, join_features

_BEFORE = -1e30  # earlier than any time
_SPREAD_FLOOR = 1e-2  # in units of the prior predictive spread
_MOST_IN_PAIRS = 8  # values of one event and its inputs


class EventFeatures(eqx.Module):
    """A network on whole events, and the moments of an event that skip it.

    The moments are the mean and the spread of each channel over its positions, in place of
    the values themselves, which are too many where events are series or images.

    Args:
        network: Maps one squashed event `layout` to features `(num_features,)`.
        layout: Shape in which the network reads an event.
        channel_axis: Axis of the layout that holds channels; None if the event is one channel.
        num_features: Number of features that the network gives.
        has_mask: Whether the values of an event are followed by which of them are there. The
            network then gets the mask as further channels, and which positions are there.
        times_at: Start of the times of the steps of a series in the inputs, or None. The network
            then gets the time and the time since the step before as further channels.
    """

    network: eqx.Module
    layout: tuple[int, ...] = eqx.field(static=True)
    channel_axis: int | None = eqx.field(static=True)
    num_features: int = eqx.field(static=True)
    has_mask: bool = eqx.field(static=True, default=False)
    times_at: int | None = eqx.field(static=True, default=None)

    @property
    def size(self) -> int:
        """Number of values of an event, with its mask if it has one."""
        return math.prod(self.layout) * (2 if self.has_mask else 1)

    @property
    def num_times(self) -> int:
        """Number of inputs that are times of steps."""
        return 0 if self.times_at is None else self.layout[0]

    @property
    def num_moments(self) -> int:
        """Number of values that skip the network."""
        return 2 * (1 if self.channel_axis is None else self.layout[self.channel_axis])

    def split(self, values: Array) -> tuple[Array, Array | None, Array]:
        """The event with its mask, the times of its steps or None, and all other inputs."""
        event, inputs = values[..., : self.size], values[..., self.size :]
        if self.times_at is None:
            return event, None, inputs
        end = self.times_at + self.num_times
        others = [inputs[..., : self.times_at], inputs[..., end:]]
        return event, inputs[..., self.times_at : end], jnp.concatenate(others, axis=-1)

    def __call__(self, values: Array, times: Array | None = None) -> tuple[Array, Array]:
        """Features and moments of flattened events.

        Args:
            values: Shape `(*batch, size)`, standardised.
            times: Times of the steps, shape `(*batch, num_times)`, standardised; or None.

        Returns:
            Shapes `(*batch, num_features)` and `(*batch, num_moments)`.
        """
        batch = values.shape[:-1]
        if self.has_mask:
            return self._masked(values, times)
        events = values.reshape(-1, *self.layout)
        network: Any = self.network
        read = jnp.arcsinh(events)
        if times is not None:
            read = jnp.concatenate([read, _time_channels(times.reshape(len(read), -1))], axis=-1)
        features = jax.vmap(network)(read)
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

    def _masked(self, values: Array, times: Array | None) -> tuple[Array, Array]:
        """The same for events whose values are followed by which of them are there."""
        batch, axis = values.shape[:-1], 1 + (self.channel_axis or 0)
        events, mask = (part.reshape(-1, *self.layout) for part in jnp.split(values, 2, axis=-1))
        read = jnp.concatenate([jnp.arcsinh(events), mask], axis=axis)
        present = jnp.max(mask, axis=axis) > 0
        if times is not None:
            channels = _time_channels(times.reshape(len(read), -1), present)
            read = jnp.concatenate([read, channels], axis=-1)
        network: Any = self.network
        features = jax.vmap(network)(read, present)
        values, there = (
            jnp.moveaxis(part, axis, 1).reshape(len(part), part.shape[axis], -1)
            for part in (events, mask)
        )
        counts = jnp.maximum(jnp.sum(there, axis=-1), 1.0)
        mean = jnp.sum(values * there, axis=-1) / counts
        square = there * (values - mean[..., None]) ** 2
        spread = jnp.sqrt(jnp.sum(square, axis=-1) / counts + 1e-12)
        moments = jnp.concatenate([mean, spread], axis=-1)
        return features.reshape(*batch, -1), moments.reshape(*batch, -1)


def _time_channels(times: Array, present: Array | None = None) -> Array:
    """Each step's time and the time since the last step before that is there, squashed."""
    shown = times if present is None else jnp.where(present, times, _BEFORE)
    latest = jax.lax.cummax(shown, axis=shown.ndim - 1)
    previous = jnp.concatenate([jnp.full_like(times[:, :1], _BEFORE), latest[:, :-1]], axis=-1)
    gap = jnp.where(previous > _BEFORE, times - previous, 0.0) * times.shape[-1]
    channels = jnp.stack([jnp.arcsinh(times), jnp.arcsinh(gap)], axis=-1)
    return channels if present is None else jnp.where(present[..., None], channels, 0.0)


class PooledFeatures(EmbeddingNetwork):
    """Features of every event, pooled level by level with the moments of what skips the network.

    Args:
        features: Maps each event, or the features of its own network, with the inputs.
        pooled: One network for each level but the first.
        exchanges: One network for each round in which the events read what has been pooled.
        event: A network on whole events; None if `features` reads their values.
        attention: What pools features to each level but the first; means if there is none.
        num_values: Number of values of one event with its inputs.
    """

    features: StackedMLP
    pooled: list[StackedMLP]
    exchanges: list[StackedMLP]
    event: EventFeatures | None
    attention: list[SetAttention]
    num_values: int = eqx.field(static=True)

    def __call__(self, values: Array, pooling: Pooling) -> list[Array]:
        """Contexts at every level."""
        if values.shape[-1] != self.num_values:
            raise ValueError(
                f"embedding: expected {self.num_values} values for each event with its inputs, as "
                f"at set-up, got {values.shape[-1]}; set up a guide for events of this shape"
            )
        if self.event is None:
            read = jnp.arcsinh(values)
        else:
            event, times, inputs = self.event.split(values)
            extracted, moments = self.event(event, times)
            values = join_features([moments, inputs])
            read = join_features([extracted, jnp.arcsinh(inputs)])
        squashed = jnp.arcsinh(values)
        skipped = [squashed, *_moments(values, pooling)]
        features = self._pool(self.features(read, 0), skipped, pooling)
        base = pooling.levels[0].plates
        spread = [
            partial(pooling.spread, plates=level.plates, wanted=base)
            for level in (pooling.levels[0], *pooling.levels)
        ]
        for exchange in self.exchanges:
            features = self._pool(
                features[0] + exchange.read_parts([squashed, *features], spread), skipped, pooling
            )
        return [join_features([*pair]) for pair in zip(features, skipped, strict=True)]

    @property
    def num_learned(self) -> int:
        """How many features of each level, its first, are a network's; others skip it."""
        return int(self.features.biases[-1].shape[-1])

    def _pool(self, features: Array, skipped: Sequence[Array], pooling: Pooling) -> list[Array]:
        """Features at every level, a network after each pooling."""
        levels = [features]
        for number, network in enumerate(self.pooled, start=1):
            source = levels[pooling.levels[number].source or 0]
            if self.attention:
                pooled = self.attention[number - 1](source, number, pooling)
            else:
                pooled = pooling.mean(number, source)
            levels.append(network(join_features([pooled, skipped[number]]), 0))
        return levels


def _moments(values: Array, pooling: Pooling) -> list[Array]:
    """Moments of the standardised values, and counts, at every level but the first."""
    first, second = _pairs(values.shape[-1])
    kept, found = [values], []
    for number, level in enumerate(pooling.levels[1:], start=1):
        source = kept[level.source or 0]
        mean = pooling.mean(number, source)
        plates = pooling.levels[level.source or 0].plates
        centred = source - pooling.spread(mean, level.plates, plates)
        spread = jnp.sqrt(pooling.mean(number, centred**2) + 1e-12)
        covariance = pooling.mean(number, centred[..., first] * centred[..., second])
        log_count = jnp.log1p(pooling.totals[number])
        logarithm = jnp.log(_SPREAD_FLOOR + spread)
        found.append(
            join_features([jnp.arcsinh(mean), logarithm, jnp.arcsinh(covariance), log_count])
        )
        kept.append(jnp.concatenate([mean, spread, covariance], axis=-1))
    return found


def _pairs(num_values: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the values whose covariances are pooled: of each pair, the first and second.

    A regression of one value on others is in their covariances. There are none where pairs
    would outnumber everything else.
    """
    return np.triu_indices(num_values if num_values <= _MOST_IN_PAIRS else 0, 1)


def pooled_sizes(feature_dim: int, num_skipped: int, sources: Sequence[int]) -> tuple[int, ...]:
    """Number of context features at every level.

    Args:
        feature_dim: Number of features per event and per pooled set.
        num_skipped: Number of values of an event that skip the networks.
        sources: For each level but the first the number of the level that it pools.

    Returns:
        One number for each level, the unpooled one first.
    """
    values, skipped = [num_skipped], [num_skipped]
    for source in sources:
        values.append(2 * values[source] + len(_pairs(num_skipped)[0]))
        skipped.append(values[-1] + 1)
    return tuple(feature_dim + size for size in skipped)


def build_pooled_features(
    feature_dim: int,
    hidden_dims: Sequence[int],
    num_values: int,
    sources: Sequence[int],
    event: EventFeatures | None = None,
    *,
    num_rounds: int = 3,
    attention: Callable[[Array], SetAttention] | None = None,
    rng_key: Array,
) -> PooledFeatures:
    """The networks of one observed site.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        num_values: Number of values beside those that `event` reads: all, or the inputs.
        sources: For each level but the first the number of the level that it pools.
        event: A network on whole events, or None.
        num_rounds: Rounds of exchange where plates cross.
        attention: Makes what pools features to a level, from a key; means if None.
        rng_key: Key of the initial weights.

    Returns:
        The networks.
    """
    num_skipped = num_values if event is None else num_values + event.num_moments
    num_read = num_values if event is None else num_values + event.num_features
    sizes = pooled_sizes(feature_dim, num_skipped, sources)
    is_crossed = len(set(sources)) < len(sources)
    keys = iter(jax.random.split(rng_key, len(sizes) + num_rounds))
    own_keys = jax.random.split(jax.random.fold_in(rng_key, 1), len(sizes))

    def network(in_size: int) -> StackedMLP:
        return StackedMLP(1, in_size, hidden_dims, feature_dim, rng_key=next(keys))

    features = network(num_read)
    pooled = [network(size) for size in sizes[1:]]
    seen = num_skipped + feature_dim * len(sizes)
    exchanges = [network(seen) for _ in range(num_rounds if is_crossed else 0)]
    num_all = num_values if event is None else num_values + event.size + event.num_times
    pools = [attention(key) for key in own_keys[1:]] if attention else []
    return PooledFeatures(features, pooled, exchanges, event, pools, num_all)
