"""Measuring the standardisation of a guide on prior simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.covariates import input_values
from numpyro_amortize.layout import pack, pack_moments, pack_plain
from numpyro_amortize.simulate import simulate_rows
from numpyro_amortize.standardisation import Standardisation, robust_moments
from numpyro_amortize.structure import ModelStructure

_NUM_SIMULATIONS = 2048
_MOST_SHAPES = 4

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def measure(
    model: Callable[..., Any], structure: ModelStructure, calls: Sequence[Call]
) -> Standardisation:
    """Robust location and scale of everything, over prior simulations of calls.

    Calls whose arguments differ in shape are compiled one by one, so that of these only the
    first few shapes are simulated; inputs are measured over all calls.

    Args:
        model: The user's model.
        structure: Its structure.
        calls: Positional and keyword arguments of one or several calls.

    Returns:
        The constants of the guide.
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
    for number, (args, kwargs) in enumerate(simulated):
        values, moments = run(args, kwargs, jax.random.key(number))
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
    return Standardisation(
        *(
            {name: robust_moments(name, arrays) for name, arrays in group.items()}
            for group in (draws, parents, data, inputs)
        )
    )


def call_shapes(call: Call) -> tuple[Any, ...]:
    """Shapes of the arrays of a call, and its plain values: what compiled code depends on."""
    return tuple(
        jnp.shape(leaf) if hasattr(leaf, "shape") else leaf for leaf in jax.tree.leaves(call)
    )


def _of_few_shapes(calls: Sequence[Call]) -> list[Call]:
    """The calls whose arguments have one of the first few shapes."""
    kept = list(dict.fromkeys(call_shapes(call) for call in calls))[:_MOST_SHAPES]
    return [call for call in calls if call_shapes(call) in kept]
