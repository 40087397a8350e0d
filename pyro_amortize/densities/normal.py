"""Independent normal densities with context-dependent location and scale."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, Density
from pyro_amortize.networks import StackedMLP, positive


@dataclass(frozen=True)
class NormalDensity(Density):
    """Independent normals: `q(u | c) = prod_d N(u_d; loc_d(c), scale_d(c))`.

    Use it for posteriors that are nearly Gaussian and uncorrelated on the unconstrained
    scale, or where closed-form divergences matter. It cannot bend, correlate the
    coordinates of one event, or have two modes.

    Args:
        hidden_dims: Widths of the hidden layers.

    Example:
        >>> import torch
        >>> density = NormalDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).event_shape
        torch.Size([2])

    References:
        Kingma and Welling (2014), arXiv:1312.6114, eq. 9.
    """

    hidden_dims: tuple[int, ...] = (64, 64)

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        network = StackedMLP(
            num_sites,
            context_size,
            self.hidden_dims,
            2 * event_size,
            zero_output=True,
        )
        return ConditionalNormal(network)


class ConditionalNormal(ConditionalDensity):
    """The built form of `NormalDensity`."""

    def __init__(self, network: StackedMLP) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: Tensor, index: int | None = None) -> dist.Distribution:
        """The densities given contexts."""
        outputs = self.network(context, index)
        size = outputs.shape[-1] // 2
        return dist.Normal(outputs[..., :size], positive(outputs[..., size:])).to_event(1)
