"""A few steps more for the data at hand, from the amortized answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.infer.elbo import ELBO

from pyro_amortize.at_data import Posterior
from pyro_amortize.guides import AmortizedGuide
from pyro_amortize.objectives.gradients import check_gradients
from pyro_amortize.objectives.mixed import parts_of, simulating_part
from pyro_amortize.objectives.over_data_sets import OverDataSets
from pyro_amortize.posterior import AmortizedPosterior
from pyro_amortize.training_step import MakeOptimizer, TrainingStep


def refine(
    amortized: AmortizedPosterior,
    objective: ELBO,
    *,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    observations: Mapping[str, Any] | None = None,
    num_steps: int = 100,
    learning_rate: float = 1e-3,
    optimizer: MakeOptimizer | None = None,
) -> Posterior:
    """Train a copy of the guide at given data: a semi-amortized posterior.

    It closes what the amortized answer leaves open at these data, in exchange for some steps. The
    shared networks and the parameters of the model stay as they are. Use it where the ESS fraction
    or k-hat of `importance_sample` is not good enough. Avoid it with an objective that looks from
    inside the posterior (a bound) if the amortized answer lacks a mode: it will not find it.

    Args:
        amortized: The trained posterior.
        objective: A loss that reads the data: a bound of the host, `IWAE`, `RWS(insomnia=1.0)`,
            `VIS`, `SelfConsistency`, `TrajectoryBalance`.
        args: The model's positional arguments, data included if there is one data set.
        kwargs: The model's keyword arguments, likewise.
        observations: For several data sets at once, data by site with a leading axis of data
            sets; one copy of the guide is trained on all of them.
        num_steps: Number of optimiser steps.
        learning_rate: Initial rate of the default optimiser.
        optimizer: As for `fit`.

    Returns:
        The posterior at the data, from the copy.

    Raises:
        ValueError: If the objective simulates, its gradient would be wrong at a discrete site, or
            data do not fit the model.
        TypeError: If its loss cannot be averaged over several data sets.
        FloatingPointError: If the loss or its gradient is not finite.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_amortize import NPE, AmortizedGuide, fit
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> amortized = fit(model, guide, NPE(), num_steps=2, progress_bar=False)
        >>> data = {"y": torch.tensor(0.5)}
        >>> refine(amortized, Trace_ELBO(), kwargs=data, num_steps=2).sample(3)["z"].shape
        torch.Size([3])

    References:
        Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-amortized variational autoencoders,
        arXiv:1802.02550.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    if simulating_part(objective):
        raise ValueError(
            "objective: it simulates, and simulations do not depend on the data. Use one that "
            "reads the data, such as IWAE() or RWS(insomnia=1.0)"
        )
    args, kwargs = tuple(args), dict(kwargs or {})
    if not isinstance(amortized.guide, AmortizedGuide):
        raise TypeError(
            "amortized: expected one guide, got an EnsembleGuide; refine one of amortized.members"
        )
    guide = amortized.guide.setup(*args, **kwargs).separate()
    refined = AmortizedPosterior(amortized.model, guide, history=amortized.history)
    for part, _ in parts_of(objective):
        check_gradients(guide.structure, part)
    if observations is None:
        answer = refined.at(*args, **kwargs)
        loss = objective
    else:
        answer = refined.at_each(*args, observations=observations, **kwargs)
        loss = OverDataSets(objective, answer.observations, guide.structure)
    with _frozen(pyro.get_param_store()):
        step = TrainingStep(
            amortized.model,
            guide,
            loss,
            (args, kwargs),
            optimizer=optimizer,
            learning_rate=learning_rate,
            num_steps=num_steps,
        )
        for done in range(1, num_steps + 1):
            result = step.advance((args, kwargs))
            if not result.is_finite:
                raise FloatingPointError(
                    f"step {done}: the loss is {result.loss} and the norm of its gradient "
                    f"{result.gradient_norm} at these data. Look for data that the model cannot "
                    "produce; a lower learning_rate helps if the networks diverge"
                )
    return answer


@contextmanager
def _frozen(store: Any) -> Iterator[None]:
    """Parameters of the model keep their values and collect no gradients."""
    kept = [value for _, value in store.named_parameters() if value.requires_grad]
    names = set(store.keys())
    for value in kept:
        value.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for value in kept:
            value.requires_grad_(requires_grad=True)
        for name in set(store.keys()) - names:  # of the copy
            del store[name]
