"""What the networks of a guide make of whole data sets, to be compared with simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_amortize.conditioned import ConditionedGuide
from pyro_amortize.guides import AnyGuide, EnsembleGuide
from pyro_amortize.importance import ROWS_AT_ONCE
from pyro_amortize.measure import Call
from pyro_amortize.missing import check_hiding, hide_some
from pyro_amortize.simulate import finite_rows, simulate, simulate_rows
from pyro_amortize.summaries import summaries


def batched_data(conditioned: ConditionedGuide) -> dict[str, Tensor]:
    """The data of a guide with a leading axis of data sets, of length 1 for one."""
    data = conditioned.observations
    if conditioned.batch_dims:
        return dict(data)
    return {name: value[None] for name, value in data.items()}


def data_contexts(conditioned: ConditionedGuide, observations: Mapping[str, Tensor]) -> np.ndarray:
    """What the networks make of data sets: means over the elements of plates, and their spread.

    Args:
        conditioned: The guide, and the arguments of the model.
        observations: Data by site with a leading axis of data sets.

    Returns:
        Shape `(num_datasets, num_features)`.
    """
    return _contexts(_one_member(conditioned.guide), conditioned.call, observations)


@torch.no_grad()
def simulated_contexts(
    guide: AnyGuide,
    calls: Sequence[Call],
    num_simulations: int,
    missing: float | Callable[[str, tuple[int, ...]], Tensor],
) -> np.ndarray:
    """What the networks make of simulations at one or several calls of the model.

    Args:
        guide: The guide, set up.
        calls: Arguments of the model; each has as many simulations.
        num_simulations: Number of simulations in all, or a few more.
        missing: What is hidden of the data, as for `NPE`.

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
    own, num_each, parts = _one_member(guide), -(-num_simulations // len(calls)), []
    for args, kwargs in calls:
        if guide.is_vectorized:
            sites = simulate_rows(guide.model, num_each, args, kwargs)[0]
        else:
            sites = simulate(guide.model, num_each, args=args, kwargs=kwargs, method="loop").sites
        data = {site.name: sites[site.name] for site in structure.observed}
        is_finite = finite_rows(data)
        data = {name: value[is_finite] for name, value in data.items()}
        if not len(next(iter(data.values()))):
            continue
        found = guide.find_observations(args, kwargs, hide_some(structure, data, missing), 1)
        parts.append(_contexts(own, (args, kwargs), found))
    return np.concatenate(parts or [np.zeros((0, 1))])


def _one_member(guide: AnyGuide) -> Any:
    """The guide, or the first of an ensemble: all have learned of the same simulations."""
    return guide.guides[0] if isinstance(guide, EnsembleGuide) else guide


@torch.no_grad()
def _contexts(guide: Any, call: Call, observations: Mapping[str, Tensor]) -> np.ndarray:
    args, kwargs = call
    num = len(next(iter(observations.values())))
    rows = sum(value.numel() for value in observations.values()) // num
    size, parts = max(ROWS_AT_ONCE // rows, 1), []
    for start in range(0, num, size):
        some = {name: value[start : start + size] for name, value in observations.items()}
        values = guide.call_values(args, kwargs, some, 1)
        contexts = guide.steps(args, kwargs, some, values, 1).contexts
        parts.append(summaries(guide.structure, contexts))
    return torch.cat(parts).cpu().numpy().astype(float)
