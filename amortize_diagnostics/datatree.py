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
    "prior_predictive",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
)
_DATA_GROUPS = ("observed_data", "constant_data")


def to_datatree(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> DataTree:
    """Collect named arrays in the form that every ArviZ function reads.

    Draws of a guide are independent, so they are one chain: `(num_draws, ...)` becomes
    `(chain=1, draw=num_draws, ...)`.

    Use it for anything made of arrays; draws for many data sets carry the data-set axis right
    after the draw axis, named by `dims` like any other. Works the same with arviz-base 0.8 and 1.

    Args:
        groups: `{group: {name: array}}`. In posterior, prior, prior_predictive,
            posterior_predictive, log_likelihood and sample_stats every array has shape
            `(num_draws, ...)` with one `num_draws` per group; in observed_data and constant_data
            there is no draw axis. Values are in the constrained space.
        dims: Names of the axes after the draw axis, by variable: `{"theta": ["school"]}`. Axes
            without a name get one.
        coords: Labels along a named axis: `{"school": ["A", "B"]}`.
        attrs: Attributes of the tree itself.

    Returns:
        An `xarray.DataTree` with one child per group.

    Raises:
        ImportError: If ArviZ is not installed.
        ValueError: If a group is unknown, or if the arrays of a draw group do not share
            their leading axis.

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
    for group in set(arrays).intersection(_DRAW_GROUPS):
        _check_draw_axis(group, arrays[group])
        arrays[group] = {name: value[np.newaxis] for name, value in arrays[group].items()}

    return from_dict(
        arrays,
        dims={name: list(axes) for name, axes in (dims or {}).items()},
        coords=dict(coords or {}),
        attrs={"/": dict(attrs or {})},
    )


def _check_draw_axis(group: str, variables: Mapping[str, np.ndarray]) -> None:
    shapes = {name: value.shape for name, value in variables.items()}
    leading = {shape[:1] for shape in shapes.values()}
    if len(leading) > 1 or () in leading:
        raise ValueError(
            f"{group}: expected arrays with one common leading draw axis, got {shapes}. Put the "
            "draws first in each."
        )
