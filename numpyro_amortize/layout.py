"""The aligned layout: every array has batch axes, all plate axes (1 where absent), features."""

from __future__ import annotations

import math
from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from numpyro_amortize.structure import InputInfo, ModelStructure, SiteInfo
from numpyro_amortize.supports import Support


def align(value: Array, nesting: int, event_dim: int, batch_dims: int) -> Array:
    """Insert the absent plate axes between the batch axes and the plate axes.

    Args:
        value: Shape `(*batch, *plates, *event)` with at most `nesting` plate axes.
        nesting: Number of plate axes of the layout.
        event_dim: Number of event axes.
        batch_dims: Number of batch axes.

    Returns:
        Shape `(*batch, *plates, *event)` with exactly `nesting` plate axes.
    """
    value = jnp.asarray(value)
    missing = nesting - (value.ndim - event_dim - batch_dims)
    return value.reshape(value.shape[:batch_dims] + (1,) * missing + value.shape[batch_dims:])


def natural(value: Array, structure: ModelStructure, site: SiteInfo, event_dim: int) -> Array:
    """Drop the plate axes to the left of all plates of a site, as the host lays values out.

    Args:
        value: Aligned array with the plates of the site.
        structure: The structure of the model.
        site: The site.
        event_dim: Number of event axes.

    Returns:
        The array without these axes of length 1.
    """
    own = (*site.plates, *site.event_plates)
    kept = max((-structure.plates[plate].dim for plate in own), default=0)
    end = value.ndim - event_dim - kept
    start = end - (structure.max_plate_nesting - kept)
    return value.reshape(value.shape[:start] + value.shape[end:])


def pack(
    structure: ModelStructure, site: SiteInfo, value: Array, batch_dims: int
) -> tuple[Array, Array]:
    """Unconstrained coordinates of a latent site, event plates folded into the last axis.

    Args:
        structure: The structure of the model.
        site: A latent site.
        value: Constrained values, shape `(*batch, *plates, *event)` in the host's layout.
        batch_dims: Number of batch axes.

    Returns:
        Coordinates of shape `(*batch, *aligned plates, size)`, and the log determinant of the
        map from them to `value`, shape `(*batch, *aligned plates)`.
    """
    bijection = site.support.bijection(len(site.event_shape))
    value = align(value, structure.max_plate_nesting, len(site.event_shape), batch_dims)
    unconstrained = bijection.inv(value)
    log_det = bijection.log_abs_det_jacobian(unconstrained, value)
    event_dim = bijection.domain.event_dim
    flat = unconstrained.reshape(unconstrained.shape[: unconstrained.ndim - event_dim] + (-1,))
    for plate in reversed(site.event_plates):  # the last plate ends up next to the event
        dim = structure.plates[plate].dim
        log_det = jnp.sum(log_det, axis=dim, keepdims=True)
        moved = jnp.moveaxis(flat, dim - 1, -2)
        shape = moved.shape[:-2] + (moved.shape[-2] * moved.shape[-1],)
        flat = jnp.expand_dims(moved.reshape(shape), dim - 1)
    return flat, log_det


def unpack(structure: ModelStructure, site: SiteInfo, coordinates: Array) -> tuple[Array, Array]:
    """The inverse of `pack`, in the aligned layout.

    Args:
        structure: The structure of the model.
        site: A latent site.
        coordinates: Shape `(*batch, *aligned plates, size)`, unconstrained.

    Returns:
        Constrained values of shape `(*batch, *aligned plates, *event)` with event plates at
        their own axes, and the log determinant of the map, shape `(*batch, *aligned plates)`
        with event plates summed out.
    """
    bijection = site.support.bijection(len(site.event_shape))
    flat = coordinates
    for plate in site.event_plates:
        info = structure.plates[plate]
        split = flat.reshape(flat.shape[:-1] + (info.size, -1))
        flat = jnp.moveaxis(jnp.squeeze(split, info.dim - 2), -2, info.dim - 1)
    event_shape = site.support.unconstrained_shape(site.event_shape)
    unconstrained = flat.reshape(flat.shape[:-1] + event_shape)
    value = bijection(unconstrained)
    log_det = bijection.log_abs_det_jacobian(unconstrained, value)
    for plate in site.event_plates:
        log_det = jnp.sum(log_det, axis=structure.plates[plate].dim, keepdims=True)
    return value, log_det


def pack_moments(
    structure: ModelStructure, site: SiteInfo, moments: tuple[Array, Array], batch_dims: int
) -> tuple[Array, Array]:
    """Location and scale of a site in the layout of its unconstrained coordinates.

    Args:
        structure: The structure of the model.
        site: A latent site.
        moments: Two arrays of shape `(*batch, *plates, *event)`, unconstrained.
        batch_dims: Number of batch axes.

    Returns:
        Two arrays of shape `(*batch, *aligned plates, size)`.
    """
    plain = replace(site, support=Support("real"))
    loc, scale = (pack(structure, plain, part, batch_dims)[0] for part in moments)
    return loc, scale


def pack_plain(
    structure: ModelStructure, site: SiteInfo | InputInfo, value: Array, batch_dims: int
) -> Array:
    """Values of an observed site or an input, event flattened into the last axis.

    Args:
        structure: The structure of the model.
        site: An observed site or an input.
        value: Shape `(*batch, *plates, *event)`; an input has only its own plates.
        batch_dims: Number of batch axes.

    Returns:
        Shape `(*batch, *aligned plates, size)`.
    """
    if isinstance(site, InputInfo):
        value = _spread_input(structure, site, jnp.asarray(value), batch_dims)
    value = align(value, structure.max_plate_nesting, len(site.event_shape), batch_dims)
    kept = value.shape[: value.ndim - len(site.event_shape)]
    dtype = jnp.result_type(float)
    return value.reshape((*kept, math.prod(site.event_shape))).astype(dtype)


def _spread_input(
    structure: ModelStructure, item: InputInfo, value: Array, batch_dims: int
) -> Array:
    """Put the leading axes of an input at the dimensions of their plates."""
    nesting = structure.max_plate_nesting
    shape = [1] * nesting
    order = sorted(item.plates, key=lambda plate: structure.plates[plate].dim)
    axes = [batch_dims + item.plates.index(plate) for plate in order]
    rest = range(batch_dims + len(axes), value.ndim)
    value = jnp.transpose(value, (*range(batch_dims), *axes, *rest))
    for position, plate in enumerate(order):
        shape[structure.plates[plate].dim] = value.shape[batch_dims + position]
    return value.reshape((*value.shape[:batch_dims], *shape, *item.event_shape))
