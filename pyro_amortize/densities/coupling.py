"""Elements of a plate that hang together: a rank-one correlation of their noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_amortize.densities.base import FlowDistribution, OwnLoss, as_flow
from pyro_amortize.networks import StackedMLP, positive


class RankOneCoupling(nn.Module):
    """Correlates the elements of a plate whose posterior is not independent.

    `e = n + (k - 1) v (v . n) / (v . v)` with independent noise `n`, a positive weight `v_j` of
    each element from its own context and one positive strength `k` from what is common to all;
    the determinant is `k`. A diagonal scale outside makes it exact for every Gaussian whose
    covariance is a diagonal and one rank, such as item effects given their data once the
    student effects are integrated out. Equivariant to permutations, and nothing at the start.

    Args:
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Features of one element.
        common_size: Features common to all elements.
        hidden_dims: Widths of the hidden layers.
    """

    def __init__(
        self,
        num_sites: int,
        event_size: int,
        context_size: int,
        common_size: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        self.weights = StackedMLP(
            num_sites, context_size, hidden_dims, event_size, zero_output=True
        )
        self.strengths = StackedMLP(
            num_sites, common_size, hidden_dims, event_size, zero_output=True
        )

    def forward(
        self,
        density: Any,
        context: Tensor,
        common: Tensor,
        axes: Sequence[int],
        index: int | None = None,
    ) -> Any:
        """A density of independent elements with their noise correlated.

        Args:
            density: What a conditional density gave for `context`.
            context: As given to the density.
            common: Features common to all elements, axes of the plates of length 1.
            axes: Axes of the plates, negative, the event axis included.
            index: The one site to evaluate, or None.

        Returns:
            The coupled density; the given one if its noise cannot be reached, or if its own loss
            would leave the coupling untrained.
        """
        flow = as_flow(density)
        if flow is None or isinstance(density, OwnLoss):
            return density
        step = _RankOne(
            positive(self.weights(context, index)),
            positive(self.strengths(common, index)),
            tuple(axes),
        )
        return FlowDistribution([*flow.steps, step], flow.batch_shape, flow.event_shape[0])


class _RankOne:
    """The map between coupled and independent noise."""

    def __init__(self, weight: Tensor, strength: Tensor, axes: tuple[int, ...]) -> None:
        self.weight = weight / torch.sqrt((weight**2).sum(axes, keepdim=True))
        self.strength, self.axes = strength, axes
        num_elements = 1
        for axis in axes:
            num_elements *= weight.shape[axis]
        self.share = torch.log(strength).sum(-1) / num_elements

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.weight.dtype, device=self.weight.device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        return self._stretch(coordinates, 1 / self.strength), -self.share

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self._stretch(noise, self.strength), -self.share

    def _stretch(self, noise: Tensor, factor: Tensor) -> Tensor:
        common = (self.weight * noise).sum(self.axes, keepdim=True)
        return noise + (factor - 1) * self.weight * common
