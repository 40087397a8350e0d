"""Features pooled from level to level, shared by all embeddings that do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from pyro_amortize.embeddings.base import EmbeddingNetwork
from pyro_amortize.embeddings.set_attention import SetAttention
from pyro_amortize.networks import StackedMLP
from pyro_amortize.pooling import Pooling, join_features

_BEFORE = -1e30  # earlier than any time
_SPREAD_FLOOR = 1e-2  # in units of the prior predictive spread
_MOST_IN_PAIRS = 8  # values of one event and its inputs


class EventFeatures(nn.Module):
    """A network on whole events, and the moments of an event that skip it.

    The moments are the mean and the spread of each channel over its positions, in place of
    the values themselves, which are too many where events are series or images.

    Args:
        network: Maps squashed events `(rows, *layout)` to features `(rows, num_features)`.
        layout: Shape in which the network reads an event.
        channel_axis: Axis of the layout that holds channels; None if the event is one channel.
        num_features: Number of features that the network gives.
        has_mask: Whether the values of an event are followed by which of them are there. The
            network then gets the mask as further channels, and which positions are there.
        times_at: Start of the times of the steps of a series in the inputs, or None. The network
            then gets the time and the time since the step before as further channels.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: tuple[int, ...],
        channel_axis: int | None,
        num_features: int,
        has_mask: bool = False,  # noqa: FBT001, FBT002
        times_at: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.has_mask, self.times_at = network, has_mask, times_at
        self.layout, self.channel_axis, self.num_features = layout, channel_axis, num_features

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

    def split(self, values: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The event with its mask, the times of its steps or None, and all other inputs."""
        event, inputs = values[..., : self.size], values[..., self.size :]
        if self.times_at is None:
            return event, None, inputs
        end = self.times_at + self.num_times
        others = [inputs[..., : self.times_at], inputs[..., end:]]
        return event, inputs[..., self.times_at : end], torch.cat(others, -1)

    def forward(self, values: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
        read = torch.asinh(events)
        if times is not None:
            read = torch.cat([read, _time_channels(times.reshape(len(read), -1))], -1)
        features = self.network(read)
        if self.channel_axis is None:
            channels = events[:, None]
        else:
            channels = torch.movedim(events, 1 + self.channel_axis, 1)
        channels = channels.reshape(*channels.shape[:2], -1)
        mean = channels.mean(-1)
        spread = torch.sqrt(((channels - mean[..., None]) ** 2).mean(-1) + 1e-12)
        moments = torch.cat([mean, spread], -1)
        return features.reshape(*batch, -1), moments.reshape(*batch, -1)

    def _masked(self, values: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same for events whose values are followed by which of them are there."""
        batch, axis = values.shape[:-1], 1 + (self.channel_axis or 0)
        events, mask = (part.reshape(-1, *self.layout) for part in values.chunk(2, -1))
        read = torch.cat([torch.asinh(events), mask], axis)
        present = mask.amax(axis) > 0
        if times is not None:
            channels = _time_channels(times.reshape(len(read), -1), present)
            read = torch.cat([read, channels], -1)
        features = self.network(read, present)
        values, there = (part.movedim(axis, 1).flatten(2) for part in (events, mask))
        counts = there.sum(-1).clamp(min=1.0)
        mean = (values * there).sum(-1) / counts
        square = there * (values - mean[..., None]) ** 2
        spread = torch.sqrt(square.sum(-1) / counts + 1e-12)
        moments = torch.cat([mean, spread], -1)
        return features.reshape(*batch, -1), moments.reshape(*batch, -1)


def _time_channels(times: Tensor, present: Tensor | None = None) -> Tensor:
    """Each step's time and the time since the last step before that is there, squashed."""
    shown = times if present is None else torch.where(present, times, _BEFORE)
    latest = torch.cummax(shown, -1).values
    previous = torch.cat([torch.full_like(times[:, :1], _BEFORE), latest[:, :-1]], -1)
    gap = torch.where(previous > _BEFORE, times - previous, 0.0) * times.shape[-1]
    channels = torch.stack([torch.asinh(times), torch.asinh(gap)], -1)
    return channels if present is None else torch.where(present[..., None], channels, 0.0)


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

    def __init__(
        self,
        features: StackedMLP,
        pooled: Sequence[StackedMLP],
        exchanges: Sequence[StackedMLP],
        event: EventFeatures | None,
        attention: Sequence[SetAttention],
        num_values: int,
    ) -> None:
        super().__init__()
        self.features = features
        self.pooled = nn.ModuleList(pooled)
        self.exchanges = nn.ModuleList(exchanges)
        self.event, self.num_values = event, num_values
        self.attention = nn.ModuleList(attention)

    def forward(self, values: Tensor, pooling: Pooling) -> list[Tensor]:
        """Contexts at every level."""
        if values.shape[-1] != self.num_values:
            raise ValueError(
                f"embedding: expected {self.num_values} values for each event with its inputs, as "
                f"at set-up, got {values.shape[-1]}; set up a guide for events of this shape"
            )
        if self.event is None:
            read = torch.asinh(values)
        else:
            event, times, inputs = self.event.split(values)
            extracted, moments = self.event(event, times)
            values = join_features([moments, inputs])
            read = join_features([extracted, torch.asinh(inputs)])
        squashed = torch.asinh(values)
        skipped = [squashed, *_moments(values, pooling)]
        features = self._pool(self.features(read, 0), skipped, pooling)
        base = pooling.levels[0].plates
        spread = [
            partial(pooling.spread, plates=level.plates, wanted=base)
            for level in (pooling.levels[0], *pooling.levels)
        ]
        for exchange in cast(Sequence[StackedMLP], self.exchanges):
            features = self._pool(
                features[0] + exchange.read_parts([squashed, *features], spread), skipped, pooling
            )
        return [join_features([*pair]) for pair in zip(features, skipped, strict=True)]

    @property
    def num_learned(self) -> int:
        """How many features of each level, its first, are a network's; others skip it."""
        return int(self.features.biases[-1].shape[-1])

    def _pool(self, features: Tensor, skipped: Sequence[Tensor], pooling: Pooling) -> list[Tensor]:
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


def _moments(values: Tensor, pooling: Pooling) -> list[Tensor]:
    """Moments of the standardised values, and counts, at every level but the first."""
    first, second = _pairs(values.shape[-1])
    kept, found = [values], []
    for number, level in enumerate(pooling.levels[1:], start=1):
        source = kept[level.source or 0]
        mean = pooling.mean(number, source)
        plates = pooling.levels[level.source or 0].plates
        centred = source - pooling.spread(mean, level.plates, plates)
        spread = torch.sqrt(pooling.mean(number, centred**2) + 1e-12)
        covariance = pooling.mean(number, centred[..., first] * centred[..., second])
        log_count = torch.log1p(pooling.totals[number])
        logarithm = torch.log(_SPREAD_FLOOR + spread)
        found.append(
            join_features([torch.asinh(mean), logarithm, torch.asinh(covariance), log_count])
        )
        kept.append(torch.cat([mean, spread, covariance], -1))
    return found


def _pairs(num_values: int) -> tuple[Tensor, Tensor]:
    """Positions of the values whose covariances are pooled: of each pair, the first and second.

    A regression of one value on others is in their covariances. There are none where pairs
    would outnumber everything else.
    """
    size = num_values if num_values <= _MOST_IN_PAIRS else 0
    first, second = torch.triu_indices(size, size, 1)
    return first, second


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
    attention: Callable[[], SetAttention] | None = None,
) -> PooledFeatures:
    """The networks of one observed site.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        num_values: Number of values beside those that `event` reads: all, or the inputs.
        sources: For each level but the first the number of the level that it pools.
        event: A network on whole events, or None.
        num_rounds: Rounds of exchange where plates cross.
        attention: Makes what pools features to a level; means if None.

    Returns:
        The networks.
    """
    num_skipped = num_values if event is None else num_values + event.num_moments
    num_read = num_values if event is None else num_values + event.num_features
    sizes = pooled_sizes(feature_dim, num_skipped, sources)
    is_crossed = len(set(sources)) < len(sources)

    def network(in_size: int) -> StackedMLP:
        return StackedMLP(1, in_size, hidden_dims, feature_dim)

    features = network(num_read)
    pooled = [network(size) for size in sizes[1:]]
    seen = num_skipped + feature_dim * len(sizes)
    exchanges = [network(seen) for _ in range(num_rounds if is_crossed else 0)]
    num_all = num_values if event is None else num_values + event.size + event.num_times
    pools = [attention() for _ in pooled] if attention else []
    return PooledFeatures(features, pooled, exchanges, event, pools, num_all)
