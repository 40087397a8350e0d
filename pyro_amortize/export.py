"""A posterior for ArviZ: values of sites as arrays with named dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize_diagnostics import to_datatree
from pyro_amortize.layout import align
from pyro_amortize.structure import ModelStructure, SiteInfo


def posterior_tree(
    structure: ModelStructure,
    batch_dims: int,
    coords: Mapping[str, Any] | None,
    *,
    draws: Mapping[str, Any],
    predictive: Mapping[str, Any],
    prior: Mapping[str, Any],
    densities: Mapping[str, Any],
    observations: Mapping[str, Any],
    lp: Tensor,
    log_q: Tensor,
) -> Any:
    """The ArviZ `DataTree` of a posterior.

    Args:
        structure: The structure of the model.
        batch_dims: 1 if the data have a leading axis of data sets, else 0.
        coords: Labels of plates, `{plate: labels}`.
        draws: Draws, with their deterministic sites.
        predictive: Simulations at the draws.
        prior: Simulations of the model.
        densities: The model's log densities by site at the draws.
        observations: Data by site.
        lp: Log joint density of each draw.
        log_q: Log density of the guide of each draw.
    """
    observed = [site.name for site in structure.observed]
    own = [site.name for site in (*structure.latents, *structure.deterministic)]
    batch = 1 + batch_dims
    groups = {
        "posterior": site_arrays(structure, draws, own, batch),
        "prior": site_arrays(structure, prior, own, 1),
        "posterior_predictive": site_arrays(structure, predictive, observed, batch),
        "prior_predictive": site_arrays(structure, prior, observed, 1),
        "log_likelihood": site_arrays(structure, densities, observed, batch, has_event=False),
        "observed_data": site_arrays(structure, observations, observed, batch_dims),
        "sample_stats": {
            "lp": lp.cpu().numpy(),
            "log_q": log_q.cpu().numpy(),
            "log_weight": (lp - log_q).cpu().numpy(),
        },
    }
    return to_datatree(
        groups,
        dims=dimension_names(structure),
        coords=dict(coords or {}),
        has_datasets=bool(batch_dims),
    )


def site_arrays(
    structure: ModelStructure,
    values: Mapping[str, Any],
    names: Sequence[str],
    batch_dims: int,
    *,
    has_event: bool = True,
) -> dict[str, np.ndarray]:
    """Values of sites without the axes of absent plates.

    Args:
        structure: The structure of the model.
        values: By site, `(*batch, *plates, *event)` in the host's layout.
        names: Sites that are wanted.
        batch_dims: Number of batch axes.
        has_event: Whether the values have the axes of their events.
    """
    exported = {}
    for name in names:
        site = structure.site(name)
        event_dim = len(site.event_shape) if has_event else 0
        nesting = structure.max_plate_nesting
        value = torch.as_tensor(values[name])
        array = align(value, nesting, event_dim, batch_dims).cpu().numpy()
        dims = {structure.plates[plate].dim for plate in _all_plates(site)}
        absent = [dim - event_dim for dim in range(-nesting, 0) if dim not in dims]
        exported[name] = np.squeeze(array, axis=tuple(absent))
    return exported


def dimension_names(structure: ModelStructure) -> dict[str, list[str]]:
    """Its plates, then the axes of its event, for each site."""
    dims = {}
    for site in (*structure.latents, *structure.deterministic, *structure.observed):
        own = sorted(_all_plates(site), key=lambda plate: structure.plates[plate].dim)
        events = [f"{site.name}_dim_{axis}" for axis in range(len(site.event_shape))]
        dims[site.name] = [*own, *events]
    return dims


def _all_plates(site: SiteInfo) -> tuple[str, ...]:
    return (*site.plates, *site.event_plates)
