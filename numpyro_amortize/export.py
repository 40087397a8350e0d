"""A posterior for ArviZ: values of sites as arrays with named dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amortize_diagnostics import to_datatree
from numpyro_amortize.layout import align
from numpyro_amortize.structure import ModelStructure, SiteInfo


def posterior_tree(
    structure: ModelStructure,
    batch_dims: int,
    *,
    draws: Mapping[str, Any],
    predictive: Mapping[str, Any],
    prior: Mapping[str, Any],
    densities: Mapping[str, Any],
    observations: Mapping[str, Any],
    inputs: Mapping[str, Any],
    sample_stats: Mapping[str, Any],
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    num_chains: int = 1,
) -> Any:
    """The ArviZ `DataTree` of a posterior.

    Args:
        structure: The structure of the model.
        batch_dims: 1 if the data have a leading axis of data sets, else 0.
        draws: Draws, with their deterministic sites.
        predictive: Simulations at the draws.
        prior: Simulations of the model.
        densities: The model's log densities by site at the draws.
        observations: Data by site.
        inputs: Values of the inputs, by name.
        sample_stats: What is known of each draw, one number each.
        coords: Labels along a dimension, `{plate or event axis: labels}`.
        dims: Names of the event axes of a site, `{site: names}`.
        num_chains: Number of chains, one after the other in the draws.

    Raises:
        ValueError: If `dims` names a site that does not exist, or not each of its event axes.
    """
    observed = [site.name for site in structure.observed]
    own = [site.name for site in (*structure.latents, *structure.deterministic)]
    latents = [site.name for site in structure.latents]
    batch = 1 + batch_dims
    named = dimension_names(structure, dims)
    groups = {
        "posterior": site_arrays(structure, draws, own, batch),
        "prior": site_arrays(structure, prior, own, 1),
        "posterior_predictive": site_arrays(structure, predictive, observed, batch),
        "prior_predictive": site_arrays(structure, prior, observed, 1),
        "log_likelihood": site_arrays(structure, densities, observed, batch, has_event=False),
        "log_prior": site_arrays(structure, densities, latents, batch, has_event=False),
        "observed_data": site_arrays(structure, observations, observed, batch_dims),
        "sample_stats": {name: np.asarray(value) for name, value in sample_stats.items()},
    }
    if inputs:
        groups["constant_data"] = {name: np.asarray(value) for name, value in inputs.items()}
    return to_datatree(
        groups,
        dims=named,
        coords=dict(coords or {}),
        has_datasets=bool(batch_dims),
        num_chains=num_chains,
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
        array = np.asarray(align(values[name], nesting, event_dim, batch_dims))
        dims = {structure.plates[plate].dim for plate in _all_plates(site)}
        absent = [dim - event_dim for dim in range(-nesting, 0) if dim not in dims]
        exported[name] = np.squeeze(array, axis=tuple(absent))
    return exported


def dimension_names(
    structure: ModelStructure, given: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """Its plates, then the axes of its event, for each site and input.

    Args:
        structure: The structure of the model.
        given: Names of the event axes of some sites.
    """
    given, dims = given or {}, {}
    for site in (*structure.latents, *structure.deterministic, *structure.observed):
        own = sorted(_all_plates(site), key=lambda plate: structure.plates[plate].dim)
        events = [f"{site.name}_dim_{axis}" for axis in range(len(site.event_shape))]
        names = list(given.get(site.name, events))
        if len(names) != len(events):
            raise ValueError(
                f"dims of '{site.name}': expected a name for each of the {len(events)} axes of its "
                f"event, got {names}. Plates have their own names"
            )
        dims[site.name] = [*own, *names]
    unknown = sorted(set(given) - set(dims))
    if unknown:
        raise ValueError(
            f"dims: expected sites of the model, {', '.join(dims)}, got {', '.join(unknown)}"
        )
    for item in structure.inputs:
        events = [f"{item.name}_dim_{axis}" for axis in range(len(item.event_shape))]
        dims[item.name] = [*item.plates, *events]
    return dims


def _all_plates(site: SiteInfo) -> tuple[str, ...]:
    return (*site.plates, *site.event_plates)
