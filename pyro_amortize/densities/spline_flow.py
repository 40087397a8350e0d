"""Neural spline flows: monotone rational-quadratic splines with a conditional affine layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax, softplus

from pyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from pyro_amortize.networks import StackedMLP, positive

_MIN_BIN = 1e-3
_MIN_DERIVATIVE = 1e-3
_DERIVATIVE_ONE = math.log(math.expm1(1 - _MIN_DERIVATIVE))
_FULL_AFFINE_MAX = 32  # beyond it the outer affine layer is diagonal


@dataclass(frozen=True)
class SplineFlowDensity(Density):
    """A neural spline flow with a conditional affine layer outside the splines.

    `log q(u | c) = log N(f(u; c); 0, I) + log |det df/du|` in nats. For one coordinate `f` is
    an affine map and one spline, both from the context; for more, a triangular affine map
    followed by coupling steps, each an affine map and a spline of half of the coordinates
    given the other half. Everything starts at the identity. The default for every
    continuous site; use `NormalDensity` where a Gaussian is enough, it is cheaper.

    Args:
        num_transforms: Number of coupling steps for events of two or more coordinates.
        num_bins: Number of bins of each spline, at least 2.
        hidden_dims: Widths of the hidden layers.
        bound: The splines act on `[-bound, bound]` and are the identity outside.

    Raises:
        ValueError: If `num_transforms < 1`, `num_bins` is out of range or `bound <= 0`.

    Example:
        >>> density = SplineFlowDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Durkan, Bekasov, Murray and Papamakarios (2019), arXiv:1906.04032, eqs. 4-8. The
        affine layers are ours: they reach where the spline's interval does not.
    """

    num_transforms: int = 5
    num_bins: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    bound: float = 10.0

    def __post_init__(self) -> None:
        if self.num_transforms < 1:
            raise ValueError(f"num_transforms: expected at least 1, got {self.num_transforms}")
        if not 2 <= self.num_bins < 1 / _MIN_BIN:
            raise ValueError(f"num_bins: expected 2 to {1 / _MIN_BIN:.0f}, got {self.num_bins}")
        if self.bound <= 0:
            raise ValueError(f"bound: expected a positive number, got {self.bound}")

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        masks = coupling_masks(event_size, self.num_transforms)
        couplings = []
        for mask in masks:
            moved = sum(mask)
            network = StackedMLP(
                num_sites,
                context_size + event_size - moved,
                self.hidden_dims,
                moved * (3 * self.num_bins + 1),
                zero_output=True,
            )
            couplings.append(network)
        affine = None
        if event_size > 1:
            full = event_size <= _FULL_AFFINE_MAX
            size = 2 * event_size + (event_size * (event_size - 1) // 2 if full else 0)
            affine = StackedMLP(num_sites, context_size, self.hidden_dims, size, zero_output=True)
        return ConditionalSplineFlow(couplings, affine, masks, self.num_bins, self.bound)


class ConditionalSplineFlow(ConditionalDensity):
    """The built form of `SplineFlowDensity`."""

    def __init__(
        self,
        couplings: Sequence[StackedMLP],
        affine: StackedMLP | None,
        masks: tuple[tuple[bool, ...], ...],
        num_bins: int,
        bound: float,
    ) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(couplings)
        self.affine = affine
        self.masks, self.num_bins, self.bound = masks, num_bins, bound

    def forward(self, context: Tensor, index: int | None = None) -> FlowDistribution:
        """The densities given contexts."""
        size = len(self.masks[0])
        steps: list[_Affine | _Coupling] = []
        if self.affine is not None:
            steps.append(_Affine(self.affine(context, index), size))
        networks = cast(Iterable[StackedMLP], self.couplings)
        for network, mask in zip(networks, self.masks, strict=True):
            steps.append(_Coupling(network, index, context, mask, self.num_bins, self.bound))
        return FlowDistribution(steps, context.shape[:-1], size)


def coupling_masks(event_size: int, num_transforms: int) -> tuple[tuple[bool, ...], ...]:
    """Which coordinates each coupling step moves.

    The steps go through the binary digits of the coordinate's index, so that every pair of
    coordinates is separated by some step; one coordinate needs one step that moves it.

    Args:
        event_size: Number of coordinates.
        num_transforms: Number of steps.

    Returns:
        One mask per step.

    Example:
        >>> coupling_masks(2, 2)
        ((True, False), (False, True))
    """
    if event_size == 1:
        return ((True,),)
    digits = (event_size - 1).bit_length()
    return tuple(
        tuple((i >> (step % digits)) % 2 == (step // digits) % 2 for i in range(event_size))
        for step in range(num_transforms)
    )


class _Affine:
    """A conditional triangular affine map: `z = (I + M) (u - loc) / scale`."""

    def __init__(self, outputs: Tensor, size: int) -> None:
        self.loc = outputs[..., :size]
        self.scale = positive(outputs[..., size : 2 * size])
        self.lower = None
        if outputs.shape[-1] > 2 * size:
            below = np.flatnonzero(np.tri(size, k=-1))
            place = torch.as_tensor(np.eye(size * size)[below]).to(outputs)  # a product, no scatter
            square = outputs[..., 2 * size :] @ place
            self.lower = square.reshape(*outputs.shape[:-1], size, size)

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        noise = (coordinates - self.loc) / self.scale
        if self.lower is not None:
            noise = noise + (self.lower @ noise[..., None])[..., 0]
        return noise, -torch.log(self.scale).sum(-1)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_det = -torch.log(self.scale).sum(-1)
        if self.lower is not None:
            noise = torch.linalg.solve_triangular(
                self.lower, noise[..., None], upper=False, unitriangular=True
            )[..., 0]
        return self.loc + self.scale * noise, log_det


class _Coupling:
    """A coupling step: the masked coordinates move given the context and the others."""

    def __init__(
        self,
        network: StackedMLP,
        index: int | None,
        context: Tensor,
        mask: tuple[bool, ...],
        num_bins: int,
        bound: float,
    ) -> None:
        self.network, self.index, self.context = network, index, context
        self.moved = [i for i, moves in enumerate(mask) if moves]
        self.kept = [i for i, moves in enumerate(mask) if not moves]
        self.order = np.argsort(self.moved + self.kept).tolist()
        self.num_bins, self.bound = num_bins, bound

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.context.dtype, device=self.context.device)

    def _parameters(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self.context
        if self.kept:
            batch = torch.broadcast_shapes(inputs.shape[:-1], kept.shape[:-1])
            inputs = torch.cat([part.expand(*batch, part.shape[-1]) for part in (inputs, kept)], -1)
        outputs = self.network(inputs, self.index)
        outputs = outputs.reshape(*outputs.shape[:-1], len(self.moved), -1)
        return outputs[..., 0], positive(outputs[..., 1]), outputs[..., 2:]

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        kept = coordinates[..., self.kept]
        loc, scale, knots = self._parameters(kept)
        moved = (coordinates[..., self.moved] - loc) / scale
        moved, log_slope = rational_quadratic(moved, knots, self.num_bins, self.bound)
        log_det = (log_slope - torch.log(scale)).sum(-1)
        return self._join(moved, kept), log_det

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        kept = noise[..., self.kept]
        loc, scale, knots = self._parameters(kept)
        moved, log_slope = rational_quadratic(
            noise[..., self.moved], knots, self.num_bins, self.bound, inverse=True
        )
        log_det = (log_slope - torch.log(scale)).sum(-1)
        return self._join(loc + scale * moved, kept), log_det

    def _join(self, moved: Tensor, kept: Tensor) -> Tensor:
        if not self.kept:
            return moved
        kept = kept.expand(*moved.shape[:-1], kept.shape[-1])
        return torch.cat([moved, kept], -1)[..., self.order]


def rational_quadratic(
    value: Tensor, parameters: Tensor, num_bins: int, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The monotone rational-quadratic spline, or its inverse, elementwise.

    Args:
        value: Where to evaluate, shape `(*batch,)`.
        parameters: Widths, heights and inner derivatives before their constraints, shape
            `(*batch, 3 * num_bins - 1)`; zeros give the identity.
        num_bins: Number of bins.
        bound: The spline acts on `[-bound, bound]` and is the identity outside.
        inverse: Whether to evaluate the inverse.

    Returns:
        The image, and the log derivative of the spline (not of its inverse) there.

    References:
        Durkan et al. (2019), arXiv:1906.04032, eqs. 4-8.
    """
    raw = torch.stack([parameters[..., :num_bins], parameters[..., num_bins : 2 * num_bins]])
    knots, sizes = _bins(raw, bound)
    inner = _MIN_DERIVATIVE + softplus(parameters[..., 2 * num_bins :] + _DERIVATIVE_ONE)
    one = torch.ones_like(inner[..., :1])
    derivatives = torch.cat([one, inner, one], -1)

    clipped = torch.clamp(value, -bound, bound)
    ends = knots[1 if inverse else 0][..., 1:].contiguous()
    chosen = (clipped[..., None] >= ends).sum(-1, keepdim=True)
    shape = torch.broadcast_shapes(chosen.shape[:-1], derivatives.shape[:-1])
    chosen = chosen.expand(*shape, 1)

    def pick(table: Tensor) -> Tensor:
        return table.expand(*shape, table.shape[-1]).gather(-1, chosen)[..., 0]

    x0, y0, width, height = pick(knots[0]), pick(knots[1]), pick(sizes[0]), pick(sizes[1])
    d0, d1 = pick(derivatives[..., :-1]), pick(derivatives[..., 1:])
    slope = height / width
    bend = d0 + d1 - 2 * slope
    if inverse:
        shift = clipped - y0
        a = height * (slope - d0) + shift * bend
        b = height * d0 - shift * bend
        c = -slope * shift
        root = torch.sqrt(torch.clamp(b**2 - 4 * a * c, min=0.0))
        xi = 2 * c / (-b - root)  # the stable form of the root
        image = x0 + xi * width
    else:
        xi = (clipped - x0) / width
    mixed = xi * (1 - xi)
    denominator = slope + bend * mixed
    if not inverse:
        image = y0 + height * (slope * xi**2 + d0 * mixed) / denominator
    numerator = d1 * xi**2 + 2 * slope * mixed + d0 * (1 - xi) ** 2
    log_slope = 2 * torch.log(slope / denominator) + torch.log(numerator)
    inside = torch.abs(value) < bound
    return torch.where(inside, image, value), torch.where(inside, log_slope, 0.0)


def _bins(raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Left knots and sizes of the bins."""
    num_bins = raw.shape[-1]
    sizes = _MIN_BIN + (1 - num_bins * _MIN_BIN) * softmax(raw, -1)
    sizes = 2 * bound * sizes
    ends = torch.cumsum(sizes, -1)
    return ends - sizes - bound, sizes
