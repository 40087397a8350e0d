"""Data as they come in: checked against the model, with errors that name the site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.alternatives import check_alternatives, has_data, with_absent
from numpyro_amortize.layout import pack_plain
from numpyro_amortize.structure import ModelStructure, SiteInfo


def check_observations(
    structure: ModelStructure,
    observations: Mapping[str, Any],
    batch_dims: int,
    own_sizes: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """The observed sites' values as arrays, or an error that says what to do.

    Values can be checked for NaN only outside `jit`.

    Args:
        structure: The structure of the model.
        observations: Data by site, shape `(*batch, *plates, *event)`.
        batch_dims: Number of leading axes of data sets.
        own_sizes: Plate sizes of the model's call, as far as they are known.

    Returns:
        The values; NaN at sites without data, where the guide is made for that.

    Raises:
        ValueError: If a site has no data, unknown sites are given, shapes do not fit, sizes of
            one plate disagree with each other or with the call, values are not finite, or
            other sites carry data than those of one alternative.
        TypeError: If values are not real numbers.
    """
    names = [site.name for site in structure.observed]
    for name in observations:
        if name not in names:
            raise ValueError(f"observations: '{name}' is not one of the observed sites {names}")
    checked: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    for site in structure.observed:
        if observations.get(site.name) is not None:
            value = checked[site.name] = _numbers(site, observations[site.name])
            _check_shape(structure, site, value, batch_dims, sizes)
        elif not structure.alternatives:
            raise ValueError(
                f"observed site '{site.name}': no data in this call. Pass them in the model's "
                "own argument, or bind them: guide.bind({...})"
            )
    for plate, size in (own_sizes or {}).items():
        if sizes.get(plate, size) != size:
            raise ValueError(
                f"plate '{plate}': has {size} elements in this call of the model, but the data "
                f"have {sizes[plate]} along it. Pass data of that size, or the argument that sets "
                "the size too"
            )
    if structure.alternatives:
        check_alternatives(structure, checked, batch_dims)
        checked = with_absent(structure, checked, batch_dims, {**(own_sizes or {}), **sizes})
    for site in structure.observed:
        value = checked[site.name]
        if site.name in structure.optional:
            is_there = has_data(value, batch_dims)
            value = jnp.where(is_there, value, 0)
        _check_values(site, value, may_miss=structure.may_miss(site.name))
    return checked


def check_settings(structure: ModelStructure, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError if a plain argument is not what the guide was set up with."""
    for name, value in structure.settings.items():
        if settings.get(name, value) != value:
            raise ValueError(
                f"argument '{name}': expected {value!r}, with which the guide was set up, "
                f"got {settings[name]!r}; make a new guide, or declare a plate size in sizes="
            )


def data_plate_sizes(
    structure: ModelStructure, observations: Mapping[str, Array], batch_dims: int = 0
) -> dict[str, int]:
    """Size of every plate that is not an event, as the data have it."""
    sizes = {}
    for site in structure.observed:
        aligned = pack_plain(structure, site, observations[site.name], batch_dims)
        for plate in site.plates:
            sizes[plate] = aligned.shape[structure.plates[plate].dim - 1]
    return sizes


def _numbers(site: SiteInfo, value: Any) -> Array:
    array = value if isinstance(value, Array) else np.asarray(value)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(
            f"observed site '{site.name}': expected real numbers, got dtype {array.dtype}"
        )
    return jnp.asarray(array)


def _check_shape(
    structure: ModelStructure,
    site: SiteInfo,
    value: Array,
    batch_dims: int,
    sizes: dict[str, int],
) -> None:
    event_dim = len(site.event_shape)
    plate_axes = max((-structure.plates[plate].dim for plate in site.plates), default=0)
    expected = (
        "(" + ", ".join([*["data sets"] * batch_dims, *site.plates, *map(str, site.event_shape)])
    ) + ")"
    event = value.shape[value.ndim - event_dim :]
    if event != site.event_shape or value.ndim != batch_dims + plate_axes + event_dim:
        raise ValueError(
            f"observed site '{site.name}': expected shape {expected}, got {value.shape}"
        )
    for plate in site.plates:
        size = value.shape[structure.plates[plate].dim - event_dim]
        if sizes.setdefault(plate, size) != size:
            raise ValueError(
                f"plate '{plate}': site '{site.name}' has {size} elements along it, another "
                f"observed site has {sizes[plate]}"
            )


def _check_values(site: SiteInfo, value: Array, *, may_miss: bool) -> None:
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    bad = int(np.sum(np.isinf(array) if may_miss else ~np.isfinite(array)))
    if bad:
        raise ValueError(
            f"observed site '{site.name}': {bad} of {array.size} values are NaN or infinite. If "
            f"values are missing, declare it: AmortizedGuide(..., missing='{site.name}'), with NaN "
            "for what is missing; or drop these rows, a guide takes any plate size"
        )
    if site.is_discrete and np.any((array != np.round(array)) & ~np.isnan(array)):
        raise ValueError(
            f"observed site '{site.name}': its support is discrete, got values that are not whole"
        )
