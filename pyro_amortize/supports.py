"""Supports of latent sites: what a guide can map to the real line and store in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import Transform
from torch.distributions import biject_to
from torch.distributions.transforms import AffineTransform, IndependentTransform

from pyro_amortize.bijections import (
    CircularTransform,
    LowerCholeskyTransform,
    PositiveDefiniteTransform,
    SphereTransform,
)
from pyro_amortize.tracing import base_distribution

_BY_NAME: dict[str, Any] = {
    "real": constraints.real,
    "positive": constraints.positive,
    "simplex": constraints.simplex,
    "ordered": constraints.ordered_vector,
    "positive_ordered": constraints.positive_ordered_vector,
    "corr_cholesky": constraints.corr_cholesky,
    "corr_matrix": constraints.corr_matrix,
    "lower_cholesky": constraints.lower_cholesky,
    "positive_definite": constraints.positive_definite,
    "sphere": constraints.sphere,
    "circular": constraints.real,
    "boolean": constraints.boolean,
    "nonnegative_integer": constraints.nonnegative_integer,
}
# Other constraints on the same sets of values.
_SYNONYMS = (
    (constraints.softplus_lower_cholesky, "lower_cholesky"),
    (constraints.positive_semidefinite, "positive_definite"),
)
_VECTORS = ("simplex", "ordered", "positive_ordered", "sphere")
_MATRICES = ("corr_cholesky", "corr_matrix", "lower_cholesky", "positive_definite")
_EVENT_DIMS = dict.fromkeys(_VECTORS, 1) | dict.fromkeys(_MATRICES, 2)
_OWN_TRANSFORMS = {
    "lower_cholesky": LowerCholeskyTransform,
    "positive_definite": PositiveDefiniteTransform,
}
_WRAPPERS = (constraints.independent, constraints.MixtureSameFamilyConstraint)
DISCRETE = ("boolean", "categorical", "integer_interval", "nonnegative_integer")
SUPPORTED = (
    "real, positive, greater_than, less_than, interval, circular, simplex, ordered, "
    "positive_ordered, corr_cholesky, corr_matrix, lower_cholesky, positive_definite, sphere, "
    "boolean, integer_interval, nonnegative_integer"
)


@dataclass(frozen=True)
class Support:
    """The support of one latent site, free of host objects so that it can be saved.

    Use it to get the host's bijection from the real line; bounds are kept in the
    units of the site.

    Args:
        kind: One of real, positive, greater_than, less_than, interval, circular, simplex,
            ordered, positive_ordered, corr_cholesky, corr_matrix, lower_cholesky,
            positive_definite, sphere; in NumPyro also l1_ball and zero_sum;
            of whole numbers boolean, categorical (labels without an order), integer_interval,
            nonnegative_integer.
        lower: Lower bounds, nested tuples or a number (greater_than, interval).
        upper: Upper bounds, nested tuples or a number (less_than, interval).
        centre: Where the map is centred, a nested tuple or a number (circular: an angle in
            radians, sphere: a direction). The point opposite to it is left out.

    Example:
        >>> Support("interval", 0.0, 2.0).unconstrained_shape((3,))
        (3,)
        >>> Support("simplex").unconstrained_shape((3,))
        (2,)
    """

    kind: str
    lower: Any = None
    upper: Any = None
    centre: Any = None

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
        transform = (
            AffineTransform(float(self.lower), 1.0)  # the number of a value
            if self.is_discrete
            else self._transform()
        )
        extra = event_dim - transform.codomain.event_dim
        return IndependentTransform(transform, extra) if extra > 0 else transform

    def _transform(self) -> Transform:
        if self.kind == "circular":
            return CircularTransform(0.0 if self.centre is None else self.centre)
        if self.kind == "sphere":
            return SphereTransform(self.centre)
        own = _OWN_TRANSFORMS.get(self.kind)
        return biject_to(self.constraint()) if own is None else own()

    def unconstrained_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Event shape of the unconstrained value of an event of shape `event_shape`."""
        transform = self.bijection(max(len(event_shape), _EVENT_DIMS.get(self.kind, 0)))
        return tuple(transform.inverse_shape(event_shape))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "kind": self.kind,
            "lower": self.lower,
            "upper": self.upper,
            "centre": self.centre,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Support:
        """The inverse of `to_dict`."""
        bounds = (_as_tuple(state.get(name)) for name in ("lower", "upper", "centre"))
        return cls(state["kind"], *bounds)


