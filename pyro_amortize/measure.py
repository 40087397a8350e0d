"""Location and scale from the model: over prior simulations, and at given parents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.covariates import input_values
from pyro_amortize.layout import natural, pack, pack_moments, pack_plain
from pyro_amortize.simulate import (
    aligned_location_scale,
    conditional_location_scale,
    simulate,
    simulate_rows,
)
from pyro_amortize.standardisation import Moments, Standardisation, robust_moments
from pyro_amortize.structure import ModelStructure, SiteInfo
from pyro_amortize.tracing import seeded

_NUM_SIMULATIONS = 2048

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def measure(
    model: Callable[..., Any],
    structure: ModelStructure,
    calls: Sequence[Call],
    *,
    is_vectorized: bool = True,
) -> Standardisation:
    """Robust location and scale of everything, over prior simulations of all calls.

    Args:
        model: The user's model.
        structure: Its structure.
        calls: Positional and keyword arguments of one or several calls.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        The constants of the guide.
    """
    conditional = [site.name for site in structure.latents if site.is_conditional]
    num = max(_NUM_SIMULATIONS // len(calls), 1)
    draws: dict[str, list[Tensor]] = {site.name: [] for site in structure.latents}
    parents: dict[str, list[Tensor]] = {site.name: [] for site in structure.latents}
    data: dict[str, list[Tensor]] = {site.name: [] for site in structure.observed}
    inputs: dict[str, list[Tensor]] = {item.name: [] for item in structure.inputs}
    for number, (args, kwargs) in enumerate(calls):
        with seeded(number):
            values, moments = _rows(model, num, args, kwargs, conditional, is_vectorized)
        for site in structure.latents:
            coordinates, _ = pack(structure, site, values[site.name], 1)
            if site.support.is_discrete:
                coordinates = torch.log1p(coordinates)
            parents[site.name].append(coordinates)
            if site.is_conditional:
                loc, scale = pack_moments(structure, site, moments[site.name], 1)
                coordinates = (coordinates - loc) / scale
            draws[site.name].append(coordinates)
        for site in structure.observed:
            data[site.name].append(pack_plain(structure, site, values[site.name], 1))
        given = input_values(model, args, kwargs, structure.inputs)
        for item in structure.inputs:
            inputs[item.name].append(pack_plain(structure, item, given[item.name], 0))
    return Standardisation(
        *(
            {name: robust_moments(name, arrays) for name, arrays in group.items()}
            for group in (draws, parents, data, inputs)
        )
    )


def _rows(
    model: Callable[..., Any],
    num: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    conditional: Sequence[str],
    is_vectorized: bool,  # noqa: FBT001
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    if is_vectorized:
        return simulate_rows(model, num, args, kwargs, conditional)
    values = simulate(model, num, args=args, kwargs=kwargs, method="loop").sites
    moments = {
        name: conditional_location_scale(model, args, kwargs, name, values, 1, is_vectorized=False)
        for name in conditional
    }
    return values, moments


def conditional_moments(
    model: Callable[..., Any],
    structure: ModelStructure,
    site: SiteInfo,
    call: Call,
    latents: Mapping[str, Tensor],
    *,
    is_vectorized: bool = True,
) -> Moments:
    """The model's own location and scale of a site, as the guide uses them while it draws.

    Args:
        model: The user's model.
        structure: Its structure.
        site: A conditional site.
        call: Arguments of the model.
        latents: Values of the latents before it, in the host's layout, batch axes to the left.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        Two arrays of shape `(*batch, *aligned plates, size)`.
    """
    args, kwargs = call
    nesting = structure.max_plate_nesting
    if is_vectorized:
        moments = aligned_location_scale(model, args, kwargs, site.name, latents)
        extra = moments[0].ndim - len(site.event_shape) - nesting
        return pack_moments(structure, site, moments, max(extra, 0))
    sites = {name: structure.site(name) for name in latents}
    extra = max(
        (value.ndim - len(sites[name].event_shape) - nesting for name, value in latents.items()),
        default=0,
    )
    values = {}
    for name, value in latents.items():
        event_dim = len(sites[name].event_shape)
        missing = (1,) * (max(extra, 0) + nesting + event_dim - value.ndim)
        value = value.reshape(missing + value.shape)
        values[name] = natural(value, structure, sites[name], event_dim)
    moments = conditional_location_scale(
        model, args, kwargs, site.name, values, max(extra, 0), is_vectorized=False
    )
    return pack_moments(structure, site, moments, max(extra, 0))


def packed_conditionals(
    model: Callable[..., Any],
    structure: ModelStructure,
    call: Call,
    latents: Mapping[str, Tensor],
    known: Mapping[str, Moments],
    batch_dims: int,
    *,
    is_vectorized: bool = True,
) -> dict[str, Moments]:
    """The model's own location and scale of each conditional site at given latents.

    Args:
        model: The user's model.
        structure: Its structure.
        call: Arguments of the model.
        latents: Values of all latents, with `batch_dims` leading axes.
        known: Those already known from a simulation; the others are read by tracing the model.
        batch_dims: Number of leading axes.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        Two arrays of shape `(*batch, *aligned plates, size)` for each site.
    """
    packed, (args, kwargs) = {}, call
    for site in structure.latents:
        if site.is_conditional:
            moments = known.get(site.name)
            if moments is None:
                others = {name: value for name, value in latents.items() if name != site.name}
                moments = conditional_location_scale(
                    model, args, kwargs, site.name, others, batch_dims, is_vectorized=is_vectorized
                )
            packed[site.name] = pack_moments(structure, site, moments, batch_dims)
    return packed
