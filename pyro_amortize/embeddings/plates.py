"""Features pooled plate by plate: exactly equivariant, for any plate size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from pyro_amortize.embeddings.pooling import EventFeatures, build_pooled_features, pooled_sizes


@dataclass(frozen=True)
class PlateEmbedding(Embedding):
    """Deep sets that follow the plates of the model.

    One network maps every event to features. Plates are then pooled one at a time: the mean
    of the features, the mean and spread of the standardised values themselves, and
    `log(1 + count)`, with a network in between. The raw moments skip the network, which
    makes the context of exponential families nearly exact at any plate size.

    Your own network can read the events: a `torch.nn.Module` that maps `(rows, *event_shape)`
    to `(rows, features)`, or a function `(event_shape, feature_dim) -> module`. It gets the
    standardised event after `asinh`, and what skips it is the mean and the spread of the
    event in place of every value. Rows are of different data sets, so that a network with
    batch statistics would mix them. To load a saved guide, pass the embedding again.

    Args:
        feature_dim: Number of features per event and per pooled set.
        hidden_dims: Widths of the hidden layers.
        event_network: Your own network for one event, or a function that makes it.

    Raises:
        TypeError: At set-up, if `event_network` is or makes something else.
        ValueError: At set-up, if its features have another shape.

    Example:
        >>> network = PlateEmbedding(feature_dim=4).build((), 1, 1)
        >>> [tuple(level.shape) for level in network(torch.ones(7, 2), [-2])]
        [(7, 6), (1, 9)]

    References:
        Zaheer et al. (2017), arXiv:1703.06114, eq. 4.
    """

    feature_dim: int = 32
    hidden_dims: tuple[int, ...] = (64, 64)
    event_network: nn.Module | Callable[..., Any] | None = None

    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, num_plates: int
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        event, num_values = None, math.prod(event_shape) + num_inputs
        if self.event_network is not None:
            event = _users_network(self.event_network, event_shape, self.feature_dim)
            num_values = num_inputs
        return build_pooled_features(
            self.feature_dim, self.hidden_dims, num_values, num_plates, event
        )

    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, num_plates: int
    ) -> tuple[int, ...]:
        """Number of context features at every level of the chain."""
        num_skipped = 2 if self.event_network is not None else math.prod(event_shape)
        return pooled_sizes(self.feature_dim, num_skipped + num_inputs, num_plates)


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
