"""Features of events that are plain vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pyro_amortize.embeddings.base import Embedding
from pyro_amortize.embeddings.pooled_embedding import PooledEmbedding, check_sizes
from pyro_amortize.embeddings.pooled_features import EventFeatures
from pyro_amortize.networks import StackedMLP


@dataclass(frozen=True)
class MLPEmbedding(PooledEmbedding):
    """A perceptron on each event as one vector, then plates pooled as in `PlateEmbedding`.

    Its activation is `GELU(x) = x Phi(x)`, the mean of x times a coin that is 1 with the
    probability Phi(x) that a standard normal is below x; or its approximation by a tanh, which
    differs by less than 0.001. What skips the network is the mean and the spread of the values
    of an event: two numbers in place of all of them.

    Use it for an observed site whose event is a vector of fixed length without an order that
    helps, such as summary statistics, or a short array. For an event of a few numbers take
    `PlateEmbedding`, where every value skips the network; for series and images the networks
    that know of time and place need fewer simulations. Positions that are hidden by a mask are
    read as zeros beside the mask.

    Args:
        feature_dim: Number of features per event and per pooled set; chosen from the number of
            latents if None, from 32 to 128.
        hidden_dims: Widths of the hidden layers of all networks; if None two layers of twice
            `feature_dim`, at least 64.
        activation: `"gelu"`, exact, or `"gelu_tanh"`.
        reads_mask: Whether each event comes with which of its values are there. The guide sets
            it for masks of single positions.

    Raises:
        ValueError: If there is no hidden layer, a size is below 1, or `activation` is another
            word.

    Example:
        >>> MLPEmbedding(feature_dim=4).context_sizes((20,), 0, [0])
        (6, 10)

    References:
        Hendrycks and Gimpel (2016), arXiv:1606.08415.
    """

    feature_dim: int | None = None
    hidden_dims: tuple[int, ...] | None = None
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    reads_mask: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ("gelu", "gelu_tanh"):
            raise ValueError(
                "MLPEmbedding: expected activation='gelu' or activation='gelu_tanh', got "
                f"activation={self.activation!r}; choose one of the two"
            )
        if self.hidden_dims == ():
            raise ValueError(
                "MLPEmbedding: expected at least one hidden layer, got hidden_dims=(); give the "
                "width of one, as (64,)"
            )
        check_sizes("MLPEmbedding", feature_dim=self.feature_dim, hidden_dims=self.hidden_dims)

    def event_features(self, event_shape: tuple[int, ...], feature_dim: int) -> EventFeatures:
        """The network on whole events, with what skips it."""
        size = math.prod(event_shape)
        widths = (size * (2 if self.reads_mask else 1), *self.own_sizes()[1], feature_dim)
        network = Perceptron(widths, "none" if self.activation == "gelu" else "tanh")
        return EventFeatures(network, (size, 1), 1, feature_dim, self.reads_mask)

    def num_skipped(self, event_shape: tuple[int, ...]) -> int:
        """Number of values of an event that skip its network."""
        return 2

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there."""
        return replace(self, reads_mask=True)


class Perceptron(nn.Module):
    """A perceptron on flattened events.

    Args:
        widths: Of the inputs, of each hidden layer and of the outputs.
        approximate: Form of the GELU: `"none"` for the exact one, or `"tanh"`.
    """

    def __init__(self, widths: Sequence[int], approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            StackedMLP(1, below, (), above)
            for below, above in zip(widths[:-1], widths[1:], strict=True)
        )
        self.approximate = approximate

    def forward(self, events: Tensor, present: Tensor | None = None) -> Tensor:
        """Features of events; with a mask it is the last channels."""
        hidden = torch.flatten(events, 1)
        for number, layer in enumerate(self.layers):
            if number:
                hidden = gelu(hidden, approximate=self.approximate)
            hidden = layer(hidden, 0)
        return hidden
