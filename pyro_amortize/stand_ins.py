"""Handlers that put something in the place of sites at which a run would stop."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger

from pyro_amortize.supports import read_support
from pyro_amortize.tracing import base_distribution


class ImproperPriors(Messenger):
    """Gives improper sites a value, so that one run reports every problem."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(base_distribution(msg["fn"]), dist.ImproperUniform):
            if msg["name"] not in self.names:
                self.names.append(msg["name"])
            msg["value"] = _neutral_value(msg["fn"])
            msg["done"] = True

    def problems(self) -> list[str]:
        """One message for each improper site that was met."""
        return [
            f"site '{name}': its prior is improper and cannot be simulated. Give it a proper "
            "stand-in, wide on the scale of the data"
            for name in self.names
        ]


def _neutral_value(fn: Any) -> Any:
    """The image of zero on the support, or zero where there is no map."""
    support = read_support(fn.support)
    if support is None:
        return torch.zeros(fn.shape())
    transform = support.bijection(fn.event_dim)
    return transform(torch.zeros(transform.inverse_shape(fn.shape())))
