"""What the networks of a guide make of whole data sets, to be compared with simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import Array

from numpyro_amortize.conditioned import ConditionedGuide
from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import member_params, model_at
from numpyro_amortize.importance import ROWS_AT_ONCE
from numpyro_amortize.measure import Call
from numpyro_amortize.missing import check_hiding, hide_some
from numpyro_amortize.padding import CallPadding, PaddedCall
from numpyro_amortize.simulate import finite_rows, simulate
from numpyro_amortize.summaries import summaries


def batched_data(conditioned: ConditionedGuide) -> dict[str, Array]:
    """The data of a guide with a leading axis of data sets, of length 1 for one."""
    data = conditioned.observations
    if conditioned.batch_dims:
        return dict(data)
    return {name: value[None] for name, value in data.items()}


def data_contexts(conditioned: ConditionedGuide, observations: Mapping[str, Array]) -> np.ndarray:
    """What the networks make of data sets: means over the elements of plates, and their spread.

    Args:
        conditioned: The guide, and the arguments of the model.
        observations: Data by site with a leading axis of data sets.

    Returns:
        Shape `(num_datasets, num_features)`.
    """
    guide, params = _one_member(conditioned.guide, conditioned.params)
    return np.asarray(_contexts(guide, params, conditioned.call, dict(observations), {}), float)


def simulated_contexts(
    guide: AnyGuide,
    params: Mapping[str, Any],
    calls: Sequence[Call],
    num_simulations: int,
    missing: float | Callable[[Array, str, tuple[int, ...]], Array],
    rng_key: Array,
) -> np.ndarray:
    """What the networks make of simulations at one or several calls of the model.

    Plates whose size differs between the calls are padded, if the model allows it, so that code
    is compiled for a few sizes.

    Args:
        guide: The guide, set up.
        params: Parameters of guide and model.
        calls: Arguments of the model; each has as many simulations.
        num_simulations: Number of simulations in all, or a few more.
        missing: What is hidden of the data, as for `NPE`.
        rng_key: Key of the simulations.

    Returns:
        Shape `(num_simulations, num_features)`, call by call; simulations that are not finite
        are left out.

    Raises:
        ValueError: If the model has a factor.
    """
    structure = guide.structure
    if structure.factors:
        raise ValueError(
            f"factor site '{structure.factors[0].name}': simulations do not see a factor, so that "
            "data cannot be compared with them; write it as an observed site"
        )
    check_hiding(structure, missing)
    model, pad = model_at(guide.model, params), _padding(guide, calls)
    own, own_params = _one_member(guide, params)
    num_each, parts = -(-num_simulations // len(calls)), []
    for call, key in zip(calls, jax.random.split(rng_key, len(calls)), strict=True):
        own_key, missing_key = jax.random.split(key)
        padded = pad(call)
        args, kwargs = padded.call
        sites = simulate(model, num_each, args=args, kwargs=kwargs, rng_key=own_key).sites
        data = {site.name: sites[site.name] for site in structure.observed}
        is_finite = finite_rows(data)
        if not is_finite.all():
            data = {name: value[is_finite] for name, value in data.items()}
        if not len(next(iter(data.values()))):
            continue
        found = guide.find_observations(
            args, kwargs, hide_some(structure, data, missing, missing_key), 1
        )
        parts.append(_contexts(own, own_params, padded.call, found, padded.true_sizes))
    return np.concatenate([np.asarray(part, float) for part in parts] or [np.zeros((0, 1))])


def _one_member(guide: AnyGuide, params: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The guide, or the first of an ensemble: all have learned of the same simulations."""
    if isinstance(guide, EnsembleGuide):
        return guide.guides[0], member_params(params, 0)
    return guide, params


def _padding(guide: AnyGuide, calls: Sequence[Call]) -> Callable[[Call], PaddedCall]:
    """How calls are padded: along the plates whose size differs between them."""
    structure = guide.structure
    exact = CallPadding(guide.model, structure, guide.sizes, ())
    sizes = [exact.own_sizes(call) for call in calls]
    varying = [
        plate
        for plate, info in structure.plates.items()
        if not info.is_event and len({each[plate] for each in sizes}) > 1
    ]
    padded = CallPadding(guide.model, structure, guide.sizes, varying)
    return padded.pad if varying and not padded.find_problem(calls) else exact.pad


@eqx.filter_jit
def _contexts(
    guide: Any,
    params: Mapping[str, Any],
    call: Call,
    observations: Mapping[str, Array],
    true_sizes: Mapping[str, Array],
) -> Array:
    def one(data: Mapping[str, Array]) -> Array:
        values = guide.call_values(*call, data, true_sizes=true_sizes)
        return summaries(guide.structure, guide.steps(params, *call, data, values).contexts)

    num = len(next(iter(observations.values())))
    rows = sum(value.size for value in observations.values()) // num
    return jax.lax.map(one, observations, batch_size=min(max(ROWS_AT_ONCE // rows, 1), num))
