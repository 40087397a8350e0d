"""Radial flows: maps that push space away from a point, or towards it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_amortize.densities.parameter_chain import (
    ChainOfMaps,
    above_minus_one,
)
from pyro_amortize.networks import positive

_TINY = 1e-30  # beside the square of a distance, for the gradient at the centre


@dataclass(frozen=True)
class _Radial:
    """Radial maps."""

    def num_parameters(self, event_size: int) -> int:
        return event_size + 2

    def at(self, parameters: Tensor, number: int) -> _RadialMap:
        width = positive(parameters[..., -2])
        strength = width * above_minus_one(parameters[..., -1])
        return _RadialMap(parameters[..., :-2], width, strength)


@dataclass(frozen=True)
class RadialFlowDensity(ChainOfMaps):
    """A diagonal normal pushed through radial maps: `f(z) = z + b h(r) (z - c)`.

    Here `r = |z - c|` and `h(r) = 1 / (a + r)` with `a > 0` and `b > -a`, so that none folds, and
    `log q(f(z) | c) = log q(z | c) - (d - 1) log(1 + b h) - log(1 + a b h^2)` in nats for each
    map of `d` coordinates. All parameters of all maps are outputs of one network of the context. A
    map makes one bump or one hole, round in standardised coordinates.

    Use it to compare with the literature, and where draws should cost little. The inverse is a
    closed form, so that densities of given values are as cheap. `SplineFlowDensity` bends more.

    Args:
        num_transforms: Number of maps; with none it is a diagonal normal.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If `num_transforms < 0`.

    Example:
        >>> density = RadialFlowDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Rezende and Mohamed (2015), arXiv:1505.05770, eq. 14 and appendix A.2. The inverse, the root
        of a quadratic equation in `r`, and the start at the identity are ours.
    """

    kind = _Radial()


class _RadialMap:
    """One radial map of noise, `f(z) = z + b (z - c) / (a + |z - c|)`, and its inverse."""

    def __init__(self, centre: Tensor, width: Tensor, strength: Tensor) -> None:
        self.centre, self.width, self.strength = centre, width, strength

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.width.dtype, device=self.width.device)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        offset = noise - self.centre
        return self._image(offset, _length(offset))

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        offset = coordinates - self.centre
        image = _length(offset)
        # r (1 + b / (a + r)) = image is quadratic in r; this form has no cancellation.
        half = 0.5 * (self.width + self.strength - image)
        root = torch.sqrt(half**2 + self.width * image)
        radius = torch.where(half > 0, self.width * image / (half + root), root - half)
        stretch = 1 + self.strength / (self.width + radius)
        return self.centre + offset / stretch[..., None], self._log_det(radius, offset.shape[-1])

    def _image(self, offset: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        stretch = 1 + self.strength / (self.width + radius)
        value = self.centre + offset * stretch[..., None]
        return value, self._log_det(radius, offset.shape[-1])

    def _log_det(self, radius: Tensor, size: int) -> Tensor:
        """Log determinant of the map towards the noise."""
        pull = 1 / (self.width + radius)
        around = torch.log1p(self.strength * pull)
        return -(size - 1) * around - torch.log1p(self.width * self.strength * pull**2)


def _length(offset: Tensor) -> Tensor:
    return ((offset**2).sum(-1) + _TINY).sqrt()
