"""Joint draws of the user's model, its joint density, and replay of given values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.compiler import check_compiler
from numpyro_amortize.tracing import location_scale, log_densities, run_model, site_values


@dataclass(frozen=True)
class Simulations:
    """Joint draws of a model: named arrays, and how many runs were not finite.

    Args:
        sites: One array per sample or deterministic site, shape
            `(num_simulations, *plates, *event)`, constrained values.
        num_simulations: Number of runs.
        nonfinite: For each site with NaN or infinite values, the number of such runs.

    Example:
        >>> simulations = Simulations({"z": np.zeros((4, 2))}, 4, {"z": 1})
        >>> simulations["z"].shape
        (4, 2)
        >>> print(simulations)
        4 simulations of z (2,); not finite: z in 1
    """

    sites: dict[str, Any]
    num_simulations: int
    nonfinite: dict[str, int]

    def __getitem__(self, name: str) -> Any:
        return self.sites[name]

    def __len__(self) -> int:
        return self.num_simulations

    def __str__(self) -> str:
        sites = ", ".join(f"{name} {tuple(each.shape[1:])}" for name, each in self.sites.items())
        bad = ", ".join(f"{name} in {count:,}" for name, count in self.nonfinite.items())
        finite = f"not finite: {bad}" if bad else "all finite"
        return f"{self.num_simulations:,} simulations of {sites}; {finite}"

    def is_finite(self) -> np.ndarray:
        """Which runs are finite at every site, shape `(num_simulations,)`."""
        return np.asarray(finite_rows(self.sites))


def joint_log_densities(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    batch_dims: int,
) -> dict[str, Array]:
    """Log density of every sample site at given values of all sites, in nats.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        values: Values of all latent and observed sites, constrained, each with the same
            `batch_dims` leading axes.
        batch_dims: Number of leading axes of draws and data sets.

    Returns:
        One array per site, shape `(*batch, *plates)`.
    """

    def one(row: Mapping[str, Any]) -> dict[str, Array]:
        return log_densities(run_model(model, args, kwargs, jax.random.key(0), values=row))

    return _vmap(one, batch_dims)(dict(values))


def replay(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    batch_dims: int,
    rng_key: Array,
) -> dict[str, Array]:
    """All sites of the model given some of them; the others are drawn.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        values: Values of some sites, constrained, with `batch_dims` leading axes.
        batch_dims: Number of leading axes of draws and data sets.
        rng_key: Key of the sites that are drawn.

    Returns:
        Values of all sample and deterministic sites, shape `(*batch, *plates, *event)`.
    """

    def one(row: Mapping[str, Any], key: Array) -> dict[str, Array]:
        return site_values(run_model(model, args, kwargs, key, values=row))

    shape = jnp.shape(next(iter(values.values())))[:batch_dims]
    keys = jax.random.split(rng_key, shape)
    return _vmap(one, batch_dims)(dict(values), keys)


def conditional_location_scale(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    site: str,
    values: Mapping[str, Any],
    batch_dims: int,
) -> tuple[Array, Array]:
    """The model's own location and scale of a site given the values of earlier sites.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        site: A latent site with a location-scale distribution.
        values: Values of the site's parents, constrained, with `batch_dims` leading axes.
        batch_dims: Number of leading axes of draws and data sets.

    Returns:
        Location and scale, each of shape `(*batch, *plates, *event)`, unconstrained.
    """

    def one(row: Mapping[str, Any]) -> tuple[Array, Array]:
        trace = run_model(model, args, kwargs, jax.random.key(0), values=row)
        found = location_scale(trace[site]["fn"])
        if found is None:
            raise ValueError(
                f"site '{site}': expected the location-scale distribution that the guide was "
                "set up with, got another family; make a new guide for this model"
            )
        return found

    return _vmap(one, batch_dims)(dict(values))


def simulate_rows(
    model: Callable[..., Any],
    num_simulations: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rng_key: Array,
    conditional: Sequence[str] = (),
) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
    """Vectorised joint draws, and the model's location and scale at some sites.

    Args:
        model: The user's model.
        num_simulations: Number of runs.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        rng_key: Key of all runs.
        conditional: Sites whose conditional location and scale are returned too.

    Returns:
        Values of all sites, and `{site: (location, scale)}`; both with a leading axis of
        length `num_simulations`.
    """

    def one(key: Array) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
        trace = run_model(model, args, kwargs, key)
        own = {name: location_scale(trace[name]["fn"]) for name in conditional}
        return site_values(trace), {name: found for name, found in own.items() if found}

    return jax.vmap(one)(jax.random.split(rng_key, num_simulations))


_compiled_rows = eqx.filter_jit(simulate_rows)  # once for each model and shape of its arguments


def simulate(
    model: Callable[..., Any],
    num_simulations: int,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    method: Literal["auto", "vectorized", "loop"] = "auto",
    rng_key: Array | None = None,
) -> Simulations:
    """Draw joint simulations of every site of a model, data included.

    One compiled `vmap` over keys; nothing is observed, whatever data the arguments hold.
    Use `method="loop"` for a model that cannot be traced, one Python run per simulation.

    Args:
        model: A NumPyro model.
        num_simulations: Number of runs, at least 1.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        method: `"vectorized"`, `"loop"`, or `"auto"`: vectorised, and the loop with a warning
            where the model branches in Python on a drawn value.
        rng_key: Key of all runs; `jax.random.key(0)` if None.

    Returns:
        The simulations, with the number of runs that are not finite per site.

    Raises:
        ValueError: If `num_simulations` is below 1.

    Example:
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> def model():
        ...     return numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> simulate(model, 5)["z"].shape
        (5,)
    """
    if num_simulations < 1:
        raise ValueError(f"num_simulations: expected at least 1, got {num_simulations}")
    check_compiler()
    kwargs = dict(kwargs or {})
    key = jax.random.key(0) if rng_key is None else rng_key
    if method != "loop":
        try:
            return count_nonfinite(_compiled_rows(model, num_simulations, args, kwargs, key)[0])
        except jax.errors.JAXTypeError as error:
            if method == "vectorized":
                raise
            warnings.warn(
                f"the model cannot be traced, so each simulation is one Python run: {error}",
                stacklevel=2,
            )
    keys = jax.random.split(key, num_simulations)
    runs = [site_values(run_model(model, args, kwargs, each)) for each in keys]
    return count_nonfinite({name: jnp.stack([run[name] for run in runs]) for name in runs[0]})


def count_nonfinite(sites: Mapping[str, Array]) -> Simulations:
    """Wrap arrays of joint draws, counting the runs that are not finite at each site."""
    num = len(next(iter(sites.values())))
    counts = {
        name: num - int(np.isfinite(np.asarray(value).reshape(num, -1)).all(1).sum())
        for name, value in sites.items()
    }
    return Simulations(dict(sites), num, {name: count for name, count in counts.items() if count})


def finite_rows(sites: Mapping[str, Array]) -> Array:
    """Which leading-axis rows are finite at every site, shape `(num_rows,)`."""
    rows = [
        jnp.all(jnp.isfinite(value.reshape(len(value), -1)), axis=1) for value in sites.values()
    ]
    return jnp.all(jnp.stack(rows), axis=0)


def _vmap(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    for _ in range(times):
        function = jax.vmap(function)
    return function
