"""Planar flows: maps that stretch space along one direction at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_amortize.densities.parameter_chain import (
    ChainOfMaps,
    above_minus_one,
    direction,
)

_NUM_ROOT_STEPS = 40
_TINY = 1e-6  # below the square of any direction's length


@dataclass(frozen=True)
class _Planar:
    """Planar maps."""

    def num_parameters(self, event_size: int) -> int:
        return 2 * event_size + 1

    def at(self, parameters: Tensor, number: int) -> _PlanarMap:
        size = (parameters.shape[-1] - 1) // 2
        wave = parameters.new_tensor(direction(size, number))
        across = parameters[..., size : 2 * size] + wave
        return _PlanarMap(parameters[..., :size], across, parameters[..., -1])


@dataclass(frozen=True)
class PlanarFlowDensity(ChainOfMaps):
    """A diagonal normal pushed through planar maps: `f(z) = z + u tanh(w'z + b)`.

    `log q(f(z) | c) = log q(z | c) - log|1 + tanh'(w'z + b) u'w|` in nats for each map, with
    `w'u > -1`, so that none folds. All parameters of all maps are outputs of one network of the
    context. A map bends space across one plane, so that many are needed in many dimensions.

    Use it to compare with the literature, and where draws should cost little: a draw with its
    density takes no more than the maps themselves. The density of a value that was not drawn takes
    the root of one equation for each map, found by bisection and Newton's steps: slower than
    `SplineFlowDensity`, which bends more with as many parameters.

    Args:
        num_transforms: Number of maps; with none it is a diagonal normal.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If `num_transforms < 0`.

    Example:
        >>> density = PlanarFlowDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Rezende and Mohamed (2015), arXiv:1505.05770, eqs. 10-12 and appendix A.1. The start at the
        identity is ours: directions `w` start as orthogonal waves, and `u` at zero.
    """

    kind = _Planar()


class _PlanarMap:
    """One planar map of noise, `f(z) = z + u tanh(w'z + b)`, and its inverse."""

    def __init__(self, along: Tensor, across: Tensor, shift: Tensor) -> None:
        raw = (across * along).sum(-1)
        self.stretch = above_minus_one(raw)  # w'u
        excess = (self.stretch - raw) / ((across**2).sum(-1) + _TINY)
        self.along = along + excess[..., None] * across
        self.across, self.shift = across, shift
        self.stretch = (across * self.along).sum(-1)

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.shift.dtype, device=self.shift.device)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        level = (self.across * noise).sum(-1)
        return noise + self._move(level), -self._log_slope(level)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        level = self._root((self.across * coordinates).sum(-1))
        return coordinates - self._move(level), -self._log_slope(level)

    def _move(self, level: Tensor) -> Tensor:
        return self.along * torch.tanh(level + self.shift)[..., None]

    def _log_slope(self, level: Tensor) -> Tensor:
        return torch.log1p(self.stretch * (1 - torch.tanh(level + self.shift) ** 2))

    def _root(self, image: Tensor) -> Tensor:
        """The level `a` with `a + w'u tanh(a + b) = image`, which rises with `a`.

        The gradient is that of one step of Newton from the root, the implicit one.
        """
        stretch, shift, image = torch.broadcast_tensors(self.stretch, self.shift, image)
        with torch.no_grad():
            low, high, level = image - stretch.abs(), image + stretch.abs(), image
            for _ in range(_NUM_ROOT_STEPS):
                error, slope = _error_and_slope(level, stretch, shift, image)
                low, high = torch.where(error < 0, level, low), torch.where(error < 0, high, level)
                newton = level - error / slope
                is_inside = (newton > low) & (newton < high)
                level = torch.where(is_inside, newton, 0.5 * (low + high))
        error, slope = _error_and_slope(level, stretch, shift, image)
        return level - error / slope.detach()


def _error_and_slope(
    level: Tensor, stretch: Tensor, shift: Tensor, image: Tensor
) -> tuple[Tensor, Tensor]:
    bent = torch.tanh(level + shift)
    return level + stretch * bent - image, 1 + stretch * (1 - bent**2)
