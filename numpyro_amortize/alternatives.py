"""Which observed sites carry data: one guide for several sets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.structure import ModelStructure

ObservedSites = str | Sequence[str | Sequence[str]]


def read_observed(observed: ObservedSites) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names of all observed sites, and the sets of them that may carry data together.

    Args:
        observed: A name, names, or alternative sets of names.

    Returns:
        The names, and the alternatives; none where all sites always carry data.
    """
    if isinstance(observed, str):
        return (observed,), ()
    if all(isinstance(each, str) for each in observed):
        return tuple(str(each) for each in observed), ()
    sets = [(each,) if isinstance(each, str) else tuple(each) for each in observed]
    names = tuple(dict.fromkeys(name for each in sets for name in each))
    return names, tuple(dict.fromkeys(sets))


def has_data(value: Array, batch_dims: int) -> Array:
    """Which data sets have data at a site, with axes of length 1 for the site's own."""
    absent = jnp.isnan(value).reshape(*value.shape[:batch_dims], -1).all(-1)
    return ~absent.reshape(absent.shape + (1,) * (value.ndim - batch_dims))


def check_alternatives(
    structure: ModelStructure, values: Mapping[str, Array], batch_dims: int
) -> None:
    """Raise a ValueError if sites carry data that are not one of the alternatives together."""
    sets = [set(each) for each in structure.alternatives]
    names = [site.name for site in structure.observed if site.name in values]
    columns = []
    for name in names:
        if isinstance(values[name], jax.core.Tracer):  # cannot be looked at: NaN counts as data
            columns.append(np.ones(1, bool))
            continue
        is_there = np.asarray(has_data(values[name], batch_dims)).ravel()
        columns.append(is_there if name in structure.optional else np.ones_like(is_there))
    rows = np.stack(np.broadcast_arrays(*columns), -1).tolist() if columns else [[]]
    is_traced = any(isinstance(value, jax.core.Tracer) for value in values.values())
    if is_traced and len(names) == len(structure.observed):
        return
    for row in sorted(set(map(tuple, rows))):
        present = [name for name, is_there in zip(names, row, strict=True) if is_there]
        if set(present) not in sets:
            raise ValueError(_other_alternative(structure, present))


def _other_alternative(structure: ModelStructure, present: list[str]) -> str:
    sets = " or ".join(str(list(each)) for each in structure.alternatives)
    return (
        f"observed sites {present}: have data in this call, but the guide is for data at {sets}. "
        "Pass those of one of these sets, or make a guide that lists this one too"
    )


def with_absent(
    structure: ModelStructure,
    values: Mapping[str, Array],
    batch_dims: int,
    sizes: Mapping[str, int],
) -> dict[str, Array]:
    """The values, and NaN at the sites that have none."""
    batch = next(iter(values.values())).shape[:batch_dims]
    completed = dict(values)
    for site in structure.observed:
        if site.name not in values:
            dims = {plate: structure.plates[plate].dim for plate in site.plates}
            shape = [1] * max((-dim for dim in dims.values()), default=0)
            for plate, dim in dims.items():
                shape[dim] = sizes[plate]
            completed[site.name] = jnp.full((*batch, *shape, *site.event_shape), jnp.nan)
    return completed
