"""Missing values: NaN inside the package, feasible constants wherever the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.arguments import mask_shape_problem
from pyro_amortize.simulate import joint_log_densities
from pyro_amortize.structure import ModelStructure
from pyro_amortize.tracing import run_model, seeded


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

    Raises:
        ValueError: If a mask does not fit the data of its site.
    """
    marked = dict(observations)
    for info in structure.missing:
        mask = arguments.get(info.argument) if info.argument else None
        if mask is not None:
            shape = is_present(structure, info.site, marked[info.site]).shape
            problem = mask_shape_problem(info, mask, shape)
            if problem:
                raise ValueError(problem)
            marked[info.site] = hide(structure, info.site, marked[info.site], ~mask)
    return marked


def hide(structure: ModelStructure, name: str, value: Tensor, is_missing: Tensor) -> Tensor:
    """Values with NaN where they are missing, as floating point.

    Args:
        structure: The structure of the model.
        name: The observed site.
        value: Shape `(*batch, *plates, *event)`.
        is_missing: Boolean, broadcastable to `(*batch, *plates)`.
    """
    event_dim = len(structure.site(name).event_shape)
    where = is_missing.reshape(is_missing.shape + (1,) * event_dim)
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.where(where, value.new_tensor(torch.nan), value)


def is_present(structure: ModelStructure, name: str, value: Tensor) -> Tensor:
    """Which events are complete, shape `(*batch, *plates)`."""
    event_dim = len(structure.site(name).event_shape)
    present = ~torch.isnan(value)
    return present.flatten(-event_dim).all(-1) if event_dim else present


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
