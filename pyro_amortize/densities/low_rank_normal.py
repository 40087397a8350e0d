"""Multivariate normal densities whose covariance is a diagonal and a few directions."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, Density
from pyro_amortize.densities.gaussian import check_floor, floored, spread_out
from pyro_amortize.networks import StackedMLP

_START = 0.1  # length of the directions at the start; at zero they would have no gradient


@dataclass(frozen=True)
class LowRankNormalDensity(Density):
    """A normal with few directions of correlation: `q(u | c) = N(u; loc, S (I + V V') S)`.

    `S` is a diagonal of `floor + softplus(.)` and `V` has `rank` columns, all from the context;
    the density, in nats, is that of the host's `LowRankMultivariateNormal`, which costs
    d rank^2 where a full covariance costs d^2 for each value. Directions are relative to the
    scales, so that rounding does not grow as a posterior shrinks. It starts close to the
    standard normal. Use it for events of many coordinates that hang together by few causes, and
    `MultivariateNormalDensity` for a handful of coordinates. It cannot bend or have two modes.

    Args:
        rank: Number of columns of `V`, at least 1 and at most the number of coordinates.
        hidden_dims: Widths of the hidden layers.
        floor: Least scale, in units of the standardised spread.

    Raises:
        ValueError: If `rank` is out of range, or `floor` not between 0 and 1.

    Example:
        >>> import torch
        >>> density = LowRankNormalDensity(rank=1, hidden_dims=(8,)).build(1, 3, 2)
        >>> density(torch.ones(1, 2)).log_prob(torch.zeros(1, 3)).shape
        torch.Size([1])

    References:
        Ong, Nott and Smith (2018), arXiv:1701.03208, section 3. The scales around both
        parts are ours.
    """

    rank: int = 1
    hidden_dims: tuple[int, ...] = (64, 64)
    floor: float = 1e-6

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: expected at least 1, got {self.rank}")
        check_floor(self.floor)

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        if self.rank > event_size:
            raise ValueError(
                f"rank: expected at most {event_size}, the number of coordinates of the event, "
                f"got {self.rank}; give this site a density of its own, densities={{site: ...}}"
            )
        num_outputs = (2 + self.rank) * event_size
        network = StackedMLP(
            num_sites, context_size, self.hidden_dims, num_outputs, zero_output=True
        )
        return ConditionalLowRankNormal(network, event_size, self.floor)


class ConditionalLowRankNormal(ConditionalDensity):
    """The built form of `LowRankNormalDensity`."""

    def __init__(self, network: StackedMLP, event_size: int, floor: float) -> None:
        super().__init__()
        self.network, self.event_size, self.floor = network, event_size, floor

    def forward(self, context: Tensor, index: int | None = None) -> dist.Distribution:
        """The densities given contexts."""
        outputs, size = self.network(context, index), self.event_size
        scale = floored(outputs[..., size : 2 * size], self.floor)
        moved = outputs[..., 2 * size :].reshape(*outputs.shape[:-1], size, -1)
        rank = moved.shape[-1]
        start = spread_out(2 * rank, size)[:rank]  # the others are their mirror images
        directions = moved + _START * moved.new_tensor(start).T
        return dist.LowRankMultivariateNormal(
            outputs[..., :size], scale[..., None] * directions, scale**2
        )
