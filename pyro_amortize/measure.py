"""Measuring the standardisation of a guide on prior simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_amortize.checks import bound_arguments
from pyro_amortize.layout import pack, pack_moments, pack_plain
from pyro_amortize.simulate import conditional_location_scale, simulate, simulate_rows
from pyro_amortize.standardisation import Standardisation, robust_moments
from pyro_amortize.structure import ModelStructure
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
            parents[site.name].append(coordinates)
            if site.is_conditional:
                loc, scale = pack_moments(structure, site, moments[site.name], 1)
                coordinates = (coordinates - loc) / scale
            draws[site.name].append(coordinates)
        for site in structure.observed:
            data[site.name].append(pack_plain(structure, site, values[site.name], 1))
        arguments = bound_arguments(model, args, kwargs).arguments
        for item in structure.inputs:
            inputs[item.name].append(pack_plain(structure, item, arguments[item.name], 0))
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
