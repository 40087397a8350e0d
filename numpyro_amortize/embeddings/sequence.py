"""Features of events that are series in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.attention import AttentionBlock, attend, check_heads
from numpyro_amortize.embeddings.base import Embedding
from numpyro_amortize.embeddings.pooled_embedding import PooledEmbedding, check_sizes, times_start
from numpyro_amortize.embeddings.pooled_features import EventFeatures
from numpyro_amortize.networks import Convolution

_NUM_CONVOLUTIONS, _NUM_BLOCKS = 4, 2


@dataclass(frozen=True)
class SequenceEmbedding(PooledEmbedding):
    """A network along time for each event, then plates pooled as in `PlateEmbedding`.

    `"convolution"` is a residual stack of causal convolutions whose dilation doubles from
    layer to layer, so that its memory is `1 + (kernel_size - 1) (2**num_layers - 1)` steps;
    `"recurrent"` is a GRU; `"transformer"` is one convolution of `kernel_size` steps, to which
    sines and cosines of the step's number are added, and blocks of attention of all steps to
    all, at a cost of the length squared. The features of an event are the mean over time and the
    last step of the hidden values. What skips the networks is the mean and the spread over time
    of each channel: two numbers in place of every value of the series.

    Use it for an observed site whose event is one series, shape `(T,)` or `(T, d)`, whose
    steps depend on each other. For exchangeable rows use a plate and `PlateEmbedding`. Series of
    different lengths are padded to one: declare the mask of their steps in the guide's `missing=`,
    and apply it in the model, `Normal(mean, scale).mask(mask).to_event(1)`. Where steps are not
    evenly spaced, declare the argument that has their times in the guide's `inputs=`, shape `(T,)`
    after its plates, and name it in `times=`: the network then reads, for each step, its time and
    the time since the step before. Times must not decrease; those of hidden steps do not matter.

    Args:
        kind: `"convolution"`, `"recurrent"` or `"transformer"`.
        feature_dim: Number of features per event and per pooled set; chosen from the number of
            latents if None, from 32 to 128.
        num_channels: Width of the network along time.
        num_layers: Number of convolutions, or of blocks of attention; if None 4 and 2.
        kernel_size: Steps that one convolution reads.
        hidden_dims: Widths of the hidden layers of all other networks; if None two layers of
            twice `feature_dim`, at least 64.
        reads_mask: Whether each event comes with which of its values are there. The guide sets
            it for masks of single positions, as of series of different lengths, padded.
        num_heads: Heads of the attention, a divisor of `num_channels`.
        times: Name of the input with the times of the steps; evenly spaced if None.
        times_at: Where the times are in what the embedding gets. The guide sets it.

    Raises:
        ValueError: If `kind` is another word or a size below 1, or, at set-up, if the event is
            no series.

    Example:
        >>> SequenceEmbedding(feature_dim=4).context_sizes((20, 3), 0, [0])
        (10, 32)

    References:
        Bai et al. (2018), arXiv:1803.01271, for the convolutions; Cho et al. (2014),
        arXiv:1406.1078, for the gated recurrent unit; Vaswani et al. (2017), arXiv:1706.03762,
        for attention and positions.
    """

    kind: Literal["convolution", "recurrent", "transformer"] = "convolution"
    feature_dim: int | None = None
    num_channels: int = 32
    num_layers: int | None = None
    kernel_size: int = 3
    hidden_dims: tuple[int, ...] | None = None
    reads_mask: bool = False
    num_heads: int = 4
    times: str | None = None
    times_at: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("convolution", "recurrent", "transformer"):
            raise ValueError(
                "SequenceEmbedding: expected kind='convolution', 'recurrent' or 'transformer', got "
                f"kind={self.kind!r}; choose one of the three"
            )
        if self.kind == "transformer":
            check_heads("SequenceEmbedding: num_channels", self.num_channels, self.num_heads)
        check_sizes(
            "SequenceEmbedding",
            feature_dim=self.feature_dim,
            num_channels=self.num_channels,
            num_layers=self.num_layers,
            kernel_size=self.kernel_size,
            hidden_dims=self.hidden_dims,
        )

    def event_features(
        self, event_shape: tuple[int, ...], feature_dim: int, rng_key: Array
    ) -> EventFeatures:
        """The network on whole events, with what skips it."""
        layout = _series_layout(event_shape)
        channels = layout[1] * (2 if self.reads_mask else 1)
        channels += 0 if self.times_at is None else 2
        network: eqx.Module
        if self.kind == "convolution":
            num_layers = self.num_layers or _NUM_CONVOLUTIONS
            network = SeriesConvolutions(
                channels, self.num_channels, num_layers, self.kernel_size, rng_key=rng_key
            )
        elif self.kind == "recurrent":
            network = SeriesRecurrence(channels, self.num_channels, rng_key=rng_key)
        else:
            sizes = self.num_channels, self.num_layers or _NUM_BLOCKS, self.kernel_size
            network = SeriesTransformer(channels, *sizes, self.num_heads, rng_key=rng_key)
        num_features = 2 * self.num_channels
        return EventFeatures(network, layout, 1, num_features, self.reads_mask, self.times_at)

    def num_skipped(self, event_shape: tuple[int, ...]) -> int:
        """Number of values of an event that skip its network."""
        return 2 * _series_layout(event_shape)[1]

    def num_times(self, event_shape: tuple[int, ...]) -> int:
        """Number of inputs that the network on whole events reads as times."""
        return 0 if self.times_at is None else _series_layout(event_shape)[0]

    def for_inputs(
        self, site: str, event_shape: tuple[int, ...], places: Mapping[str, tuple[int, int]]
    ) -> Embedding:
        """The embedding that knows where each covariate is in what it gets."""
        if self.times is None:
            return self
        start = times_start(site, self.times, _series_layout(event_shape)[0], places)
        return replace(self, times_at=start)

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there."""
        return replace(self, reads_mask=True)


