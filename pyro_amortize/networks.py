"""The network blocks: perceptrons of several sites, evaluated together, and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        """
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

    def _after_first(self, hidden: Tensor, index: int | None) -> Tensor:
        for layer in range(1, len(self.weights)):
            hidden = self._layer(layer, gelu(hidden), index)
        return hidden

    def _layer(self, layer: int, inputs: Tensor, index: int | None) -> Tensor:
        weight, bias = self.weights[layer], self.biases[layer]
        if index is None:
            return torch.baddbmm(bias, inputs, weight)
        return torch.addmm(_one_of(bias, index), inputs, _one_of(weight, index))


def _one_of(stack: Tensor, index: int) -> Tensor:
    """One network's weights; where it is the only one their gradient is no copy."""
    return stack.squeeze(0) if len(stack) == 1 else stack[index]


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
