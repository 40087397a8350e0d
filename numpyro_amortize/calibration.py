"""Simulated data sets with known latents, and what a guide's draws look like beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from amortize_diagnostics import Calibration, CalibrationRun, LocalErrors
from amortize_diagnostics.local_errors import ErrorsAtData
from amortize_diagnostics.paired import MIN_DATASETS, check_numbers
from numpyro_amortize.arguments import given_arguments
from numpyro_amortize.conditioned import ConditionedGuide, total
from numpyro_amortize.contexts import data_contexts
from numpyro_amortize.export import dimension_names, site_arrays
from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.measure import Call
from numpyro_amortize.missing import check_hiding, hide_some
from numpyro_amortize.simulate import finite_rows, simulate
from numpyro_amortize.structure import ModelStructure

_NUM_PAST = 1000  # simulations from which scales and reference points are learned
_NUM_PILOT = 40  # draws of each data set from which a local check starts


@dataclass(frozen=True)
class SimulatedData:
    """Simulations to judge a guide by, and others to learn scales from.

    Args:
        latents: Latents by site, constrained, one row for each data set.
        observations: Data by site as the guide sees them, NaN where missing.
        past: Rows of other simulations: their latents and their data.
        notes: What a reader should know of them.
    """

    latents: dict[str, Array]
    observations: dict[str, Array]
    past: tuple[dict[str, Array], dict[str, Array]]
    notes: tuple[str, ...]


def known_call(
    guide: AnyGuide, args: tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None
) -> Call:
    """The arguments of the model that are given, or those that the guide was set up with.

    Args:
        guide: The guide.
        args: Positional arguments, or None.
        kwargs: Keyword arguments, or None.

    Raises:
        TypeError: If none are given, none are known, and the model needs some.
    """
    if args is not None or kwargs is not None:
        return tuple(args or ()), dict(kwargs or {})
    members = guide.guides if isinstance(guide, EnsembleGuide) else (guide,)
    known = members[0].setup_call
    call: Call = ((), {}) if known is None else (tuple(known[0]), dict(known[1]))
    try:
        given_arguments(guide.model, *call)
    except TypeError as error:
        raise TypeError(
            f"args: expected the model's arguments, which this guide does not know ({error}). Pass "
            "args=... and kwargs=..."
        ) from error
    return call


def simulate_data(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    num_datasets: int,
    num_local: int,
    missing: float | Callable[[Array, str, tuple[int, ...]], Array],
    rng_key: Array,
) -> SimulatedData:
    """Simulate data sets as training sees them.

    Args:
        guide: The guide, set up.
        params: Parameters of guide and model.
        call: Arguments of the model.
        num_datasets: Number of data sets.
        num_local: Number of other simulations, if there shall be more than 1000.
        missing: What is hidden of the data, as for `NPE`.
        rng_key: Key of the simulations.

    Returns:
        The data sets; simulations that are not finite are left out, with a note.

    Raises:
        ValueError: If the model has a factor, or too few simulations are finite.
    """
    structure = guide.structure
    if structure.factors:
        raise ValueError(
            f"factor site '{structure.factors[0].name}': simulations do not see a factor, so that "
            "no data with known latents can be made; write it as an observed site"
        )
    check_hiding(structure, missing)
    args, kwargs = call
    num = num_datasets + max(num_local, _NUM_PAST)
    own_key, missing_key = jax.random.split(rng_key)
    model = model_at(guide.model, params)
    sites = simulate(model, num, args=args, kwargs=kwargs, rng_key=own_key).sites
    latents = {site.name: sites[site.name] for site in structure.latents}
    data = {site.name: sites[site.name] for site in structure.observed}
    notes = []
    is_finite = np.asarray(finite_rows({**latents, **data}))
    if not is_finite.all():
        num_bad = int((~is_finite).sum())
        notes.append(f"{num_bad} of {num} simulations were not finite and were left out")
        latents = {name: value[is_finite] for name, value in latents.items()}
        data = {name: value[is_finite] for name, value in data.items()}
        num_datasets = min(num_datasets, int(is_finite.sum()) // 2)
        if num_datasets < MIN_DATASETS:
            raise ValueError(
                f"simulations: expected {MIN_DATASETS} finite data sets or more, got "
                f"{int(is_finite.sum())} finite ones of {num}. Mend the model or its priors"
            )
    data = hide_some(structure, data, missing, missing_key)
    observations = guide.find_observations(args, kwargs, data, 1)
    if structure.alternatives:
        notes.append("each data set has data at one of the alternatives of sites, drawn at random")
    if structure.missing and not missing:
        notes.append("nothing is missing in these data but what a mask among the arguments hides")
    own, past = (
        [{name: value[rows] for name, value in part.items()} for part in (latents, observations)]
        for rows in (slice(num_datasets), slice(num_datasets, None))
    )
    return SimulatedData(own[0], own[1], (past[0], past[1]), tuple(notes))


def calibrate(
    conditioned: ConditionedGuide,
    data: SimulatedData,
    num_draws: int,
    past: ConditionedGuide | None,
    rng_key: Array,
) -> Calibration:
    """Draw from a guide at simulated data, and judge the draws by all checks.

    Args:
        conditioned: The guide at the observations of `data`.
        data: The simulations.
        num_draws: Number of draws for each data set.
        past: The guide at the other simulations, for a local check; None for none.
        rng_key: Key of the draws.
    """
    structure, notes = conditioned.guide.structure, list(data.notes)
    num_datasets = len(next(iter(data.latents.values())))
    check_numbers(num_datasets, num_draws)
    known = {name: value[None] for name, value in data.latents.items()}
    densities = _model_densities(conditioned, known, notes)
    log_guide = _guide_density(conditioned, known, notes)
    tie_key, rng_key = jax.random.split(rng_key)
    rng = np.random.default_rng(int(jax.random.bits(tie_key)))
    local = None
    if past is not None:
        local = _local_check(conditioned, past, data, rng, jax.random.fold_in(tie_key, 1))
    run = CalibrationRun(
        site_arrays(structure, data.latents, list(data.latents), 1),
        rng,
        densities={name: value[0] for name, value in densities.items()},
        log_guide=None if log_guide is None else log_guide[0],
        past=site_arrays(structure, data.past[0], list(data.latents), 1),
        data=_flat(data.observations),
        past_data=_flat(data.past[1]),
        dims=_latent_dimensions(structure),
        plates=list(structure.plates),
        local=local,
        notes=notes,
    )
    for start, size in conditioned.blocks(num_draws):
        key = jax.random.fold_in(rng_key, start)
        latents, log_probs = conditioned.draw_with_density(size, key)
        kept = min(size, num_draws - start)  # the last block is longer, to be compiled once
        latents = {name: value[:kept] for name, value in latents.items()}
        run.add(
            site_arrays(structure, latents, list(latents), 2),
            densities=_densities(conditioned, latents) if densities else None,
            log_guide=None if log_guide is None else np.asarray(log_probs[:kept]),
        )
    return run.result()


def _local_check(
    conditioned: ConditionedGuide,
    past: ConditionedGuide,
    data: SimulatedData,
    rng: np.random.Generator,
    rng_key: Array,
) -> ErrorsAtData:
    """What a classifier learns of the guide's errors from the other simulations."""
    structure, names = conditioned.guide.structure, list(data.latents)
    own_key, past_key = jax.random.split(rng_key)
    drawn, known = (
        site_arrays(structure, guide.sample(_NUM_PILOT, key), names, 2)
        for guide, key in ((conditioned, own_key), (past, past_key))
    )
    truths = site_arrays(structure, data.past[0], names, 1)
    learned = LocalErrors(truths, known, data_contexts(past, past.observations), rng)
    return learned.at(drawn, data_contexts(conditioned, conditioned.observations))


