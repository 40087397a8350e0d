"""Pooling of a plate by attention: rows that read each other, then one reader of all."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.attention import AttentionBlock
from numpyro_amortize.pooling import Pooling


class SetAttention(eqx.Module):
    """Rows of any number pooled by induced set attention, in any order.

    In each block some learned inducing points read the rows, and the rows read these, at a cost
    of rows times points; then a learned seed reads the rows. Rows behind an index vector read
    their own group only.

    Args:
        size: Number of features.
        num_heads: Number of heads.
        num_inducing: Number of inducing points of each block.
        num_blocks: Number of blocks.
        rng_key: Key of the initial weights.

    References:
        Lee et al. (2019), arXiv:1810.00825: their ISAB and PMA, with the norms before attention
        and perceptron and not after.
    """

    points: list[Array]
    gather: list[AttentionBlock]
    read: list[AttentionBlock]

    def __init__(
        self, size: int, num_heads: int, num_inducing: int, num_blocks: int, rng_key: Array
    ) -> None:
        shapes = [*[(num_inducing, size)] * num_blocks, (1, size)]
        keys = iter(jax.random.split(rng_key, 3 * len(shapes)))
        self.points = [jax.random.uniform(next(keys), shape, minval=-1.0) for shape in shapes]
        self.gather = [AttentionBlock(size, num_heads, next(keys)) for _ in shapes]
        self.read = [AttentionBlock(size, num_heads, next(keys)) for _ in shapes[1:]]

    def __call__(self, rows: Array, number: int, pooling: Pooling) -> Array:
        """Features of the rows at the source of a level, pooled to the level.

        Args:
            rows: Shape `(*source, size)`.
            number: The level.
            pooling: The levels.

        Returns:
            Shape `(*level, size)`.
        """
        level = pooling.levels[number]
        source = pooling.levels[level.source or 0]

        def gather(queries: Array, keys: Array, values: Array) -> Array:
            scores = jnp.einsum("rhs,...hs->...hr", queries, keys) * keys.shape[-1] ** -0.5
            return pooling.attend(number, scores, values)

        def spread(features: Array) -> Array:
            flat = features.reshape(*features.shape[:-3], -1)
            flat = pooling.spread(flat, level.plates, source.plates)
            return flat.reshape(*flat.shape[:-1], *features.shape[-3:])

        def read(queries: Array, keys: Array, values: Array) -> Array:
            scores = jnp.einsum("...hs,...phs->...hp", queries, spread(keys))
            weights = jax.nn.softmax(scores * keys.shape[-1] ** -0.5, axis=-1)
            return jnp.einsum("...hp,...phs->...hs", weights, spread(values))

        for points, block, own in zip(self.points, self.gather, self.read, strict=False):
            rows = own(rows, block(points, rows, gather), read)
        return jnp.squeeze(self.gather[-1](self.points[-1], rows, gather), -2)
