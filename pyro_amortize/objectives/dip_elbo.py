"""A bound with a penalty on the moments of the aggregate posterior, for separate factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_amortize.objectives.aggregate import (
    Moments,
    aggregate,
    guide_moments,
    local_latents,
    mean_over,
    site_parents,
)
from pyro_amortize.objectives.elbo_terms import (
    ElboTerms,
    ParticleSites,
    TermwiseELBO,
    check_number,
)


class DIPELBO(TermwiseELBO):
    """The ELBO with disentangled inferred priors, a loss for `fit` and for the host's `SVI`.

    `J = ELBO - N R` in nats, `R = lambda_od * sum_{i != j} C_ij^2 + lambda_d * sum_i (C_ii - 1)^2`,
    with N the size of the plate of the data and C, for the latent values of an element, the
    covariance over elements of the guide's means (variant `"i"`), plus the mean covariance within
    an element (`"ii"`), which is the covariance of the aggregate posterior. Both (i, j) and (j, i)
    count. Covariances are over the elements of the call, with their number as divisor.
    Use it for latents with a standard normal prior, each of which is to follow one factor, at less
    loss of detail than a large `kl_weight`; variant `"i"` also keeps the latents from saying
    nothing. Avoid it for a posterior, unless `"ii"` is asked for what already holds of it, and for
    priors without unit covariance. The value is below the evidence.

    The moments are those of the guide's distributions where these know them and no latent reads
    another in the guide. Else they come from draws of two or more particles: the covariance over
    elements from products of different draws of an element, unbiased, the one within from their
    spread. R is then too large by the variance of these estimates, less with more particles.

    Args:
        lambda_od: Weight of the covariances, from 0 on.
        lambda_d: Weight of the variances, from 0 on; the paper has 10 lambda_od for `"i"` and
            lambda_od for `"ii"`.
        variant: `"i"` or `"ii"`.
        num_particles: Draws of the guide.

    Raises:
        ValueError: If an argument is out of range; in use, if latents are in no plate or in
            different ones, if the plate has one element, if the moments are not known and there
            is one particle, if the guide misses a latent or draws one without a gradient.

    Example:
        >>> DIPELBO(10.0, 10.0, variant="ii").variant
        'ii'

    References:
        Kumar, Sattigeri and Balakrishnan (2018), arXiv:1711.00848, DIP-VAE-I and -II.
    """

    def __init__(
        self,
        lambda_od: float,
        lambda_d: float,
        *,
        variant: Literal["i", "ii"],
        num_particles: int = 1,
    ) -> None:
        check_number("lambda_od", lambda_od, lower=0.0)
        check_number("lambda_d", lambda_d, lower=0.0)
        if variant not in ("i", "ii"):
            raise ValueError(f"variant: expected 'i' or 'ii', got {variant!r}")
        super().__init__(num_particles)
        self.lambda_od, self.lambda_d, self.variant = lambda_od, lambda_d, variant

    def _check_pair(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Find the latents that each latent reads in the guide."""
        self._parents = site_parents(guide, args, kwargs)

    def _combine(self, terms: ElboTerms, sites: ParticleSites) -> Tensor:
        loss = sum(terms.divergences.values(), torch.zeros(())) - terms.likelihood
        found, names = aggregate(sites), local_latents(sites)
        moments = None
        if not any(self._parents.get(name) for name in names):
            moments = guide_moments(sites, names, found.exists)
        if moments is not None:
            between, within = covariance_of_means(moments, found.exists), moments.covariance
        elif self.num_particles > 1:
            between, within = covariances_of_draws(found.draws, found.exists)
        else:
            raise _no_moments(names)
        covariance = between + within if self.variant == "ii" else between
        return loss + found.total * self._penalty(covariance)

    def _penalty(self, covariance: Tensor) -> Tensor:
        """R of a covariance matrix."""
        variances = covariance.diagonal()
        squares = (covariance**2).sum() - (variances**2).sum()
        return self.lambda_od * squares + self.lambda_d * ((variances - 1) ** 2).sum()


def _no_moments(names: list[str]) -> ValueError:
    return ValueError(
        f"sites {names}: their distributions in the guide have no mean and covariance, or read "
        "each other, so that DIPELBO needs draws. Use num_particles=2 or more"
    )


def covariance_of_means(moments: Moments, exists: Tensor) -> Tensor:
    """Covariance of the means over the elements, shape `(size, size)`."""
    centred = moments.means - mean_over(exists, moments.means)
    return (exists[:, None] * centred).mT @ centred / exists.sum()


def covariances_of_draws(draws: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased covariances of the means over elements, and within an element.

    Args:
        draws: Shape `(num_particles, num_elements, size)`, two particles or more.
        exists: Shape `(num_elements,)`, one, or zero for elements that do not count.

    Returns:
        Two arrays of shape `(size, size)`.
    """
    num, size = len(draws), draws.shape[-1]
    centred = draws - mean_over(exists, draws)[:, None]

    def products(values: Tensor) -> Tensor:
        weighted = exists[:, None] * values
        return weighted.reshape(-1, size).mT @ values.reshape(-1, size) / exists.sum()

    # Pairs of different particles: all pairs without each with itself.
    between = (products(centred.sum(0)) - products(centred)) / (num * (num - 1))
    within = products(draws - draws.mean(0)) / (num - 1)
    return between, within
