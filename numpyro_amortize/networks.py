"""The network blocks: perceptrons of several sites, evaluated together, and convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_SOFTPLUS_ONE = 0.5413248546129181  # softplus(_SOFTPLUS_ONE) = 1
_SMALLEST = 1e-6  # in units of the standardised spread


class StackedMLP(eqx.Module):
    """Perceptrons of equal shape for several sites, one batched product per layer.

    Hidden layers use the exact GELU. Weights start uniform within `1 / sqrt(inputs)`; with
    `zero_output` the last layer starts at zero, so that what it parameterises starts at its
    neutral value.

    Args:
        num_sites: Number of networks.
        in_size: Number of inputs.
        hidden_dims: Widths of the hidden layers.
        out_size: Number of outputs.
        zero_output: Whether the last layer starts at zero.
        rng_key: Key of the initial weights.

    Example:
        >>> network = StackedMLP(2, 3, (8,), 4, zero_output=True, rng_key=jax.random.key(0))
        >>> network(jax.numpy.ones((2, 5, 3))).shape
        (2, 5, 4)
    """

    weights: list[Array]
    biases: list[Array]

    def __init__(
        self,
        num_sites: int,
        in_size: int,
        hidden_dims: Sequence[int],
        out_size: int,
        *,
        zero_output: bool = False,
        rng_key: Array,
    ) -> None:
        sizes = [in_size, *hidden_dims, out_size]
        rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))  # no compilation
        self.weights, self.biases = [], []
        for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            bound = max(fan_in, 1) ** -0.5
            if zero_output and layer == len(sizes) - 2:
                bound = 0.0
            shapes = (num_sites, fan_in, fan_out), (num_sites, 1, fan_out)
            weight, bias = (
                jnp.asarray(rng.uniform(-bound, bound, shape), float) for shape in shapes
            )
            self.weights.append(weight)
            self.biases.append(bias)

    def __call__(self, inputs: Array, index: int | None = None) -> Array:
        """Evaluate all networks, or the one at `index`.

        Args:
            inputs: Shape `(num_sites, *batch, in_size)`; `(*batch, in_size)` with an index.
            index: The one network to evaluate, or None.

        Returns:
            Shape `(num_sites, *batch, out_size)`; `(*batch, out_size)` with an index.
        """
        rows = (
            (-1, inputs.shape[-1]) if index is not None else (inputs.shape[0], -1, inputs.shape[-1])
        )
        hidden = self._after_first(self._layer(0, inputs.reshape(rows), index), index)
        return hidden.reshape(*inputs.shape[:-1], hidden.shape[-1])

    def read_parts(
        self, parts: Sequence[Array], spread: Sequence[Callable[[Array], Array]]
    ) -> Array:
        """Evaluate the first network on features side by side, without putting them there.

        The first layer is linear, so each part is multiplied at its own size and then spread.

        Args:
            parts: Shape `(*own batch, size)` each, `in_size` in all.
            spread: For each part what brings it to the batch shape of all, linear.

        Returns:
            Shape `(*batch, out_size)`.
        """
        ends = np.cumsum([part.shape[-1] for part in parts])
        weights = jnp.split(self.weights[0][0], ends[:-1])
        products = [
            take(part @ weight) for part, weight, take in zip(parts, weights, spread, strict=True)
        ]
        first = sum(products[1:], products[0] + self.biases[0][0])
        hidden = self._after_first(first.reshape(-1, first.shape[-1]), 0)
        return hidden.reshape(*first.shape[:-1], hidden.shape[-1])

    def _after_first(self, hidden: Array, index: int | None) -> Array:
        for layer in range(1, len(self.weights)):
            hidden = self._layer(layer, jax.nn.gelu(hidden, approximate=False), index)
        return hidden

    def _layer(self, layer: int, inputs: Array, index: int | None) -> Array:
        weight, bias = self.weights[layer], self.biases[layer]
        if index is not None:
            weight, bias = weight[index], bias[index]
        return inputs @ weight + bias


class Convolution(eqx.Module):
    """A convolution along time, causal, or over the two axes of an image, centred.

    The output has the length of the input, or that divided by the stride and rounded up. Along
    time a step reads itself and steps before it, zeros before the first.

    Args:
        in_channels: Number of channels read.
        out_channels: Number of channels written.
        kernel_size: Number of positions read along each axis; odd for images.
        num_dims: 1 for series, 2 for images.
        dilation: Distance between the positions read.
        stride: Distance between the positions written.
        rng_key: Key of the initial weights.

    Example:
        >>> network = Convolution(3, 5, 3, num_dims=1, rng_key=jax.random.key(0))
        >>> network(jax.numpy.ones((3, 20))).shape
        (5, 20)
    """

    weight: Array
    bias: Array
    num_dims: int = eqx.field(static=True)
    dilation: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        num_dims: int,
        dilation: int = 1,
        stride: int = 1,
        rng_key: Array,
    ) -> None:
        shape = (out_channels, in_channels, *(num_dims * (kernel_size,)))
        bound = (in_channels * kernel_size**num_dims) ** -0.5
        first, second = jax.random.split(rng_key)
        self.weight = bound * jax.random.uniform(first, shape, minval=-1.0)
        self.bias = bound * jax.random.uniform(second, (out_channels,), minval=-1.0)
        self.num_dims, self.dilation, self.stride = num_dims, dilation, stride

    def __call__(self, inputs: Array) -> Array:
        """Channels come first, then positions.

        Args:
            inputs: Shape `(in_channels, *positions)`.

        Returns:
            Shape `(out_channels, *positions)`.
        """
        kernel = self.weight.shape[2:]
        reach = self.dilation * (kernel[0] - 1)
        margin = (reach, 0) if self.num_dims == 1 else (reach // 2, reach // 2)
        padded = jnp.pad(inputs, [(0, 0)] + [margin] * self.num_dims)
        padded = jnp.moveaxis(padded, 0, -1)
        # One product over all positions of the kernel: in the compiled loop of training, XLA on
        # a CPU takes ten times as long for its own convolutions.
        ends = [size - reach for size in padded.shape[:-1]]
        taps = []
        for place in itertools.product(*(range(size) for size in kernel)):
            starts = [self.dilation * offset for offset in place]
            window = (
                slice(start, start + end, self.stride)
                for start, end in zip(starts, ends, strict=True)
            )
            taps.append(padded[(*window, slice(None))])
        weight = jnp.moveaxis(self.weight.reshape(*self.weight.shape[:2], -1), 0, -1)
        weight = jnp.moveaxis(weight, 1, 0).reshape(-1, weight.shape[-1])
        return jnp.moveaxis(jnp.concatenate(taps, axis=-1) @ weight + self.bias, -1, 0)


def positive(raw: Array) -> Array:
    """Map network outputs to positive numbers, zero to one; never so small that logs overflow."""
    return jnp.maximum(jax.nn.softplus(raw + _SOFTPLUS_ONE), _SMALLEST)
