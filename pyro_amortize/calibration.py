"""Simulated data sets with known latents, and what a guide's draws look like beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize_diagnostics import Calibration, CalibrationRun, LocalErrors
from amortize_diagnostics.local_errors import ErrorsAtData
from amortize_diagnostics.paired import MIN_DATASETS, check_numbers
from pyro_amortize.arguments import given_arguments
from pyro_amortize.conditioned import ConditionedGuide, total
from pyro_amortize.contexts import data_contexts
from pyro_amortize.export import dimension_names, site_arrays
from pyro_amortize.guides import AnyGuide, EnsembleGuide
from pyro_amortize.measure import Call
from pyro_amortize.missing import check_hiding, hide_some
from pyro_amortize.simulate import finite_rows, simulate
from pyro_amortize.structure import ModelStructure

_NUM_PAST = 1000  # simulations from which scales and reference points are learned
_NUM_PILOT = 40  # draws of each data set from which a local check starts
_NUM_SLOW_DRAWS = 20  # whose density is evaluated where each takes a run of the model


@dataclass(frozen=True)
class SimulatedData:
    """Simulations to judge a guide by, and others to learn scales from.

    Args:
        latents: Latents by site, constrained, one row for each data set.
        observations: Data by site as the guide sees them, NaN where missing.
        past: Rows of other simulations: their latents and their data.
        notes: What a reader should know of them.
    """

    latents: dict[str, Tensor]
    observations: dict[str, Tensor]
    past: tuple[dict[str, Tensor], dict[str, Tensor]]
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
    call: Call,
    num_datasets: int,
    num_local: int,
    missing: float | Callable[[str, tuple[int, ...]], Tensor],
) -> SimulatedData:
    """Simulate data sets as training sees them.

    Args:
        guide: The guide, set up.
        call: Arguments of the model.
        num_datasets: Number of data sets.
        num_local: Number of other simulations, if there shall be more than 1000.
        missing: What is hidden of the data, as for `NPE`.

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
    sites = simulate(guide.model, num, args=args, kwargs=kwargs).sites
    latents = {site.name: sites[site.name] for site in structure.latents}
    data = {site.name: sites[site.name] for site in structure.observed}
    notes = []
    is_finite = finite_rows({**latents, **data})
    if not bool(is_finite.all()):
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
    data = hide_some(structure, data, missing)
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


@torch.no_grad()
def calibrate(
    conditioned: ConditionedGuide,
    data: SimulatedData,
    num_draws: int,
    past: ConditionedGuide | None,
) -> Calibration:
    """Draw from a guide at simulated data, and judge the draws by all checks.

    Args:
        conditioned: The guide at the observations of `data`.
        data: The simulations.
        num_draws: Number of draws for each data set.
        past: The guide at the other simulations, for a local check; None for none.
    """
    structure, notes = conditioned.guide.structure, list(data.notes)
    num_datasets = len(next(iter(data.latents.values())))
    check_numbers(num_datasets, num_draws)
    known = {name: value[None] for name, value in data.latents.items()}
    densities = _model_densities(conditioned, known, notes)
    log_guide = _guide_density(conditioned, known, notes)
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    local = None if past is None else _local_check(conditioned, past, data, rng)
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
    num_scored = num_draws if conditioned.guide.is_vectorized else _NUM_SLOW_DRAWS
    for start, size in conditioned.blocks(num_draws):
        latents, log_probs = conditioned.draw_with_density(size)
        scored = min(size, num_scored - start)
        some = {name: value[:scored] for name, value in latents.items()}
        run.add(
            site_arrays(structure, latents, list(latents), 2),
            densities=_densities(conditioned, some) if densities and scored > 0 else None,
            log_guide=None if log_guide is None else log_probs.cpu().numpy(),
        )
    return run.result()


def _local_check(
    conditioned: ConditionedGuide,
    past: ConditionedGuide,
    data: SimulatedData,
    rng: np.random.Generator,
) -> ErrorsAtData:
    """What a classifier learns of the guide's errors from the other simulations."""
    structure, names = conditioned.guide.structure, list(data.latents)
    drawn, known = (
        site_arrays(structure, guide.sample(_NUM_PILOT), names, 2) for guide in (conditioned, past)
    )
    truths = site_arrays(structure, data.past[0], names, 1)
    learned = LocalErrors(truths, known, data_contexts(past, past.observations), rng)
    return learned.at(drawn, data_contexts(conditioned, conditioned.observations))


def _densities(
    conditioned: ConditionedGuide, latents: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Log likelihood and log joint density of the model, `(num_draws, num_datasets)`."""
    parts = conditioned.site_densities(latents)
    observed = [parts[site.name] for site in conditioned.guide.structure.observed]
    return {
        "log_likelihood": total(observed, 2).cpu().numpy(),
        "log_joint": total(parts.values(), 2).cpu().numpy(),
    }


def _model_densities(
    conditioned: ConditionedGuide, latents: Mapping[str, Tensor], notes: list[str]
) -> dict[str, np.ndarray]:
    """The densities of the model at the truths; none, with a note, if it has no density."""
    try:
        found = _densities(conditioned, latents)
    except NotImplementedError as error:
        reason = str(error) or "a distribution without log_prob"
        notes.append(
            f"the model has no density ({reason}): its log likelihood is not certified, nor are "
            "importance weights possible; what reads the data is TARP alone"
        )
        return {}
    if not conditioned.guide.is_vectorized:
        notes.append(
            "the model cannot be vectorised, so that its density was evaluated at "
            f"{_NUM_SLOW_DRAWS} draws of each data set"
        )
    return found


def _guide_density(
    conditioned: ConditionedGuide, latents: Mapping[str, Tensor], notes: list[str]
) -> np.ndarray | None:
    """The log density of the guide at the truths; None, with a note, if it has none."""
    try:
        return conditioned.log_prob(latents).cpu().numpy()
    except TypeError as error:
        notes.append(f"density regions are not certified: {error}")
        return None


def _latent_dimensions(structure: ModelStructure) -> dict[str, list[str]]:
    found = dimension_names(structure)
    return {site.name: found[site.name] for site in structure.latents}


def _flat(observations: Mapping[str, Tensor]) -> np.ndarray:
    """All data of a data set side by side, `(num_datasets, data_size)`."""
    parts = [value.reshape(len(value), -1) for value in observations.values()]
    return torch.cat([part.to(torch.float64) for part in parts], 1).cpu().numpy()
