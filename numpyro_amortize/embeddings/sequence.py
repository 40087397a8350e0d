"""Features of events that are series in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
from numpyro_amortize.networks import Convolution


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
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int], rng_key: Array
    ) -> EmbeddingNetwork:
        """Build the networks for one observed site."""
        layout = _series_layout(event_shape)
        channels = layout[1] * (2 if self.reads_mask else 1)
        own = jax.random.fold_in(rng_key, 0)
        network: eqx.Module
        if self.kind == "convolution":
            network = SeriesConvolutions(
                channels, self.num_channels, self.num_layers, self.kernel_size, rng_key=own
            )
        else:
            network = SeriesRecurrence(channels, self.num_channels, rng_key=own)
        event = EventFeatures(network, layout, 1, 2 * self.num_channels, self.reads_mask)
        return build_pooled_features(
            self.feature_dim, self.hidden_dims, num_inputs, sources, event, rng_key=rng_key
        )

    def for_masked_events(self, site: str) -> Embedding:
        """The embedding that reads events followed by which of their positions are there."""
        return replace(self, reads_mask=True)

    def context_sizes(
        self, event_shape: tuple[int, ...], num_inputs: int, sources: Sequence[int]
    ) -> tuple[int, ...]:
        """Number of context features at every level."""
        num_skipped = 2 * _series_layout(event_shape)[1] + num_inputs
        return pooled_sizes(self.feature_dim, num_skipped, sources)


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
