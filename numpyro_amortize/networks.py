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

        Raises:
            ValueError: If the inputs have another number of features.
        """
        in_size = self.weights[0].shape[-2]
        if inputs.shape[-1] != in_size:
            raise ValueError(
                f"context: expected {in_size} features in the last axis, as the network was built "
                f"for, got {inputs.shape[-1]}"
            )
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

    def with_derivatives(
        self, inputs: Array, directions: Array, index: int | None = None
    ) -> tuple[Array, Array]:
        """Evaluate the networks and their derivatives along directions of the first inputs.

        Args:
            inputs: As for a call.
            directions: Shape `(*batch, num_directions, size)` or broadcastable to it, of the
                first `size` inputs, in a batch with the networks first.
            index: The one network to evaluate, or None.

        Returns:
            What a call returns, and the derivatives, `(*batch, num_directions, out_size)`.
        """
        size = directions.shape[-1]

        def evaluate(first: Array) -> Array:
            return self(jnp.concatenate([first, inputs[..., size:]], axis=-1), index)

        outputs, derivative = jax.linearize(evaluate, inputs[..., :size])
        shape = (*inputs.shape[:-1], *directions.shape[-2:])
        moved = jnp.moveaxis(jnp.broadcast_to(directions, shape), -2, 0)
        return outputs, jnp.moveaxis(jax.vmap(derivative)(moved), 0, -2)

    def _after_first(self, hidden: Array, index: int | None) -> Array:
        for layer in range(1, len(self.weights)):
            hidden = self._layer(layer, jax.nn.gelu(hidden, approximate=False), index)
        return hidden

    def _layer(self, layer: int, inputs: Array, index: int | None) -> Array:
        weight, bias = self.weights[layer], self.biases[layer]
        if index is not None:
            weight, bias = weight[index], bias[index]
        return inputs @ weight + bias


class MaskedMLP(StackedMLP):
    """Perceptrons whose outputs for each of some values read a context and the values before it.

    Every unit has a degree, from 0 up to the number of values less one, and reads the context,
    values before its degree and units of no higher degree: the masks of MADE with the context
    below all degrees. Layers narrower than the number of values are widened to it. Weights start
    as those of `StackedMLP`, by the number of inputs a unit reads; the last layer starts at zero.

    Args:
        num_sites: Number of networks.
        context_size: Number of context features.
        num_values: Number of values.
        hidden_dims: Widths of the hidden layers.
        num_outputs: Number of outputs for each value.
        rng_key: Key of the initial weights.

    Example:
        >>> network = MaskedMLP(1, 3, 2, (8,), 4, rng_key=jax.random.key(0))
        >>> network(jax.numpy.ones((1, 5, 3 + 2))).shape
        (1, 5, 8)

    References:
        Germain, Gregor, Murray and Larochelle (2015), arXiv:1502.03509, eqs. 8, 9 and 12.
    """

    num_values: int = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)

    def __init__(
        self,
        num_sites: int,
        context_size: int,
        num_values: int,
        hidden_dims: Sequence[int],
        num_outputs: int,
        rng_key: Array,
    ) -> None:
        widths = [max(width, num_values) for width in hidden_dims]
        in_size, out_size = context_size + num_values, num_values * num_outputs
        super().__init__(num_sites, in_size, widths, out_size, zero_output=True, rng_key=rng_key)
        self.num_values, self.num_outputs = num_values, num_outputs
        for layer, mask in enumerate(self._own_masks()):
            spread = jnp.asarray((len(mask) / np.maximum(mask.sum(0), 1)) ** 0.5, float)
            self.weights[layer] = self.weights[layer] * spread
            self.biases[layer] = self.biases[layer] * spread

    def _own_masks(self) -> list[np.ndarray]:
        widths = [weight.shape[-1] for weight in self.weights[:-1]]
        context_size = self.weights[0].shape[1] - self.num_values
        return _masks(_degrees(context_size, self.num_values, widths, self.num_outputs))

    def _layer(self, layer: int, inputs: Array, index: int | None) -> Array:
        weight, bias = self._masked(layer, index)
        return inputs @ weight + bias

    def _masked(self, layer: int, index: int | None) -> tuple[Array, Array]:
        weight, bias = self.weights[layer], self.biases[layer]
        if index is not None:
            weight, bias = weight[index], bias[index]
        return jnp.where(self._own_masks()[layer], weight, 0.0), bias

    def one_by_one(
        self,
        context: Array,
        given: Array,
        choose: Callable[[Array, Array], tuple[Array, Array]],
        index: int | None = None,
    ) -> tuple[Array, Array]:
        """Compute the values one after the other, each from the outputs given those before it.

        A loop whose body is compiled once, whatever the number of values.

        Args:
            context: Shape `(num_sites, *batch, context_size)`; `(*batch, context_size)` with an
                index.
            given: A number for each value, shape `(*batch, num_values)`.
            choose: From the number of a value, `(*batch,)`, and its outputs,
                `(*batch, num_outputs)`, to the value and what is kept beside it, both `(*batch,)`.
            index: The one network to evaluate, or None.

        Returns:
            The values and what is kept, both `(*batch, num_values)`.
        """
        batch = jnp.broadcast_shapes(context.shape[:-1], given.shape[:-1])
        rows = (-1,) if index is not None else (batch[0], -1)
        flat = jnp.broadcast_to(context, (*batch, context.shape[-1]))
        flat = flat.reshape(*rows, context.shape[-1])
        layers = [self._masked(layer, index) for layer in range(len(self.weights))]
        weight, bias = layers[0]
        of_context = flat @ weight[..., : context.shape[-1], :] + bias  # the same for all values
        of_values = weight[..., context.shape[-1] :, :]
        is_linear = len(layers) == 1

        def body(values: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            number, own = step
            hidden = of_context + values @ of_values
            for weight, bias in layers[1:-1]:
                hidden = jax.nn.gelu(hidden, approximate=False) @ weight + bias
            start = number * self.num_outputs
            if is_linear:
                outputs = self._columns(hidden, start)
            else:
                hidden = jax.nn.gelu(hidden, approximate=False)
                outputs = hidden @ self._columns(layers[-1][0], start)
                outputs = outputs + self._columns(layers[-1][1], start)
            value, kept = choose(own, outputs.reshape(*batch, -1))
            values = jnp.where(
                jnp.arange(self.num_values) == number, value.reshape(*rows, 1), values
            )
            return values, kept

        given = jnp.moveaxis(jnp.broadcast_to(given, (*batch, self.num_values)), -1, 0)
        start = jnp.zeros((*of_context.shape[:-1], self.num_values), given.dtype)
        values, kept = jax.lax.scan(body, start, (jnp.arange(self.num_values), given))
        return values.reshape(*batch, -1), jnp.moveaxis(kept, 0, -1)

    def _columns(self, outputs: Array, start: Array) -> Array:
        """The columns of one value."""
        return jax.lax.dynamic_slice_in_dim(outputs, start, self.num_outputs, axis=-1)


def _degrees(
    context_size: int, num_values: int, widths: Sequence[int], num_outputs: int
) -> list[np.ndarray]:
    """For each unit of each layer the number of values that it may depend on."""
    values = np.arange(num_values)
    hidden = [np.arange(width) * num_values // width for width in widths]
    return [np.append(np.zeros(context_size, int), values + 1), *hidden, values.repeat(num_outputs)]


def _masks(degrees: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each layer which inputs each unit reads."""
    pairs = zip(degrees[:-1], degrees[1:], strict=True)
    return [below[:, None] <= above for below, above in pairs]


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
