"""Checks that a model means what a guide must assume: its arguments and its plates."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from numpyro_amortize.arguments import bound_arguments, given_arguments, is_array
from numpyro_amortize.covariates import input_values
from numpyro_amortize.discrete import moved_pointers
from numpyro_amortize.levels import GroupInfo
from numpyro_amortize.structure import ModelStructure
from numpyro_amortize.tracing import (
    deterministic_values,
    drawn_rows,
    is_factor,
    log_densities,
    run_model,
    site_values,
    with_rows,
)

_KEY = 20260101


def read_data(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Array]:
    """Values that the model observes when it is called with these arguments, by site."""
    return read_data_and_sizes(model, args, kwargs)[0]


def read_data_and_sizes(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rows: Mapping[str, Array] | None = None,
) -> tuple[dict[str, Array], dict[str, int]]:
    """What the model observes when it is called with these arguments, and its plates.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        rows: For each subsampled plate the indices of the rows to look at; drawn if None.

    Returns:
        Values by site, and the number of rows of every plate.
    """
    with handlers.block():
        seeded = handlers.seed(with_rows(model, rows), jax.random.key(_KEY))
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
    data = {
        name: _spread(jnp.asarray(site["value"]), site["fn"].shape())
        for name, site in sites.items()
        if site["is_observed"] and site["value"] is not None and not is_factor(site)
    }
    frames = [frame for site in sites.values() for frame in site["cond_indep_stack"]]
    return data, {frame.name: frame.size for frame in frames}


def plain_data_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> set[str]:
    """Arguments that give the data of a scalar observed site as a plain Python number.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    bound = bound_arguments(model, args, kwargs)
    scalars = {
        name: value for name, value in read_data(model, args, kwargs).items() if value.ndim == 0
    }
    found = set()
    for name, number in bound.arguments.items():
        if is_array(number) or not any(is_value(data, number) for data in scalars.values()):
            continue
        call = inspect.BoundArguments(bound.signature, dict(bound.arguments) | {name: number + 1})
        after = read_data(model, call.args, call.kwargs)
        if any(not is_same(data, after[site]) for site, data in scalars.items()):
            found.add(name)
    return found


def argument_problems(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    observed: tuple[str, ...],
    inputs: tuple[str, ...],
) -> list[str]:
    """Arguments that a guide would not see, and models that simulate from their data.

    Each undeclared array is perturbed under one key. If draws change, either the argument is
    data (some observed value changes too): the model reads its data while it simulates; or
    it is an input that nobody declared, unless the model uses it only through deterministic
    sites that are inputs: held at their values, nothing moves.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        observed: Names of the observed sites.
        inputs: Names of the declared inputs.

    Returns:
        One message per problem.
    """
    bound = given_arguments(model, args, kwargs)  # a default is part of the model
    key = jax.random.key(_KEY)
    simulated = site_values(run_model(model, args, kwargs, key))
    data = read_data(model, args, kwargs)
    computed = [
        site for site in inputs if site in simulated and site not in bound.signature.parameters
    ]
    problems = []
    for name, value in bound.arguments.items():
        if name in inputs or not is_array(value):
            continue
        changed = dict(bound.arguments) | {name: perturbed(value)}
        call = inspect.BoundArguments(bound.signature, changed)
        again = site_values(run_model(model, call.args, call.kwargs, key))
        moved = sorted(site for site in simulated if not is_same(simulated[site], again[site]))
        if not moved:
            continue
        new_data = read_data(model, call.args, call.kwargs)
        if any(site in data and not is_same(data[site], new_data[site]) for site in observed):
            problems.append(
                f"argument '{name}': the model reads this data while it simulates (sites "
                f"{moved} change with it). Write the model so that later values come from its "
                "own earlier draws, for example with numpyro.contrib.control_flow.scan"
            )
            continue
        held = {site: simulated[site] for site in computed}
        again = site_values(run_model(model, call.args, call.kwargs, key, values=held))
        followed = [site for site in computed if site in moved]
        moved = sorted(site for site in simulated if not is_same(simulated[site], again[site]))
        if moved:
            problems.append(
                f"argument '{name}': changes sites {moved} but is not declared, so the guide "
                f"would not see it. Pass inputs={{'{name}': plate}} with the plate that its "
                f"leading dimension follows, or inputs={{'{name}': None}} if it has none; if it "
                f"is an index vector, groups={{'{name}': (plate it points into, its own plate)}}"
            )
            if followed:
                problems[-1] += (
                    f". Through the inputs {followed} the guide sees it only where the model uses "
                    "what their statements return: x = deterministic('x', ...)"
                )
    return problems


