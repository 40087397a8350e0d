"""Features pooled plate by plate: exactly equivariant, for any plate size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.networks import StackedMLP

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
        >>> network = PlateEmbedding(feature_dim=4).build(1, 1, jax.random.key(0))
        >>> [level.shape for level in network(jnp.ones((7, 1)), [-2])]
        [(7, 5), (1, 7)]

    References:
        Zaheer et al. (2017), arXiv:1703.06114, eq. 4.
    """

    feature_dim: int = 32
    hidden_dims: tuple[int, ...] = (64, 64)

    def build(self, num_values: int, num_plates: int, rng_key: Array) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        keys = jax.random.split(rng_key, num_plates + 1)
        sizes = self.context_sizes(num_values, num_plates)
        features = StackedMLP(1, num_values, self.hidden_dims, self.feature_dim, rng_key=keys[0])
        pooled = [
            StackedMLP(1, size, self.hidden_dims, self.feature_dim, rng_key=key)
            for size, key in zip(sizes[1:], keys[1:], strict=True)
        ]
        return PooledFeatures(features, pooled)

    def context_sizes(self, num_values: int, num_plates: int) -> tuple[int, ...]:
        """Number of context features at every level of the chain."""
        skipped = [num_values] + [num_values * 2**level + 1 for level in range(1, num_plates + 1)]
        return tuple(self.feature_dim + size for size in skipped)


class PooledFeatures(EmbeddingNetwork):
    """The built form of `PlateEmbedding`."""

    features: StackedMLP
    pooled: list[StackedMLP]

    def __call__(self, values: Array, axes: Sequence[int]) -> list[Array]:
        """Contexts at every plate set of a pooling chain."""
        squashed = jnp.arcsinh(values)
        features = self.features(squashed, 0)
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
