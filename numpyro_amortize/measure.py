"""Measuring the standardisation of a guide on prior simulations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.covariates import input_values
from numpyro_amortize.layout import pack, pack_moments, pack_plain
from numpyro_amortize.simulate import (
    Simulations,
    conditional_location_scale,
    count_nonfinite,
    simulate_rows,
)
from numpyro_amortize.standardisation import Moments, Standardisation, robust_moments
from numpyro_amortize.structure import ModelStructure, SiteInfo

_NUM_SIMULATIONS = 2048
_MOST_SHAPES = 4

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def measure(
    model: Callable[..., Any], structure: ModelStructure, calls: Sequence[Call]
) -> tuple[Standardisation, Simulations]:
    """Robust location and scale of everything, over prior simulations of calls.

    Calls whose arguments differ in shape are compiled one by one, so that of these only the
    first few shapes are simulated; inputs are measured over all calls.

    Args:
        model: The user's model.
        structure: Its structure.
        calls: Positional and keyword arguments of one or several calls.

    Returns:
        The constants of the guide; and how many of the simulations were not finite, without them.
    """
    conditional = tuple(site.name for site in structure.latents if site.is_conditional)
    simulated = _of_few_shapes(calls)
    num = max(_NUM_SIMULATIONS // len(simulated), 1)

    def run_once(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Array) -> Any:
        return jax.jit(partial(simulate_rows, model, num, args, kwargs, conditional=conditional))(
            rng_key=key
        )

    @eqx.filter_jit
    def run_any(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Array) -> Any:
        return simulate_rows(model, num, args, kwargs, key, conditional)

    # A model may look at arrays of its one call, but not at those that a sampler draws anew.
    run = run_once if len(calls) == 1 else run_any
    draws: dict[str, list[Array]] = {site.name: [] for site in structure.latents}
    parents: dict[str, list[Array]] = {site.name: [] for site in structure.latents}
    data: dict[str, list[Array]] = {site.name: [] for site in structure.observed}
    inputs: dict[str, list[Array]] = {item.name: [] for item in structure.inputs}
    nonfinite: Counter[str] = Counter()
    for number, (args, kwargs) in enumerate(simulated):
        values, moments = run(args, kwargs, jax.random.key(number))
        nonfinite.update(count_nonfinite(values).nonfinite)
        for site in structure.latents:
            coordinates, _ = pack(structure, site, values[site.name], 1)
            if site.support.is_discrete:
                coordinates = jnp.log1p(coordinates)
            parents[site.name].append(coordinates)
            if site.is_conditional:
                loc, scale = pack_moments(structure, site, moments[site.name], 1)
                coordinates = (coordinates - loc) / scale
            draws[site.name].append(coordinates)
        for site in structure.observed:
            data[site.name].append(pack_plain(structure, site, values[site.name], 1))
    for args, kwargs in calls:
        given = input_values(model, args, kwargs, structure.inputs)
        for item in structure.inputs:
            inputs[item.name].append(pack_plain(structure, item, given[item.name], 0))
    groups = (
        {name: robust_moments(name, arrays) for name, arrays in group.items()}
        for group in (draws, parents, data, inputs)
    )
    return Standardisation(*groups), Simulations({}, num * len(simulated), dict(nonfinite))


def conditional_moments(
    model: Callable[..., Any],
    structure: ModelStructure,
    site: SiteInfo,
    call: Call,
    latents: Mapping[str, Array],
    batch_dims: int,
) -> Moments:
    """The model's own location and scale of a site, as the guide uses them while it draws.

    Args:
        model: The user's model.
        structure: Its structure.
        site: A conditional site.
        call: Arguments of the model.
        latents: Values of other latents, those before it among them, with `batch_dims` axes.
        batch_dims: Number of leading axes.

    Returns:
        Two arrays of shape `(*batch, *aligned plates, size)`.
    """
    others = {name: value for name, value in latents.items() if name != site.name}
    known = conditional_location_scale(model, *call, site.name, others, batch_dims)
    return pack_moments(structure, site, known, batch_dims)


def packed_conditionals(
    model: Callable[..., Any],
    structure: ModelStructure,
    call: Call,
    latents: Mapping[str, Array],
    known: Mapping[str, Moments],
    batch_dims: int,
) -> dict[str, Moments]:
    """The model's own location and scale of each conditional site at given latents.

    Args:
        model: The user's model.
        structure: Its structure.
        call: Arguments of the model.
        latents: Values of all latents, with `batch_dims` leading axes.
        known: Those already known from a simulation; the others are read by tracing the model.
        batch_dims: Number of leading axes.

    Returns:
        Two arrays of shape `(*batch, *aligned plates, size)` for each site.
    """
    return {
        site.name: pack_moments(structure, site, known[site.name], batch_dims)
        if site.name in known
        else conditional_moments(model, structure, site, call, latents, batch_dims)
        for site in structure.latents
        if site.is_conditional
    }


def call_shapes(call: Call) -> tuple[Any, ...]:
    """Shapes of the arrays of a call, and its plain values: what compiled code depends on."""
    return tuple(
        jnp.shape(leaf) if hasattr(leaf, "shape") else leaf for leaf in jax.tree.leaves(call)
    )


def _of_few_shapes(calls: Sequence[Call]) -> list[Call]:
    """The calls whose arguments have one of the first few shapes."""
    kept = list(dict.fromkeys(call_shapes(call) for call in calls))[:_MOST_SHAPES]
    return [call for call in calls if call_shapes(call) in kept]
