"""Neural spline flows: monotone rational-quadratic splines with a conditional affine layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, Density
from pyro_amortize.densities.flow_steps import build_flow, check_steps
from pyro_amortize.densities.splines import check_num_bins, rational_quadratic
from pyro_amortize.networks import positive


@dataclass(frozen=True)
class SplineFlowDensity(Density):
    """A neural spline flow with a conditional affine layer outside the splines.

    `log q(u | c) = log N(f(u; c); 0, I) + log |det df/du|` in nats. For one coordinate `f` is
    an affine map and one spline, both from the context; for more, a triangular affine map
    followed by steps, each an affine map and a spline of single coordinates. A coupling step
    moves half of the coordinates given the other half, an autoregressive one moves each given
    those before it, every second step in reversed order. Everything starts at the identity.

    The default for every continuous site but angles, which have `CircularSplineDensity`, as they
    have where this one is given for all sites. Use `NormalDensity` where a Gaussian is enough, it
    is cheaper. Coupling steps are fast both ways. Autoregressive ones bend more with as many
    steps; a density takes one pass of the network, which is what `NPE` needs, and a draw, with
    its own density, one for each coordinate: not for long events under bounds.

    Args:
        num_transforms: Number of steps for events of two or more coordinates.
        num_bins: Number of bins of each spline, at least 2.
        hidden_dims: Widths of the hidden layers; autoregressive ones are at least as wide as the
            event is long.
        bound: The splines act on `[-bound, bound]` and are the identity outside.
        kind: `"coupling"` or `"autoregressive"`; the same for one coordinate.

    Raises:
        ValueError: If `kind` is unknown, `num_transforms < 1`, `num_bins` is out of range or
            `bound <= 0`.

    Example:
        >>> density = SplineFlowDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Durkan, Bekasov, Murray and Papamakarios (2019), arXiv:1906.04032, eqs. 4-8 and section
        3.2. The affine layers are ours: they reach where the spline's interval does not.
        Germain, Gregor, Murray and Larochelle (2015), arXiv:1502.03509, for the masks.
    """

    num_transforms: int = 5
    num_bins: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    bound: float = 10.0
    kind: Literal["coupling", "autoregressive"] = "coupling"

    def __post_init__(self) -> None:
        check_steps(self.kind, self.num_transforms)
        check_num_bins(self.num_bins)
        if self.bound <= 0:
            raise ValueError(f"bound: expected a positive number, got {self.bound}")

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        return build_flow(
            num_sites,
            event_size,
            context_size,
            kind=self.kind,
            num_transforms=self.num_transforms,
            hidden_dims=self.hidden_dims,
            transform=_AffineSpline(self.num_bins, self.bound),
        )


@dataclass(frozen=True)
class _AffineSpline:
    """An affine map and then a spline, of single coordinates."""

    num_bins: int
    bound: float
    is_affine: ClassVar[bool] = False

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins + 1

    def to_noise(self, value: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale, knots = _parts(parameters)
        image, log_slope = rational_quadratic(
            (value - loc) / scale, knots, self.num_bins, self.bound
        )
        return image, log_slope - torch.log(scale)

    def from_noise(self, noise: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale, knots = _parts(parameters)
        value, log_slope = rational_quadratic(noise, knots, self.num_bins, self.bound, inverse=True)
        return loc + scale * value, log_slope - torch.log(scale)


def _parts(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Location, scale and what the knots are computed from."""
    return parameters[..., 0], positive(parameters[..., 1]), parameters[..., 2:]
