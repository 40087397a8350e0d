"""An objective at each of many data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_amortize.handlers import fill_missing
from pyro_amortize.objectives.objective import Objective
from pyro_amortize.structure import ModelStructure


class OverDataSets(Objective):
    """The mean of an objective over data sets that share the arguments of the model.

    Args:
        objective: The objective, at one data set.
        observations: Data by observed site, with a leading axis of data sets.
        structure: The structure of the model.

    Raises:
        TypeError: If the objective's loss cannot be averaged.
    """

    def __init__(
        self, objective: Any, observations: Mapping[str, Tensor], structure: ModelStructure
    ) -> None:
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                f"observations: the loss of {type(objective).__name__} cannot be averaged over "
                "data sets. Use IWAE() for RenyiELBO, and Trace_ELBO() for TraceGraph_ELBO"
            )
        super().__init__()
        self.objective, self.structure = objective, structure
        num = len(next(iter(observations.values())))
        self._rows = [
            {name: value[row] for name, value in observations.items()} for row in range(num)
        ]

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The mean loss; the model and the guide get the data, and not the arguments."""
        losses = []
        for row in self._rows:
            conditioned = poutine.condition(model, data=row)
            if self.structure.incomplete:
                conditioned = fill_missing(conditioned, optional=self.structure.optional)
            bound = guide.bind(row)
            losses.append(self.objective.differentiable_loss(conditioned, bound, *args, **kwargs))
        return torch.stack(losses).mean()
