"""Features pooled plate by plate: exactly equivariant, for any plate size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from pyro_amortize.attention import check_heads
from pyro_amortize.embeddings.base import EmbeddingNetwork
from pyro_amortize.embeddings.pooled_embedding import PooledEmbedding, check_sizes
from pyro_amortize.embeddings.pooled_features import EventFeatures, build_pooled_features
from pyro_amortize.embeddings.set_attention import SetAttention


@dataclass(frozen=True)
class PlateEmbedding(PooledEmbedding):
    """Deep sets that follow the plates of the model.

    One network maps every event to features. Plates are then pooled one at a time: the mean
    of the features, the mean, spread and (of up to eight) covariances of the standardised
    values themselves, and `log(1 + count)`, with a network in between. The raw moments skip
    the network, which makes the context of exponential families and of linear regressions
    nearly exact at any plate size. Where plates cross, such as students and items, every
    event then reads what has been pooled for its row, its column and the whole, and all is
    pooled again, `num_rounds` times.

    With `pooling="attention"` the features are not averaged but pooled by induced set attention:
    rows read each other through inducing points before a learned reader weighs them, which finds
    what hangs on several rows at once, such as the largest, an outlier or a cluster. It costs
    rows times `num_inducing`. Moments and counts, which attention does not see, are pooled beside
    it as before. Take it when the plain mean is not enough.

    Your own network can read the events: a `torch.nn.Module` that maps `(rows, *event_shape)`
    to `(rows, features)`, or a function `(event_shape, feature_dim) -> module`. It gets the
    standardised event after `asinh`, and what skips it is the mean and the spread of the
    event in place of every value. Rows are of different data sets, so that a network with
    batch statistics would mix them. To load a saved guide, pass the embedding again.

    Args:
        feature_dim: Number of features per event and per pooled set; chosen from the number of
            latents if None, from 32 to 128.
        hidden_dims: Widths of the hidden layers; if None two layers of twice `feature_dim`, at
            least 64.
        num_rounds: Rounds of exchange between crossed plates.
        event_network: Your own network for one event, or a function that makes it.
        pooling: `"mean"` or `"attention"`, of the features.
        num_heads: Heads of the attention, a divisor of `feature_dim`.
        num_inducing: Inducing points of each of its blocks.
        num_blocks: Blocks in which rows read each other.

    Raises:
        ValueError: If `num_rounds` is negative, a size below 1 or `pooling` another word, or, at
            set-up, if the heads do not divide the features.
        TypeError: At set-up, if `event_network` is or makes something else.
        ValueError: At set-up, if its features have another shape.

    Example:
        >>> PlateEmbedding(feature_dim=4).context_sizes((), 1, [0])
        (6, 10)

    References:
        Zaheer et al. (2017), arXiv:1703.06114, eq. 4; Lee et al. (2019), arXiv:1810.00825, for
        the attention.
    """

    feature_dim: int | None = None
    hidden_dims: tuple[int, ...] | None = None
    num_rounds: int = 3
    event_network: nn.Module | Callable[..., Any] | None = None
    pooling: Literal["mean", "attention"] = "mean"
    num_heads: int = 4
    num_inducing: int = 16
    num_blocks: int = 2

    def __post_init__(self) -> None:
        if self.num_rounds < 0:
            raise ValueError(f"num_rounds: expected 0 or more, got {self.num_rounds}")
        if self.pooling not in ("mean", "attention"):
            raise ValueError(
                "PlateEmbedding: expected pooling='mean' or pooling='attention', got "
                f"pooling={self.pooling!r}; choose one of the two"
            )
        check_sizes(
            "PlateEmbedding",
            feature_dim=self.feature_dim,
            hidden_dims=self.hidden_dims,
            num_heads=self.num_heads,
            num_inducing=self.num_inducing,
            num_blocks=self.num_blocks,
        )

    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        feature_dim, hidden_dims = self.own_sizes()
        event, num_values = None, math.prod(event_shape) + num_inputs
        if self.event_network is not None:
            event = self.event_features(event_shape, feature_dim)
            num_values = num_inputs
        attention = None
        if self.pooling == "attention":
            check_heads("PlateEmbedding: feature_dim", feature_dim, self.num_heads)
            sizes = feature_dim, self.num_heads, self.num_inducing, self.num_blocks
            attention = partial(SetAttention, *sizes)
        return build_pooled_features(
            feature_dim,
            hidden_dims,
            num_values,
            sources,
            event,
            num_rounds=self.num_rounds,
            attention=attention,
        )

    def event_features(self, event_shape: tuple[int, ...], feature_dim: int) -> EventFeatures:
        """The user's network on whole events, with what skips it."""
        return _users_network(self.event_network, event_shape, feature_dim)

    def num_skipped(self, event_shape: tuple[int, ...]) -> int:
        """Number of values of an event that skip its network, or go on without one."""
        return 2 if self.event_network is not None else math.prod(event_shape)


def _users_network(given: Any, event_shape: tuple[int, ...], feature_dim: int) -> EventFeatures:
    """The user's network, a copy of its own for each observed site."""
    if isinstance(given, nn.Module):
        network = copy.deepcopy(given)
    else:
        network = given(event_shape, feature_dim) if callable(given) else given
    if not isinstance(network, nn.Module):
        raise TypeError(
            "event_network: expected a torch.nn.Module, or a function of (event_shape, "
            f"feature_dim) that makes one, got {network!r}; pass the module itself"
        )
    with torch.no_grad():
        shape = tuple(network(torch.zeros(2, *event_shape)).shape)
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"event_network: expected features of shape (rows, features) for events of shape "
            f"(rows, {', '.join(map(str, event_shape))}), got shape {shape} for 2 rows; flatten "
            "all but the first axis of its output"
        )
    return EventFeatures(network, event_shape, None, shape[1])
