"""The network blocks: perceptrons of several sites, evaluated together, and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, gelu, pad, softplus

_SOFTPLUS_ONE = 0.5413248546129181  # softplus(_SOFTPLUS_ONE) = 1
_SMALLEST = 1e-6  # in units of the standardised spread


class StackedMLP(nn.Module):
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

    Example:
        >>> network = StackedMLP(2, 3, (8,), 4, zero_output=True)
        >>> network(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        num_sites: int,
        in_size: int,
        hidden_dims: Sequence[int],
        out_size: int,
        *,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        sizes = [in_size, *hidden_dims, out_size]
        weights, biases = [], []
        for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            bound = max(fan_in, 1) ** -0.5
            if zero_output and layer == len(sizes) - 2:
                bound = 0.0
            weights.append(bound * (2 * torch.rand(num_sites, fan_in, fan_out) - 1))
            biases.append(bound * (2 * torch.rand(num_sites, 1, fan_out) - 1))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def forward(self, inputs: Tensor, index: int | None = None) -> Tensor:
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
        is_one = index is not None
        rows = (-1, inputs.shape[-1]) if is_one else (len(inputs), -1, inputs.shape[-1])
        hidden = self._after_first(self._layer(0, inputs.reshape(rows), index), index)
        return hidden.reshape(*inputs.shape[:-1], hidden.shape[-1])

    def read_parts(
        self, parts: Sequence[Tensor], spread: Sequence[Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """Evaluate the first network on features side by side, without putting them there.

        The first layer is linear, so each part is multiplied at its own size and then spread.

        Args:
            parts: Shape `(*own batch, size)` each, `in_size` in all.
            spread: For each part what brings it to the batch shape of all, linear.

        Returns:
            Shape `(*batch, out_size)`.
        """
        weights = torch.split(_one_of(self.weights[0], 0), [part.shape[-1] for part in parts])
        products = [
            take(part @ weight) for part, weight, take in zip(parts, weights, spread, strict=True)
        ]
        first = sum(products[1:], products[0] + _one_of(self.biases[0], 0))
        hidden = self._after_first(first.reshape(-1, first.shape[-1]), 0)
        return hidden.reshape(*first.shape[:-1], hidden.shape[-1])

    def with_derivatives(
        self, inputs: Tensor, directions: Tensor, index: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the networks and their derivatives along directions of the first inputs.

        Args:
            inputs: As for a call.
            directions: Shape `(*batch, num_directions, size)` or broadcastable to it, of the
                first `size` inputs, in a batch with the networks first.
            index: The one network to evaluate, or None.

        Returns:
            What a call returns, and the derivatives, `(*batch, num_directions, out_size)`.
        """
        batch = inputs.shape[:-1]
        rows = (-1,) if index is not None else (len(inputs), -1)
        num, size = directions.shape[-2:]
        hidden = self._layer(0, inputs.reshape(*rows, inputs.shape[-1]), index)
        moved = directions.expand(*batch, num, size).reshape(*rows, size)
        moved = moved @ _one_of(self.weights[0], index)[..., :size, :]
        for layer in range(1, len(self.weights)):
            share = 0.5 * (1 + torch.erf(hidden * math.sqrt(0.5)))
            slope = share + hidden * torch.exp(-0.5 * hidden**2) / math.sqrt(2 * math.pi)
            moved = moved.reshape(*hidden.shape[:-1], num, -1) * slope[..., None, :]
            moved = moved.reshape(*rows, moved.shape[-1]) @ _one_of(self.weights[layer], index)
            hidden = self._layer(layer, hidden * share, index)
        return hidden.reshape(*batch, -1), moved.reshape(*batch, num, -1)

    def _after_first(self, hidden: Tensor, index: int | None) -> Tensor:
        for layer in range(1, len(self.weights)):
            hidden = self._layer(layer, gelu(hidden), index)
        return hidden

    def _layer(self, layer: int, inputs: Tensor, index: int | None) -> Tensor:
        weight, bias = _one_of(self.weights[layer], index), _one_of(self.biases[layer], index)
        return _affine(inputs, weight, bias)


