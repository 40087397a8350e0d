"""Pooling features along plates and index vectors, and spreading them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyro_amortize.levels import Level
from pyro_amortize.structure import ModelStructure


class Pooling:
    """The levels of one observed site with the index vectors of one call.

    Arrays are in the aligned layout with a feature axis, `(*batch, *aligned plates, size)`.
    Elements without any row behind them, such as a group that no index names, count nowhere.

    Args:
        structure: The structure of the model.
        levels: The levels of the observed site.
        like: Any features of its rows, for the aligned plate axes, the dtype and the device.
        indices: Values of the index vectors, each of shape `(rows,)`.
        sizes: Size of each plate into which they point.
        factors: For each subsampled plate its size over the number of rows.
        present: Boolean, which rows count, with a feature axis of length 1; all if None.
    """

    def __init__(
        self,
        structure: ModelStructure,
        levels: Sequence[Level],
        like: Tensor,
        indices: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        factors: Mapping[str, float],
        present: Tensor | None = None,
    ) -> None:
        self.levels = tuple(levels)
        self._structure, self._sizes = structure, sizes
        self._indices = {name: rows.to(like.device) for name, rows in indices.items()}
        shape = like.shape[like.ndim - structure.max_plate_nesting - 1 : -1]
        self.counts = [like.new_ones((*shape, 1))]
        self.totals = [self.counts[0]]  # with the rows that a subsampled plate leaves out
        self._present = [None if present is None else present.to(like.dtype)]
        for level in self.levels[1:]:
            present = self._present[level.source or 0]
            rows = torch.ones_like(self.counts[level.source or 0]) if present is None else present
            self.counts.append(self._sum(level, rows))
            factor = factors.get(str(level.plate), 1.0)
            self.totals.append(self.counts[-1] * factor)
            everywhere = present is None and level.group is None
            self._present.append(None if everywhere else (self.counts[-1] > 0).to(rows.dtype))

    def mean(self, number: int, value: Tensor) -> Tensor:
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
            return value.mean(self._axis(str(level.plate)), keepdim=True)
        rows = value if present is None else value * present
        return self._sum(level, rows) / self.counts[number].clamp(min=1.0)

    def attend(self, number: int, scores: Tensor, values: Tensor) -> Tensor:
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
        flat = scores.flatten(-2)
        if present is not None:
            flat = torch.where(present > 0, flat, -1e30)
        top = self._top(level, flat.detach())
        plates = self.levels[level.source or 0].plates
        weights = torch.exp(flat - self.spread(top, level.plates, plates))
        if present is not None:
            weights = weights * present
        total = self._sum(level, weights).clamp(min=1e-30).unflatten(-1, heads)
        if level.group is None:
            axis = self._axis(str(level.plate))
            rows = weights.movedim(axis, -2).unflatten(-1, heads)
            found = torch.einsum("...nhr,...nhs->...rhs", rows, values.movedim(axis - 1, -3))
            found = found.unsqueeze(axis - 2)
        else:
            each = torch.einsum("...hr,...hs->...rhs", weights.unflatten(-1, heads), values)
            found = self._sum(level, each.flatten(-3)).unflatten(-1, each.shape[-3:])
        return found / total.mT[..., None]

    def sum(self, number: int, value: Tensor) -> Tensor:
        """The sum of features at the source of a level over the rows behind each element."""
        return self._sum(self.levels[number], value)

    def pool_to(
        self, plates: Sequence[str], value: Tensor, pool: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
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

    def spread(self, value: Tensor, plates: Sequence[str], wanted: Sequence[str]) -> Tensor:
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
            axis = self._axis(group.plate)
            value = value.index_select(axis, self._indices[group.name])
            value = value.transpose(axis, self._axis(group.along))
            missing.discard(group.plate)
            if group.along not in wanted:
                missing.add(group.along)
        return value

    def _sum(self, level: Level, value: Tensor) -> Tensor:
        """The sum over the rows behind each element of a level."""
        axis = self._axis(str(level.plate))
        if level.group is None:
            return value.sum(axis, keepdim=True)
        group = next(each for each in self._structure.groups if each.name == level.group)
        shape = list(value.shape)
        shape[axis] = self._sizes[group.plate]
        sums = value.new_zeros(shape).index_add(axis, self._indices[group.name], value)
        return sums.transpose(axis, self._axis(group.plate))

    def _top(self, level: Level, value: Tensor) -> Tensor:
        """The maximum over the rows behind each element of a level."""
        axis = self._axis(str(level.plate))
        if level.group is None:
            return value.amax(axis, keepdim=True)
        group = next(each for each in self._structure.groups if each.name == level.group)
        shape, along = list(value.shape), [1] * value.ndim
        shape[axis], along[axis] = self._sizes[group.plate], -1
        index = self._indices[group.name].reshape(along).expand(value.shape)
        tops = value.new_full(shape, -1e30).scatter_reduce(axis, index, value, "amax")
        return tops.transpose(axis, self._axis(group.plate))

    def _axis(self, plate: str) -> int:
        return self._structure.plates[plate].dim - 1


def join_features(parts: Sequence[Tensor]) -> Tensor:
    """Features side by side, batch and plate axes broadcast."""
    if len(parts) == 1:
        return parts[0]
    ndim = max(part.ndim for part in parts)
    aligned = [part.reshape((1,) * (ndim - part.ndim) + part.shape) for part in parts]
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in aligned))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in aligned], -1)
