"""Bijections that the hosts lack or define differently, the same in both packages."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

_LOG_TWO = math.log(2.0)


class CircularTransform(Transform):
    """The real line onto the circle without the point opposite to its centre.

    `value = centre + 2 atan(sinh(u))`, wrapped into `[-pi, pi]`. Under a uniform prior `u`
    has exponential tails, which densities on the line reach. Of these the density of the value
    jumps at the cut unless it vanishes there; `CircularSplineDensity` has none.

    Args:
        centre: The angle in radians to which zero is mapped, a number or an array of the event.

    Example:
        >>> CircularTransform(3.0)(torch.tensor([0.0, 1.0]))
        tensor([ 3.0000, -1.5516])
    """

    domain = constraints.real
    codomain = constraints.real  # the host has no circle, its angles have real support
    bijective = True

    def __init__(self, centre: Any = 0.0) -> None:
        super().__init__()
        self.centre = centre

    def _call(self, x: Tensor) -> Tensor:
        # 2 atan(tanh(u / 2)) = atan(sinh(u)), without overflow.
        return wrap(_like(self.centre, x) + 4.0 * torch.atan(torch.tanh(0.5 * x)))

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.asinh(torch.tan(0.5 * wrap(y - _like(self.centre, y))))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`log |d angle / du| = log(2 / cosh(u))`, elementwise."""
        return _LOG_TWO + log_sech(x)


