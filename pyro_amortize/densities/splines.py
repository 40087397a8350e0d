"""Monotone rational-quadratic splines, on an interval of the line or around the circle."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softmax, softplus

MIN_BIN = 1e-3  # as a share of the interval
_MIN_DERIVATIVE = 1e-3
_DERIVATIVE_ONE = math.log(math.expm1(1 - _MIN_DERIVATIVE))


def check_num_bins(num_bins: int) -> None:
    """Refuse numbers of bins that no spline has.

    Raises:
        ValueError: If there are fewer than 2, or too many for their least width.
    """
    if not 2 <= num_bins < 1 / MIN_BIN:
        raise ValueError(f"num_bins: expected 2 to {1 / MIN_BIN:.0f}, got {num_bins}")


def rational_quadratic(
    value: Tensor,
    parameters: Tensor,
    num_bins: int,
    bound: float,
    *,
    inverse: bool = False,
    is_circular: bool = False,
) -> tuple[Tensor, Tensor]:
    """The monotone rational-quadratic spline, or its inverse, elementwise.

    Args:
        value: Where to evaluate, shape `(*batch,)`.
        parameters: Widths, heights and inner derivatives before their constraints, shape
            `(*batch, 3 * num_bins - 1)`; zeros give the identity.
        num_bins: Number of bins.
        bound: The spline acts on `[-bound, bound]` and is the identity outside.
        inverse: Whether to evaluate the inverse.
        is_circular: Whether both ends have one learned derivative, the first of then `num_bins`,
            in place of 1; nothing is outside.

    Returns:
        The image, and the log derivative of the spline (not of its inverse) there.

    References:
        Durkan et al. (2019), arXiv:1906.04032, eqs. 4-8; Rezende et al. (2020), arXiv:2002.02428,
        section 2.1.2, for circles.
    """
    raw = torch.stack([parameters[..., :num_bins], parameters[..., num_bins : 2 * num_bins]])
    knots, sizes = _bins(raw, bound)
    inner = _MIN_DERIVATIVE + softplus(parameters[..., 2 * num_bins :] + _DERIVATIVE_ONE)
    if is_circular:
        derivatives = torch.cat([inner, inner[..., :1]], -1)
    else:
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
    if is_circular:
        return image, log_slope
    inside = torch.abs(value) < bound
    return torch.where(inside, image, value), torch.where(inside, log_slope, 0.0)


def _bins(raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Left knots and sizes of the bins."""
    num_bins = raw.shape[-1]
    sizes = MIN_BIN + (1 - num_bins * MIN_BIN) * softmax(raw, -1)
    sizes = 2 * bound * sizes
    ends = torch.cumsum(sizes, -1)
    return ends - sizes - bound, sizes
