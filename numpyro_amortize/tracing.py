"""Running the user's model hidden from every handler, and reading its trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.primitives import Messenger

Trace = dict[str, dict[str, Any]]
_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
_LOCATION_SCALE = (
    dist.Normal,
    dist.LogNormal,
    dist.StudentT,
    dist.Cauchy,
    dist.Laplace,
    dist.Logistic,
    dist.Gumbel,
)
_IS_FIXED = "_amortize_is_fixed"
IS_PATH = "_amortize_is_path"  # marks the sites that `add_path` adds


class _Free(Messenger):
    """Draws observed sites; the host's `uncondition` keeps the data, which then are compared."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or not msg["is_observed"] or is_factor(msg):
            return
        if not msg["infer"].get(_IS_FIXED):
            msg["is_observed"], msg["value"] = False, None
            if msg["kwargs"]["rng_key"] is None:  # the seed has passed over an observed site
                msg["kwargs"]["rng_key"] = numpyro.prng_key()


class _Keep(Messenger):
    """Marks observed sites that are to keep their values."""

    def __init__(self, fn: Callable[..., Any], names: Sequence[str]) -> None:
        super().__init__(fn)
        self.names = tuple(names)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.names:
            msg["infer"] = {**msg["infer"], _IS_FIXED: True}


def free_data(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model with its observed sites drawn, all but those of `keep_fixed`."""
    return _Free(model)


def keep_fixed(model: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """The model with some observed sites that keep their values in every run.

    Args:
        model: The user's model.
        names: Sites that the model or a handler fixes, whatever the call.

    Returns:
        The model itself if there are none.
    """
    return _Keep(model, names) if names else model


def with_rows(model: Callable[..., Any], rows: Mapping[str, Any] | None) -> Callable[..., Any]:
    """The model with its subsampled plates at given rows.

    Args:
        model: The user's model.
        rows: For each subsampled plate the indices of its rows; drawn if None or empty.
    """
    return handlers.substitute(model, data=dict(rows)) if rows else model


def run_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rng_key: Array,
    *,
    values: Mapping[str, Any] | None = None,
) -> Trace:
    """One run of the model with nothing observed, hidden from every outer handler.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        rng_key: Key of the run.
        values: Values for some sites (constrained) in place of draws.

    Returns:
        The host's trace.
    """
    with handlers.block():
        free = free_data(handlers.seed(model, rng_key))
        if values:
            free = handlers.substitute(free, data=dict(values))
        return handlers.trace(free).get_trace(*args, **kwargs)


def plate_sizes(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, int]:
    """Size of every plate of a call of the model, subsampled or not."""
    trace = run_model(model, args, kwargs, jax.random.key(0))
    rows = read_subsample_sizes(trace)
    return {
        frame.name: rows.get(frame.name, (frame.size, frame.size))[0]
        for site in trace.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
    }


def subsample_sizes(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Size of every plate of a call of the model, and the number of rows that it looks at."""
    return read_subsample_sizes(run_model(model, args, kwargs, jax.random.key(0)))


def read_subsample_sizes(trace: Trace) -> dict[str, tuple[int, int]]:
    """Size of every plate of a trace, and the number of rows in it."""
    return {
        name: (site["args"][0], site["args"][1] or site["args"][0])
        for name, site in trace.items()
        if site["type"] == "plate"
    }


def drawn_rows(trace: Trace) -> dict[str, Any]:
    """The rows that a trace looks at, for each plate with a subsample size."""
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "plate" and site["args"][1] is not None
    }


def site_values(trace: Trace) -> dict[str, Array]:
    """Values of the sample and deterministic sites of a trace (`factor` sites left out)."""
    return {
        name: jnp.asarray(site["value"])
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not is_factor(site))
    }


def deterministic_values(trace: Trace) -> dict[str, Array]:
    """Values of the deterministic sites of a trace."""
    return {
        name: jnp.asarray(site["value"])
        for name, site in trace.items()
        if site["type"] == "deterministic"
    }


def leading_value(site: Mapping[str, Any]) -> Array:
    """Value of a deterministic site with the axes of its own plates only, and its event."""
    value = jnp.asarray(site["value"])
    dims = {frame.dim for frame in site["cond_indep_stack"]}
    depth = max((-dim for dim in dims), default=0)
    if not carries_plates(site):
        return value
    kept = [size for axis, size in enumerate(value.shape) if axis >= depth or axis - depth in dims]
    return value.reshape(kept)


def carries_plates(site: Mapping[str, Any]) -> bool:
    """Whether the value of a deterministic site follows the plates that it is written in."""
    shape, frames = jnp.shape(site["value"]), site["cond_indep_stack"]
    depth = max((-frame.dim for frame in frames), default=0)
    own = {frame.dim: frame.size for frame in frames}
    return len(shape) >= depth and all(
        shape[depth + dim] == own.get(dim, 1) for dim in range(-depth, 0)
    )


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a site comes from `numpyro.factor`."""
    return site["type"] == "sample" and isinstance(base_distribution(site["fn"]), dist.Unit)


def base_distribution(fn: Any) -> Any:
    """A distribution without its independent, expanded and masked wrappers."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def is_masked(fn: Any) -> bool:
    """Whether a distribution is masked, inside or outside its other wrappers."""
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False


def without_mask(fn: Any) -> tuple[Any, Any]:
    """A distribution without masks on its batch axes, and these: True where it counts."""
    if isinstance(fn, dist.MaskedDistribution):
        base, mask = without_mask(fn.base_dist)
        return base, jnp.logical_and(mask, fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        base, mask = without_mask(fn.base_dist)
        return base.expand(fn.batch_shape), mask
    return fn, True


def elements_left_in(fn: Any) -> Array:
    """Which batch elements of a distribution its masks leave in."""
    _, mask = without_mask(fn)
    return jnp.broadcast_to(mask, fn.batch_shape)


def is_unobserved(name: str) -> bool:
    """Whether a site is what an `obs_mask` leaves unobserved, by the name that the host gives."""
    return name.endswith("_unobserved")


def location_scale(fn: Any) -> tuple[Array, Array] | None:
    """Location and scale of a distribution on the unconstrained line, if it has them.

    For LogNormal they belong to the logarithm, which is the unconstrained value.

    Args:
        fn: A host distribution.

    Returns:
        Two arrays that broadcast to `fn.shape()`, or None.
    """
    base = base_distribution(fn)
    if isinstance(base, _LOCATION_SCALE):
        loc, scale = base.loc, base.scale
    elif isinstance(base, dist.MultivariateNormal):
        loc, scale = base.loc, jnp.sqrt(base.variance)
    else:
        return None
    shape = fn.shape()
    return jnp.broadcast_to(loc, shape), jnp.broadcast_to(scale, shape)


def log_densities(trace: Trace) -> dict[str, Array]:
    """Log density of every sample site at its value, per batch element, unscaled, in nats."""
    return {
        name: site["fn"].log_prob(site["value"])
        for name, site in trace.items()
        if site["type"] == "sample"
    }
