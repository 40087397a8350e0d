"""Missing values: NaN inside the package, feasible constants wherever the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.arguments import mask_shape_problem
from pyro_amortize.simulate import joint_log_densities
from pyro_amortize.structure import MissingInfo, ModelStructure
from pyro_amortize.tracing import Trace, run_model, seeded


def with_positions(
    missing: Sequence[MissingInfo], arguments: Mapping[str, Any], trace: Trace
) -> tuple[MissingInfo, ...]:
    """The declared masks, told apart into those of events and those of their positions.

    Args:
        missing: Sites of which values may be missing.
        arguments: The model's arguments by name.
        trace: A run of the model.
    """
    found = []
    for info in missing:
        mask = arguments.get(info.argument) if info.argument else None
        if mask is not None and info.site in trace:
            fn = trace[info.site]["fn"]
            is_deep = mask.ndim > len(fn.batch_shape)
            info = replace(info, has_positions=is_deep and bool(fn.event_shape))
        found.append(info)
    return tuple(found)


def check_masks(
    structure: ModelStructure,
    arguments: Mapping[str, Any],
    observations: Mapping[str, Tensor],
    batch_dims: int,
) -> None:
    """Raise a ValueError if a mask does not have the shape of its data, or NaN are not hidden.

    Args:
        structure: The structure of the model.
        arguments: The model's arguments by name.
        observations: Data by site, `(*batch, *plates, *event)`.
        batch_dims: Number of batch axes.
    """
    for info in structure.missing:
        mask = arguments.get(info.argument) if info.argument else None
        value = observations[info.site]
        event_dim = 0 if info.has_positions else len(structure.site(info.site).event_shape)
        expected = tuple(value.shape[batch_dims : value.ndim - event_dim])
        problem = None if mask is None else mask_shape_problem(info, mask, expected)
        if problem:
            raise ValueError(problem)
        if info.has_positions and _has_nan(value, mask):
            raise ValueError(
                f"observed site '{info.site}': NaN where its mask '{info.argument}' does not hide "
                "it. A mask for each position says what is missing, in every call; where it is "
                "false, any finite value will do"
            )


def check_padding(structure: ModelStructure, observations: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if hidden positions of a call's own data are NaN.

    The model masks them, but a whole event that is NaN in part would be left out.

    Args:
        structure: The structure of the model.
        observations: Data by site.
    """
    for info in structure.missing:
        if info.has_positions and _has_nan(observations[info.site], None):
            raise ValueError(
                f"observed site '{info.site}': NaN at positions that its mask '{info.argument}' "
                "hides. Fill them with any finite value: the mask is for each position"
            )


def _has_nan(value: Tensor, mask: Tensor | None) -> bool:
    is_nan = torch.isnan(value)
    return bool((is_nan if mask is None else is_nan & mask).any())


