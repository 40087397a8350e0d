"""Draws and data as an ArviZ `DataTree`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from xarray import DataTree

_DRAW_GROUPS = (
    "posterior",
    "prior",
    "prior_sbc",
    "prior_predictive",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
)
_DENSITY_GROUPS = {"log_likelihood", "log_prior"}
_DATA_GROUPS = ("observed_data", "constant_data")
_SHARED_BY_DATASETS = {"prior", "prior_predictive", "constant_data"}


def to_datatree(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    has_datasets: bool = False,
    num_chains: int = 1,
) -> DataTree:
    """Collect named arrays in the form that every ArviZ function reads.

    Draws of a guide are independent, so they are one chain: `(num_draws, ...)` becomes
    `(chain=1, draw=num_draws, ...)`. Those of Markov chains are split into so many.

    Use it for anything made of arrays, for one data set or many. Works the same with arviz-base
    0.8 and 1.

    Args:
        groups: `{group: {name: array}}`. In posterior, prior, prior_sbc, prior_predictive,
            posterior_predictive, log_likelihood, log_prior and sample_stats every array has shape
            `(num_draws, ...)` with one `num_draws` per group; in observed_data and constant_data
            there is no draw axis. Values are in the constrained space.
        dims: Names of the axes after the draw axis, by variable: `{"theta": ["school"]}`. Axes
            without a name get one; log densities lack the last axes, those of an event.
        coords: Labels along a named axis: `{"school": ["A", "B"]}`.
        attrs: Attributes of the tree itself.
        has_datasets: Whether the first axis after the draws is one of data sets, in every group
            but prior, prior_predictive and constant_data. It is named "dataset" and is not
            counted in `dims`.
        num_chains: Number of chains of equal length that the draws of each group but prior and
            prior_predictive are, one after the other.

    Returns:
        An `xarray.DataTree` with one child per group.

    Raises:
        ImportError: If ArviZ is not installed.
        ValueError: If a group is unknown, if the arrays of a draw group do not share their
            leading axis, or if it does not split into the chains.

    Example:
        >>> draws = {"mu": np.zeros(100), "theta": np.zeros((100, 8))}
        >>> tree = to_datatree({"posterior": draws}, dims={"theta": ["school"]})
        >>> dict(tree["posterior"].sizes)
        {'chain': 1, 'draw': 100, 'school': 8}
    """
    try:
        from arviz_base import from_dict
    except ImportError as error:
        raise ImportError(
            "to_datatree: expected ArviZ, got none. Install it with "
            "`pip install 'pyro-amortize[arviz]'`."
        ) from error

    unknown = sorted(set(groups) - {*_DRAW_GROUPS, *_DATA_GROUPS})
    if unknown:
        raise ValueError(
            f"groups: expected only {', '.join((*_DRAW_GROUPS, *_DATA_GROUPS))}, got "
            f"{', '.join(unknown)}. Rename or drop them."
        )
    arrays = {
        group: {name: np.asarray(value) for name, value in variables.items()}
        for group, variables in groups.items()
    }
    tree = from_dict({}, attrs={"/": dict(attrs or {})})
    for group, variables in arrays.items():
        if group in _DRAW_GROUPS:
            _check_draw_axis(group, variables)
            chains = 1 if group in _SHARED_BY_DATASETS else num_chains
            variables = {name: _by_chain(group, value, chains) for name, value in variables.items()}
        lead = ["dataset"] if has_datasets and group not in _SHARED_BY_DATASETS else []
        num_lead = len(lead) + 2 * (group in _DRAW_GROUPS)
        group_dims = {}
        for name, value in variables.items():
            names = list((dims or {}).get(name, ()))
            if group in _DENSITY_GROUPS:  # one number for each event
                names = names[: value.ndim - num_lead]
            group_dims[name] = [*lead, *names]
        tree[group] = from_dict({group: variables}, dims=group_dims, coords=coords)[group]
    return tree


def _by_chain(group: str, value: np.ndarray, num_chains: int) -> np.ndarray:
    if num_chains < 1 or len(value) % num_chains:
        raise ValueError(
            f"num_chains: expected a divisor of the {len(value)} draws in {group}, got {num_chains}"
        )
    return value.reshape(num_chains, -1, *value.shape[1:])


def _check_draw_axis(group: str, variables: Mapping[str, np.ndarray]) -> None:
    shapes = {name: value.shape for name, value in variables.items()}
    leading = {shape[:1] for shape in shapes.values()}
    if len(leading) > 1 or () in leading:
        raise ValueError(
            f"{group}: expected arrays with one common leading draw axis, got {shapes}. Put the "
            "draws first in each."
        )
