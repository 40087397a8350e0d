"""The small changes of data that move an answer most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from amortize_diagnostics import Sensitivity
from pyro_amortize.conditioned import ConditionedGuide, total
from pyro_amortize.contexts import batched_data
from pyro_amortize.guides import EnsembleGuide
from pyro_amortize.importance import ROWS_AT_ONCE
from pyro_amortize.objectives.fisher_regularized import continuous_sites
from pyro_amortize.standardisation import Standardisation

_STEP = 0.5  # of a step along the gradient, relative to the radius


def sensitivity(
    conditioned: ConditionedGuide, radii: Sequence[float], num_samples: int, num_steps: int
) -> Sensitivity:
    """Look for the changes of data that move an answer most, by ascent of the divergence.

    Args:
        conditioned: The guide at the data.
        radii: Lengths of the changes.
        num_samples: Number of draws from which a divergence is estimated.
        num_steps: Number of steps of the ascent.

    Returns:
        The changes and how far they move the answer.

    Raises:
        ValueError: If a number is out of range, or if no observed site is continuous.
    """
    if not len(radii) or min(radii) <= 0:
        raise ValueError(f"radii: expected positive numbers, got {tuple(radii)}")
    for name, least, value in (("num_samples", 2, num_samples), ("num_steps", 0, num_steps)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    probe = _Probe(conditioned, num_samples)
    fitted, fresh = _Sample(probe), _Sample(probe)
    # (num, num_samples, size)
    _, sizes, directions = torch.linalg.svd(
        fitted.scores.movedim(0, 1) / num_samples**0.5, full_matrices=False
    )
    first = directions[:, 0]
    values, errors, changes = [], [], []
    for radius in radii:
        found = [fitted.ascend(sign * radius * first, radius, num_steps) for sign in (1, -1)]
        (plus, of_plus), (minus, of_minus) = found
        flat = torch.where((of_plus > of_minus)[:, None], plus, minus)
        with torch.no_grad():
            # Draws that did not choose the change: those that did would flatter it.
            ratios = fresh.log_ratios(flat)
        values.append(ratios.mean(0))
        errors.append(ratios.std(0, correction=0) / num_samples**0.5)
        changes.append(probe.natural(flat))
    return Sensitivity(
        np.asarray(radii, float),
        _array(torch.stack(values)),
        _array(torch.stack(errors)),
        _array((sizes**2).sum(1)),
        _array(sizes[:, 0] ** 2),
        {name: _array(torch.stack([each[name] for each in changes])) for name in changes[0]},
    )


class _Probe:
    """Log densities of a guide at draws of its own, as a function of changes of the data."""

    def __init__(self, conditioned: ConditionedGuide, num_samples: int) -> None:
        self._guide, self._call = conditioned.guide, conditioned.call
        guide = self._guide
        single = guide.guides[0] if isinstance(guide, EnsembleGuide) else guide
        constants = Standardisation.from_vector(single.structure, single.standardisation)
        self._scales = {
            site.name: constants.data[site.name][1].reshape(site.event_shape)
            for site in continuous_sites(single.structure)
        }
        self._data, self._num_samples = batched_data(conditioned), num_samples
        self._num = len(next(iter(self._data.values())))

    @torch.no_grad()
    def draws(self) -> dict[str, Tensor]:
        """Draws of the latents, `(num_samples, num, ...)`."""
        draws = self._guide.draw(
            *self._call, self._data, num_samples=self._num_samples, batch_dims=1
        )
        return draws.values

    def natural(self, flat: Tensor) -> dict[str, Tensor]:
        """Changes `(*draws, num, size)` in the data's own units, zero where data are missing."""
        parts, start = {}, 0
        for name, scale in self._scales.items():
            value = self._data[name]
            size = value.numel() // self._num
            part = flat[..., start : start + size].reshape(*flat.shape[:-2], *value.shape) * scale
            parts[name] = torch.where(torch.isnan(value), 0.0, part)
            start += size
        return parts

    def log_q(self, flat: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """Log densities of draws `(num_samples, num)` at data that are changed.

        The changes have shape `(num, size)`, or an axis of draws before it.
        """
        moved = {name: self._data[name] + part for name, part in self.natural(flat).items()}
        if flat.ndim == 2:  # embedded once for all draws
            data = {name: value[None] for name, value in {**self._data, **moved}.items()}
        else:
            kept = {
                name: value.expand(len(flat), *value.shape) for name, value in self._data.items()
            }
            data = {**kept, **moved}
        parts = self._guide.site_log_probs(*self._call, latents, data, batch_dims=2)
        return total(parts.values(), 2)

    def scores(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Gradients of log densities, `(num_samples, num, size)`, of mean zero but for noise."""
        scores = []
        size = sum(self._data[name].numel() // self._num for name in self._scales)
        rows = sum(value.numel() for value in self._data.values())
        at_once = max(ROWS_AT_ONCE // rows, 1)
        for start in range(0, self._num_samples, at_once):
            some = {name: value[start : start + at_once] for name, value in latents.items()}
            num = len(next(iter(some.values())))
            flat = torch.zeros(num, self._num, size, requires_grad=True)
            with torch.enable_grad():
                (score,) = torch.autograd.grad(self.log_q(flat, some).sum(), flat)
            scores.append(score)
        return torch.cat(scores)


class _Sample:
    """Draws of a guide, and the divergence of its answer from itself by them."""

    def __init__(self, probe: _Probe) -> None:
        self._probe, self._latents = probe, probe.draws()
        self.scores = probe.scores(self._latents)
        with torch.no_grad():
            self._before = probe.log_q(torch.zeros_like(self.scores[0]), self._latents)

    def log_ratios(self, flat: Tensor) -> Tensor:
        """`log q(z | x) - log q(z | x + change)`, `(num_samples, num)`, less its linear part."""
        moved = self._probe.log_q(flat, self._latents)
        return self._before - moved + (self.scores * flat).sum(-1)

    def ascend(self, flat: Tensor, radius: float, num_steps: int) -> tuple[Tensor, Tensor]:
        """The best change on the way, and the divergence there."""
        best, best_value = flat, torch.full((len(flat),), -torch.inf)
        for _ in range(num_steps + 1):
            flat = flat.detach().requires_grad_()
            with torch.enable_grad():
                value = self.log_ratios(flat).mean(0)
                (gradient,) = torch.autograd.grad(value.sum(), flat)
            flat, value = flat.detach(), value.detach()
            best = torch.where((value > best_value)[:, None], flat, best)
            best_value = torch.maximum(value, best_value)
            flat = _inside(flat + _STEP * radius * _unit(gradient), radius)
        return best, best_value


def _unit(direction: Tensor) -> Tensor:
    """Rows of length 1, or of 0 where they are zero."""
    length = direction.norm(dim=1, keepdim=True)
    return direction / torch.where(length > 0, length, 1.0)


def _inside(flat: Tensor, radius: float) -> Tensor:
    """Rows of at most a length."""
    length = flat.norm(dim=1, keepdim=True)
    return flat * (radius / torch.where(length > 0, length, 1.0)).clamp(max=1.0)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().astype(float)
