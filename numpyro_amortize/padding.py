"""Calls padded to a few sizes, so that one compilation serves a range of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortize.arguments import given_arguments, is_array
from numpyro_amortize.checks import is_same, read_data
from numpyro_amortize.handlers.padding import mask_padding
from numpyro_amortize.measure import Call, call_shapes
from numpyro_amortize.structure import ModelStructure, SiteInfo
from numpyro_amortize.tracing import log_densities, plate_sizes, run_model, site_values

_SMALLEST_BUCKET = 16
_BUCKET_FACTOR = 4
_CHECKED_RUNS = 2


@dataclass(frozen=True)
class PaddedCall:
    """A call of the model whose plates may be larger than they are.

    Args:
        call: Positional and keyword arguments, at the padded sizes.
        true_sizes: For each padded plate the number of its elements that exist; the others
            come after them. These are arrays, so that compiled code serves all of them.
        sizes: Size of every plate before padding.
        padded_sizes: Size of each padded plate after it.
    """

    call: Call
    true_sizes: dict[str, Array]
    sizes: dict[str, int]
    padded_sizes: dict[str, int]

    def extend(self, structure: ModelStructure, values: Mapping[str, Array]) -> dict[str, Array]:
        """Values of sites at the padded sizes, the last element of each plate repeated.

        Args:
            structure: The structure of the model.
            values: By site, `(*batch, *plates, *event)`.

        Returns:
            The values, longer along the padded plates.
        """
        if not self.padded_sizes:
            return dict(values)
        return {
            name: _pad(
                value, _plate_axes(structure, name, value, has_event=True), self.padded_sizes
            )
            for name, value in values.items()
        }

    def cut(
        self, structure: ModelStructure, values: Mapping[str, Any], *, has_event: bool = True
    ) -> dict[str, Any]:
        """Values or densities of sites without the elements that padding has added.

        Args:
            structure: The structure of the model.
            values: By site, `(*batch, *plates, *event)`.
            has_event: Whether the values have the axes of their events.

        Returns:
            The values, shorter along the padded plates.
        """
        if not self.padded_sizes:
            return dict(values)
        found = {}
        for name, value in values.items():
            index = [slice(None)] * value.ndim
            for axis, plate in _plate_axes(structure, name, value, has_event=has_event):
                if plate in self.padded_sizes:
                    index[axis] = slice(self.sizes[plate])
            found[name] = value[tuple(index)]
        return found


class CallPadding:
    """Pads the calls of one model to the next bucket: 16, 64, 256, ... elements of a plate.

    The elements of a plate are exchangeable, so the first of a larger plate are a simulation
    of the smaller one; unless the model looks at the size, as a factor `1 / sqrt(n)` does.
    Whether it does is found by comparing the densities of all sites at both sizes.

    Args:
        model: The user's model.
        structure: Its structure.
        sizes: For each argument that is a plate size, that plate.
        plates: The plates to pad.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        structure: ModelStructure,
        sizes: Mapping[str, str],
        plates: Sequence[str],
    ) -> None:
        self._model, self._structure, self._sizes = model, structure, dict(sizes)
        self.plates = tuple(plates)
        self._seen: dict[tuple[Any, ...], dict[str, int]] = {}
        self._problem: str | None = None  # empty once found sound

    def own_sizes(self, call: Call) -> dict[str, int]:
        """Size of every plate of a call, known from its shapes after the first time."""
        shapes = call_shapes(call)
        if shapes not in self._seen:
            self._seen[shapes] = plate_sizes(self._model, *call)
        return self._seen[shapes]

    def pad(self, call: Call) -> PaddedCall:
        """A call with every padded plate at the size of its bucket."""
        own = self.own_sizes(call)
        if not self.plates:
            return PaddedCall(call, {}, own, {})
        wanted = {plate: bucket_size(own[plate]) for plate in self.plates}
        true_sizes = {plate: jnp.asarray(own[plate]) for plate in self.plates}
        return PaddedCall(self._padded_arguments(call, wanted), true_sizes, own, wanted)

    def find_problem(self, calls: Sequence[Call]) -> str | None:
        """What the model does differently at padded sizes, or None.

        Args:
            calls: Calls of the model; the first that padding changes is tried, once for all.
        """
        for call in calls if self._problem is None else ():
            padded = self.pad(call)
            grown = [plate for plate, n in padded.padded_sizes.items() if n != padded.sizes[plate]]
            if grown:
                self._problem = self._compare(call, padded, grown) or ""
                break
        return self._problem or None

    def _padded_arguments(self, call: Call, wanted: Mapping[str, int]) -> Call:
        structure, bound = self._structure, given_arguments(self._model, *call)
        along: dict[str, Sequence[tuple[int, str]]] = {}
        for item in structure.inputs:
            along[item.name] = list(enumerate(item.plates))
        for group in structure.groups:
            along[group.name] = [(0, group.along)]
        masks = {info.argument: info.site for info in structure.missing if info.argument}
        data: dict[str, Array] | None = None
        for name, value in bound.arguments.items():
            if name in self._sizes:
                bound.arguments[name] = wanted.get(self._sizes[name], value)
            elif is_array(value) and name in along:
                bound.arguments[name] = _pad(value, along[name], wanted)
            elif is_array(value) and name in masks:
                axes = _plate_axes(structure, masks[name], value, has_event=False)
                bound.arguments[name] = _pad(value, axes, wanted)
            elif is_array(value):  # data, perhaps of another site than one of the same shape
                data = read_data(self._model, *call) if data is None else data
                names = [site.name for site in structure.observed if site.name in data]
                fitting = [each for each in names if data[each].shape == value.shape]
                fitting.sort(key=lambda each: not is_same(data[each], jnp.asarray(value)))
                if fitting:
                    axes = _plate_axes(structure, fitting[0], value, has_event=True)
                    bound.arguments[name] = _pad(value, axes, wanted)
        return bound.args, bound.kwargs

    def _compare(self, call: Call, padded: PaddedCall, grown: Sequence[str]) -> str | None:
        try:
            sizes = plate_sizes(self._model, *padded.call)
        except (TypeError, ValueError) as error:
            return f"the model cannot run with plates {grown} padded: {error}"
        for plate in grown:
            if sizes.get(plate) != padded.padded_sizes[plate]:
                return (
                    f"plate '{plate}': its size does not follow from the declared arguments; name "
                    f"the argument that sets it: AmortizedGuide(..., sizes={{argument: '{plate}'}})"
                )
        structure = self._structure
        names = [site.name for site in (*structure.latents, *structure.observed)]
        for run in range(_CHECKED_RUNS):
            drawn = site_values(run_model(self._model, *padded.call, jax.random.key(run)))
            values = {name: drawn[name] for name in names}
            at_own = self._densities(call, padded.cut(structure, values), {})
            densities = self._densities(padded.call, values, padded.true_sizes)
            in_plates = {name: densities[name] for name in names}
            densities |= padded.cut(structure, in_plates, has_event=False)
            for name, density in densities.items():
                if not _agree(density, at_own[name]):
                    return (
                        f"site '{name}': changes when plates {grown} are padded, as with a factor "
                        "of the plate's size"
                    )
        return None

    def _densities(
        self, call: Call, values: Mapping[str, Array], true_sizes: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Log densities by site: of each element, of a `factor` the sum."""
        model = mask_padding(self._model, true_sizes)
        found = log_densities(run_model(model, *call, jax.random.key(0), values=values))
        names = {site.name for site in self._structure.factors}
        return {name: jnp.sum(value) if name in names else value for name, value in found.items()}


def bucket_size(size: int) -> int:
    """The padded size of a plate.

    Example:
        >>> bucket_size(16), bucket_size(17)
        (16, 64)
    """
    bucket = _SMALLEST_BUCKET
    while bucket < size:
        bucket *= _BUCKET_FACTOR
    return bucket


def _plate_axes(
    structure: ModelStructure, name: str, value: Any, *, has_event: bool
) -> list[tuple[int, str]]:
    """Axis and name of each plate of a site's values, or of its densities."""
    site: SiteInfo = structure.site(name)
    num_axes = value.ndim - (len(site.event_shape) if has_event else 0)
    return [(num_axes + structure.plates[plate].dim, plate) for plate in site.plates]


def _pad(value: Any, axes: Sequence[tuple[int, str]], wanted: Mapping[str, int]) -> Array:
    """The last element repeated: whatever is valid there is valid again."""
    array = np.asarray(value)
    widths = [(0, 0)] * array.ndim
    for axis, plate in axes:
        if plate in wanted:
            widths[axis] = (0, wanted[plate] - array.shape[axis])
    return jnp.asarray(np.pad(array, widths, mode="edge") if widths else array)


def _agree(first: Array, second: Array) -> bool:
    return first.shape == second.shape and bool(
        np.allclose(np.asarray(first), np.asarray(second), rtol=1e-3, atol=1e-3, equal_nan=True)
    )