def read_support(constraint: Any) -> Support | None:
    """The `Support` of a host constraint, or None if guides cannot map it yet.

    Args:
        constraint: The `support` of a host distribution.

    Returns:
        The support, or None for `cat`, `stack` and others outside the
        supported list.
    """
    while isinstance(constraint, _WRAPPERS):
        constraint = constraint.base_constraint
    if constraint.is_discrete:
        return _discrete_support(constraint)
    if constraint is constraints.real:
        return Support("real")
    for name in _EVENT_DIMS:
        if constraint is _BY_NAME[name]:
            return Support(name)
    for synonym, name in _SYNONYMS:
        if constraint is synonym:
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


def site_support(fn: Any) -> Support | None:
    """The `Support` of a site from its distribution, with the centre of a circle or sphere.

    The class of the distribution decides what is circular: a host may call it real. The cut
    of a circle or sphere is put opposite to the mean direction where all elements share one.

    Args:
        fn: A host distribution.

    Returns:
        The support, or None if guides cannot map it yet.
    """
    support = Support("circular") if is_circular(fn) else read_support(fn.support)
    if support is None or support.kind not in ("circular", "sphere"):
        return support
    return replace(support, centre=_mean_direction(fn))


def site_bijection(name: str, fn: Any) -> Transform:
    """The map from unconstrained values onto the support that a site has in this call.

    Args:
        name: Name of the site.
        fn: Its distribution, continuous.

    Raises:
        ValueError: If there is none.
    """
    constraint = fn.support
    while isinstance(constraint, _WRAPPERS):
        constraint = constraint.base_constraint
    own = [kind for kind in ("sphere", *_OWN_TRANSFORMS) if constraint is _BY_NAME[kind]]
    if own or is_circular(fn):
        return Support("circular" if is_circular(fn) else own[0]).bijection(fn.event_dim)
    try:
        return biject_to(constraint)
    except NotImplementedError as error:
        raise ValueError(
            f"site '{name}': its support {fn.support} cannot be mapped to the real line; "
            f"supported are {SUPPORTED}"
        ) from error


def is_circular(fn: Any) -> bool:
    """Whether the values of a distribution are angles."""
    base = base_distribution(fn)
    if isinstance(base, dist.MixtureSameFamily):
        return is_circular(base.component_distribution)
    return isinstance(base, dist.VonMises | dist.SineBivariateVonMises | dist.SineSkewed)


def _mean_direction(fn: Any) -> Any:
    """One direction for all batch elements, rounded so that no file depends on the precision."""
    base = base_distribution(fn)
    if isinstance(base, dist.SineSkewed):
        base = base_distribution(base.base_dist)
    if isinstance(base, dist.VonMises):
        parts = [base.loc]
    elif isinstance(base, dist.SineBivariateVonMises):
        parts = [base.phi_loc, base.psi_loc]
    elif isinstance(base, dist.ProjectedNormal):
        parts = [base.concentration]
    else:
        return None
    arrays = [torch.as_tensor(part).detach().cpu().numpy().astype(float) for part in parts]
    array = np.stack(arrays, -1) if len(arrays) > 1 else arrays[0]
    if isinstance(base, dist.ProjectedNormal):
        length = np.linalg.norm(array, axis=-1, keepdims=True)
        array = array / np.where(length > 0, length, np.inf)
    event_ndim = min(len(fn.event_shape), array.ndim)
    rows = array.reshape(-1, *array.shape[array.ndim - event_ndim :])
    is_shared = np.all(np.isfinite(rows)) and np.all(rows == rows[0])
    if not is_shared or not np.any(rows[0]):
        return None
    return _as_tuple(np.round(rows[0], 4).tolist())


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
