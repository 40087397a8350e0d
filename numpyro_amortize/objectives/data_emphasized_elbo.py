"""The evidence lower bound with a likelihood that counts for more, to learn prior scales by."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.objectives.elbo_terms import (
    ElboTerms,
    ParticleSites,
    TermwiseELBO,
    is_finite_number,
    present,
)


class DataEmphasizedELBO(TermwiseELBO):
    """The ELBO with an emphasised likelihood, a loss for `fit` and for the host's `SVI`.

    `J = kappa * E_q log p(y | w) - KL(q(w) || p(w))` in nats, maximised over the guide and the
    `param` sites of the prior, its scales above all. With far more latents than data the ELBO
    prefers a narrow prior and a guide that is the prior; `kappa = D / N`, latent dimensions over
    rows of data, gives both parts their say, and the scales are learned from all data without a
    validation split. The weight is for all observed sites and factors, for no latent one.
    Use it for weights of networks and of many features with learned prior scales. Avoid it where
    the posterior is wanted: the guide is that of a likelihood to the power kappa, the value is no
    bound on the evidence (report the ELBO apart), and the scales are not those that maximise it.
    Do not expect better length scales of a kernel than the ELBO's.

    Args:
        kappa: Weight of the likelihood, above zero, or `"auto"` for D / N: D counts the latent
            values, all of which must be outside of the plate of the data; N counts the rows of
            that plate in full, without those that are masked.
        num_particles: Draws of the guide.

    Raises:
        ValueError: If `kappa` is not positive and finite; in use, if `"auto"` finds latents in the
            plate of the data, data in no plate or in several, if the guide misses a latent site
            or draws one without a gradient, or, outside of
            `jit`, if a divergence is not finite, as with a
            prior scale of zero.

    Warns:
        UserWarning: Once, if the model has no `param` site, so that there is nothing to learn.

    Example:
        >>> DataEmphasizedELBO(kappa=50.0).kappa
        50.0

    References:
        Harvey, Petrov and Hughes (2026), Learning hyperparameters via a data-emphasized variational
        objective.
    """

    def __init__(self, kappa: float | Literal["auto"] = "auto", *, num_particles: int = 1) -> None:
        if kappa != "auto" and not (is_finite_number(kappa) and kappa > 0):
            raise ValueError(f"kappa: expected a positive number or 'auto', got {kappa!r}")
        super().__init__(num_particles)
        self.kappa = kappa
        self._has_warned = False

    def _particle(self, sites: ParticleSites) -> Array:
        self._warn(sites)
        return _dimensions_over_rows(sites) if self.kappa == "auto" else jnp.asarray(self.kappa)

    def _combine(self, terms: ElboTerms, of_particles: Any) -> Array:
        for name, divergence in terms.divergences.items():
            if not (isinstance(divergence, jax.core.Tracer) or jnp.isfinite(divergence)):
                raise ValueError(
                    f"site '{name}': its divergence from the prior is {float(divergence)}. Look "
                    "for a prior scale that went to zero or infinity; a constraint such as "
                    "positive, and a smaller learning rate, keep it away"
                )
        kappa = jnp.mean(of_particles)
        return sum(terms.divergences.values()) - kappa * terms.likelihood

    def _warn(self, sites: ParticleSites) -> None:
        if self._has_warned or any(site["type"] == "param" for site in sites.model.values()):
            return
        self._has_warned = True
        warnings.warn(
            "DataEmphasizedELBO: the model has no param sites, so that there is nothing to learn "
            "but the guide. Make the scales of the prior param sites",
            stacklevel=2,
        )


def _dimensions_over_rows(sites: ParticleSites) -> Array:
    """D / N of a model, with N without what is masked."""
    data = {name: sites.plates(name) for name in sites.data()}
    for name, plates in data.items():
        if len(plates) != 1:
            raise ValueError(
                f"site '{name}': is observed in plates {list(plates)}, and kappa='auto' needs one, "
                "whose rows are the data. Give kappa as a number"
            )
    sizes = {plate: size for plates in data.values() for plate, (size, _) in plates.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"kappa: 'auto' needs data in a plate, all of one size, got {sizes}. Give kappa as a "
            "number"
        )
    num_latents = jnp.zeros(())
    for name in sites.latents:
        plates = sites.plates(name)
        if set(sizes) & set(plates):
            raise ValueError(
                f"site '{name}': is a latent in plates {list(plates)}, one of which is that of the "
                "data, so that latents for each row are ambiguous. Give kappa as a number"
            )
        values = math.prod(sites.guide[name]["fn"].event_shape) * _factor(plates)
        num_latents = num_latents + present(sites.guide[name]).sum() * values
    num_rows = [present(sites.model[name]).sum() * _factor(plates) for name, plates in data.items()]
    return num_latents / jnp.max(jnp.stack(num_rows))


def _factor(plates: dict[str, tuple[int, int]]) -> float:
    """Sizes of plates over their numbers of rows, multiplied."""
    return math.prod(size / num_rows for size, num_rows in plates.values())
