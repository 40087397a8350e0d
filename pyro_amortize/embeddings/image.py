"""Features of events that are images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pyro_amortize.embeddings.base import Embedding
from pyro_amortize.embeddings.pooled_embedding import PooledEmbedding, check_sizes
from pyro_amortize.embeddings.pooled_features import EventFeatures
from pyro_amortize.networks import Convolution


@dataclass(frozen=True)
class ImageEmbedding(PooledEmbedding):
    """A small residual network on each image, then plates pooled as in `PlateEmbedding`.

    Residual blocks of 3 x 3 convolutions, the resolution halved between them, on the image
    and two channels of coordinates, without which a mean over positions could not say where
    something is. The features of an event are, for each channel, the mean over positions and
    a mean weighted by learned attention. What skips the networks is the mean and the spread
    of each colour channel, in place of every pixel.

    Use it for an observed site whose event is one image, shape `(H, W)` or `(C, H, W)`. Pixels
    that are hidden by a mask, declared in the guide's `missing=` and applied by the model, are read
    as zeros beside the mask as further channels.

    Args:
        feature_dim: Number of features per event and per pooled set; chosen from the number of
            latents if None, from 32 to 128.
        num_channels: Width of the convolutions.
        num_blocks: Number of residual blocks; the resolution is halved after all but the last.
        hidden_dims: Widths of the hidden layers of all other networks; if None two layers of
            twice `feature_dim`, at least 64.
        reads_mask: Whether each event comes with which of its values are there. The guide sets
            it for masks of single positions.

    Raises:
        ValueError: If a size is below 1, or, at set-up, if the event is no image.

    Example:
        >>> ImageEmbedding(feature_dim=4).context_sizes((3, 8, 8), 0, [0])
        (10, 32)

    References:
        He et al. (2016), arXiv:1603.05027, for the blocks; Liu et al. (2018), arXiv:1807.03247,
        for the coordinates.
    """

    feature_dim: int | None = None
    num_channels: int = 32
    num_blocks: int = 2
    hidden_dims: tuple[int, ...] | None = None
    reads_mask: bool = False

    def __post_init__(self) -> None:
        check_sizes(
            "ImageEmbedding",
            feature_dim=self.feature_dim,
            num_channels=self.num_channels,
            num_blocks=self.num_blocks,
            hidden_dims=self.hidden_dims,
        )

    def event_features(self, event_shape: tuple[int, ...], feature_dim: int) -> EventFeatures:
        """The network on whole events, with what skips it."""
        layout = _image_layout(event_shape)
        channels = layout[0] * (2 if self.reads_mask else 1)
        network = ImageConvolutions(channels, self.num_channels, self.num_blocks)
        return EventFeatures(network, layout, 0, 2 * self.num_channels, self.reads_mask)

    def num_skipped(self, event_shape: tuple[int, ...]) -> int:
        """Number of values of an event that skip its network."""
        return 2 * _image_layout(event_shape)[0]

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there."""
        return replace(self, reads_mask=True)


class ImageConvolutions(nn.Module):
    """Residual blocks on images of any size, summed up over positions.

    Args:
        in_channels: Number of channels of an image.
        num_channels: Number of hidden channels.
        num_blocks: Number of residual blocks.
    """

    def __init__(self, in_channels: int, num_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.lift = Convolution(in_channels + 2, num_channels, 3, num_dims=2)
        self.first, self.second = (
            nn.ModuleList(
                Convolution(num_channels, num_channels, 3, num_dims=2) for _ in range(num_blocks)
            )
            for _ in range(2)
        )
        self.halve = nn.ModuleList(
            Convolution(num_channels, num_channels, 3, num_dims=2, stride=2)
            for _ in range(num_blocks - 1)
        )
        self.head = Convolution(num_channels, 2 * num_channels, 1, num_dims=2)

    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """Mean and attended mean over positions, `2 num_channels` features."""
        height, width = images.shape[-2:]
        rows = torch.linspace(-1.0, 1.0, height, dtype=images.dtype, device=images.device)
        columns = torch.linspace(-1.0, 1.0, width, dtype=images.dtype, device=images.device)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        places = places.expand(*images.shape[:-3], 2, height, width)
        hidden = self.lift(torch.cat([images, places], -3))
        for number, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            hidden = hidden + second(gelu(first(gelu(hidden))))
            if number < len(self.halve):
                hidden = self.halve[number](hidden)
        values, scores = self.head(gelu(hidden)).flatten(-2).chunk(2, -2)
        attended = (torch.softmax(scores, -1) * values).sum(-1)
        return torch.cat([values.mean(-1), attended], -1)


def _image_layout(event_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width."""
    if len(event_shape) not in (2, 3):
        raise ValueError(
            f"ImageEmbedding: expected an event of shape (H, W) or (C, H, W), got {event_shape}; "
            "write the image as one event with .to_event(2) or .to_event(3), or use another "
            "embedding"
        )
    channels = event_shape[0] if len(event_shape) == 3 else 1
    return channels, event_shape[-2], event_shape[-1]