class PlateCheck:
    """Compares site densities at one simulated set of values and at changed ones.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        structure: The structure read so far.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        structure: ModelStructure,
    ) -> None:
        self._model, self._structure, self._call = model, structure, (args, kwargs)
        self._bound = bound_arguments(model, args, kwargs)
        trace, again = (
            run_model(model, args, kwargs, jax.random.key(key)) for key in (_KEY, _KEY + 1)
        )
        self._values, self._others = (
            {
                name: jnp.asarray(site["value"])
                for name, site in run.items()
                if site["type"] == "sample"
                and not is_factor(site)
                and name not in structure.constants
            }
            for run in (trace, again)
        )
        self._rows = drawn_rows(trace)
        self._inputs = input_values(model, args, kwargs, structure.inputs, self._rows)
        self._input_shapes = {
            item.name: jnp.shape(trace[item.name]["value"])
            for item in structure.inputs
            if item.is_site
        }
        self._base = log_densities(trace)
        self._computed = deterministic_values(trace)
        self._axes = {name: _plate_axes(trace[name]) for name in self._base}

    def problems(self) -> list[str]:
        """Plates whose elements are not exchangeable, or not independent given their parents.

        Rolling all values and inputs along a plate must roll the densities; changing the first
        element of a local latent must leave the densities at the other elements alone.
        """
        found = []
        for plate in self._plates():
            moved = self._first_moved(plate)
            if moved is not None:
                found.append(
                    f"plate '{plate}': its elements are not exchangeable at site '{moved}': "
                    "they differ by something that the guide cannot see, such as a constant "
                    "inside the model or an order. Pass what differs as an argument and declare "
                    f"it: inputs={{'argument': '{plate}'}}"
                )
            for latent in self._structure.latents:
                touched = plate in latent.plates and self._touched(plate, latent.name)
                if touched:
                    found.append(
                        f"site '{latent.name}': its elements along plate '{plate}' depend on "
                        f"each other: changing the first one changes site '{touched}' at other "
                        "elements. Move what they share to a site outside the plate, or write "
                        f"'{latent.name}' as one vector-valued site with .to_event(1)"
                    )
        for group in self._structure.groups:
            found += self._group_problems(group)
        return found

    def _group_problems(self, group: GroupInfo) -> list[str]:
        """Latents that reach rows which their index vector gives to another element."""
        others = np.asarray(self._index(group)) != 0
        size = self._structure.plates[group.plate].size
        found = []
        for latent in self._structure.latents:
            if group.plate not in latent.plates or size < 2:
                continue
            axis = self._axes[latent.name][group.plate][0]
            changed = self._values | {latent.name: _first_replaced(self._values[latent.name], axis)}
            after = self._densities(changed, {})
            for name, density in self._base.items():
                if group.along not in self._axes[name]:
                    continue
                axis = self._axes[name][group.along][1]
                pair = (jnp.moveaxis(part, axis, 0)[others] for part in (density, after[name]))
                if not _close(*pair):
                    found.append(
                        f"groups '{group.name}': element 0 of site '{latent.name}' changes site "
                        f"'{name}' at rows that the index vector gives to other elements. Declare "
                        "the index vector with which the model really picks from "
                        f"plate '{group.plate}'"
                    )
        return found

    def mask_problems(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
        """Masks of a call that the model does not apply to their sites.

        Args:
            args: Positional arguments of the call as the user made it.
            kwargs: Its keyword arguments.

        Returns:
            One message per mask.
        """
        arguments = bound_arguments(self._model, args, kwargs).arguments
        found = []
        for info in self._structure.missing:
            mask = arguments.get(info.argument) if info.argument else None
            if mask is None or mask.size < 1:
                continue
            hidden = jnp.zeros(mask.shape, bool)
            density = self._densities(self._values, {str(info.argument): hidden})[info.site]
            if jnp.any(density != 0):
                found.append(
                    f"missing '{info.argument}': the density of site '{info.site}' stays where the "
                    "mask is false. Apply it in the model: numpyro.handlers.mask(mask=...) around "
                    "the site"
                )
            elif info.has_positions and not self._masks_positions(
                info.site, str(info.argument), mask
            ):
                found.append(
                    f"missing '{info.argument}': the density of site '{info.site}' is not that of "
                    "the positions where the mask is true. Mask each step given the latents: "
                    "dist.Normal(mean, scale).mask(mask).to_event(1)"
                )
        return found

    def noise_problems(self) -> list[str]:
        """Sites whose densities or values change from run to run at the same draws."""
        key = jax.random.key(_KEY + 1)
        values = {**self._values, **self._rows}
        trace = run_model(self._model, *self._call, key, values=values)
        again = {**log_densities(trace), **deterministic_values(trace)}
        return [
            f"site '{name}': changes from run to run although all sites keep their values, so that "
            "something random is hidden from the guide. Take the site that is drawn out of "
            "block(...), or draw it with a sample statement"
            for name, value in {**self._base, **self._computed}.items()
            if not _close(value, again[name])
        ]

    def _masks_positions(self, name: str, argument: str, mask: Any) -> bool:
        """Whether values of a site matter where its mask is true, and nowhere else."""
        shape = mask.shape[-len(self._structure.site(name).event_shape) :]
        there = (jnp.arange(math.prod(shape)) % 2 == 0).reshape(shape)
        value, other = self._values[name], self._others[name]
        given = {argument: jnp.broadcast_to(there, mask.shape)}
        base, hidden, seen = (
            self._densities(self._values | {name: changed}, given)[name]
            for changed in (value, jnp.where(there, value, other), jnp.where(there, other, value))
        )
        return _close(base, hidden) and not _close(base, seen)

    def mixing_plates(self) -> set[str]:
        """Plates along which data or inputs of one element enter the densities of others."""
        observed = [site.name for site in self._structure.observed]
        inputs = [item.name for item in self._structure.inputs]
        return {
            plate
            for plate in self._plates()
            if any(
                self._touched(plate, name)
                for name in observed
                if plate in self._structure.site(name).plates
            )
            or any(self._touched_by_input(plate, name) for name in inputs)
        }

    def _plates(self) -> list[str]:
        plates = self._structure.plates.values()
        return [plate.name for plate in plates if not plate.is_event and plate.size > 1]

    def _densities(
        self, values: Mapping[str, Array], inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        computed = {
            name: value.reshape(self._input_shapes[name])
            for name, value in inputs.items()
            if name in self._input_shapes
        }
        values = {**values, **computed, **self._rows}
        changed = dict(self._bound.arguments) | {
            name: self._at_rows(name, value)
            for name, value in inputs.items()
            if name not in computed
        }
        call = inspect.BoundArguments(self._bound.signature, changed)
        return log_densities(
            run_model(self._model, call.args, call.kwargs, jax.random.key(_KEY), values=values)
        )

    def _at_rows(self, name: str, value: Array) -> Array:
        """An argument with these values at the rows of subsampled plates, where it has any."""
        of_groups = {group.name: (group.along,) for group in self._structure.groups}
        of_inputs = {item.name: item.plates for item in self._structure.inputs}
        plates = (of_inputs | of_groups).get(name, ())
        if not set(plates) & set(self._rows):
            return value
        whole = jnp.asarray(self._bound.arguments[name])
        index = [
            self._rows.get(plate, jnp.arange(size))
            for plate, size in zip(plates, whole.shape, strict=False)
        ]
        return whole.at[jnp.ix_(*index)].set(value)

    def _first_moved(self, plate: str) -> str | None:
        """A site whose densities do not follow when everything rolls along the plate."""
        values = {
            name: jnp.roll(value, 1, self._axes[name][plate][0])
            if plate in self._axes[name]
            else value
            for name, value in self._values.items()
        } | moved_pointers(self._structure, self._values, plate)
        inputs = {
            item.name: jnp.roll(self._inputs[item.name], 1, item.plates.index(plate))
            for item in self._structure.inputs
            if plate in item.plates
        } | self._rolled_indices(plate)
        after = self._densities(values, inputs)
        for name, density in self._base.items():
            if plate in self._axes[name]:
                density = jnp.roll(density, 1, self._axes[name][plate][1])
            if not _close(density, after[name]):
                return name
        return None

    def _index(self, group: GroupInfo) -> Array:
        """An index vector at the rows of the run."""
        index = jnp.asarray(self._bound.arguments[group.name])
        return index[self._rows[group.along]] if group.along in self._rows else index

    def _rolled_indices(self, plate: str) -> dict[str, Array]:
        """Index vectors after everything has moved by one along a plate."""
        rolled = {}
        for group in self._structure.groups:
            index = self._index(group)
            if group.along == plate:
                rolled[group.name] = jnp.roll(index, 1)
            elif group.plate == plate:
                rolled[group.name] = (index + 1) % self._structure.plates[plate].size
        return rolled

    def _touched(self, plate: str, name: str) -> str | None:
        """A site whose other elements feel the first element of site `name`."""
        changed = _first_replaced(self._values[name], self._axes[name][plate][0])
        return self._first_changed(plate, self._densities(self._values | {name: changed}, {}))

    def _touched_by_input(self, plate: str, name: str) -> str | None:
        item = next(item for item in self._structure.inputs if item.name == name)
        if plate not in item.plates:
            return None
        changed = _first_replaced(self._inputs[name], item.plates.index(plate))
        return self._first_changed(plate, self._densities(self._values, {name: changed}))

    def _first_changed(self, plate: str, after: Mapping[str, Array]) -> str | None:
        for name, density in self._base.items():
            if plate in self._axes[name]:
                axis = self._axes[name][plate][1]
                others = (jnp.moveaxis(part, axis, 0)[1:] for part in (density, after[name]))
                if not _close(*others):
                    return name
        return None


def _plate_axes(site: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """For each plate of a site its axis in the value and in the log density."""
    event_dim = site["fn"].event_dim
    return {frame.name: (frame.dim - event_dim, frame.dim) for frame in site["cond_indep_stack"]}


def _first_replaced(value: Array, axis: int) -> Array:
    """The array with its first element along an axis replaced by one that differs, if any."""
    front = jnp.moveaxis(value, axis, 0)
    differs = jnp.any((front != front[:1]).reshape(len(front), -1), axis=1)
    return jnp.moveaxis(front.at[0].set(front[jnp.argmax(differs)]), 0, axis)


def _spread(value: Array, shape: tuple[int, ...]) -> Array:
    """Data broadcast to the shape of their site where they fit, as the host does."""
    tail = shape[len(shape) - value.ndim :]
    fits = value.ndim <= len(shape) and all(
        own in (1, size) for own, size in zip(value.shape, tail, strict=True)
    )
    return jnp.broadcast_to(value, shape) if fits else value


def perturbed(value: np.ndarray | Array) -> Array:
    """An array like another with other values, which stay in the range of an index."""
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.floating):
        filled = np.nan_to_num(value)
        return jnp.asarray(filled * 1.1 if np.any(filled) else filled + 0.1)
    if value.dtype == bool:
        return jnp.asarray(~value)
    return jnp.asarray(value.min() + value.max() - value)


def is_value(data: Array, value: Any) -> bool:
    """Whether an argument is a site's data, which a perturbed copy need not show of integers."""
    if is_array(value):
        return is_same(jnp.ravel(data), jnp.ravel(value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and bool((data == value).all())


def is_same(first: Array, second: Array) -> bool:
    """Whether two arrays are equal, NaN and all."""
    return first.shape == second.shape and bool(
        np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True)
    )


def _close(first: Array, second: Array) -> bool:
    return bool(
        np.allclose(np.asarray(first), np.asarray(second), rtol=1e-3, atol=1e-4, equal_nan=True)
    )
