"""Pooling features along plates and index vectors, and spreading them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.levels import Level
from numpyro_amortize.structure import ModelStructure


class Pooling:
    """The levels of one observed site with the index vectors of one call.

    Arrays are in the aligned layout with a feature axis, `(*batch, *aligned plates, size)`.
    Elements without any row behind them, such as a group that no index names, count nowhere.

    Args:
        structure: The structure of the model.
        levels: The levels of the observed site.
        like: Any features of its rows, for the aligned plate axes and the dtype.
        indices: Values of the index vectors, each of shape `(rows,)`.
        sizes: Size of each plate into which they point.
        factors: For each subsampled plate its size over the number of rows.
        present: Boolean, which rows count, with a feature axis of length 1; all if None.
    """

    def __init__(
        self,
        structure: ModelStructure,
        levels: Sequence[Level],
        like: Array,
        indices: Mapping[str, Array],
        sizes: Mapping[str, int],
        factors: Mapping[str, float],
        present: Array | None = None,
    ) -> None:
        self.levels = tuple(levels)
        self._structure, self._indices, self._sizes = structure, indices, sizes
        shape = like.shape[like.ndim - structure.max_plate_nesting - 1 : -1]
        self.counts = [jnp.ones((*shape, 1), like.dtype)]
        self.totals = [self.counts[0]]  # with the rows that a subsampled plate leaves out
        self._present = [None if present is None else present.astype(like.dtype)]
        for level in self.levels[1:]:
            present = self._present[level.source or 0]
            rows = jnp.ones_like(self.counts[level.source or 0]) if present is None else present
            self.counts.append(self._sum(level, rows))
            factor = factors.get(str(level.plate), 1.0)
            self.totals.append(self.counts[-1] * factor)
            everywhere = present is None and level.group is None
            self._present.append(None if everywhere else (self.counts[-1] > 0).astype(rows.dtype))

    def mean(self, number: int, value: Array) -> Array:
        """The mean of features at the source of a level, pooled to that level.

        Args:
            number: The level.
            value: Features at its source.

        Returns:
            Features at the level; zeros where no row is behind an element.
        """
        level = self.levels[number]
        present = self._present[level.source or 0]
        if present is None and level.group is None:
            return jnp.mean(value, axis=self._axis(str(level.plate)), keepdims=True)
        rows = value if present is None else value * present
        return self._sum(level, rows) / jnp.maximum(self.counts[number], 1.0)

    def attend(self, number: int, scores: Array, values: Array) -> Array:
        """Means of features at the source of a level, weighed by a softmax over its rows.

        Args:
            number: The level.
            scores: Logarithms of the weights, shape `(*source, num_heads, num_readers)`.
            values: Shape `(*source, num_heads, size)`.

        Returns:
            Shape `(*level, num_readers, num_heads, size)`; zeros where no row is behind.
        """
        level = self.levels[number]
        present, heads = self._present[level.source or 0], scores.shape[-2:]
        flat = scores.reshape(*scores.shape[:-2], -1)
        if present is not None:
            flat = jnp.where(present > 0, flat, -1e30)
        top = self._top(level, jax.lax.stop_gradient(flat))
        plates = self.levels[level.source or 0].plates
        weights = jnp.exp(flat - self.spread(top, level.plates, plates))
        if present is not None:
            weights = weights * present
        total = jnp.maximum(self._sum(level, weights), 1e-30)
        total = total.reshape(*total.shape[:-1], *heads)
        if level.group is None:
            axis = self._axis(str(level.plate))
            rows = jnp.moveaxis(weights, axis, -2)
            rows = rows.reshape(*rows.shape[:-1], *heads)
            found = jnp.einsum("...nhr,...nhs->...rhs", rows, jnp.moveaxis(values, axis - 1, -3))
            found = jnp.expand_dims(found, axis - 2)
        else:
            own = weights.reshape(*weights.shape[:-1], *heads)
            each = jnp.einsum("...hr,...hs->...rhs", own, values)
            found = self._sum(level, each.reshape(*each.shape[:-3], -1))
            found = found.reshape(*found.shape[:-1], *each.shape[-3:])
        return found / total.mT[..., None]

    def sum(self, number: int, value: Array) -> Array:
        """The sum of features at the source of a level over the rows behind each element."""
        return self._sum(self.levels[number], value)

    def pool_to(
        self, plates: Sequence[str], value: Array, pool: Callable[[int, Array], Array]
    ) -> Array:
        """Features of the site's own rows, pooled step by step to the level of these plates.

        Args:
            plates: Plates of one of the levels.
            value: Features of the rows.
            pool: `mean` or `sum`.

        Returns:
            Features at the level.
        """
        number = next(n for n, level in enumerate(self.levels) if level.plates == tuple(plates))
        path = []
        while number:
            path.append(number)
            number = self.levels[number].source or 0
        for step in reversed(path):
            value = pool(step, value)
        return value

    def spread(self, value: Array, plates: Sequence[str], wanted: Sequence[str]) -> Array:
        """Features on `plates` as the rows of `wanted` see them, through index vectors.

        Plates of both, and plates that only `wanted` has, are left to broadcasting.
        """
        missing = set(plates) - set(wanted)
        reach = self._structure.reach(wanted)
        while missing:
            group = next(
                group
                for group in self._structure.groups
                if group.plate in missing and group.along in reach
            )
            value = jnp.take(value, self._indices[group.name], axis=self._axis(group.plate))
            value = jnp.swapaxes(value, self._axis(group.plate), self._axis(group.along))
            missing.discard(group.plate)
            if group.along not in wanted:
                missing.add(group.along)
        return value

    def _sum(self, level: Level, value: Array) -> Array:
        """The sum over the rows behind each element of a level."""
        axis = self._axis(str(level.plate))
        if level.group is None:
            return jnp.sum(value, axis=axis, keepdims=True)
        group = next(each for each in self._structure.groups if each.name == level.group)
        index, size = self._indices[group.name], self._sizes[group.plate]
        sums = jax.ops.segment_sum(jnp.moveaxis(value, axis, 0), index, size)
        return jnp.swapaxes(jnp.moveaxis(sums, 0, axis), axis, self._axis(group.plate))

    def _top(self, level: Level, value: Array) -> Array:
        """The maximum over the rows behind each element of a level."""
        axis = self._axis(str(level.plate))
        if level.group is None:
            return jnp.max(value, axis=axis, keepdims=True)
        group = next(each for each in self._structure.groups if each.name == level.group)
        index, size = self._indices[group.name], self._sizes[group.plate]
        tops = jax.ops.segment_max(jnp.moveaxis(value, axis, 0), index, size)
        return jnp.swapaxes(jnp.moveaxis(tops, 0, axis), axis, self._axis(group.plate))

    def _axis(self, plate: str) -> int:
        return self._structure.plates[plate].dim - 1


def existing(
    plates: Sequence[str], dims: Mapping[str, int], like: Array, true_sizes: Mapping[str, Any]
) -> Array | None:
    """Which elements of padded plates exist.

    Args:
        plates: Plates of an array in the aligned layout.
        dims: Dimension (negative) of every plate.
        like: The array, with a feature axis.
        true_sizes: For each padded plate the number of its elements that exist.

    Returns:
        Boolean, broadcastable to `(*aligned plates, 1)`; None if no plate is padded.
    """
    found = None
    for plate in plates:
        if plate in true_sizes:
            axis = dims[plate] - 1
            numbers = jnp.arange(like.shape[axis]).reshape((-1,) + (1,) * (-axis - 1))
            own = numbers < true_sizes[plate]
            found = own if found is None else found & own
    return found


def join_features(parts: Sequence[Array]) -> Array:
    """Features side by side, batch and plate axes broadcast."""
    ndim = max(part.ndim for part in parts)
    aligned = [part.reshape((1,) * (ndim - part.ndim) + part.shape) for part in parts]
    batch = jnp.broadcast_shapes(*(part.shape[:-1] for part in aligned))
    return jnp.concatenate(
        [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in aligned], axis=-1
    )
