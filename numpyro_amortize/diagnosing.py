"""What a diagnosis at given data looks at: weights, predictions, distance from simulations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
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
from numpyro_amortize.guides import EnsembleGuide
from numpyro_amortize.guides.weights import member_params, model_at
from numpyro_amortize.importance import ROWS_AT_ONCE, ImportanceSamples
from numpyro_amortize.measure import Call
from numpyro_amortize.simulate import finite_rows, simulate

_NUM_PREDICTED = 500  # data sets predicted for each
_NUM_LOCAL, _DEFENSIVE = 16, 0.1  # as the defaults of importance_sample


def diagnose(
    conditioned: ConditionedGuide, num_samples: int, num_simulations: int, rng_key: Array
) -> Diagnosis:
    """Judge the answer of a guide at one data set, or at each of many.

    Args:
        conditioned: The guide at the data.
        num_samples: Number of weighted draws for each data set.
        num_simulations: Number of simulations that the data are compared with.
        rng_key: Key of the draws.

    Returns:
        The diagnosis; what has no density or no simulations is left out, with a note.
    """
    notes: list[str] = []
    own, predicted, simulated = jax.random.split(rng_key, 3)
    weighted = _weighted(conditioned, num_samples, notes, own)
    checks = _predictive(conditioned, weighted, num_samples, predicted)
    far = _typicality(conditioned, num_simulations, notes, simulated)
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
    data = dict(conditioned.observations)
    if not conditioned.batch_dims:
        data = {name: value[None] for name, value in data.items()}
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
    return typicality(features(conditioned, data), features(conditioned, found))


def features(conditioned: ConditionedGuide, observations: Mapping[str, Array]) -> np.ndarray:
    """What the networks make of data sets: means over the elements of plates, and their spread.

    Args:
        conditioned: The guide, and the arguments of the model.
        observations: Data by site with a leading axis of data sets.

    Returns:
        Shape `(num_datasets, num_features)`.
    """
    guide: Any = conditioned.guide
    params = conditioned.params
    if isinstance(guide, EnsembleGuide):  # members have learned of the same simulations
        guide, params = guide.guides[0], member_params(params, 0)
    found = _features(guide, params, conditioned.call, dict(observations))
    return np.asarray(found, float)


@eqx.filter_jit
def _features(
    guide: Any, params: Mapping[str, Any], call: Call, observations: Mapping[str, Array]
) -> Array:
    def one(data: Mapping[str, Array]) -> Array:
        steps = guide.steps(params, *call, data, guide.call_values(*call, data))
        contexts = steps.contexts.latents
        distinct = {id(value): value for value in contexts.values()}.values()  # groups share theirs
        return jnp.concatenate([_pooled(value) for value in distinct])

    num = len(next(iter(observations.values())))
    rows = sum(value.size for value in observations.values()) // num
    return jax.lax.map(one, observations, batch_size=min(max(ROWS_AT_ONCE // rows, 1), num))


def _pooled(value: Array) -> Array:
    """Features `(*plates, size)` as one vector."""
    flat = value.reshape(-1, value.shape[-1])
    mean = jnp.mean(flat, axis=0)
    return mean if len(flat) == 1 else jnp.concatenate([mean, jnp.std(flat, axis=0)])
