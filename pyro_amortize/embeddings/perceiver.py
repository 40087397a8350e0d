"""Features of events with many elements: a few learned latents that read them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from pyro_amortize.attention import AttentionBlock, attend, check_heads
from pyro_amortize.embeddings.base import Embedding
from pyro_amortize.embeddings.pooled_embedding import PooledEmbedding, check_sizes, times_start
from pyro_amortize.embeddings.pooled_features import EventFeatures
from pyro_amortize.networks import StackedMLP

_EVEN_RANGE = math.asinh(math.sqrt(3.0))  # of even times, as the network gets them


@dataclass(frozen=True)
class PerceiverEmbedding(PooledEmbedding):
    """Cross-attention of learned latents to the elements of each event, then plates pooled.

    A perceptron with one hidden layer maps each element (the paper has a linear map). In each of
    `num_cross` rounds the latents read all elements and then, in `num_blocks` blocks, each other;
    their mean is the features of the event. Elements cost in proportion to their number, not to
    its square. Where an element is enters as `sin(f_k pi p)`, `cos(f_k pi p)` and p itself for
    its positions p from -1 to 1, with `num_bands` frequencies spaced evenly from 1 to half the
    number of elements along an axis. Softmax weights do not see how many elements there are:
    under a mask the logarithm of their number is added to the features. What skips the network
    is the mean and the spread of each channel.

    Use it for events of many elements: large sets without order, long series, images. With
    `positions="none"` the elements of an event are a set, in any order. Where rows are a plate
    of the model take `PlateEmbedding(pooling="attention")`. An event with all of its elements
    hidden is no error here, unlike in the paper: the latents then read nothing.

    Args:
        positions: `"none"` for an event `(M,)` or `(M, d)` that is a set, `"time"` for a series
            of this shape, `"grid"` for an image `(H, W)` or `(C, H, W)`.
        feature_dim: Number of features per event and per pooled set; chosen from the number of
            latents if None, from 32 to 128.
        num_latents: Number of learned latents that read.
        num_channels: Width of elements and latents.
        num_cross: Rounds in which the latents read the elements, each with its own weights.
        num_blocks: Blocks of attention among the latents in each round.
        num_heads: Heads of the attention, a divisor of `num_channels`.
        num_bands: Frequencies of the positions.
        hidden_dims: Widths of the hidden layers of all other networks; if None two layers of
            twice `feature_dim`, at least 64.
        times: Name of the input with the times of the steps, as in `SequenceEmbedding`.
        reads_mask: Whether each event comes with which of its values are there. The guide sets
            it for masks of single positions.
        times_at: Where the times are in what the embedding gets. The guide sets it.

    Raises:
        ValueError: If a size is below 1, the heads do not divide the channels, `positions` is
            another word or `times` are given without `positions="time"`; or, at set-up, if the
            event has another shape.

    Example:
        >>> PerceiverEmbedding(feature_dim=4).context_sizes((20, 3), 0, [0])
        (10, 32)

    References:
        Jaegle et al. (2021), arXiv:2103.03206.
    """

    positions: Literal["none", "time", "grid"] = "none"
    feature_dim: int | None = None
    num_latents: int = 16
    num_channels: int = 64
    num_cross: int = 2
    num_blocks: int = 2
    num_heads: int = 4
    num_bands: int = 8
    hidden_dims: tuple[int, ...] | None = None
    times: str | None = None
    reads_mask: bool = False
    times_at: int | None = None

    def __post_init__(self) -> None:
        if self.positions not in ("none", "time", "grid"):
            raise ValueError(
                "PerceiverEmbedding: expected positions='none', 'time' or 'grid', got "
                f"positions={self.positions!r}; choose one of the three"
            )
        if self.times is not None and self.positions != "time":
            raise ValueError(
                f"PerceiverEmbedding: expected positions='time' with times={self.times!r}, got "
                f"positions={self.positions!r}; set it, or leave times out"
            )
        check_sizes(
            "PerceiverEmbedding",
            feature_dim=self.feature_dim,
            num_latents=self.num_latents,
            num_channels=self.num_channels,
            num_cross=self.num_cross,
            num_blocks=self.num_blocks,
            num_bands=self.num_bands,
            hidden_dims=self.hidden_dims,
        )
        check_heads("PerceiverEmbedding: num_channels", self.num_channels, self.num_heads)

    def event_features(self, event_shape: tuple[int, ...], feature_dim: int) -> EventFeatures:
        """The network on whole events, with what skips it."""
        layout, axis = self._layout(event_shape), 0 if self.positions == "grid" else 1
        channels = layout[axis] * (2 if self.reads_mask else 1)
        channels += 0 if self.times_at is None else 2
        rate, has_times = max(layout[1:] if axis == 0 else layout[:1]), self.times_at is not None
        positions = Positions(self.positions, rate, self.num_bands, has_times)
        network = Perceiver(
            channels,
            self.num_channels,
            self.num_latents,
            self.num_cross,
            self.num_blocks,
            self.num_heads,
            positions,
        )
        num_features = self.num_channels + (1 if self.reads_mask else 0)
        return EventFeatures(network, layout, axis, num_features, self.reads_mask, self.times_at)

    def num_skipped(self, event_shape: tuple[int, ...]) -> int:
        """Number of values of an event that skip its network."""
        return 2 * self._layout(event_shape)[0 if self.positions == "grid" else 1]

    def num_times(self, event_shape: tuple[int, ...]) -> int:
        """Number of inputs that the network on whole events reads as times."""
        return 0 if self.times_at is None else event_shape[0]

    def for_inputs(
        self, site: str, event_shape: tuple[int, ...], places: Mapping[str, tuple[int, int]]
    ) -> Embedding:
        """The embedding that knows where each covariate is in what it gets."""
        if self.times is None:
            return self
        start = times_start(site, self.times, self._layout(event_shape)[0], places)
        return replace(self, times_at=start)

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there."""
        return replace(self, reads_mask=True)

    def _layout(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Elements and channels, or of an image channels, height and width."""
        num_dims, is_grid = len(event_shape), self.positions == "grid"
        if num_dims not in ((2, 3) if is_grid else (1, 2)) or 0 in event_shape:
            wanted = "(H, W) or (C, H, W)" if is_grid else "(M,) or (M, d)"
            raise ValueError(
                f"PerceiverEmbedding: expected an event of shape {wanted} with "
                f"positions={self.positions!r}, got {event_shape}; choose other positions, or "
                "write the elements as one event with .to_event(1)"
            )
        if is_grid:
            return event_shape if num_dims == 3 else (1, *event_shape)
        return event_shape if num_dims == 2 else (*event_shape, 1)


@dataclass(frozen=True)
class Positions:
    """Features of where the elements of an event are.

    Args:
        kind: As in `PerceiverEmbedding`.
        rate: Number of elements along an axis.
        num_bands: Number of frequencies.
        has_times: Whether the last two channels are the time and the gap before it.
    """

    kind: Literal["none", "time", "grid"]
    rate: int
    num_bands: int
    has_times: bool

    @property
    def size(self) -> int:
        """Number of features."""
        return {"none": 0, "time": 1, "grid": 2}[self.kind] * (2 * self.num_bands + 1)

    def features(self, places: Tensor) -> Tensor:
        """Sines, cosines and the positions themselves, `(*batch, axes)` to `(*batch, size)`."""
        frequencies = np.linspace(1.0, max(self.rate / 2, 1.0), self.num_bands)
        angles = places[..., None] * torch.as_tensor(math.pi * frequencies).to(places)
        angles = angles.flatten(-2)
        return torch.cat([torch.sin(angles), torch.cos(angles), places], -1)


class Perceiver(nn.Module):
    """Latents that read the elements of events of any size, and each other.

    Args:
        in_channels: Number of channels of an element, mask and times among them.
        num_channels: Width of elements and latents.
        num_latents: Number of latents.
        num_cross: Rounds in which they read the elements.
        num_blocks: Blocks among the latents in each round.
        num_heads: Number of heads.
        positions: Where the elements are.
    """

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        num_latents: int,
        num_cross: int,
        num_blocks: int,
        num_heads: int,
        positions: Positions,
    ) -> None:
        super().__init__()
        in_size = in_channels + positions.size
        self.lift = StackedMLP(1, in_size, (num_channels,), num_channels)
        self.latents = nn.Parameter(2 * torch.rand(num_latents, num_channels) - 1)
        self.cross = nn.ModuleList(
            AttentionBlock(num_channels, num_heads) for _ in range(num_cross)
        )
        self.blocks = nn.ModuleList(
            AttentionBlock(num_channels, num_heads) for _ in range(num_cross * num_blocks)
        )
        self.positions = positions

    def forward(self, events: Tensor, present: Tensor | None = None) -> Tensor:
        """Mean of the latents, with a mask also the logarithm of 1 + the number of elements."""
        elements, places = self._elements(events)
        if places is not None:
            where = self.positions.features(places)
            elements = torch.cat([elements, where.expand(*elements.shape[:-1], -1)], -1)
        present = None if present is None else present.flatten(1)
        read = self.lift(elements, 0)
        hidden = self.latents.expand(len(read), -1, -1)
        blocks = iter(cast(Sequence[AttentionBlock], self.blocks))
        for cross in self.cross:
            hidden = cross(hidden, read, partial(attend, present=present))
            for _ in range(len(self.blocks) // len(self.cross)):
                hidden = next(blocks)(hidden, hidden, attend)
        mean = hidden.mean(-2)
        if present is None:
            return mean
        return torch.cat([mean, torch.log1p(present.to(mean).sum(-1, keepdim=True))], -1)

    def _elements(self, events: Tensor) -> tuple[Tensor, Tensor | None]:
        """Elements `(rows, M, channels)`, and their positions `(*rows, M, axes)` or None."""
        if self.positions.kind == "none":
            return events, None
        if self.positions.has_times:
            return events, events[..., -2:-1] / _EVEN_RANGE
        options: Any = {"dtype": events.dtype, "device": events.device}
        if self.positions.kind == "grid":
            height, width = events.shape[-2:]
            axes = (torch.linspace(-1.0, 1.0, size, **options) for size in (height, width))
            places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
            return events.flatten(-2).mT, places.flatten(0, 1)
        return events, torch.linspace(-1.0, 1.0, events.shape[-2], **options)[:, None]
