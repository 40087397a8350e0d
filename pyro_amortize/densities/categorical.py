"""A probability for each value of a bounded discrete site."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_amortize.densities.base import DiscreteDensity
from pyro_amortize.densities.discrete import ConditionalIntegers
from pyro_amortize.supports import Support


@dataclass(frozen=True)
class CategoricalDensity(DiscreteDensity):
    """One free probability for each value: `q(u = k | c) = softmax_k(f(c))`.

    Use it for booleans, labels and whole numbers in a range of up to some hundred values; it
    is the default for labels and for ranges of at most 256 values. It knows nothing of the
    order of the values and must learn each probability by itself: wide ranges are better left
    to `CountDensity`. The coordinates of a vector are drawn one after the other, each given
    those before it, so that any dependence between them can be learned.

    Args:
        hidden_dims: Widths of the hidden layers.

    Example:
        >>> import torch
        >>> density = CategoricalDensity(hidden_dims=(8,)).build(
        ...     1, 1, 3, Support("integer_interval", 0, 3)
        ... )
        >>> density(torch.ones(1, 3)).log_prob(torch.tensor([[2.0]])).exp()
        tensor([0.2500], grad_fn=<ExpBackward0>)

    References:
        Le, Baydin and Wood (2017), arXiv:1610.09900, section 3, for discrete proposals; Larochelle
        and Murray (2011), *The neural autoregressive distribution estimator*, for vectors.
    """

    hidden_dims: tuple[int, ...] = (64, 64)

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a discrete support, in words, or None if it can."""
        return "its range has no upper bound" if support.num_values is None else None

    def build(
        self, num_sites: int, event_size: int, context_size: int, support: Support
    ) -> ConditionalIntegers:
        """Build the networks for sites of equal event size and support."""
        family = _Categories(support.num_values or 1)
        sizes = num_sites, event_size, context_size
        return ConditionalIntegers(family, support, *sizes, self.hidden_dims)


@dataclass(frozen=True)
class _Categories:
    """The logits of all values."""

    num_parameters: int

    def log_prob(self, parameters: Tensor, number: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        known = number.clamp(0, self.num_parameters - 1).round()
        logits = torch.log_softmax(parameters, -1)
        shape = torch.broadcast_shapes(logits.shape[:-1], number.shape)
        logits = logits.expand(*shape, self.num_parameters)
        found = logits.gather(-1, known.long().expand(shape)[..., None])[..., 0]
        return torch.where(known == number, found, -torch.inf)

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        drawn = torch.distributions.Categorical(logits=parameters).sample()
        return drawn.to(parameters.dtype)