class SeriesConvolutions(eqx.Module):
    """Causal convolutions along a series of any length, each added to what it reads.

    Args:
        in_channels: Number of channels of the series.
        num_channels: Number of hidden channels.
        num_layers: Number of convolutions; the dilation of the last is `2**(num_layers - 1)`.
        kernel_size: Steps that one convolution reads.
        rng_key: Key of the initial weights.
    """

    lift: Convolution
    layers: list[Convolution]

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        num_layers: int,
        kernel_size: int,
        *,
        rng_key: Array,
    ) -> None:
        keys = jax.random.split(rng_key, num_layers + 1)
        self.lift = Convolution(in_channels, num_channels, 1, num_dims=1, rng_key=keys[0])
        self.layers = [
            Convolution(
                num_channels, num_channels, kernel_size, num_dims=1, dilation=2**layer, rng_key=key
            )
            for layer, key in enumerate(keys[1:])
        ]

    def __call__(self, series: Array, present: Array | None = None) -> Array:
        """Mean over time and last step of the hidden values, `2 num_channels` features."""
        hidden = self.lift(series.mT)
        for layer in self.layers:
            hidden = hidden + jax.nn.gelu(layer(hidden), approximate=False)
        return _mean_and_last(hidden.mT, present)


class SeriesRecurrence(eqx.Module):
    """A gated recurrent unit along a series of any length.

    Args:
        in_channels: Number of channels of the series.
        num_channels: Number of hidden channels.
        rng_key: Key of the initial weights.
    """

    cell: _GatedCell

    def __init__(self, in_channels: int, num_channels: int, *, rng_key: Array) -> None:
        self.cell = _GatedCell(in_channels, num_channels, rng_key=rng_key)

    def __call__(self, series: Array, present: Array | None = None) -> Array:
        """Mean over time and last step of the hidden values, `2 num_channels` features."""

        def step(state: Array, value: Array) -> tuple[Array, Array]:
            state = self.cell.step(state, value)
            return state, state

        _, states = jax.lax.scan(step, self.cell.start(series), series)
        return _mean_and_last(states, present)


