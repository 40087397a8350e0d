"""Bounds that keep the latents informative, and their aggregate close to the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from numpyro_amortize.objectives.aggregate import (
    aggregate,
    by_element,
    check_all_local,
    site_parents,
)
from numpyro_amortize.objectives.elbo_terms import (
    ElboTerms,
    ParticleSites,
    TermwiseELBO,
    check_number,
    is_finite_number,
)


class InfoELBO(TermwiseELBO):
    """The InfoVAE family with a kernel divergence, a loss for `fit` and for the host's `SVI`.

    `J = E_q log p(x | z) - (1 - alpha) KL - (alpha + lam - 1) N MMD^2(q(z), p(z))` in nats, with KL
    summed over the N elements of the plate of the data, in which all latents are, and q(z) the
    mixture of the guide's distributions of all elements. MMD^2 is the squared kernel distance
    between one draw for each element and as many of the prior, with the kernel `k(a, b) =
    exp(-|a - b|^2 / (2 s^2))`, and has gradients through the draws of the guide alone. alpha = 0
    and lam = 1 is the ELBO, alpha + lam = 1 the ELBO with a divergence of weight lam, alpha = 1 an
    MMD-VAE.
    Use it where a strong decoder makes the latents say nothing, or where few data leave the
    aggregate far from the prior that one wants to generate from. Avoid it for a posterior: the
    value is no bound on the evidence unless alpha = 0 and lam >= 1; report the ELBO apart.

    Args:
        alpha: What is taken off the weight of the divergence of each element, at most 1.
        lam: With alpha, the weight of the kernel divergence, at least 1 - alpha and 0.
        kernel_scale: The scale s, above zero; None for the square root of the number of latent
            values of an element, so that `2 s^2` is the mean squared distance of two draws of a
            standard normal prior.
        estimator: `"u"`, unbiased, may be below zero; `"v"`, which counts each draw with itself, is
            above zero and too large by `2 (1 - E k) / B` for B elements in the call.
        num_particles: Draws of the guide, each with a divergence of its own.

    Raises:
        ValueError: If an argument is out of range; in use, if a latent is in no plate or in
            other plates than the others, if its prior depends on other latents (their
            aggregate would have to be drawn together), if the plate has one element, if the guide
            misses a latent or draws one without a gradient.

    Example:
        >>> InfoELBO(0.0, 10.0).lam
        10.0

    References:
        Zhao, Song and Ermon (2019), arXiv:1706.02262; Gretton and others (2012), A kernel
        two-sample test, for the two estimators.
    """

    def __init__(
        self,
        alpha: float,
        lam: float,
        *,
        kernel_scale: float | None = None,
        estimator: Literal["u", "v"] = "u",
        num_particles: int = 1,
    ) -> None:
        if not (is_finite_number(alpha) and alpha <= 1):
            raise ValueError(f"alpha: expected a finite number of at most 1, got {alpha!r}")
        check_number("lam", lam, lower=0.0)
        if alpha + lam < 1 - 1e-9:
            raise ValueError(
                f"lam: expected at least 1 - alpha = {1 - alpha:g}, below which the divergence "
                f"would be rewarded, got {lam!r}"
            )
        if kernel_scale is not None and not (is_finite_number(kernel_scale) and kernel_scale > 0):
            raise ValueError(f"kernel_scale: expected a positive number, got {kernel_scale!r}")
        if estimator not in ("u", "v"):
            raise ValueError(f"estimator: expected 'u' or 'v', got {estimator!r}")
        super().__init__(num_particles)
        self.alpha, self.lam = alpha, lam
        self.kernel_scale, self.estimator = kernel_scale, estimator

    @property
    def kernel_weight(self) -> float:
        """Weight of the kernel divergence; zero to rounding is zero."""
        weight = self.alpha + self.lam - 1
        return weight if weight > 1e-9 else 0.0

    def _check_pair(
        self,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Find the latents on which each prior depends."""
        if self.kernel_weight:
            at_params = handlers.substitute(model, data=dict(params))
            self._parents = site_parents(at_params, args, kwargs)

    def _particle(self, sites: ParticleSites) -> Any:
        if not self.kernel_weight:
            return ()
        names = check_all_local(sites)
        _check_priors(self._parents, set(names))
        found, keys = aggregate(sites), jax.random.split(sites.key, len(names))
        drawn = [sites.model[name]["fn"].sample(key) for name, key in zip(names, keys, strict=True)]
        prior = jnp.concatenate([by_element(value, len(found.exists)) for value in drawn], -1)
        scale = self.kernel_scale or math.sqrt(prior.shape[-1])
        prior = jax.lax.stop_gradient(prior)
        distance = squared_mmd(found.draws, prior, found.exists, scale, self.estimator)
        return found.total * distance

    def _combine(self, terms: ElboTerms, of_particles: Any) -> Array:
        divergence = sum(terms.divergences.values(), jnp.zeros(()))
        loss = (1 - self.alpha) * divergence - terms.likelihood
        return loss + self.kernel_weight * jnp.mean(of_particles) if self.kernel_weight else loss


def _check_priors(parents: Mapping[str, set[str]], latents: set[str]) -> None:
    """Raise a ValueError if the prior of a latent site depends on others."""
    for name in sorted(latents):
        if parents.get(name):
            raise ValueError(
                f"site '{name}': its prior depends on {sorted(parents[name])}, and InfoELBO draws "
                "each latent from its own prior. Write them as one vector with a joint prior, or "
                "use WeightedELBO"
            )


def squared_mmd(draws: Array, prior: Array, exists: Array, scale: float, estimator: str) -> Array:
    """The squared kernel distance of two samples of equal size.

    Args:
        draws: Shape `(..., num_elements, size)`.
        prior: Draws of the prior, of the same shape.
        exists: Shape `(num_elements,)`, one, or zero for elements that do not count.
        scale: Scale s of the kernel.
        estimator: `"u"` or `"v"`.

    Returns:
        Shape `(...,)`.
    """
    pairs = exists[:, None] * exists
    within = pairs - jnp.diag(exists**2) if estimator == "u" else pairs

    def mean_kernel(first: Array, second: Array, weights: Array) -> Array:
        cross = first @ second.mT
        squares = (first**2).sum(-1)[..., :, None] + (second**2).sum(-1)[..., None, :]
        distances = jnp.maximum(squares - 2 * cross, 0.0)
        kernel = jnp.exp(-distances / (2 * scale**2))
        return (weights * kernel).sum((-2, -1)) / weights.sum()

    own, others = mean_kernel(draws, draws, within), mean_kernel(prior, prior, within)
    return own + others - 2 * mean_kernel(draws, prior, pairs)
