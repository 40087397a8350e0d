"""Features pooled plate by plate: exactly equivariant, for any plate size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.embeddings.pooled_features import (
    EventFeatures,
    build_pooled_features,
    pooled_sizes,
)


@dataclass(frozen=True)
class PlateEmbedding(Embedding):
    """Deep sets that follow the plates of the model.

    One network maps every event to features. Plates are then pooled one at a time: the mean
    of the features, the mean, spread and (of up to eight) covariances of the standardised
    values themselves, and `log(1 + count)`, with a network in between. The raw moments skip
    the network, which makes the context of exponential families and of linear regressions
    nearly exact at any plate size. Where plates cross, such as students and items, every
    event then reads what has been pooled for its row, its column and the whole, and all is
    pooled again, `num_rounds` times.

    Your own network can read the events: an `equinox.Module` that maps one event `event_shape`
    to `(features,)`, or a function `(event_shape, feature_dim, rng_key) -> module`. It gets the
    standardised event after `asinh`, and what skips it is the mean and the spread of the
    event in place of every value. It is mapped over rows with `vmap` and called without a key
    or a state. To load a saved guide, pass the embedding again.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        num_rounds: Rounds of exchange between crossed plates.
        event_network: Your own network for one event, or a function that makes it.

    Raises:
        ValueError: If `num_rounds` is negative.
        TypeError: At set-up, if `event_network` is or makes something else.
        ValueError: At set-up, if its features have another shape.

    Example:
        >>> PlateEmbedding(feature_dim=4).context_sizes((), 1, [0])
        (6, 10)

    References:
        Zaheer et al. (2017), arXiv:1703.06114, eq. 4.
    """

    feature_dim: int = 32
    hidden_dims: tuple[int, ...] = (64, 64)
    num_rounds: int = 3
    event_network: eqx.Module | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.num_rounds < 0:
            raise ValueError(f"num_rounds: expected 0 or more, got {self.num_rounds}")

    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int], rng_key: Array
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        event, num_values = None, math.prod(event_shape) + num_inputs
        if self.event_network is not None:
            own = jax.random.fold_in(rng_key, 0)
            event = _users_network(self.event_network, event_shape, self.feature_dim, own)
            num_values = num_inputs
        return build_pooled_features(
            self.feature_dim,
            self.hidden_dims,
            num_values,
            sources,
            event,
            num_rounds=self.num_rounds,
            rng_key=rng_key,
        )

    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> tuple[int, ...]:
        """Number of context features at every level."""
        num_skipped = 2 if self.event_network is not None else math.prod(event_shape)
        return pooled_sizes(self.feature_dim, num_skipped + num_inputs, sources)


def _users_network(
    given: Any, event_shape: tuple[int, ...], feature_dim: int, rng_key: Array
) -> EventFeatures:
    """The user's network for one observed site."""
    network: Any = given
    if callable(given) and not isinstance(given, eqx.Module):
        network = given(event_shape, feature_dim, rng_key)
    if not isinstance(network, eqx.Module):
        raise TypeError(
            "event_network: expected an equinox.Module, or a function of (event_shape, "
            f"feature_dim, rng_key) that makes one, got {network!r}; pass the module itself"
        )
    call: Any = network
    shape = jax.eval_shape(call, jnp.zeros(event_shape)).shape
    if len(shape) != 1:
        raise ValueError(
            f"event_network: expected features of shape (features,) for an event of shape "
            f"{event_shape}, got shape {shape}; flatten its output"
        )
    return EventFeatures(network, event_shape, None, shape[0])