class SeriesTransformer(eqx.Module):
    """A convolution, positions and blocks of attention on a series of any length.

    Args:
        in_channels: Number of channels of the series.
        num_channels: Number of hidden channels.
        num_layers: Number of blocks.
        kernel_size: Steps that the convolution reads.
        num_heads: Number of heads.
        rng_key: Key of the initial weights.
    """

    lift: Convolution
    blocks: list[AttentionBlock]

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        num_layers: int,
        kernel_size: int,
        num_heads: int,
        *,
        rng_key: Array,
    ) -> None:
        first, *keys = jax.random.split(rng_key, num_layers + 1)
        self.lift = Convolution(in_channels, num_channels, kernel_size, num_dims=1, rng_key=first)
        self.blocks = [AttentionBlock(num_channels, num_heads, key) for key in keys]

    def __call__(self, series: Array, present: Array | None = None) -> Array:
        """Mean over time and last step of the hidden values, `2 num_channels` features."""
        hidden = self.lift(series.mT).mT
        hidden = hidden + jnp.asarray(step_features(*hidden.shape), hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, hidden, partial(attend, present=present))
        return _mean_and_last(hidden, present)


def step_features(num_steps: int, size: int) -> np.ndarray:
    """Sines and cosines of the numbers of steps, wavelengths from 2 pi to 20,000 pi steps."""
    frequencies = 1e4 ** (-np.arange((size + 1) // 2) / ((size + 1) // 2))
    angles = np.arange(num_steps)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)[:, :size]


def _mean_and_last(hidden: Array, present: Array | None) -> Array:
    """Mean over the steps that are there, and the last of them; `hidden` is `(T, size)`."""
    if present is None:
        return jnp.concatenate([jnp.mean(hidden, axis=0), hidden[-1]], axis=-1)
    weights = present.astype(hidden.dtype)[..., None]
    mean = jnp.sum(hidden * weights, axis=0) / jnp.maximum(jnp.sum(weights, axis=0), 1.0)
    last = jnp.argmax(present * jnp.arange(len(present)))
    return jnp.concatenate([mean, hidden[last] * jnp.max(weights, axis=0)], axis=-1)


class _GatedCell(eqx.Module):
    """The equations of `torch.nn.GRU`, whose names the weights have."""

    weight_ih_l0: Array
    weight_hh_l0: Array
    bias_ih_l0: Array
    bias_hh_l0: Array

    def __init__(self, in_channels: int, num_channels: int, *, rng_key: Array) -> None:
        shapes = ((in_channels,), (num_channels,), (), ())
        self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0 = (
            num_channels**-0.5 * jax.random.uniform(key, (3 * num_channels, *shape), minval=-1.0)
            for key, shape in zip(jax.random.split(rng_key, 4), shapes, strict=True)
        )

    def start(self, series: Array) -> Array:
        return jnp.zeros(self.weight_hh_l0.shape[1], series.dtype)

    def step(self, state: Array, value: Array) -> Array:
        read = jnp.split(self.weight_ih_l0 @ value + self.bias_ih_l0, 3)
        kept = jnp.split(self.weight_hh_l0 @ state + self.bias_hh_l0, 3)
        reset = jax.nn.sigmoid(read[0] + kept[0])
        update = jax.nn.sigmoid(read[1] + kept[1])
        candidate = jnp.tanh(read[2] + reset * kept[2])
        return (1.0 - update) * candidate + update * state


def _series_layout(event_shape: tuple[int, ...]) -> tuple[int, int]:
    """Length and number of channels."""
    if len(event_shape) not in (1, 2):
        raise ValueError(
            f"SequenceEmbedding: expected an event of shape (T,) or (T, d), got {event_shape}; "
            "write the series as one event with .to_event(1), or use PlateEmbedding"
        )
    return event_shape[0], event_shape[1] if len(event_shape) == 2 else 1