class SphereTransform(Transform):
    """Vectors onto the unit sphere without the point opposite to its centre.

    A stereographic map from `-centre`, which is left out, after the radius has been stretched
    by `sinh`: the point at distance `r` from the origin goes to the angle `2 atan(sinh(r))`
    from the centre. Under a uniform prior the radius then has exponential tails, where the
    plain stereographic map gives Cauchy's. The log determinant is with respect to the surface
    measure, as the hosts' densities on the sphere are:
    `log(2 / cosh r) + (n - 2) log(2 tanh(r) / (r cosh r))` for events of size `n`.

    Args:
        centre: A direction, shape `(n,)`; the last coordinate axis if None.

    Example:
        >>> SphereTransform()(torch.zeros(2))
        tensor([0., 0., 1.])
    """

    domain = constraints.real_vector
    codomain = constraints.sphere
    bijective = True

    def __init__(self, centre: Any = None) -> None:
        super().__init__()
        self.centre = centre

    def _call(self, x: Tensor) -> Tensor:
        radius, is_centre = _safe_norm(x)
        ratio = torch.where(is_centre, torch.ones_like(radius), torch.tanh(radius) / radius)
        sech = torch.where(is_centre, torch.ones_like(radius), torch.exp(log_sech(radius)))
        return self._reflect(torch.cat([2.0 * ratio * sech * x, 2.0 * sech**2 - 1.0], -1))

    def _inverse(self, y: Tensor) -> Tensor:
        turned = self._reflect(y)
        across, along = turned[..., :-1], turned[..., -1:]
        sine, is_centre = _safe_norm(across)
        is_near = along > 0  # each form loses digits on the other half
        near = sine / torch.where(is_near, 1.0 + along, torch.ones_like(along))
        tangent = torch.where(is_near, near, (1.0 - along) / sine)
        ratio = torch.where(is_centre, torch.full_like(sine, 0.5), torch.asinh(tangent) / sine)
        return ratio * across

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the surface that one unit of volume becomes."""
        norm, is_centre = _safe_norm(x)
        zero = torch.zeros_like(norm)
        sech = torch.where(is_centre, zero, log_sech(norm))
        log_ratio = torch.where(is_centre, zero, torch.log(torch.tanh(norm) / norm))
        parts = _LOG_TWO + sech + (x.shape[-1] - 1) * (_LOG_TWO + log_ratio + sech)
        return parts[..., 0]

    def forward_shape(self, shape: Any) -> torch.Size:
        """One coordinate more."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """One coordinate less."""
        return torch.Size((*shape[:-1], shape[-1] - 1))

    def _reflect(self, value: Tensor) -> Tensor:
        """The reflection that swaps the last axis and the centre; its own inverse."""
        if self.centre is None:
            return value
        # In double precision, so that the image has unit length to the precision of `value`.
        centre = torch.tensor(self.centre, dtype=torch.float64, device=value.device)
        centre = centre / torch.linalg.vector_norm(centre, dim=-1, keepdim=True)
        pole = torch.zeros_like(centre)
        pole[..., -1] = 1.0
        normal = pole - centre
        length = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        # A centre on the last axis is already where it should be.
        normal = torch.where(length > 0, normal / length, torch.zeros_like(normal)).to(value)
        return value - 2.0 * (value * normal).sum(-1, keepdim=True) * normal


class LowerCholeskyTransform(Transform):
    """Vectors onto lower triangular matrices with a positive diagonal.

    The entries below the diagonal row by row, then the logarithms of the diagonal. The log
    determinant is with respect to the entries of the lower triangle.

    Example:
        >>> LowerCholeskyTransform()(torch.tensor([3.0, 0.0, 0.0]))
        tensor([[1., 0.],
                [3., 1.]])
    """

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        size = _matrix_size(x.shape[-1])
        rows, columns = _below_diagonal(size)
        matrix = torch.diag_embed(torch.exp(x[..., -size:]))
        below = torch.zeros_like(matrix)
        below[..., rows, columns] = x[..., :-size]
        return matrix + below

    def _inverse(self, y: Tensor) -> Tensor:
        rows, columns = _below_diagonal(y.shape[-1])
        diagonal = torch.diagonal(y, dim1=-2, dim2=-1)
        return torch.cat([y[..., rows, columns], torch.log(diagonal)], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the logarithms of the diagonal."""
        return x[..., -y.shape[-1] :].sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """A square matrix in place of a vector."""
        size = _matrix_size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """The number of entries of the lower triangle."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class PositiveDefiniteTransform(LowerCholeskyTransform):
    """Vectors onto positive definite matrices, through their Cholesky factors.

    The log determinant is with respect to the entries of the lower triangle of the matrix.

    Example:
        >>> PositiveDefiniteTransform()(torch.tensor([3.0, 0.0, 0.0]))
        tensor([[ 1.,  3.],
                [ 3., 10.]])
    """

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        product = factor @ factor.mT
        return 0.5 * (product + product.mT)  # symmetric to the last digit, as hosts check

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`n log 2 + sum_i (n + 2 - i) log L_ii`, the last `log L_ii` from the exponential."""
        size = y.shape[-1]
        order = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        return size * _LOG_TWO + (order * x[..., -size:]).sum(-1)


def _like(number: Any, value: Tensor) -> Tensor:
    return torch.as_tensor(number, dtype=value.dtype, device=value.device)


def wrap(angle: Tensor) -> Tensor:
    """Into `[-pi, pi]`, exact for what is inside already."""
    turns = torch.round(angle / (2.0 * math.pi)).detach()
    return angle - 2.0 * math.pi * turns


def log_sech(value: Tensor) -> Tensor:
    """`log(1 / cosh(value))` without overflow."""
    size = torch.abs(value)
    return _LOG_TWO - size - softplus(-2.0 * size)


def _safe_norm(value: Tensor) -> tuple[Tensor, Tensor]:
    """Length of vectors with the axis kept, 1 where it is zero to rounding, and where that is."""
    square = (value**2).sum(-1, keepdim=True)
    is_zero = square < 1e-20
    return torch.sqrt(torch.where(is_zero, torch.ones_like(square), square)), is_zero


def _matrix_size(num_entries: int) -> int:
    return (math.isqrt(1 + 8 * num_entries) - 1) // 2


def _below_diagonal(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(size, size, -1)
    return rows, columns
