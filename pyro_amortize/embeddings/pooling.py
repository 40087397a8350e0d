"""The pooling of features plate by plate, shared by all embeddings that have it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_amortize.embeddings.base import EmbeddingNetwork
from pyro_amortize.networks import StackedMLP

_SPREAD_FLOOR = 1e-2  # in units of the prior predictive spread


class EventFeatures(nn.Module):
    """A network on whole events, and the moments of an event that skip it.

    The moments are the mean and the spread of each channel over its positions, in place of
    the values themselves, which are too many where events are series or images.

    Args:
        network: Maps squashed events `(rows, *layout)` to features `(rows, num_features)`.
        layout: Shape in which the network reads an event.
        channel_axis: Axis of the layout that holds channels; None if the event is one channel.
        num_features: Number of features that the network gives.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: tuple[int, ...],
        channel_axis: int | None,
        num_features: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.layout, self.channel_axis, self.num_features = layout, channel_axis, num_features

    @property
    def size(self) -> int:
        """Number of values of an event."""
        return math.prod(self.layout)

    @property
    def num_moments(self) -> int:
        """Number of values that skip the network."""
        return 2 * (1 if self.channel_axis is None else self.layout[self.channel_axis])

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features and moments of flattened events.

        Args:
            values: Shape `(*batch, size)`, standardised.

        Returns:
            Shapes `(*batch, num_features)` and `(*batch, num_moments)`.
        """
        batch = values.shape[:-1]
        events = values.reshape(-1, *self.layout)
        features = self.network(torch.asinh(events))
        if self.channel_axis is None:
            channels = events[:, None]
        else:
            channels = torch.movedim(events, 1 + self.channel_axis, 1)
        channels = channels.reshape(*channels.shape[:2], -1)
        mean = channels.mean(-1)
        spread = torch.sqrt(((channels - mean[..., None]) ** 2).mean(-1) + 1e-12)
        moments = torch.cat([mean, spread], -1)
        return features.reshape(*batch, -1), moments.reshape(*batch, -1)


class PooledFeatures(EmbeddingNetwork):
    """Features of every event, pooled plate by plate with the moments of what skips the network.

    Args:
        features: Maps each event, or the features of its own network, with the inputs.
        pooled: One network for each plate.
        event: A network on whole events; None if `features` reads their values.
    """

    def __init__(
        self,
        features: StackedMLP,
        pooled: Sequence[StackedMLP],
        event: EventFeatures | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.pooled = nn.ModuleList(pooled)
        self.event = event

    def forward(self, values: Tensor, axes: Sequence[int]) -> list[Tensor]:
        """Contexts at every plate set of a pooling chain."""
        if self.event is None:
            squashed = torch.asinh(values)
            features = self.features(squashed, 0)
        else:
            extracted, moments = self.event(values[..., : self.event.size])
            inputs = values[..., self.event.size :]
            values = torch.cat([moments, inputs], -1)
            squashed = torch.asinh(values)
            features = self.features(torch.cat([extracted, torch.asinh(inputs)], -1), 0)
        levels = [torch.cat([features, squashed], -1)]
        for axis, network in zip(axes, self.pooled, strict=True):
            count = values.shape[axis]
            mean = values.mean(axis, keepdim=True)
            centred = values - mean
            spread = torch.sqrt((centred**2).mean(axis, keepdim=True) + 1e-12)
            log_count = mean.new_full((*mean.shape[:-1], 1), math.log1p(count))
            skipped = torch.cat(
                [torch.asinh(mean), torch.log(_SPREAD_FLOOR + spread), log_count], -1
            )
            pooled = features.mean(axis, keepdim=True)
            features = network(torch.cat([pooled, skipped], -1), 0)
            levels.append(torch.cat([features, skipped], -1))
            values = torch.cat([mean, spread], -1)
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
) -> PooledFeatures:
    """The networks of one observed site.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        num_values: Number of values beside those that `event` reads: all, or the inputs.
        num_plates: Number of plates to pool.
        event: A network on whole events, or None.

    Returns:
        The networks.
    """
    num_skipped = num_values if event is None else num_values + event.num_moments
    num_read = num_values if event is None else num_values + event.num_features
    sizes = pooled_sizes(feature_dim, num_skipped, num_plates)
    features = StackedMLP(1, num_read, hidden_dims, feature_dim)
    pooled = [StackedMLP(1, size, hidden_dims, feature_dim) for size in sizes[1:]]
    return PooledFeatures(features, pooled, event)
