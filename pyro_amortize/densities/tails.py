"""Draws with heavier tails than a density's own, for defensive importance sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.densities.base import SiteDistribution, check_has_log_prob
from pyro_amortize.densities.noise import from_noise, noise_shape, sum_of_noise

DEGREES = 5  # of freedom of the heavy noise


def draw_with_tails(distribution: Any, is_heavy: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A draw of a site from the guide, or from the guide with Student-t in place of normal noise.

    With `e` the noise of the draw, `log_tail = log t(e) - log N(e)` is what the log density gains
    where the noise has heavy tails; the density of any mixture of both follows from it.

    Args:
        distribution: The guide's distribution of a site.
        is_heavy: Whether the noise is Student-t, for each element of the first batch axis; never
            if None.

    Returns:
        The value, its log density in the guide and `log_tail`, both `(*batch,)` in nats. A
        density without normal noise, such as one of whole numbers, has only its own draws, and
        `log_tail` is 0. The log density of draws that have none is NaN.

    Raises:
        TypeError: If there is no log density and the draw is one of a mixture with heavy tails.
    """
    if isinstance(distribution, SiteDistribution) and not distribution.has_log_prob:
        if is_heavy is not None:
            check_has_log_prob(distribution.site.name, distribution.base)
        value = distribution()
        log_prob = value.new_full(value.shape[: len(distribution.batch_shape)], torch.nan)
        return value, log_prob, torch.zeros_like(log_prob)
    shape = noise_shape(distribution)
    if shape is not None:
        loc = distribution.loc if isinstance(distribution, SiteDistribution) else distribution.mean
        noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
        noise, log_tail = _with_tails(noise, is_heavy)
        value, log_prob = from_noise(distribution, noise)
        return value, log_prob, sum_of_noise(distribution, log_tail)
    value = distribution()
    log_prob = distribution.log_prob(value)
    return value, log_prob, torch.zeros_like(log_prob)


def _with_tails(noise: Tensor, is_heavy: Tensor | None) -> tuple[Tensor, Tensor]:
    """Normal noise with some of it made heavy, and `log t - log N` of each number of it."""
    if is_heavy is not None:
        others = torch.randn((DEGREES, *noise.shape), dtype=noise.dtype, device=noise.device)
        heavy = noise / torch.sqrt((others**2).mean(0))
        rows = is_heavy.to(noise.device).reshape(-1, *[1] * (noise.ndim - 1))
        noise = torch.where(rows, heavy, noise)
    student = torch.log1p(noise**2 / DEGREES) * (-0.5 * (DEGREES + 1))
    student = student + math.lgamma((DEGREES + 1) / 2) - math.lgamma(DEGREES / 2)
    normal = -0.5 * noise**2 + 0.5 * math.log(DEGREES / 2)
    return noise, student - normal
