"""What the host asks of a loss, for losses that are differentiated as they stand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor


class Objective(ELBO, ABC):
    """A loss for `fit` and for the host's `SVI` that is defined by `differentiable_loss`."""

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, a scalar; its gradient is that of `loss_and_grads`."""

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss without its gradient, as the host evaluates it."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss, its gradient added to those of the parameters, for the host's `SVI`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Traces of model and guide for one particle, as the host makes them."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
