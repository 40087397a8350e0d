"""Flows of affine steps: RealNVP and masked autoregressive flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, Density
from pyro_amortize.densities.flow_steps import build_flow, check_steps


@dataclass(frozen=True)
class AffineFlowDensity(Density):
    """A chain of affine steps whose locations and scales depend on other coordinates.

    `log q(u | c) = log N(f(u; c); 0, I) + log |det df/du|` in nats, with `f` a triangular affine
    map from the context followed by steps `z = (u - loc) exp(-s)`, `s = b tanh(r / b)`. A coupling
    step (RealNVP) moves half of the coordinates, `loc` and `r` given the context and the other
    half; an autoregressive one (MAF) moves each given those before it, every second step in
    reversed order. Everything starts at the identity.

    It bends and correlates the coordinates of an event for less than `SplineFlowDensity`, whose
    splines hold modes apart where affine steps leave bridges; one coordinate is a normal. Coupling
    steps are fast both ways. Autoregressive ones bend more with as many steps; a density takes one
    pass of the network, which is what `NPE` needs, and a draw, with its own density, one for each
    coordinate: not for long events under bounds.

    Args:
        num_transforms: Number of steps for events of two or more coordinates.
        hidden_dims: Widths of the hidden layers; autoregressive ones are at least as wide as the
            event is long.
        max_log_scale: Bound `b` of the log scales of a step; the map outside has none.
        kind: `"coupling"` or `"autoregressive"`; the same for one coordinate.

    Raises:
        ValueError: If `kind` is unknown, `num_transforms < 1` or `max_log_scale <= 0`.

    Example:
        >>> density = AffineFlowDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Dinh, Sohl-Dickstein and Bengio (2017), arXiv:1605.08803, eqs. 7 and 8. Papamakarios,
        Pavlakou and Murray (2017), arXiv:1705.07057, eqs. 3-5, of whose flow the inverse
        autoregressive flow of Kingma and others (2016), arXiv:1606.04934, is the other direction.
        The affine map outside and the reversals in place of batch normalisation are ours.
    """

    num_transforms: int = 5
    hidden_dims: tuple[int, ...] = (64, 64)
    max_log_scale: float = 3.0
    kind: Literal["coupling", "autoregressive"] = "coupling"

    def __post_init__(self) -> None:
        check_steps(self.kind, self.num_transforms)
        if self.max_log_scale <= 0:
            raise ValueError(f"max_log_scale: expected a positive number, got {self.max_log_scale}")

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        return build_flow(
            num_sites,
            event_size,
            context_size,
            kind=self.kind,
            num_transforms=self.num_transforms,
            hidden_dims=self.hidden_dims,
            transform=_BoundedAffine(self.max_log_scale),
        )


@dataclass(frozen=True)
class _BoundedAffine:
    """An affine map of single coordinates."""

    max_log_scale: float
    num_parameters: ClassVar[int] = 2
    is_affine: ClassVar[bool] = True

    def to_noise(self, value: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._parts(parameters)
        return (value - loc) * torch.exp(-log_scale), -log_scale

    def from_noise(self, noise: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._parts(parameters)
        return loc + torch.exp(log_scale) * noise, -log_scale

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.max_log_scale * torch.tanh(parameters[..., 1] / self.max_log_scale)
        return parameters[..., 0], log_scale
