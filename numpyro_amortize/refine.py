"""A few steps more for the data at hand, from the amortized answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax
from jax import Array
from numpyro.infer.elbo import ELBO

from numpyro_amortize.at_data import Posterior
from numpyro_amortize.guides import AmortizedGuide
from numpyro_amortize.objectives.gradients import check_gradients
from numpyro_amortize.objectives.mixed import parts_of, simulating_part
from numpyro_amortize.objectives.over_data_sets import OverDataSets
from numpyro_amortize.padding import CallPadding
from numpyro_amortize.posterior import AmortizedPosterior
from numpyro_amortize.training_step import TrainingStep


def refine(
    amortized: AmortizedPosterior,
    objective: ELBO,
    *,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    observations: Mapping[str, Any] | None = None,
    num_steps: int = 100,
    learning_rate: float = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    rng_key: Array | None = None,
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
        rng_key: Key of the draws; None for a fixed one.

    Returns:
        The posterior at the data, from the copy.

    Raises:
        ValueError: If the objective simulates, its gradient would be wrong at a discrete site, or
            data do not fit the model.
        FloatingPointError: If the loss or its gradient is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> from numpyro.infer import Trace_ELBO
        >>> from numpyro_amortize import NPE, AmortizedGuide, fit
        >>> def model(y=None):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> amortized = fit(model, guide, NPE(), num_steps=2, progress_bar=False)
        >>> data = {"y": jnp.array(0.5)}
        >>> refine(amortized, Trace_ELBO(), kwargs=data, num_steps=2).sample(3)["z"].shape
        (3,)

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
    guide = amortized.guide
    if not isinstance(guide, AmortizedGuide):
        raise TypeError(
            "amortized: expected one guide, got an EnsembleGuide; refine one of amortized.members"
        )
    guide.setup(*args, **kwargs)
    for part, _ in parts_of(objective):
        check_gradients(guide.structure, part)
    loss = objective
    if observations is None:
        amortized.at(*args, **kwargs)  # the data are checked before any step
    else:
        found = amortized.at_each(*args, observations=observations, **kwargs).observations
        loss = OverDataSets(objective, found, guide.structure)
    step = TrainingStep(
        amortized.model,
        guide,
        loss,
        (args, kwargs),
        optimizer=optimizer,
        learning_rate=learning_rate,
        num_steps=num_steps,
        params=amortized.params,
        trains_model=False,
    )
    keys = jax.random.split(jax.random.key(0) if rng_key is None else rng_key, num_steps)
    call = CallPadding(guide.model, guide.structure, guide.sizes, ()).pad((args, kwargs))
    state, results = step.advance(step.initial, keys, call)
    if results.first_bad is not None:
        bad = results.first_bad
        raise FloatingPointError(
            f"step {bad + 1}: the loss is {results.losses[bad]} and the norm of its gradient "
            f"{results.gradient_norms[bad]} at these data. Look for data that the model cannot "
            "produce; a lower learning_rate helps if the networks diverge"
        )
    refined = AmortizedPosterior(
        amortized.model, guide, params=step.params(state), history=amortized.history
    )
    if observations is None:
        return refined.at(*args, **kwargs)
    return refined.at_each(*args, observations=observations, **kwargs)