def _one_of(stack: Tensor, index: int | None) -> Tensor:
    """One network's weights, or all; of the only one their gradient is no copy."""
    if index is None:
        return stack
    return stack.squeeze(0) if len(stack) == 1 else stack[index]


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer of one network, or of all, each with its own inputs."""
    return (torch.baddbmm if weight.ndim == 3 else torch.addmm)(bias, inputs, weight)


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

    Example:
        >>> network = MaskedMLP(1, 3, 2, (8,), 4)
        >>> network(torch.ones(1, 5, 3 + 2)).shape
        torch.Size([1, 5, 8])

    References:
        Germain, Gregor, Murray and Larochelle (2015), arXiv:1502.03509, eqs. 8, 9 and 12.
    """

    def __init__(
        self,
        num_sites: int,
        context_size: int,
        num_values: int,
        hidden_dims: Sequence[int],
        num_outputs: int,
    ) -> None:
        widths = [max(width, num_values) for width in hidden_dims]
        in_size, out_size = context_size + num_values, num_values * num_outputs
        super().__init__(num_sites, in_size, widths, out_size, zero_output=True)
        self.num_values, self.num_outputs = num_values, num_outputs
        degrees = _degrees(context_size, num_values, widths, num_outputs)
        # Units in the order of their degrees: those below a degree are the first ones.
        self.ends = [np.searchsorted(degree, np.arange(num_values), "right") for degree in degrees]
        for layer, mask in enumerate(_masks(degrees)):
            spread = torch.as_tensor((len(mask) / np.maximum(mask.sum(0), 1)) ** 0.5)
            for start in (self.weights[layer], self.biases[layer]):
                start.data *= spread.to(start)
            as_numbers = torch.as_tensor(mask).to(self.weights[layer])
            self.register_buffer(f"mask_{layer}", as_numbers, persistent=False)

    def _layer(self, layer: int, inputs: Tensor, index: int | None) -> Tensor:
        weight = _one_of(self.weights[layer], index) * self.get_buffer(f"mask_{layer}")
        return _affine(inputs, weight, _one_of(self.biases[layer], index))

    def one_by_one(
        self,
        context: Tensor,
        given: Tensor,
        choose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        index: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the values one after the other, each from the outputs given those before it.

        Every unit is evaluated once, as soon as what it reads is there.

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
        batch = torch.broadcast_shapes(context.shape[:-1], given.shape[:-1])
        rows = (-1,) if index is not None else (batch[0], -1)
        seen = context.expand(*batch, -1).reshape(*rows, context.shape[-1])
        num_layers = len(self.weights)
        units: list[Tensor] = []
        values, kept = [], []
        for number in range(self.num_values):
            below = seen
            for layer in range(num_layers - 1):
                ends = self.ends[layer + 1]
                own = slice(int(ends[number - 1]) if number else 0, int(ends[number]))
                fresh = gelu(self._block(layer, below, own, index))
                if number:
                    units[layer] = torch.cat([units[layer], fresh], -1)
                else:
                    units.append(fresh)
                below = units[layer]
            own = slice(number * self.num_outputs, (number + 1) * self.num_outputs)
            outputs = self._block(num_layers - 1, below, own, index).reshape(*batch, -1)
            value, beside = choose(given[..., number], outputs)
            seen = torch.cat([seen, value.reshape(*rows, 1)], -1)
            values.append(value)
            kept.append(beside)
        return torch.stack(values, -1), torch.stack(kept, -1)

    def _block(self, layer: int, below: Tensor, own: slice, index: int | None) -> Tensor:
        """Some units of a layer, which read the first ones below."""
        weight = self.weights[layer][:, : below.shape[-1], own]
        bias = self.biases[layer][..., own]
        return _affine(below, _one_of(weight, index), _one_of(bias, index))


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


class Convolution(nn.Module):
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

    Example:
        >>> Convolution(3, 5, 3, num_dims=1)(torch.ones(2, 3, 20)).shape
        torch.Size([2, 5, 20])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        num_dims: int,
        dilation: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, *(num_dims * (kernel_size,)))
        bound = (in_channels * kernel_size**num_dims) ** -0.5
        self.weight = nn.Parameter(bound * (2 * torch.rand(shape) - 1))
        self.bias = nn.Parameter(bound * (2 * torch.rand(out_channels) - 1))
        self.num_dims, self.dilation, self.stride = num_dims, dilation, stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Channels come first, then positions.

        Args:
            inputs: Shape `(rows, in_channels, *positions)`.

        Returns:
            Shape `(rows, out_channels, *positions)`.
        """
        reach = self.dilation * (self.weight.shape[-1] - 1)
        if self.num_dims == 1:
            padded = pad(inputs, (reach, 0))
            return conv1d(padded, self.weight, self.bias, self.stride, 0, self.dilation)
        return conv2d(inputs, self.weight, self.bias, self.stride, reach // 2, self.dilation)


def positive(raw: Tensor) -> Tensor:
    """Map network outputs to positive numbers, zero to one; never so small that logs overflow."""
    return softplus(raw + _SOFTPLUS_ONE).clamp(min=_SMALLEST)
