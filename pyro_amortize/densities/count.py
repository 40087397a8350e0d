"""Counts without an upper bound, or with a high one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_amortize.densities.base import DiscreteDensity
from pyro_amortize.densities.discrete import ConditionalIntegers
from pyro_amortize.networks import positive
from pyro_amortize.supports import Support

_SPREAD = 1.5  # outermost initial means, in prior standard deviations
_INITIAL_SCALE = 0.5
_SMALLEST_SCALE = 1e-4
_LARGEST = 2**24 - 1  # the last count before single precision leaves some out


@dataclass(frozen=True)
class CountDensity(DiscreteDensity):
    """A mixture of logistics over the logarithm of a count, summed over each count's interval.

    `q(u = k | c) = sum_m w_m(c) [F_m(log(k + 3/2)) - F_m(log(k + 1/2))]` with logistic `F_m`, for
    `k = 0` all that is below; if there is a largest count, it has all that is above. The
    probabilities sum to one. Their tails fall like a power of the count, so that importance
    weights stay bounded for Poisson, negative binomial and heavier posteriors.

    It is the default for counts without an upper bound and for ranges of more than 256
    values. Small ranges are better left to `CategoricalDensity`. Draws stop at 2^24 - 1,
    beyond which single precision has no longer every whole number.

    Args:
        num_components: Number of logistics.
        hidden_dims: Widths of the hidden layers.

    Example:
        >>> import torch
        >>> density = CountDensity(hidden_dims=(8,)).build(
        ...     1, 1, 3, Support("nonnegative_integer", 0)
        ... )
        >>> counts = torch.arange(100000.0).reshape(1, -1, 1)
        >>> round(density(torch.ones(1, 1, 3)).log_prob(counts).exp().sum().item(), 3)
        1.0

    References:
        Salimans, Karpathy, Chen and Kingma (2017), arXiv:1701.05517, eq. 2. Here on the
        logarithm, where their equation has the value itself.
    """

    num_components: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a discrete support, in words, or None if it can."""
        is_count = support.kind in ("integer_interval", "nonnegative_integer")
        return None if is_count else "its values are no counts"

    def build(
        self, num_sites: int, event_size: int, context_size: int, support: Support
    ) -> ConditionalIntegers:
        """Build the networks for sites of equal event size and support."""
        largest = None if support.num_values is None else support.num_values - 1
        family = _Counts(self.num_components, largest)
        sizes = num_sites, event_size, context_size
        return ConditionalIntegers(family, support, *sizes, self.hidden_dims)


@dataclass(frozen=True)
class _Counts:
    """Weights, means and scales of the logistics."""

    num_components: int
    largest: int | None

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_components

    def log_prob(self, parameters: Tensor, number: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        top = math.inf if self.largest is None else self.largest
        known = number.clamp(0, top).round()
        log_weights, means, scales = self._components(parameters)
        start = ((torch.log(known + 0.5) - loc) / scale)[..., None]
        start = (start - means) / scales
        width = (torch.log1p(1 / (known + 0.5)) / scale)[..., None] / scales
        is_first, is_last = (known == 0)[..., None], (known == top)[..., None]
        # F(b) - F(a) = F(b) (1 - F(a)) (1 - exp(a - b)): no difference of nearly equal numbers.
        below_end = torch.where(is_last, 0.0, logsigmoid(start + width))
        above_start = torch.where(is_first, 0.0, logsigmoid(-start))
        between = torch.where(is_first | is_last, 0.0, torch.log(-torch.expm1(-width)))
        mass = torch.logsumexp(log_weights + below_end + above_start + between, -1)
        return torch.where(known == number, mass, -torch.inf)

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        log_weights, means, scales = self._components(parameters)
        chosen = torch.distributions.Categorical(logits=log_weights).sample()[..., None]
        mean, spread = (part.gather(-1, chosen)[..., 0] for part in (means, scales))
        uniform = torch.rand_like(mean)
        tiny = torch.finfo(mean.dtype).tiny
        noise = torch.log(uniform.clamp_min(tiny)) - torch.log1p(-uniform)
        top = _LARGEST if self.largest is None else self.largest
        logarithm = (loc + scale * (mean + spread * noise)).clamp_max(math.log(top + 1.5))
        return torch.floor(torch.exp(logarithm) - 0.5).clamp(0, top)

    def _components(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and scales of the components, in prior standard deviations."""
        weights, shifts, spreads = parameters.split(self.num_components, -1)
        positions = torch.linspace(
            -_SPREAD, _SPREAD, self.num_components, dtype=shifts.dtype, device=shifts.device
        )
        scales = _INITIAL_SCALE * positive(spreads) + _SMALLEST_SCALE
        return torch.log_softmax(weights, -1), positions + shifts, scales
