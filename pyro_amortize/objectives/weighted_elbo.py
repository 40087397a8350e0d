"""The evidence lower bound with a weight for the divergence from the prior, and free bits."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_amortize.objectives.elbo_terms import (
    ElboTerms,
    ParticleSites,
    TermwiseELBO,
    check_number,
)
from pyro_amortize.tracing import is_unobserved


class WeightedELBO(TermwiseELBO):
    """The ELBO with a weighted divergence and free bits, a loss for `fit` and the host's `SVI`.

    `L = E_q log p(x | z) - kl_weight * sum_s max(KL_s, free_bits * n_s)` in nats, with
    `KL_s = KL(q(z_s | .) || p(z_s | .))` summed over the plates of latent site s and `n_s` the
    number of its plate elements, both with the scales of subsampled plates and handlers, without
    what is masked. The divergence is the closed form where the host has one and the order of the
    sites allows it, else `log q - log p` at the draws. Weight 1 without free bits is the ELBO.
    Use a weight above 1 for latents that say less, each in its own coordinate (beta-VAE), below 1
    for more detail, and free bits against latents that say nothing. Avoid other weights where the
    posterior is wanted: the guide then is that of a likelihood to the power 1 / kl_weight, and
    the value is no bound on the evidence.

    Args:
        num_particles: Draws of the guide.
        kl_weight: Weight of the divergences, from 0 on.
        free_bits: Nats for each plate element, on average over elements and particles, that each
            latent site may say at no cost. Below it the site's divergence has no gradient.

    Raises:
        ValueError: If an argument is out of range; in use, if a draw of the guide is not
            reparameterised, if the guide misses a latent site, or if there are free bits and
            the guide draws sites that the model does not have.

    Example:
        >>> WeightedELBO(kl_weight=4.0).kl_weight
        4.0

    References:
        Higgins and others (2017), beta-VAE, equation 4; Kingma, Salimans and others (2016),
        arXiv:1606.04934, equation 15, whose groups are the sites here.
    """

    def __init__(
        self, num_particles: int = 1, *, kl_weight: float = 1.0, free_bits: float = 0.0
    ) -> None:
        check_number("kl_weight", kl_weight, lower=0.0)
        check_number("free_bits", free_bits, lower=0.0)
        super().__init__(num_particles)
        self.kl_weight, self.free_bits = kl_weight, free_bits

    def _combine(self, terms: ElboTerms, sites: ParticleSites) -> Tensor:
        total = torch.zeros(())
        for name, divergence in terms.divergences.items():
            if self.free_bits and not is_unobserved(name):
                if name not in terms.counts:
                    raise ValueError(
                        f"site '{name}': is in the guide and not in the model, so that free_bits "
                        "has no divergence to look at. Use free_bits=0, or a guide with a "
                        "distribution for each latent site"
                    )
                floor = self.free_bits * terms.counts[name]
                divergence = torch.maximum(divergence, floor)
            total = total + divergence
        return self.kl_weight * total - terms.likelihood
