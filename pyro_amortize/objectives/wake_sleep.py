"""Wake-sleep: the model from weighted draws, the guide from those and from simulations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_amortize.objectives.mixed import Mixed
from pyro_amortize.objectives.npe import NPE
from pyro_amortize.objectives.particle_run import ParticleObjective, difference
from pyro_amortize.objectives.particles import plan_particles


class RWS(Mixed):
    """Reweighted wake-sleep, a loss for `fit` and for the host's `SVI`.

    Parameters of the model follow the gradient of the importance-weighted bound of K draws, each
    plate element with weights of its own. The guide minimises `KL(p(z | x) || q)`, at the data
    with these weights (wake, biased of order 1/K) and at simulations (sleep, unbiased):
    `-insomnia sum_k w_k log q(z_k | x) + (1 - insomnia) NPE` in nats, both with the mean over the
    plate elements of each latent site in place of their sum. No gradient passes through a draw.
    The value is minus the bound, plus `(1 - insomnia)` of the loss of `NPE`.
    Use it with discrete latents, and where the guide should cover all modes. Avoid it with many
    latents that share their weights, which one particle takes; `IWAE` has less noise where draws
    are reparameterised.

    Args:
        num_particles: Draws of the guide, K.
        insomnia: The part of wake in the guide's loss, from 0 to 1. Without sleep (1), the model
            need not be simulated.
        num_simulations: Simulations per step for sleep.

    Raises:
        ValueError: If `num_particles` is below 2 with wake in the guide's loss, or `insomnia` no
            fraction; in use, if a site of a subsampled plate's model is not in the plate, if all
            particles of a plate element have density zero, or as `NPE`.

    Example:
        >>> [weight for _, weight in RWS(8, insomnia=0.75).parts]
        [1.0, 0.25]

    References:
        Bornschein and Bengio (2015), arXiv:1406.2751; Le, Kosiorek,
        Siddharth, Teh and Wood (2019), arXiv:1805.10469.
    """

    def __init__(
        self, num_particles: int = 8, *, insomnia: float = 0.5, num_simulations: int = 64
    ) -> None:
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia: expected a fraction from 0 to 1, got {insomnia}")
        parts: dict[ELBO, float] = {_Wake(num_particles, guide_weight=insomnia): 1.0}
        if insomnia < 1:
            parts[NPE(num_simulations)] = 1.0 - insomnia
        super().__init__(parts)


class WakeSleep(RWS):
    """Classic wake-sleep, a loss for `fit` and for the host's `SVI`.

    Parameters of the model follow the gradient of the ELBO at one draw of the guide, which learns
    from simulations alone, as under `NPE`. `RWS` takes more draws, weighs them, and lets the guide
    learn from the data too; use this one where the guide should see no data.

    Args:
        num_simulations: Simulations per step.

    Raises:
        ValueError: As `RWS`.

    Example:
        >>> [weight for _, weight in WakeSleep().parts]
        [1.0, 1.0]

    References:
        Hinton, Dayan, Frey and Neal (1995), Science 268, pages 1158-1161.
    """

    def __init__(self, num_simulations: int = 64) -> None:
        super().__init__(1, insomnia=0.0, num_simulations=num_simulations)


class _Wake(ParticleObjective):
    """The importance-weighted bound for the model, weighted log densities for the guide."""

    def __init__(self, num_particles: int, *, guide_weight: float) -> None:
        # One particle has weight one wherever it is, which teaches the guide nothing.
        super().__init__(num_particles, least=2 if guide_weight > 0 else 1)
        self.guide_weight = guide_weight

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound, in gradient with the guide's own loss."""
        run = self.start(model, guide, args, kwargs)
        with torch.no_grad():
            values, guide_trace = run.guide_values({})
        model_trace = run.model_trace(values)
        plan = plan_particles(guide_trace, model_trace, run.particle_dim, nested=False)
        found = difference(plan.split(model_trace), plan.split(guide_trace))
        loss = -plan.bound(*found)
        if not (self.guide_weight and torch.is_grad_enabled()):
            return loss
        weights = found[1].detach().softmax(0)
        of_guide = plan.element_means(weights, run.guide_values(values)[1])
        return loss - self.guide_weight * (of_guide - of_guide.detach())
