"""Multivariate normal densities with a full covariance that depends on the context."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from pyro_amortize.densities.gaussian import (
    check_floor,
    cholesky_factor,
    floored,
    solve_lower,
    warn_of_outputs,
)
from pyro_amortize.networks import StackedMLP


@dataclass(frozen=True)
class MultivariateNormalDensity(Density):
    """A multivariate normal: `q(u | c) = N(u; loc(c), L(c) L(c)')`, `L` lower triangular.

    `log q(u | c) = -0.5 |L^-1 (u - loc)|^2 - sum log diag L - 0.5 d log 2 pi` in nats; the
    diagonal of `L` is `floor + softplus(.)`, and the entries beside it are in units of it. It
    starts at the standard normal. Use it for posteriors that are nearly Gaussian on the
    unconstrained scale and whose coordinates of one event are correlated. It cannot bend or have
    two modes; d coordinates take d (d + 3) / 2 outputs of the network, so that for many
    `LowRankNormalDensity` is the cheaper one.

    Args:
        hidden_dims: Widths of the hidden layers.
        floor: Least diagonal entry of `L`, in units of the standardised spread.

    Raises:
        ValueError: If `floor` is not between 0 and 1.

    Example:
        >>> density = MultivariateNormalDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Kingma and Welling (2019), arXiv:1906.02691, section 2.5.1.
    """

    hidden_dims: tuple[int, ...] = (64, 64)
    floor: float = 1e-6

    def __post_init__(self) -> None:
        check_floor(self.floor)

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        num_outputs = event_size * (event_size + 3) // 2
        warn_of_outputs("MultivariateNormalDensity", event_size, num_outputs)
        network = StackedMLP(
            num_sites, context_size, self.hidden_dims, num_outputs, zero_output=True
        )
        return ConditionalMultivariateNormal(network, event_size, self.floor)


class ConditionalMultivariateNormal(ConditionalDensity):
    """The built form of `MultivariateNormalDensity`."""

    def __init__(self, network: StackedMLP, event_size: int, floor: float) -> None:
        super().__init__()
        self.network, self.event_size, self.floor = network, event_size, floor

    def forward(self, context: Tensor, index: int | None = None) -> FlowDistribution:
        """The densities given contexts."""
        outputs, size = self.network(context, index), self.event_size
        diagonal = floored(outputs[..., size : 2 * size], self.floor)
        step = _Correlate(outputs[..., :size], diagonal, outputs[..., 2 * size :])
        return FlowDistribution([step], context.shape[:-1], size)


class _Correlate:
    """The step of a normal with the Cholesky factor `L`: `e = L^-1 (u - loc)`."""

    def __init__(self, loc: Tensor, diagonal: Tensor, below: Tensor) -> None:
        self.loc, self.scale_tril = loc, cholesky_factor(diagonal, below)
        self.log_det = -torch.log(diagonal).sum(-1)

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        return solve_lower(self.scale_tril, coordinates - self.loc), self.log_det

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0], self.log_det
