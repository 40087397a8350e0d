"""Supports of latent sites: what a guide can map to the real line and store in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import Transform
from torch.distributions import biject_to
from torch.distributions.transforms import AffineTransform, IndependentTransform

_BY_NAME: dict[str, Any] = {
    "real": constraints.real,
    "positive": constraints.positive,
    "simplex": constraints.simplex,
    "ordered": constraints.ordered_vector,
    "corr_cholesky": constraints.corr_cholesky,
    "boolean": constraints.boolean,
    "nonnegative_integer": constraints.nonnegative_integer,
}
_EVENT_DIMS = {"simplex": 1, "ordered": 1, "corr_cholesky": 2}
DISCRETE = ("boolean", "categorical", "integer_interval", "nonnegative_integer")
SUPPORTED = (
    "real, positive, greater_than, less_than, interval, simplex, ordered, corr_cholesky, "
    "boolean, integer_interval, nonnegative_integer"
)


@dataclass(frozen=True)
class Support:
    """The support of one latent site, free of host objects so that it can be saved.

    Use it to get the host's bijection from the real line; bounds are kept in the
    units of the site.

    Args:
        kind: One of real, positive, greater_than, less_than, interval, simplex, ordered,
            corr_cholesky; of whole numbers boolean, categorical (labels without an order),
            integer_interval, nonnegative_integer.
        lower: Lower bounds, nested tuples or a number (greater_than, interval).
        upper: Upper bounds, nested tuples or a number (less_than, interval).

    Example:
        >>> Support("interval", 0.0, 2.0).unconstrained_shape((3,))
        (3,)
        >>> Support("simplex").unconstrained_shape((3,))
        (2,)
    """

    kind: str
    lower: Any = None
    upper: Any = None

    @property
    def is_discrete(self) -> bool:
        """Whether the values are whole numbers."""
        return self.kind in DISCRETE

    @property
    def num_values(self) -> int | None:
        """Number of values of a bounded discrete support, else None."""
        return None if not self.is_discrete or self.upper is None else self.upper - self.lower + 1

    def constraint(self) -> Any:
        """The host's constraint, elementwise for the scalar kinds."""
        if self.kind in ("categorical", "integer_interval"):
            return constraints.integer_interval(self.lower, self.upper)
        if self.kind in _BY_NAME:
            return _BY_NAME[self.kind]
        lower, upper = (
            torch.tensor(bound) if isinstance(bound, tuple) else bound
            for bound in (self.lower, self.upper)
        )
        if self.kind == "greater_than":
            return constraints.greater_than(lower)
        if self.kind == "less_than":
            return constraints.less_than(upper)
        return constraints.interval(lower, upper)

    def bijection(self, event_dim: int) -> Transform:
        """The map from unconstrained to constrained values, over `event_dim` event dims.

        Its log determinant has the batch shape only. Discrete values are numbered from 0.
        """
        if self.is_discrete:
            transform = AffineTransform(float(self.lower), 1.0)  # the number of a value
        else:
            transform = biject_to(self.constraint())
        extra = event_dim - transform.codomain.event_dim
        return IndependentTransform(transform, extra) if extra > 0 else transform

    def unconstrained_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Event shape of the unconstrained value of an event of shape `event_shape`."""
        transform = self.bijection(max(len(event_shape), _EVENT_DIMS.get(self.kind, 0)))
        return tuple(transform.inverse_shape(event_shape))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"kind": self.kind, "lower": self.lower, "upper": self.upper}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Support:
        """The inverse of `to_dict`."""
        return cls(state["kind"], _as_tuple(state["lower"]), _as_tuple(state["upper"]))


def read_support(constraint: Any) -> Support | None:
    """The `Support` of a host constraint, or None if guides cannot map it yet.

    Args:
        constraint: The `support` of a host distribution.

    Returns:
        The support, or None for circular, matrix-valued and other constraints outside the
        supported list.
    """
    wrappers = (constraints.independent, constraints.MixtureSameFamilyConstraint)
    while isinstance(constraint, wrappers):
        constraint = constraint.base_constraint
    if constraint.is_discrete:
        return _discrete_support(constraint)
    if constraint is constraints.real:
        return Support("real")
    for name in ("simplex", "ordered", "corr_cholesky"):
        if constraint is _BY_NAME[name]:
            return Support(name)
    lower = _bound(constraint, "lower_bound")
    upper = _bound(constraint, "upper_bound")
    if lower is None and upper is None:
        return None
    if upper is None:
        return Support("positive") if lower == 0.0 else Support("greater_than", lower)
    if lower is None:
        return Support("less_than", None, upper)
    return Support("interval", lower, upper)


def _discrete_support(constraint: Any) -> Support | None:
    if constraint is constraints.boolean:
        return Support("boolean", 0, 1)
    if constraint is constraints.nonnegative_integer:
        return Support("nonnegative_integer", 0)
    if not isinstance(constraint, constraints.integer_interval):
        return None
    bounds = (_bound(constraint, name) for name in ("lower_bound", "upper_bound"))
    lower, upper = (int(bound) if isinstance(bound, float) else bound for bound in bounds)
    return Support("integer_interval", lower, upper)


def _bound(constraint: Any, name: str) -> Any:
    value = getattr(constraint, name, None)
    if value is None:
        return None
    array = torch.as_tensor(value).detach().cpu().numpy().astype(float)
    if array.ndim and array.size and np.all(array == array.flat[0]):
        array = array.flat[0]  # the bounds of an expanded distribution
    return None if np.all(np.isinf(array)) else _as_tuple(np.asarray(array).tolist())


def _as_tuple(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_as_tuple(item) for item in value)
    return value


def event_size(support: Support, event_shape: tuple[int, ...]) -> int:
    """Number of unconstrained coordinates of one event."""
    return math.prod(support.unconstrained_shape(event_shape))
