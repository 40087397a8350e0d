"""What a diagnosis at given data looks at: weights, predictions, distance from simulations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amortize_diagnostics import (
    Diagnosis,
    PredictiveChecks,
    Typicality,
    diagnosis,
    predictive_checks,
    typicality,
)
from numpyro_amortize.conditioned import ConditionedGuide
from numpyro_amortize.contexts import batched_data, data_contexts
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.importance import ImportanceSamples
from numpyro_amortize.simulate import finite_rows, simulate

_NUM_PREDICTED = 500  # data sets predicted for each
_NUM_LOCAL, _DEFENSIVE = 16, 0.1  # as the defaults of importance_sample


def diagnose(
    conditioned: ConditionedGuide,
    num_samples: int,
    num_simulations: int,
    simulated: np.ndarray | None,
    rng_key: Array,
) -> Diagnosis:
    """Judge the answer of a guide at one data set, or at each of many.

    Args:
        conditioned: The guide at the data.
        num_samples: Number of weighted draws for each data set.
        num_simulations: Number of simulations that the data are compared with.
        simulated: Contexts of simulations in place of these, or None.
        rng_key: Key of the draws.

    Returns:
        The diagnosis; what has no density or no simulations is left out, with a note.
    """
    notes: list[str] = []
    own, predicted, simulation_key = jax.random.split(rng_key, 3)
    weighted = _weighted(conditioned, num_samples, notes, own)
    checks = _predictive(conditioned, weighted, num_samples, predicted)
    if simulated is None:
        far = _typicality(conditioned, num_simulations, notes, simulation_key)
    else:
        far = typicality(data_contexts(conditioned, batched_data(conditioned)), simulated)
    if not conditioned.batch_dims and weighted is None:
        notes.append("use the draws only after check_calibration()")
    importance = None if weighted is None else weighted.summary
    return diagnosis(importance, checks, far, notes=tuple(notes))


def _weighted(
    conditioned: ConditionedGuide, num_samples: int, notes: list[str], rng_key: Array
) -> ImportanceSamples | None:
    """Weighted draws; None, with a note, if the model or the guide has no density."""
    try:
        return conditioned.importance_sample(num_samples, _NUM_LOCAL, _DEFENSIVE, rng_key)
    except NotImplementedError as error:
        reason = str(error) or "a distribution without log_prob"
        notes.append(
            f"the model has no density ({reason}), so that no weights are possible: neither the "
            "error of the guide at these data nor the evidence is certified"
        )
    except TypeError as error:
        notes.append(f"the guide has no density, so that no weights are possible: {error}")
    return None


def _predictive(
    conditioned: ConditionedGuide,
    weighted: ImportanceSamples | None,
    num_samples: int,
    rng_key: Array,
) -> PredictiveChecks:
    """Predictions at weighted draws, or at the guide's own without weights."""
    structure, data = conditioned.guide.structure, conditioned.observations
    num = min(num_samples, _NUM_PREDICTED)
    own, new = jax.random.split(rng_key)
    if weighted is None:
        latents = conditioned.sample(num, own)
    else:
        drawn = weighted.resample(num, seed=int(jax.random.bits(own) >> 1))
        latents = {site.name: jnp.asarray(drawn[site.name]) for site in structure.latents}
    found = conditioned.predict(latents, new)
    observed = {name: _per_dataset(value, conditioned, 0) for name, value in data.items()}
    predicted = {name: _per_dataset(found[name], conditioned, 1) for name in observed}
    return predictive_checks(observed, predicted)


def _per_dataset(value: Array, conditioned: ConditionedGuide, axis: int) -> np.ndarray:
    """Values with an axis of data sets, and all that belongs to one of them in the last."""
    batched = value if conditioned.batch_dims else jnp.expand_dims(value, axis)
    return np.asarray(batched.reshape(*batched.shape[: axis + 1], -1), float)


def _typicality(
    conditioned: ConditionedGuide, num_simulations: int, notes: list[str], rng_key: Array
) -> Typicality | None:
    """How far the data are from simulations in what the networks make of them."""
    guide, (args, kwargs) = conditioned.guide, conditioned.call
    if guide.structure.factors:
        notes.append("a model with a factor cannot be simulated: the distance is left out")
        return None
    data = batched_data(conditioned)
    missing = {name: jnp.isnan(value) for name, value in data.items()}
    if any(bool((value != value[:1]).any()) for value in missing.values()):
        notes.append(
            "the data sets miss different values, so that none is compared with simulations; "
            "at(...) does it for one"
        )
        return None
    model = model_at(guide.model, conditioned.params)
    sites = simulate(model, num_simulations, args=args, kwargs=kwargs, rng_key=rng_key).sites
    own = {name: sites[name] for name in data}
    own = {name: value[finite_rows(own)] for name, value in own.items()}
    hidden = {
        name: jnp.where(missing[name][:1], jnp.nan, value) if missing[name].any() else value
        for name, value in own.items()
    }
    found = guide.find_observations(args, kwargs, hidden, 1)
    return typicality(data_contexts(conditioned, data), data_contexts(conditioned, found))
