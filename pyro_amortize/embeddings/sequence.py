"""Features of events that are series in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from pyro_amortize.embeddings.pooled_features import (
    EventFeatures,
    build_pooled_features,
    pooled_sizes,
)
from pyro_amortize.networks import Convolution


@dataclass(frozen=True)
class SequenceEmbedding(Embedding):
    """A network along time for each event, then plates pooled as in `PlateEmbedding`.

    `"convolution"` is a residual stack of causal convolutions whose dilation doubles from
    layer to layer, so that its memory is `1 + (kernel_size - 1) (2**num_layers - 1)` steps;
    `"recurrent"` is a GRU. The features of an event are the mean over time and the last step
    of the hidden values. What skips the networks is the mean and the spread over time of each
    channel: two numbers in place of every value of the series.

    Use it for an observed site whose event is one series, shape `(T,)` or `(T, d)`, whose
    steps depend on each other. For exchangeable rows use a plate and `PlateEmbedding`. Series of
    different lengths are padded to one: declare the mask of their steps in the guide's `missing=`,
    and apply it in the model, `Normal(mean, scale).mask(mask).to_event(1)`.

    Args:
        kind: `"convolution"` or `"recurrent"`.
        feature_dim: Number of features per event and per pooled set.
        num_channels: Width of the network along time.
        num_layers: Number of convolutions.
        kernel_size: Steps that one convolution reads.
        hidden_dims: Widths of the hidden layers of all other networks.
        reads_mask: Whether each event comes with which of its values are there. The guide sets
            it for masks of single positions, as of series of different lengths, padded.

    Raises:
        ValueError: If `kind` is another word, or, at set-up, if the event is no series.

    Example:
        >>> SequenceEmbedding(feature_dim=4).context_sizes((20, 3), 0, [0])
        (10, 32)

    References:
        Bai et al. (2018), arXiv:1803.01271, for the convolutions; Cho et al. (2014),
        arXiv:1406.1078, for the gated recurrent unit.
    """

    kind: Literal["convolution", "recurrent"] = "convolution"
    feature_dim: int = 32
    num_channels: int = 32
    num_layers: int = 4
    kernel_size: int = 3
    hidden_dims: tuple[int, ...] = (64, 64)
    reads_mask: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("convolution", "recurrent"):
            raise ValueError(
                "SequenceEmbedding: expected kind='convolution' or kind='recurrent', got "
                f"kind={self.kind!r}; choose one of the two"
            )

    def build(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        layout = _series_layout(event_shape)
        channels = layout[1] * (2 if self.reads_mask else 1)
        network: nn.Module
        if self.kind == "convolution":
            network = SeriesConvolutions(
                channels, self.num_channels, self.num_layers, self.kernel_size
            )
        else:
            network = SeriesRecurrence(channels, self.num_channels)
        event = EventFeatures(network, layout, 1, 2 * self.num_channels, self.reads_mask)
        return build_pooled_features(self.feature_dim, self.hidden_dims, num_inputs, sources, event)

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there."""
        return replace(self, reads_mask=True)

    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> tuple[int, ...]:
        """Number of context features at every level."""
        num_skipped = 2 * _series_layout(event_shape)[1] + num_inputs
        return pooled_sizes(self.feature_dim, num_skipped, sources)


class SeriesConvolutions(nn.Module):
    """Causal convolutions along a series of any length, each added to what it reads.

    Args:
        in_channels: Number of channels of the series.
        num_channels: Number of hidden channels.
        num_layers: Number of convolutions; the dilation of the last is `2**(num_layers - 1)`.
        kernel_size: Steps that one convolution reads.
    """

    def __init__(
        self, in_channels: int, num_channels: int, num_layers: int, kernel_size: int
    ) -> None:
        super().__init__()
        self.lift = Convolution(in_channels, num_channels, 1, num_dims=1)
        self.layers = nn.ModuleList(
            Convolution(num_channels, num_channels, kernel_size, num_dims=1, dilation=2**layer)
            for layer in range(num_layers)
        )

    def forward(self, series: Tensor, present: Tensor | None = None) -> Tensor:
        """Mean over time and last step of the hidden values, `2 num_channels` features."""
        hidden = self.lift(series.mT)
        for layer in self.layers:
            hidden = hidden + gelu(layer(hidden))
        return _mean_and_last(hidden.mT, present)


class SeriesRecurrence(nn.Module):
    """A gated recurrent unit along a series of any length.

    Args:
        in_channels: Number of channels of the series.
        num_channels: Number of hidden channels.
    """

    def __init__(self, in_channels: int, num_channels: int) -> None:
        super().__init__()
        self.cell = nn.GRU(in_channels, num_channels, batch_first=True)

    def forward(self, series: Tensor, present: Tensor | None = None) -> Tensor:
        """Mean over time and last step of the hidden values, `2 num_channels` features."""
        states, _ = self.cell(series)
        return _mean_and_last(states, present)


def _mean_and_last(hidden: Tensor, present: Tensor | None) -> Tensor:
    """Mean over the steps that are there, and the last of them; `hidden` is `(rows, T, size)`."""
    if present is None:
        return torch.cat([hidden.mean(1), hidden[:, -1]], -1)
    weights = present.to(hidden.dtype)[..., None]
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    last = (present * torch.arange(present.shape[-1], device=present.device)).argmax(-1)
    return torch.cat([mean, hidden[torch.arange(len(hidden)), last] * weights.amax(1)], -1)


def _series_layout(event_shape: tuple[int, ...]) -> tuple[int, int]:
    """Length and number of channels."""
    if len(event_shape) not in (1, 2):
        raise ValueError(
            f"SequenceEmbedding: expected an event of shape (T,) or (T, d), got {event_shape}; "
            "write the series as one event with .to_event(1), or use PlateEmbedding"
        )
    return event_shape[0], event_shape[1] if len(event_shape) == 2 else 1
