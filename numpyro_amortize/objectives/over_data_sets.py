"""An objective at each of many data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from numpyro_amortize.handlers import fill_missing
from numpyro_amortize.structure import ModelStructure


class OverDataSets(ELBO):
    """The mean of an objective over data sets that share the arguments of the model.

    Args:
        objective: The objective, at one data set.
        observations: Data by observed site, with a leading axis of data sets.
        structure: The structure of the model.
    """

    def __init__(
        self, objective: ELBO, observations: Mapping[str, Array], structure: ModelStructure
    ) -> None:
        super().__init__()
        self.objective, self.structure = objective, structure
        self._observations = dict(observations)

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The mean loss; the model and the guide get the data, and not the arguments."""

        def at(rng_key: Array, row: dict[str, Array]) -> Array:
            conditioned: Callable[..., Any] = handlers.condition(model, data=row)
            if self.structure.incomplete:
                conditioned = fill_missing(conditioned, optional=self.structure.optional)
            bound = guide.bind(row)
            return self.objective.loss(rng_key, param_map, conditioned, bound, *args, **kwargs)

        num = len(next(iter(self._observations.values())))
        losses = jax.vmap(at)(jax.random.split(rng_key, num), self._observations)
        return {"loss": jnp.mean(losses), "mutable_state": None}
