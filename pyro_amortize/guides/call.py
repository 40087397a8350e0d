"""What one call of the model gives to the networks besides its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.arguments import (
    bound_arguments,
    index_argument_problems,
    index_values,
    read_settings,
)
from pyro_amortize.checks import read_data_and_sizes
from pyro_amortize.covariates import check_inputs_finite, check_times, input_values
from pyro_amortize.missing import check_masks, check_padding, mark_missing
from pyro_amortize.observations import check_observations, check_settings, data_plate_sizes
from pyro_amortize.structure import ModelStructure
from pyro_amortize.tracing import is_taken, plate_sizes, subsample_sizes


@dataclass(frozen=True)
class CallValues:
    """Inputs, index vectors and plate sizes of one call.

    Args:
        inputs: Value of each input, its plates and event.
        indices: Value of each index vector.
        sizes: Number of rows of every plate that is not an event.
        factors: For each subsampled plate its size over the number of rows.
    """

    inputs: Mapping[str, Any]
    indices: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    factors: Mapping[str, float]


def check_call(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sizes: Mapping[str, str],
    rows: Mapping[str, Tensor] | None,
) -> None:
    """Raise a ValueError if arguments of a call are not what the guide was made for.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        sizes: For each argument that is a plate size, that plate.
        rows: For each subsampled plate the indices of its rows in this call; all if None.
    """
    check_settings(structure, read_settings(model, args, kwargs, sizes))
    check_inputs_finite(input_values(model, args, kwargs, structure.inputs, rows))
    arguments = bound_arguments(model, args, kwargs).arguments
    for problem in index_argument_problems(arguments, structure.groups, sizes):
        raise ValueError(problem)


def read_observations(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    rows: Mapping[str, Tensor] | None,
    batch_dims: int,
    times: Mapping[str, str],
) -> dict[str, Tensor]:
    """The data of a call: given, or read by tracing the model; NaN where values are missing.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        given: Data by site, or None.
        rows: For each subsampled plate the indices of its rows in this call, or None.
        batch_dims: Number of leading axes of data sets.
        times: For each observed site with times the input that has them.

    Returns:
        Value of each observed site.

    Raises:
        ValueError: If a site has no data, or data of a wrong shape, type or value; if the rows
            of a subsampled plate are not known, or if times decrease.
    """
    if structure.subsampled and (rows is None or given is not None):
        for plate, (size, num_rows) in subsample_sizes(model, args, kwargs).items():
            if num_rows < size:
                raise ValueError(
                    f"plate '{plate}': this call of the model looks at a random {num_rows} of "
                    f"{size} rows. To condition on rows that you choose, pass them as the whole "
                    "data, with a plate that is not subsampled"
                )
    sizes: Mapping[str, int] = {}
    if given is None:
        found, sizes = _read_call_data(model, structure, args, kwargs, rows)
    else:
        found = dict(given)
    found = {name: value for name, value in found.items() if name not in structure.constants}
    absent = [name for name in structure.optional if found.get(name) is None]
    if given is not None and (absent or batch_dims):
        sizes = plate_sizes(model, args, kwargs)
    checked = check_observations(structure, found, batch_dims, sizes)
    arguments = bound_arguments(model, args, kwargs).arguments
    check_masks(structure, arguments, checked, batch_dims)
    if given is None:  # a bound of the host would see them
        check_padding(structure, checked)
    marked = mark_missing(structure, arguments, checked)
    if times:
        values = input_values(model, args, kwargs, structure.inputs, rows)
        _check_times(structure, values, marked, times)
    return marked


def read_call(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    observations: Mapping[str, Tensor],
    batch_dims: int,
    rows: Mapping[str, Tensor] | None,
) -> CallValues:
    """Read the values of a call; sizes come from the data, or from the model where they point.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        observations: Data by site with `batch_dims` leading axes.
        batch_dims: Number of leading axes of data sets.
        rows: For each subsampled plate the indices of its rows in this call; all if None.

    Returns:
        The values.

    Raises:
        ValueError: If an index vector does not fit its plates.
    """
    sizes = data_plate_sizes(structure, observations, batch_dims)
    subsampled = subsample_sizes(model, args, kwargs) if structure.subsampled else {}
    indices: Mapping[str, Tensor] = {}
    if structure.groups:
        arguments = bound_arguments(model, args, kwargs).arguments
        own = plate_sizes(model, args, kwargs)
        pointed = {group.plate for group in structure.groups} - set(sizes)
        sizes |= {plate: own[plate] for plate in pointed}
        indices = index_values(structure, arguments, sizes, subsampled, rows)
    return CallValues(
        inputs=input_values(model, args, kwargs, structure.inputs, rows),
        indices=indices,
        sizes=sizes,
        factors={plate: size / num_rows for plate, (size, num_rows) in subsampled.items()},
    )


def _check_times(
    structure: ModelStructure,
    inputs: Mapping[str, Tensor],
    observations: Mapping[str, Tensor],
    times: Mapping[str, str],
) -> None:
    """Raise a ValueError if the times of a series decrease where its steps are there."""
    for name, given in times.items():
        if observations.get(name) is None:
            continue
        there = ~torch.isnan(observations[name])
        if len(structure.site(name).event_shape) == 2:
            there = there.any(-1)
        check_times(given, inputs[given], there)


def _read_call_data(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rows: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The data of a call and its plate sizes, by tracing the model where its plates can be opened.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        rows: For each subsampled plate the indices of its rows in this call, or None.

    Returns:
        Observed values by site, and the number of rows of every plate.

    Raises:
        ValueError: If the host keeps a plate open where the model has its own.
    """
    try:
        return read_data_and_sizes(model, args, kwargs, rows)
    except ValueError as error:
        if not any(is_taken(plate.dim) for plate in structure.plates.values()):
            raise
        raise ValueError(
            f"observed sites {[site.name for site in structure.observed]}: cannot be read while "
            "the host keeps a plate open where the model has its own. Bind the data: "
            "guide.bind({...})"
        ) from error
