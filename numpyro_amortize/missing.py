"""Missing values: NaN inside the package, feasible constants wherever the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.arguments import mask_shape_problem
from numpyro_amortize.simulate import joint_log_densities
from numpyro_amortize.structure import MissingInfo, ModelStructure
from numpyro_amortize.tracing import Trace, run_model


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
    observations: Mapping[str, Array],
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


def check_padding(structure: ModelStructure, observations: Mapping[str, Array]) -> None:
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


def _has_nan(value: Array, mask: Array | None) -> bool:
    if isinstance(value, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return False
    is_nan = jnp.isnan(value)
    return bool(jnp.any(is_nan if mask is None else is_nan & mask))


def mark_missing(
    structure: ModelStructure, arguments: Mapping[str, Any], observations: Mapping[str, Array]
) -> dict[str, Array]:
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
                structure,
                info.site,
                marked[info.site],
                ~jnp.asarray(mask),
                at_positions=info.has_positions,
            )
    return marked


def hide(
    structure: ModelStructure,
    name: str,
    value: Array,
    is_missing: Array,
    *,
    at_positions: bool = False,
) -> Array:
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
    return jnp.where(where, jnp.nan, value.astype(jnp.result_type(float)))


def hide_some(
    structure: ModelStructure,
    observations: Mapping[str, Array],
    missing: float | Callable[[Array, str, tuple[int, ...]], Array],
    rng_key: Array,
) -> dict[str, Array]:
    """Simulated data as a guide may see them: with NaN where values or sites are hidden.

    Args:
        structure: The structure of the model.
        observations: Complete data by site, with one leading axis of simulations.
        missing: The largest fraction of values that is hidden, or a function that says which, as
            for `NPE`; and of alternatives of observed sites each simulation gets one.
        rng_key: Key of what is hidden.
    """
    data = dict(observations)
    for info in structure.missing if missing else ():
        rng_key, own = jax.random.split(rng_key)
        shape = is_present(structure, info.site, data[info.site]).shape
        if callable(missing):
            is_missing = missing(own, info.site, shape)
        else:
            rates = missing * jax.random.uniform(own, (shape[0],) + (1,) * len(shape[1:]))
            is_missing = jax.random.uniform(jax.random.fold_in(own, 1), shape) < rates
        data[info.site] = hide(structure, info.site, data[info.site], is_missing)
    if structure.alternatives:
        num, own = len(next(iter(data.values()))), jax.random.fold_in(rng_key, 2)
        chosen = jax.random.randint(own, (num,), 0, len(structure.alternatives))
        for name in structure.optional:
            lacks = jnp.array([name not in each for each in structure.alternatives])
            ones = (1,) * (is_present(structure, name, data[name]).ndim - 1)
            is_missing = lacks[chosen].reshape(-1, *ones)
            data[name] = hide(structure, name, data[name], is_missing)
    return data


def check_hiding(structure: ModelStructure, missing: float | Callable[..., Any]) -> None:
    """Raise a ValueError if values are to be hidden from a guide that takes complete data only."""
    if missing and not structure.missing:
        raise ValueError(
            "missing: this guide takes complete data only; make it with "
            "AmortizedGuide(..., missing=...), naming the sites of which values may be missing"
        )


def is_present(structure: ModelStructure, name: str, value: Array) -> Array:
    """Which events are there, whole or in part if parts may be, shape `(*batch, *plates)`."""
    event_dim = len(structure.site(name).event_shape)
    pool = jnp.any if structure.has_positions(name) else jnp.all
    return pool(~jnp.isnan(value), axis=tuple(range(-event_dim, 0)))


def fill_missing_values(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    observations: Mapping[str, Array],
) -> dict[str, Array]:
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
    drawn = run_model(model, args, kwargs, jax.random.key(0))
    filled = dict(observations)
    for name in structure.incomplete:
        value, stand_in = observations[name], jnp.asarray(drawn[name]["value"])
        event_dim = len(structure.site(name).event_shape)
        present = is_present(structure, name, value)
        where = present.reshape(present.shape + (1,) * event_dim)
        if structure.has_positions(name):
            where = ~jnp.isnan(value)
        filled[name] = jnp.where(where, value, stand_in).astype(stand_in.dtype)
    return filled


def log_joint_of_present(
    model: Callable[..., Any],
    structure: ModelStructure,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    latents: Mapping[str, Any],
    observations: Mapping[str, Array],
    batch_dims: int,
) -> dict[str, Array]:
    """Log density of every site of the model, zero at missing values.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        latents: Values of all latents, `(*batch, *plates, *event)`.
        observations: Data by site with the same batch axes, NaN where missing.
        batch_dims: Number of batch axes.

    Returns:
        One array per site, shape `(*batch, *plates)`, in nats.
    """
    filled = fill_missing_values(model, structure, args, kwargs, observations)
    densities = joint_log_densities(model, args, kwargs, {**latents, **filled}, batch_dims)
    for name in structure.incomplete:
        present = is_present(structure, name, observations[name])
        densities[name] = jnp.where(present, densities[name], 0.0)
    return densities
