"""Generalised divisive normalisation: coordinates divided by what all of them have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from pyro_amortize.densities.flow_steps import TriangularAffine, affine_network, check_steps
from pyro_amortize.networks import StackedMLP, positive

_NUM_ROOT_STEPS = 15
_TINY = 1e-30  # in place of zero, whose logarithm no step can take


@dataclass(frozen=True)
class GDNFlowDensity(Density):
    """A flow of divisive normalisations: tails that all coordinates share, heavy or light.

    Each step maps standardised coordinates `z` towards standard normal noise by

        y_i = z_i / (beta_i + sum_j gamma_ij z_j^2)^eps_i,  beta, gamma > 0,  |eps| <= max_exponent,

    between conditional triangular affine maps, `log q(u | c) = log N(f(u)) + log |det df/du|` in
    nats. A positive exponent divides by a common scale and so makes a normal of a scale mixture;
    a negative one does the reverse, for light tails. Everything starts at the identity.

    Use it for vectors whose coordinates are large together, such as elliptical posteriors with
    heavy tails, which flows of one coordinate at a time reach slowly. Draws solve `y(z) = y` by
    Newton's steps with a system of the event's size: not for long events.

    Args:
        num_transforms: Number of steps.
        hidden_dims: Widths of the hidden layers.
        max_exponent: Largest size of an exponent, below 1/2: there the image is bounded, and
            nothing would be mapped to noise outside.

    Raises:
        ValueError: If `num_transforms < 1` or `max_exponent` is not between 0 and 1/2.

    Example:
        >>> density = GDNFlowDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])

    References:
        Balle, Laparra and Simoncelli (2016), arXiv:1511.06281, eqs. 3 and 9 to 12, with
        `alpha = 2`. Negative exponents and parameters from a context are ours, as are Newton's
        steps in place of the fixed point iteration.
    """

    num_transforms: int = 2
    hidden_dims: tuple[int, ...] = (64, 64)
    max_exponent: float = 0.4

    def __post_init__(self) -> None:
        check_steps("coupling", self.num_transforms)
        if not 0 < self.max_exponent < 0.5:
            raise ValueError(
                f"max_exponent: expected a number between 0 and 0.5, got {self.max_exponent}"
            )

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        sizes = num_sites, event_size, context_size
        num_outputs = event_size * (event_size + 2)
        steps = [
            StackedMLP(num_sites, context_size, self.hidden_dims, num_outputs, zero_output=True)
            for _ in range(self.num_transforms)
        ]
        affine = [affine_network(*sizes, self.hidden_dims) for _ in range(self.num_transforms + 1)]
        return ConditionalGDN(steps, affine, event_size, self.max_exponent)


class ConditionalGDN(ConditionalDensity):
    """The built form of `GDNFlowDensity`."""

    def __init__(
        self,
        steps: Sequence[StackedMLP],
        affine: Sequence[StackedMLP],
        event_size: int,
        max_exponent: float,
    ) -> None:
        super().__init__()
        self.steps, self.affine = nn.ModuleList(steps), nn.ModuleList(affine)
        self.event_size, self.max_exponent = event_size, max_exponent

    def forward(self, context: Tensor, index: int | None = None) -> FlowDistribution:
        """The densities given contexts."""
        networks, affine = (
            [network(context, index) for network in cast(Iterable[StackedMLP], group)]
            for group in (self.steps, self.affine)
        )
        steps: list[Any] = [TriangularAffine(affine[0], self.event_size)]
        for own, outputs in zip(networks, affine[1:], strict=True):
            steps.append(GDNTransform(*self._constrained(own)))
            steps.append(TriangularAffine(outputs, self.event_size))
        return FlowDistribution(steps, context.shape[:-1], self.event_size)

    def _constrained(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters of a step; the identity for zeros, with a gradient for the exponents."""
        size = self.event_size
        exponent = self.max_exponent * torch.tanh(outputs[..., size : 2 * size])
        square = outputs[..., 2 * size :].reshape(*outputs.shape[:-1], size, size)
        return positive(outputs[..., :size]), exponent, positive(square) / size


class GDNTransform:
    """A step that divides each coordinate by a power of a sum over the squares of all.

    In `log |z|` the step is the identity less `eps log D`, whose slopes add up to less than
    `2 |eps| < 1` in every row: a contraction, so that it is one to one onto the whole space.

    Args:
        base: `beta`, positive, shape `(*batch, size)`.
        exponent: `eps`, between -1/2 and 1/2, shape `(*batch, size)`.
        weights: `gamma`, positive, shape `(*batch, size, size)`.
    """

    def __init__(self, base: Tensor, exponent: Tensor, weights: Tensor) -> None:
        self.base, self.exponent, self.weights = base, exponent, weights

    def like(self, shape: torch.Size) -> Tensor:
        """Standard normal noise of the type and device of the step."""
        return torch.randn(shape, dtype=self.base.dtype, device=self.base.device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Image and log determinant."""
        square = coordinates**2
        pooled = self._pooled(square)
        log_pooled = torch.log(pooled)
        image = coordinates * torch.exp(-self.exponent * log_pooled)
        # The determinant of 1 - z A z is that of 1 - A z z.
        log_det = torch.linalg.slogdet(_one_less(self._slopes(square, pooled)))[1]
        return image, log_det - (self.exponent * log_pooled).sum(-1)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Preimage and log determinant of `to_noise` there."""
        root = self._root(noise)
        image, _ = self.to_noise(root)
        with torch.no_grad():
            pooled = self._pooled(root**2)
            slopes = self._slopes(torch.ones_like(root), pooled)
            matrix = _one_less(root[..., :, None] * slopes * root[..., None, :])
            matrix = torch.exp(-self.exponent * torch.log(pooled))[..., None] * matrix
        # The last step of Newton has the gradient of the implicit function.
        value = root - torch.linalg.solve(matrix, (image - noise)[..., None])[..., 0]
        return value, self.to_noise(value)[1]

    @torch.no_grad()
    def _root(self, noise: Tensor) -> Tensor:
        """The preimage by Newton's steps in the logarithm of its coordinates' sizes.

        Where one does not help, the fixed point iteration makes the error smaller by `2 |eps|`.
        """
        target = torch.log(noise.abs().clamp(min=_TINY))
        size, error = target, self._error(target, target)
        for _ in range(_NUM_ROOT_STEPS):
            square = torch.exp(2 * size)
            matrix = _one_less(self._slopes(square, self._pooled(square)))
            newton = size - torch.linalg.solve(matrix, error[..., None])[..., 0]
            after = self._error(newton, target)
            is_better = _largest(after) <= _largest(error)  # no number is not
            size = torch.where(is_better, newton, size - error)
            error = torch.where(is_better, after, self._error(size, target))
        return torch.copysign(torch.exp(size), noise)

    def _error(self, size: Tensor, target: Tensor) -> Tensor:
        return size - self.exponent * torch.log(self._pooled(torch.exp(2 * size))) - target

    def _pooled(self, square: Tensor) -> Tensor:
        return self.base + (self.weights @ square[..., None])[..., 0]

    def _slopes(self, square: Tensor, pooled: Tensor) -> Tensor:
        """`2 eps_i gamma_ij z_j^2 / D_i`: rows add up to less than `2 eps_i`."""
        return 2 * self.weights * square[..., None, :] * (self.exponent / pooled)[..., None]


def _one_less(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) - matrix


def _largest(error: Tensor) -> Tensor:
    return error.abs().amax(-1, keepdim=True)
