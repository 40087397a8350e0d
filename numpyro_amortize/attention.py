"""The blocks of attention: arrays that read others, weighed by a softmax."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.networks import StackedMLP


class AttentionBlock(eqx.Module):
    """Some features read others in several heads, then a perceptron, each added to what it reads.

    `H = Q + MHA(LN(Q), LN(X), LN(X))`, then `H + FF(LN(H))`, with `MHA` the softmax of
    `q k / sqrt(size / num_heads)` and one hidden layer of twice the size in `FF`.

    Args:
        size: Number of features.
        num_heads: Number of heads, a divisor of `size`.
        rng_key: Key of the initial weights.

    References:
        Vaswani et al. (2017), arXiv:1706.03762; Xiong et al. (2020), arXiv:2002.04745, for the
        norms before what they are for.
    """

    query: StackedMLP
    key: StackedMLP
    value: StackedMLP
    out: StackedMLP
    feed: StackedMLP
    reader_norm: _LayerNorm
    read_norm: _LayerNorm
    feed_norm: _LayerNorm
    num_heads: int = eqx.field(static=True)

    def __init__(self, size: int, num_heads: int, rng_key: Array) -> None:
        *keys, last = jax.random.split(rng_key, 5)
        self.query, self.key, self.value, self.out = (
            StackedMLP(1, size, (), size, rng_key=key) for key in keys
        )
        self.feed = StackedMLP(1, size, (2 * size,), size, rng_key=last)
        self.reader_norm, self.read_norm, self.feed_norm = (_LayerNorm(size) for _ in range(3))
        self.num_heads = num_heads

    def __call__(
        self,
        readers: Array,
        read: Array,
        attend: Callable[[Array, Array, Array], Array],
    ) -> Array:
        """What the readers are after they have read.

        Args:
            readers: Shape `(*readers, size)`.
            read: Shape `(*read, size)`.
            attend: Maps queries `(*readers, num_heads, size / num_heads)`, keys and values
                `(*read, num_heads, size / num_heads)` to weighted means of the values in the
                shape of the queries.

        Returns:
            Shape `(*readers, size)`, with what axes `attend` gives to it.
        """
        source = self.read_norm(read)
        found = attend(
            self._heads(self.query(self.reader_norm(readers), 0)),
            self._heads(self.key(source, 0)),
            self._heads(self.value(source, 0)),
        )
        hidden = readers + self.out(found.reshape(*found.shape[:-2], -1), 0)
        return hidden + self.feed(self.feed_norm(hidden), 0)

    def _heads(self, features: Array) -> Array:
        return features.reshape(*features.shape[:-1], self.num_heads, -1)


def attend(queries: Array, keys: Array, values: Array, present: Array | None = None) -> Array:
    """Means of values weighed by the softmax of queries times keys.

    Args:
        queries: Shape `(*batch, num_readers, num_heads, size)`.
        keys: Shape `(*batch, num_read, num_heads, size)`.
        values: As `keys`.
        present: Boolean `(*batch, num_read)`, what there is to read; all if None.

    Returns:
        Shape `(*batch, num_readers, num_heads, size)`; zeros where there is nothing to read.
    """
    scores = jnp.einsum("...ihs,...jhs->...hij", queries, keys) * queries.shape[-1] ** -0.5
    if present is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        there = present[..., None, None, :]
        weights = jax.nn.softmax(jnp.where(there, scores, -1e30), axis=-1) * there
    return jnp.einsum("...hij,...jhs->...ihs", weights, values)


def check_heads(name: str, size: int, num_heads: int) -> None:
    """Raise a ValueError if heads are none, or cannot share the features.

    Args:
        name: Of the embedding and the argument that is the size, for the error.
        size: Number of features.
        num_heads: Number of heads.
    """
    if num_heads < 1 or size % num_heads:
        raise ValueError(
            f"{name}: expected a multiple of num_heads, 1 or more, got {size} features and "
            f"num_heads={num_heads}; change one of the two"
        )


class _LayerNorm(eqx.Module):
    """Features of mean 0 and variance 1, then a scale and a shift for each.

    Args:
        size: Number of features.
    """

    weight: Array
    bias: Array

    def __init__(self, size: int) -> None:
        self.weight, self.bias = jnp.ones(size), jnp.zeros(size)

    def __call__(self, features: Array) -> Array:
        """Features of any batch shape."""
        centred = features - jnp.mean(features, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred / jnp.sqrt(variance + 1e-5) * self.weight + self.bias
