"""What a diagnosis at given data looks at: weights, predictions, distance from simulations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amortize_diagnostics import (
    Diagnosis,
    PredictiveChecks,
    Typicality,
    diagnosis,
    predictive_checks,
    typicality,
)
from pyro_amortize.conditioned import ConditionedGuide
from pyro_amortize.contexts import batched_data, data_contexts
from pyro_amortize.importance import ImportanceSamples
from pyro_amortize.simulate import finite_rows, simulate

_NUM_PREDICTED = 500  # data sets predicted for each
_NUM_LOCAL, _DEFENSIVE = 16, 0.1  # as the defaults of importance_sample


@torch.no_grad()
def diagnose(
    conditioned: ConditionedGuide,
    num_samples: int,
    num_simulations: int,
    simulated: np.ndarray | None,
) -> Diagnosis:
    """Judge the answer of a guide at one data set, or at each of many.

    Args:
        conditioned: The guide at the data.
        num_samples: Number of weighted draws for each data set.
        num_simulations: Number of simulations that the data are compared with.
        simulated: Contexts of simulations in place of these, or None.

    Returns:
        The diagnosis; what has no density or no simulations is left out, with a note.
    """
    notes: list[str] = []
    weighted = _weighted(conditioned, num_samples, notes)
    checks = _predictive(conditioned, weighted, num_samples)
    if simulated is None:
        far = _typicality(conditioned, num_simulations, notes)
    else:
        far = typicality(data_contexts(conditioned, batched_data(conditioned)), simulated)
    if not conditioned.batch_dims and weighted is None:
        notes.append("use the draws only after check_calibration()")
    importance = None if weighted is None else weighted.summary
    return diagnosis(importance, checks, far, notes=tuple(notes))


def _weighted(
    conditioned: ConditionedGuide, num_samples: int, notes: list[str]
) -> ImportanceSamples | None:
    """Weighted draws; None, with a note, if the model or the guide has no density."""
    try:
        return conditioned.importance_sample(num_samples, _NUM_LOCAL, _DEFENSIVE)
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
    conditioned: ConditionedGuide, weighted: ImportanceSamples | None, num_samples: int
) -> PredictiveChecks:
    """Predictions at weighted draws, or at the guide's own without weights."""
    structure, data = conditioned.guide.structure, conditioned.observations
    num = min(num_samples, _NUM_PREDICTED)
    if weighted is None:
        latents = conditioned.sample(num)
    else:
        like = next(iter(data.values())).device
        drawn = weighted.resample(num, seed=int(torch.randint(2**31, ())))
        latents = {
            site.name: torch.as_tensor(drawn[site.name], device=like) for site in structure.latents
        }
    found = conditioned.predict(latents)
    observed = {name: _per_dataset(value, conditioned, 0) for name, value in data.items()}
    predicted = {name: _per_dataset(found[name], conditioned, 1) for name in observed}
    return predictive_checks(observed, predicted)


def _per_dataset(value: Tensor, conditioned: ConditionedGuide, axis: int) -> np.ndarray:
    """Values with an axis of data sets, and all that belongs to one of them in the last."""
    batched = value if conditioned.batch_dims else value.unsqueeze(axis)
    return batched.reshape(*batched.shape[: axis + 1], -1).cpu().numpy().astype(float)


def _typicality(
    conditioned: ConditionedGuide, num_simulations: int, notes: list[str]
) -> Typicality | None:
    """How far the data are from simulations in what the networks make of them."""
    guide, (args, kwargs) = conditioned.guide, conditioned.call
    if guide.structure.factors:
        notes.append("a model with a factor cannot be simulated: the distance is left out")
        return None
    data = batched_data(conditioned)
    missing = {name: torch.isnan(value) for name, value in data.items()}
    if any(bool((value != value[:1]).any()) for value in missing.values()):
        notes.append(
            "the data sets miss different values, so that none is compared with simulations; "
            "at(...) does it for one"
        )
        return None
    sites = simulate(guide.model, num_simulations, args=args, kwargs=kwargs).sites
    own = {name: sites[name] for name in data}
    own = {name: value[finite_rows(own)] for name, value in own.items()}
    hidden = {
        name: torch.where(missing[name][:1], torch.nan, value) if missing[name].any() else value
        for name, value in own.items()
    }
    found = guide.find_observations(args, kwargs, hidden, 1)
    return typicality(data_contexts(conditioned, data), data_contexts(conditioned, found))
