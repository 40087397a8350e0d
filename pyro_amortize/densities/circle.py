"""The circle as densities see it: from coordinates on the line to angles and to normal noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_amortize.bijections import log_sech, wrap

_QUARTILE = 0.6744897501960817  # of a standard normal
_LEAST_FACTOR = 1e-3
_LEAST_SHARE = 1e-8  # of the circle, beyond which noise is cut off
_LOG_TURN = math.log(2 * math.pi)


def stretched(angle: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Angles drawn to zero by a factor below 1: the Moebius map `tan(b / 2) = s tan(a / 2)`.

    Args:
        angle: Angles in `[-pi, pi]`, as the images are.
        factor: Positive, `s`; the inverse has `1 / s`. It takes uniform angles to ones whose
            quartiles are `-2 atan(s)` and `2 atan(s)`.

    Returns:
        The images, and the log derivative, smooth around the whole circle.
    """
    sine, cosine = torch.sin(0.5 * angle), torch.cos(0.5 * angle)
    image = 2 * torch.atan2(factor * sine, cosine)
    return image, torch.log(factor) - torch.log(cosine**2 + (factor * sine) ** 2)


class OntoCircle:
    """The step from coordinates of a circular site to angles that are about uniform a priori.

    Coordinates `w` are `u = loc + scale w`, and `2 atan(sinh(u))` the angle of the site from the
    centre of its support. It is turned by that of `loc` and stretched by the prior's quartiles.

    Args:
        loc: Location of the coordinates, broadcastable to `(*batch, size)`.
        scale: Their scale, likewise.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        self.turn = _angle(loc)
        reach = torch.clamp(_QUARTILE * scale, max=math.asinh(1.0))
        self.factor = torch.sinh(reach).clamp(min=_LEAST_FACTOR)

    def like(self, shape: torch.Size) -> Tensor:
        """Standard normal noise of the type and device of the step."""
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Image and log determinant."""
        line = self.loc + self.scale * coordinates
        image, log_slope = stretched(wrap(_angle(line) - self.turn), 1 / self.factor)
        return image, (log_slope + self._log_slope(line)).sum(-1)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Preimage and log determinant of `to_noise` there."""
        angle, log_slope = stretched(noise, self.factor)
        line = torch.asinh(torch.tan(0.5 * wrap(angle + self.turn)))
        return (line - self.loc) / self.scale, (self._log_slope(line) - log_slope).sum(-1)

    def _log_slope(self, line: Tensor) -> Tensor:
        return math.log(2.0) + log_sech(line) + torch.log(self.scale)


class FromCircle:
    """The step from uniform angles to standard normal noise."""

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Image and log determinant."""
        is_below = coordinates < 0
        # Of both tails the near one, whose share of the circle is precise.
        distance = math.pi - torch.where(is_below, -coordinates, coordinates)
        tail = torch.special.ndtri(torch.clamp(distance / (2 * math.pi), min=_LEAST_SHARE))
        noise = torch.where(is_below, tail, -tail)
        return noise, self._log_slope(noise)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Preimage and log determinant of `to_noise` there."""
        is_below = noise < 0
        distance = 2 * math.pi * torch.special.ndtr(torch.where(is_below, noise, -noise))
        angle = math.pi - distance
        return torch.where(is_below, -angle, angle), self._log_slope(noise)

    def _log_slope(self, noise: Tensor) -> Tensor:
        return (0.5 * (noise**2 + _LOG_TURN) - _LOG_TURN).sum(-1)


def _angle(line: Tensor) -> Tensor:
    return 4.0 * torch.atan(torch.tanh(0.5 * line))  # 2 atan(sinh(line)), without overflow