def mark_missing(
    structure: ModelStructure, arguments: Mapping[str, Any], observations: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Data with NaN wherever a mask among the model's arguments is false.

    Args:
        structure: The structure of the model.
        arguments: The model's arguments by name.
        observations: Data by site, `(*batch, *plates, *event)`.

    Returns:
        The data; sites without masks as they are.
    """
    marked = dict(observations)
    for info in structure.missing:
        mask = arguments.get(info.argument) if info.argument else None
        if mask is not None:
            marked[info.site] = hide(
                structure, info.site, marked[info.site], ~mask, at_positions=info.has_positions
            )
    return marked


def hide(
    structure: ModelStructure,
    name: str,
    value: Tensor,
    is_missing: Tensor,
    *,
    at_positions: bool = False,
) -> Tensor:
    """Values with NaN where they are missing, as floating point.

    Args:
        structure: The structure of the model.
        name: The observed site.
        value: Shape `(*batch, *plates, *event)`.
        is_missing: Boolean, broadcastable to `(*batch, *plates)`, or with the event.
        at_positions: Whether `is_missing` has the axes of the event.
    """
    event_dim = 0 if at_positions else len(structure.site(name).event_shape)
    where = is_missing.reshape(is_missing.shape + (1,) * event_dim)
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.where(where, value.new_tensor(torch.nan), value)


def hide_some(
    structure: ModelStructure,
    observations: Mapping[str, Tensor],
    missing: float | Callable[[str, tuple[int, ...]], Tensor],
) -> dict[str, Tensor]:
    """Simulated data as a guide may see them: with NaN where values or sites are hidden.

    Args:
        structure: The structure of the model.
        observations: Complete data by site, with one leading axis of simulations.
        missing: The largest fraction of values that is hidden, or a function that says which, as
            for `NPE`; and of alternatives of observed sites each simulation gets one.
    """
    data = dict(observations)
    for info in structure.missing if missing else ():
        present = is_present(structure, info.site, data[info.site])
        if callable(missing):
            is_missing = missing(info.site, tuple(present.shape))
        else:
            device, ones = present.device, (1,) * (present.ndim - 1)
            rates = missing * torch.rand((len(present), *ones), device=device)
            is_missing = torch.rand(present.shape, device=device) < rates
        data[info.site] = hide(structure, info.site, data[info.site], is_missing)
    if structure.alternatives:
        num = len(next(iter(data.values())))
        chosen = torch.randint(len(structure.alternatives), (num,))
        for name in structure.optional:
            lacks = torch.tensor([name not in each for each in structure.alternatives])
            ones = (1,) * (is_present(structure, name, data[name]).ndim - 1)
            is_missing = lacks[chosen].to(data[name].device).reshape(-1, *ones)
            data[name] = hide(structure, name, data[name], is_missing)
    return data


def check_hiding(structure: ModelStructure, missing: float | Callable[..., Any]) -> None:
    """Raise a ValueError if values are to be hidden from a guide that takes complete data only."""
    if missing and not structure.missing:
        raise ValueError(
            "missing: this guide takes complete data only; make it with "
            "AmortizedGuide(..., missing=...), naming the sites of which values may be missing"
        )


def is_present(structure: ModelStructure, name: str, value: Tensor) -> Tensor:
    """Which events are there, whole or in part if parts may be, shape `(*batch, *plates)`."""
    event_dim = len(structure.site(name).event_shape)
    present = ~torch.isnan(value)
    if not event_dim:
        return present
    flat = present.flatten(-event_dim)
    return flat.any(-1) if structure.has_positions(name) else flat.all(-1)


def fill_missing_values(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    observations: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Data with a draw of the model in place of every missing event.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        observations: Data by site, NaN where missing.

    Returns:
        Finite data in the types of the model.
    """
    if not structure.incomplete:
        return dict(observations)
    with torch.no_grad(), seeded(0):
        drawn = run_model(model, args, kwargs)
    filled = dict(observations)
    for name in structure.incomplete:
        value, stand_in = observations[name], drawn[name]["value"]
        event_dim = len(structure.site(name).event_shape)
        present = is_present(structure, name, value)
        where = present.reshape(present.shape + (1,) * event_dim)
        if structure.has_positions(name):
            where = ~torch.isnan(value)
        filled[name] = torch.where(where, value, stand_in.to(value.dtype)).to(stand_in.dtype)
    return filled


def log_joint_of_present(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    latents: Mapping[str, Any],
    observations: Mapping[str, Tensor],
    batch_dims: int,
    *,
    is_vectorized: bool = True,
) -> dict[str, Tensor]:
    """Log density of every site of the model, zero at missing values.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        latents: Values of all latents, `(*batch, *plates, *event)`.
        observations: Data by site with the same batch axes, NaN where missing.
        batch_dims: Number of batch axes.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        One array per site, shape `(*batch, *plates)`, in nats.
    """
    filled = fill_missing_values(model, structure, args, kwargs, observations)
    values = {**latents, **filled}
    densities = joint_log_densities(
        model, args, kwargs, values, batch_dims, is_vectorized=is_vectorized
    )
    for name in structure.incomplete:
        present = is_present(structure, name, observations[name])
        densities[name] = torch.where(present, densities[name], 0.0)
    return densities
