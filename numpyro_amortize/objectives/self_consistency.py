"""What real data without their latents say about a guide."""

from __future__ import annotations

from numpyro_amortize.objectives.fixed_draws import FixedDrawsObjective
from numpyro_amortize.tracing import Trace


class SelfConsistency(FixedDrawsObjective):
    """The variance of the log weights at real data, a loss for `fit` and for the host's `SVI`.

    `L = mean_j Var_k [log p(z_jk) + log p(x_j | z_jk) - log q(z_jk | x_j)]` in squared nats, over K
    draws of the guide and the mean over the plate elements with weights of their own. By Bayes'
    theorem it is zero where the guide is the posterior, whatever the evidence. The draws are held
    fixed, the densities are the model's, and its parameters are not trained.
    Use it in `Mixed({NPE(): 1.0, SelfConsistency(): 0.1})` for data that simulations do not look
    like: `NPE` learns nothing there, this does, and needs no latents of them. Avoid it alone, as
    it does not look for modes that the guide has left out, and with many latents that share
    their weights, whose variance is large and noisy at the start.

    Args:
        num_particles: Draws of the guide, K.

    Raises:
        ValueError: If `num_particles` is below 2; in use, if a site of a subsampled plate's model
            is not in the plate.

    Example:
        >>> SelfConsistency(32).num_particles
        32

    References:
        Schmitt, Ivanova, Habermann, Köthe, Bürkner and Radev (2024), arXiv:2310.04395;
        Mishra, Habermann, Schmitt, Radev and Bürkner (2025), arXiv:2501.13483; the gradient is
        that of Richter, Boustati, Nüsken, Ruiz and Akyildiz (2020), arXiv:2010.10436.
    """

    def __init__(self, num_particles: int = 16) -> None:
        super().__init__(num_particles, least=2)

    def level(self, guide_trace: Trace, shape: tuple[int, ...]) -> None:
        """None: the variance is about the mean of the log weights."""
