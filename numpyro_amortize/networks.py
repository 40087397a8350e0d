"""The one network block: multilayer perceptrons of several sites, evaluated together."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_SOFTPLUS_ONE = 0.5413248546129181  # softplus(_SOFTPLUS_ONE) = 1


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
        hidden = inputs.reshape(rows)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                hidden = jax.nn.gelu(hidden, approximate=False)
            if index is not None:
                weight, bias = weight[index], bias[index]
            hidden = hidden @ weight + bias
        return hidden.reshape(*inputs.shape[:-1], hidden.shape[-1])


def positive(raw: Array) -> Array:
    """Map network outputs to positive numbers, zero to one."""
    return jax.nn.softplus(raw + _SOFTPLUS_ONE)