def _densities(
    conditioned: ConditionedGuide, latents: Mapping[str, Array]
) -> dict[str, np.ndarray]:
    """Log likelihood and log joint density of the model, `(num_draws, num_datasets)`."""
    parts = conditioned.site_densities(dict(latents))
    observed = [parts[site.name] for site in conditioned.guide.structure.observed]
    return {
        "log_likelihood": np.asarray(total(observed, 2)),
        "log_joint": np.asarray(total(parts.values(), 2)),
    }


def _model_densities(
    conditioned: ConditionedGuide, latents: Mapping[str, Array], notes: list[str]
) -> dict[str, np.ndarray]:
    """The densities of the model at the truths; none, with a note, if it has no density."""
    try:
        return _densities(conditioned, latents)
    except NotImplementedError as error:
        reason = str(error) or "a distribution without log_prob"
        notes.append(
            f"the model has no density ({reason}): its log likelihood is not certified, nor are "
            "importance weights possible; what reads the data is TARP alone"
        )
        return {}


def _guide_density(
    conditioned: ConditionedGuide, latents: Mapping[str, Array], notes: list[str]
) -> np.ndarray | None:
    """The log density of the guide at the truths; None, with a note, if it has none."""
    try:
        return np.asarray(conditioned.log_prob_once(dict(latents)))
    except TypeError as error:
        notes.append(f"density regions are not certified: {error}")
        return None


def _latent_dimensions(structure: ModelStructure) -> dict[str, list[str]]:
    found = dimension_names(structure)
    return {site.name: found[site.name] for site in structure.latents}


def _flat(observations: Mapping[str, Array]) -> np.ndarray:
    """All data of a data set side by side, `(num_datasets, data_size)`."""
    parts = [np.asarray(value).reshape(len(value), -1) for value in observations.values()]
    return np.concatenate([part.astype(float) for part in parts], 1)
