"""Joint draws of the user's model, its joint density, and replay of given values."""

from __future__ import annotations

import itertools
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_amortize.tracing import (
    Trace,
    deterministic_values,
    drawn_rows,
    free_depth,
    is_factor,
    location_scale,
    log_densities,
    run_model,
    seeded,
    site_values,
    with_rows,
)

_CHECKED_ROWS = (0, 3, 7)  # of eight vectorised runs


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
        return finite_rows(self.sites).cpu().numpy()


def vectorization_problem(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Why the model cannot run under an outer plate, or None if it can.

    Eight vectorised runs are made; three of them are repeated one by one at the same values,
    and must give the same log densities and deterministic values. This catches reductions
    across plates and indexing that meets the wrong axis.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.

    Returns:
        The reason in words, or None.
    """
    with torch.no_grad(), seeded(0):
        plain = run_model(model, args, kwargs)
        model = with_rows(model, drawn_rows(plain))  # the same in all runs
        try:
            values, densities = _eight_runs(model, args, kwargs, plain)
        except Exception as error:  # whatever a model does with an axis that it does not expect
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return (
                f"it fails under an outer plate{_user_line(error, model)} ({reason}). Index with "
                "a[..., idx] in place of a[idx], and write X @ b as (X * b.unsqueeze(-2)).sum(-1)"
            )
        for row in _CHECKED_ROWS:
            # Deterministic values are computed again: given, they would agree with themselves.
            drawn = {name: value[row] for name, value in values.items() if name in densities}
            single = run_model(model, args, kwargs, values=drawn)
            computed = {**deterministic_values(single), **log_densities(single)}
            for name, expected in computed.items():
                got = (densities if name in densities else values)[name][row]
                if got.shape != expected.shape or not torch.allclose(
                    got, expected, rtol=1e-3, atol=1e-4, equal_nan=True
                ):
                    return (
                        f"site '{name}' mixes vectorised runs, as a sum without a dimension does. "
                        "Name the dimension: a.sum(-1)"
                    )
    return None


def _user_line(error: Exception, model: Callable[..., Any]) -> str:
    """Where in the file of the model an error arose, in words."""
    code = getattr(model, "__code__", None)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return f" at line {lines[-1]} of {code.co_filename}" if code and lines else ""


def _eight_runs(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], plain: Trace
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and log densities of eight vectorised runs, laid out as in a plain run."""
    shape = (_CHECKED_ROWS[-1] + 1,)
    depth = free_depth(_nesting(plain), 1)
    trace = run_model(model, args, kwargs, batch_shape=shape, depth=depth)
    own_values, own_densities = site_values(plain), log_densities(plain)
    return (
        {
            name: _fit(value, shape, own_values[name].shape)
            for name, value in site_values(trace).items()
        },
        {
            name: _fit(density, shape, own_densities[name].shape)
            for name, density in log_densities(trace).items()
        },
    )


def _nesting(trace: Trace) -> int:
    return max(
        (-frame.dim for site in trace.values() for frame in site.get("cond_indep_stack", ())),
        default=0,
    )


def _fit(value: Tensor, batch_shape: Sequence[int], own_shape: Sequence[int]) -> Tensor:
    """Drop the absent plate axes between the batch axes and a site's own axes."""
    shape = (*batch_shape, *own_shape)
    if value.numel() == np.prod(shape, dtype=int):
        return value.reshape(shape)
    missing = len(shape) - value.ndim
    if missing < 0:  # some batch axis has length 1 and absent plate axes follow
        own_dims = len(own_shape)
        head = value.shape[: len(batch_shape)]
        value = value.reshape(*head, *value.shape[value.ndim - own_dims :])
    return value.expand(shape)


def joint_log_densities(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    batch_dims: int,
    *,
    is_vectorized: bool = True,
) -> dict[str, Tensor]:
    """Log density of every sample site at given values of all sites, in nats.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        values: Values of all latent and observed sites, constrained, each with the same
            `batch_dims` leading axes.
        batch_dims: Number of leading axes of draws and data sets.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        One array per site, shape `(*batch, *plates)`.
    """

    def read(trace: Trace) -> dict[str, Tensor]:
        return log_densities(trace)

    return _over_rows(model, args, kwargs, values, batch_dims, read, is_vectorized=is_vectorized)


def replay(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    batch_dims: int,
    *,
    is_vectorized: bool = True,
) -> dict[str, Tensor]:
    """All sites of the model given some of them; the others are drawn.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        values: Values of some sites, constrained, with `batch_dims` leading axes.
        batch_dims: Number of leading axes of draws and data sets.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        Values of all sample and deterministic sites, shape `(*batch, *plates, *event)`.
    """
    return _over_rows(
        model, args, kwargs, values, batch_dims, site_values, is_vectorized=is_vectorized
    )


def conditional_location_scale(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    site: str,
    values: Mapping[str, Any],
    batch_dims: int,
    *,
    is_vectorized: bool = True,
) -> tuple[Tensor, Tensor]:
    """The model's own location and scale of a site given the values of earlier sites.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        site: A latent site with a location-scale distribution.
        values: Values of the site's parents, constrained, with `batch_dims` leading axes.
        batch_dims: Number of leading axes of draws and data sets.
        is_vectorized: Whether the model runs under an outer plate.

    Returns:
        Location and scale, each of shape `(*batch, *plates, *event)`, unconstrained.
    """

    def read(trace: Trace) -> dict[str, Tensor]:
        found = location_scale(trace[site]["fn"])
        if found is None:
            raise ValueError(_other_family(site))
        return dict(zip(("loc", "scale"), found, strict=True))

    moments = _over_rows(model, args, kwargs, values, batch_dims, read, is_vectorized=is_vectorized)
    return moments["loc"], moments["scale"]


def aligned_location_scale(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    site: str,
    values: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """The same for aligned values, in one run without outer plates, for use inside a guide.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        site: A latent site with a location-scale distribution.
        values: Values of the site's parents, `(*batch, *aligned plates, *event)`.

    Returns:
        Location and scale in the host's layout, unconstrained.
    """
    found = location_scale(run_model(model, args, kwargs, values=values)[site]["fn"])
    if found is None:
        raise ValueError(_other_family(site))
    return found


def _other_family(site: str) -> str:
    return (
        f"site '{site}': expected the location-scale distribution that the guide was set up "
        "with, got another family; make a new guide for this model"
    )


def _over_rows(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    batch_dims: int,
    read: Callable[[Trace], dict[str, Tensor]],
    *,
    is_vectorized: bool,
) -> dict[str, Tensor]:
    """Read something off runs at given values: one run under outer plates, or one a row."""
    if not batch_dims:
        return read(run_model(model, args, kwargs, values=values))
    batch_shape = torch.broadcast_shapes(*(value.shape[:batch_dims] for value in values.values()))
    values = {
        name: value.expand(*batch_shape, *value.shape[batch_dims:])
        for name, value in values.items()
    }
    if not is_vectorized:
        rows = [
            read(
                run_model(
                    model, args, kwargs, values={name: v[index] for name, v in values.items()}
                )
            )
            for index in itertools.product(*map(range, batch_shape))
        ]
        return {
            name: torch.stack([row[name] for row in rows]).reshape(
                *batch_shape, *rows[0][name].shape
            )
            for name in rows[0]
        }
    first = {name: value[(0,) * batch_dims] for name, value in values.items()}
    with torch.no_grad():
        plain_trace = run_model(model, args, kwargs, values=first)
        plain = read(plain_trace)
    depth = free_depth(_nesting(plain_trace), batch_dims)
    aligned = {}
    for name, value in values.items():
        event_dim = plain_trace[name]["fn"].event_dim
        own = value.shape[batch_dims:]
        missing = depth - (len(own) - event_dim)
        aligned[name] = value.reshape(*batch_shape, *(1,) * missing, *own)
    trace = run_model(model, args, kwargs, values=aligned, batch_shape=batch_shape, depth=depth)
    return {
        name: _fit(value, batch_shape, plain[name].shape) for name, value in read(trace).items()
    }


@torch.no_grad()
def simulate_rows(
    model: Callable[..., Any],
    num_simulations: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    conditional: Sequence[str] = (),
    *,
    nesting: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Vectorised joint draws, and the model's location and scale at some sites.

    Args:
        model: The user's model.
        num_simulations: Number of runs.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        conditional: Sites whose conditional location and scale are returned too.
        nesting: Number of plate dimensions of the model, if known; then only sample sites are
            returned, at the cost of one run.

    Returns:
        Values of all sites, and `{site: (location, scale)}`; both with a leading axis of
        length `num_simulations`.
    """
    batch = (num_simulations,)
    plain = None if nesting is not None else run_model(model, args, kwargs)
    own_depth = _nesting(plain) if plain is not None else int(nesting or 0)
    depth = free_depth(own_depth, 1)
    trace = run_model(model, args, kwargs, batch_shape=batch, depth=depth)
    values, moments = {}, {}
    for name, site in trace.items():
        if site["type"] == "sample" and not is_factor(site):
            own_dims = site["fn"].event_dim + max(
                (-frame.dim for frame in site["cond_indep_stack"]), default=0
            )
            own_shape = site["value"].shape[site["value"].ndim - own_dims :]
            values[name] = _fit(site["value"], batch, own_shape)
            found = location_scale(site["fn"]) if name in conditional else None
            if found is not None:
                loc, scale = (_fit(part, batch, own_shape) for part in found)
                moments[name] = loc, scale
        elif site["type"] == "deterministic" and plain is not None:
            values[name] = _fit(site["value"], batch, plain[name]["value"].shape)
    return values, moments


def simulate(
    model: Callable[..., Any],
    num_simulations: int,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    method: Literal["auto", "vectorized", "loop"] = "auto",
) -> Simulations:
    """Draw joint simulations of every site of a model, data included.

    One run under an outer plate, after a check that a few rows repeated one by one agree;
    nothing is observed, whatever data the arguments hold. Use `method="loop"` for a model that
    cannot be vectorised, one run per simulation.

    Args:
        model: A Pyro model.
        num_simulations: Number of runs, at least 1.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        method: `"vectorized"`, `"loop"`, or `"auto"`: vectorised, and the loop with a warning
            where the check fails.

    Returns:
        The simulations, with the number of runs that are not finite per site.

    Raises:
        ValueError: If `num_simulations` is below 1, or the check fails under `"vectorized"`.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> simulate(model, 5)["z"].shape
        torch.Size([5])
    """
    if num_simulations < 1:
        raise ValueError(f"num_simulations: expected at least 1, got {num_simulations}")
    kwargs = dict(kwargs or {})
    if method != "loop":
        problem = vectorization_problem(model, args, kwargs)
        if problem is None:
            return count_nonfinite(simulate_rows(model, num_simulations, args, kwargs)[0])
        if method == "vectorized":
            raise ValueError(f"the model cannot be vectorised: {problem}")
        warnings.warn(
            f"the model cannot be vectorised, so each simulation is one run: {problem}",
            stacklevel=2,
        )
    with torch.no_grad():
        runs = [site_values(run_model(model, args, kwargs)) for _ in range(num_simulations)]
    return count_nonfinite({name: torch.stack([run[name] for run in runs]) for name in runs[0]})


def count_nonfinite(sites: Mapping[str, Tensor]) -> Simulations:
    """Wrap arrays of joint draws, counting the runs that are not finite at each site."""
    num = len(next(iter(sites.values())))
    counts = {name: int(num - finite_rows({name: value}).sum()) for name, value in sites.items()}
    return Simulations(dict(sites), num, {name: count for name, count in counts.items() if count})


def finite_rows(sites: Mapping[str, Any]) -> Tensor:
    """Which leading-axis rows are finite at every site, shape `(num_rows,)`."""
    rows = [
        torch.isfinite(torch.as_tensor(value)).reshape(len(value), -1).all(1)
        for value in sites.values()
    ]
    return torch.stack(rows).all(0)
