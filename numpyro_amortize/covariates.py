"""Covariates: arguments of the model, or what it computes from them before any draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

from numpyro_amortize.arguments import bound_arguments, is_array
from numpyro_amortize.structure import InputInfo, PlateInfo
from numpyro_amortize.tracing import (
    Trace,
    carries_plates,
    drawn_rows,
    leading_value,
    read_subsample_sizes,
    run_model,
    with_rows,
)

InputPlates = Mapping[str, str | Sequence[str] | None]

_CHECKED_RUNS = range(1, 9)


def read_inputs(
    arguments: Mapping[str, Any],
    inputs: InputPlates,
    plates: Mapping[str, PlateInfo],
    trace: Trace,
    run: Callable[[int, Mapping[str, Any]], Trace],
) -> tuple[tuple[InputInfo, ...], list[str]]:
    """The declared covariates, and what is wrong with them.

    Args:
        arguments: The model's arguments by name.
        inputs: For each covariate the plate or plates of its leading dimensions, or None.
        plates: The plates of the model.
        trace: One run of the model.
        run: Runs the model with a seed, at given rows of subsampled plates.
    """
    infos, problems = [], []
    computed = [name for name, site in trace.items() if site["type"] == "deterministic"]
    for name, declared in inputs.items():
        along = (declared,) if isinstance(declared, str) else tuple(declared or ())
        is_site = name not in arguments and name in computed
        if name not in arguments and not is_site:
            problems.append(
                f"input '{name}': the model has no such argument; it has {list(arguments)} and the "
                f"deterministic sites {computed}"
            )
            continue
        value = leading_value(trace[name]) if is_site else arguments[name]
        if not is_array(value):
            problems.append(
                f"input '{name}': expected an array, got {type(value).__name__}; "
                "pass one in this call"
            )
        elif missing := [plate for plate in along if plate not in plates]:
            problems.append(f"input '{name}': no site is in a plate called '{missing[0]}'")
        else:
            shape, rows = jnp.shape(value), read_subsample_sizes(trace)
            # What the model computes has the rows that it looks at, an argument has all.
            sizes = (rows.get(plate, (plates[plate].size,) * 2) for plate in along)
            expected = tuple(size[1 if is_site else 0] for size in sizes)
            if shape[: len(along)] != expected:
                problems.append(
                    f"input '{name}': expected leading shape {expected} for plates "
                    f"{list(along)}, got shape {shape}"
                )
            problems += _site_problems(name, along, trace, run) if is_site else []
            infos.append(InputInfo(name, along, shape[len(along) :], is_site))
    return tuple(infos), problems


def _site_problems(
    name: str, along: tuple[str, ...], trace: Trace, run: Callable[[int, Mapping[str, Any]], Trace]
) -> list[str]:
    """Deterministic sites that are drawn, or that lie in other plates than declared."""
    site, problems = trace[name], []
    own = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)
    if own and carries_plates(site) and tuple(frame.name for frame in own) != along:
        problems.append(
            f"input '{name}': this deterministic site is in the plates "
            f"{[frame.name for frame in own]}, declared are {list(along)}; declare its own"
        )
    value = leading_value(site)
    rows = {plate: drawn for plate, drawn in drawn_rows(trace).items() if plate in along}
    if any(
        not jnp.array_equal(value, leading_value(run(seed, rows)[name])) for seed in _CHECKED_RUNS
    ):
        problems.append(
            f"input '{name}': this deterministic site changes with what the model draws, so the "
            "guide would read what it has to infer. Compute it from arguments alone, or leave it "
            "out of inputs="
        )
    return problems


def input_values(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    inputs: Sequence[InputInfo],
    rows: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Value of every covariate in one call, its plates leading.

    Args:
        model: The user's model.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        inputs: The covariates.
        rows: For each subsampled plate the indices of the rows to look at; all if None.
    """
    if not inputs:
        return {}
    arguments, trace = bound_arguments(model, args, kwargs).arguments, {}
    if any(item.is_site for item in inputs):
        # A covariate that is not finite shall be named, before a distribution complains.
        with numpyro.validation_enabled(is_validate=False):
            trace = run_model(with_rows(model, rows), args, kwargs, jax.random.key(0))
    return {
        item.name: leading_value(trace[item.name])
        if item.is_site
        else _rows_of(jnp.asarray(arguments[item.name]), item, rows or {})
        for item in inputs
    }


def _rows_of(value: Array, item: InputInfo, rows: Mapping[str, Array]) -> Array:
    """An argument at the rows of subsampled plates."""
    for axis, plate in enumerate(item.plates):
        if plate in rows:
            value = jnp.take(value, rows[plate], axis)
    return value


def check_inputs_finite(values: Mapping[str, Any]) -> None:
    """Raise a ValueError if a covariate has values that no network and no model can take."""
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
            raise ValueError(
                f"input '{name}': expected finite values, got NaN or infinite ones. Fill "
                "them; where an observed value is missing too, any finite value will do"
            )


def check_times(name: str, times: Any, present: Any) -> None:
    """Raise a ValueError if the times of a series decrease.

    Args:
        name: Of the input.
        times: The times in its plates and steps.
        present: Which steps are there, `(*batch, *plates, steps)`.
    """
    if isinstance(times, jax.core.Tracer) or isinstance(present, jax.core.Tracer):
        return
    filled = np.where(present, times, -np.inf)
    if np.any(present & (filled < np.maximum.accumulate(filled, axis=-1))):
        raise ValueError(
            f"times '{name}': expected times that do not decrease along a series, got one "
            "that is below an earlier one; sort the steps of each series, and its data"
        )
