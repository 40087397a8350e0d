"""Limits to the gradients of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.objectives import NPE

_NORM = 5.0
_FACTOR, _DECAY = 10.0, 0.99


def gradient_clipping(objectives: Sequence[Any]) -> Callable[[list[Tensor]], float]:
    """Clipping for a sum of objectives.

    The loss of NPE is a mean, and 5 is a large gradient. Bounds are sums over the data: there a
    fixed limit would cut most steps, and noisy gradients more than others, which leaves a guide
    too wide that looks converged. So theirs are cut where they are also 10 times as large as those
    before them.

    Args:
        objectives: The objectives.

    Returns:
        A function that clips the gradients of parameters and returns the norm that they had.
    """
    if all(isinstance(objective, NPE) for objective in objectives):
        return _clip_by_norm
    return _RunningNormClip()


def _clip_by_norm(parameters: list[Tensor]) -> float:
    return float(torch.nn.utils.clip_grad_norm_(parameters, _NORM))


class _RunningNormClip:
    """Clips to a multiple of the running mean of the global norm, itself of clipped gradients."""

    def __init__(self) -> None:
        self._total, self._weight = 0.0, 0.0

    def __call__(self, parameters: list[Tensor]) -> float:
        running = self._total / self._weight if self._weight else math.inf
        limit = max(_FACTOR * running, _NORM)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        self._total = _DECAY * self._total + (1 - _DECAY) * min(norm, limit)
        self._weight = _DECAY * self._weight + (1 - _DECAY)
        return norm
