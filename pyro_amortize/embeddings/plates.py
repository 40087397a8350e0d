"""Features pooled plate by plate: exactly equivariant, for any plate size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from pyro_amortize.networks import StackedMLP

_SPREAD_FLOOR = 1e-2  # in units of the prior predictive spread


@dataclass(frozen=True)
class PlateEmbedding(Embedding):
    """Deep sets that follow the plates of the model.

    One network maps every event to features. Plates are then pooled one at a time: the mean
    of the features, the mean and spread of the standardised values themselves, and
    `log(1 + count)`, with a network in between. The raw moments skip the network, which
    makes the context of exponential families nearly exact at any plate size.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.

    Example:
        >>> network = PlateEmbedding(feature_dim=4).build(1, 1)
        >>> [tuple(level.shape) for level in network(torch.ones(7, 1), [-2])]
        [(7, 5), (1, 7)]

    References:
        Zaheer et al. (2017), arXiv:1703.06114, eq. 4.
    """

    feature_dim: int = 32
    hidden_dims: tuple[int, ...] = (64, 64)

    def build(self, num_values: int, num_plates: int) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        sizes = self.context_sizes(num_values, num_plates)
        features = StackedMLP(1, num_values, self.hidden_dims, self.feature_dim)
        pooled = [StackedMLP(1, size, self.hidden_dims, self.feature_dim) for size in sizes[1:]]
        return PooledFeatures(features, pooled)

    def context_sizes(self, num_values: int, num_plates: int) -> tuple[int, ...]:
        """Number of context features at every level of the chain."""
        skipped = [num_values] + [num_values * 2**level + 1 for level in range(1, num_plates + 1)]
        return tuple(self.feature_dim + size for size in skipped)


class PooledFeatures(EmbeddingNetwork):
    """The built form of `PlateEmbedding`."""

    def __init__(self, features: StackedMLP, pooled: Sequence[StackedMLP]) -> None:
        super().__init__()
        self.features = features
        self.pooled = nn.ModuleList(pooled)

    def forward(self, values: Tensor, axes: Sequence[int]) -> list[Tensor]:
        """Contexts at every plate set of a pooling chain."""
        squashed = torch.asinh(values)
        features = self.features(squashed, 0)
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
