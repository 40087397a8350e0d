"""Features pooled plate by plate: exactly equivariant, for any plate size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import Pooling, join_features

_SPREAD_FLOOR = 1e-2  # in units of the prior predictive spread


@dataclass(frozen=True)
class PlateEmbedding(Embedding):
    """Deep sets that follow the plates of the model.

    One network maps every event to features. Plates are then pooled one at a time: the mean
    of the features, the mean and spread of the standardised values themselves, and
    `log(1 + count)`, with a network in between. The raw moments skip the network, which
    makes the context of exponential families nearly exact at any plate size. Where plates
    cross, such as students and items, every event then reads what has been pooled for its
    row, its column and the whole, and all is pooled again, `num_rounds` times.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        num_rounds: Rounds of exchange between crossed plates.

    Raises:
        ValueError: If `num_rounds` is negative.

    Example:
        >>> PlateEmbedding(feature_dim=4).context_sizes(1, [0])
        (5, 7)

    References:
        Zaheer et al. (2017), arXiv:1703.06114, eq. 4.
    """

    feature_dim: int = 32
    hidden_dims: tuple[int, ...] = (64, 64)

    num_rounds: int = 3

    def __post_init__(self) -> None:
        if self.num_rounds < 0:
            raise ValueError(f"num_rounds: expected 0 or more, got {self.num_rounds}")

    def build(self, num_values: int, sources: Sequence[int], rng_key: Array) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        sizes = self.context_sizes(num_values, sources)
        is_crossed = len(set(sources)) < len(sources)
        num_rounds = self.num_rounds if is_crossed else 0
        keys = iter(jax.random.split(rng_key, len(sizes) + num_rounds))

        def network(in_size: int) -> StackedMLP:
            return StackedMLP(1, in_size, self.hidden_dims, self.feature_dim, rng_key=next(keys))

        features = network(num_values)
        pooled = [network(size) for size in sizes[1:]]
        seen = sizes[0] + self.feature_dim * len(sources)
        exchanges = [network(seen) for _ in range(num_rounds)]
        return PooledFeatures(features, pooled, exchanges)

    def context_sizes(self, num_values: int, sources: Sequence[int]) -> tuple[int, ...]:
        """Number of context features at every level."""
        values, skipped = [num_values], [num_values]
        for source in sources:
            values.append(2 * values[source])
            skipped.append(values[-1] + 1)
        return tuple(self.feature_dim + size for size in skipped)


class PooledFeatures(EmbeddingNetwork):
    """The built form of `PlateEmbedding`."""

    features: StackedMLP
    pooled: list[StackedMLP]
    exchanges: list[StackedMLP]

    def __call__(self, values: Array, pooling: Pooling) -> list[Array]:
        """Contexts at every level."""
        squashed = jnp.arcsinh(values)
        skipped = [squashed, *_moments(values, pooling)]
        features = self._pool(self.features(squashed, 0), skipped, pooling)
        for exchange in self.exchanges:
            base = pooling.levels[0].plates
            seen = [squashed] + [
                pooling.spread(part, level.plates, base)
                for part, level in zip(features, pooling.levels, strict=True)
            ]
            features = self._pool(features[0] + exchange(join_features(seen), 0), skipped, pooling)
        return [join_features([*pair]) for pair in zip(features, skipped, strict=True)]

    def _pool(self, features: Array, skipped: Sequence[Array], pooling: Pooling) -> list[Array]:
        """Features at every level, a network after each pooling."""
        levels = [features]
        for number, network in enumerate(self.pooled, start=1):
            pooled = pooling.mean(number, levels[pooling.levels[number].source or 0])
            levels.append(network(join_features([pooled, skipped[number]]), 0))
        return levels


def _moments(values: Array, pooling: Pooling) -> list[Array]:
    """Mean, spread and count of the standardised values at every level but the first."""
    kept, found = [values], []
    for number, level in enumerate(pooling.levels[1:], start=1):
        source = kept[level.source or 0]
        mean = pooling.mean(number, source)
        plates = pooling.levels[level.source or 0].plates
        around = pooling.spread(mean, level.plates, plates)
        variance = pooling.mean(number, (source - around) ** 2)
        spread = jnp.sqrt(variance + 1e-12)
        log_count = jnp.log1p(pooling.counts[number])
        found.append(join_features([jnp.arcsinh(mean), jnp.log(_SPREAD_FLOOR + spread), log_count]))
        kept.append(jnp.concatenate([mean, spread], axis=-1))
    return found
