"""NPE with a penalty on how far answers move when the data do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.layout import pack_plain
from pyro_amortize.objectives.gradients import reparameterised_only
from pyro_amortize.objectives.npe import NPE, Drawn, means
from pyro_amortize.objectives.penalised_npe import PenalisedNPE
from pyro_amortize.standardisation import Standardisation
from pyro_amortize.structure import ModelStructure, SiteInfo


class FisherRegularized(PenalisedNPE):
    """NPE whose answers move little when the data do, a loss for `fit` and for the host's `SVI`.

    `loss = L_NPE + beta E_{p(x)} tr I(x)` with `I(x) = E_{q(z | x)} [g g']` and `g` the gradient
    of `log q(z | x)` with respect to the data, in units of their standardisation: to second order
    a change d of the data moves the answer by `KL(q(. | x) || q(. | x + d)) = d' I(x) d / 2` nats,
    and the trace bounds its worst direction. Held-out losses are those of NPE, so that what
    robustness costs is seen in them.
    Use it where data may be slightly wrong, with `Posterior.sensitivity` before and after; begin
    with a beta of 0.001 to 0.1. Avoid it where data are right: any beta above zero makes answers
    less sharp than the posterior, and a large one makes them the prior. A step takes some three
    times as long. Data that are missing or discrete do not move.

    Args:
        npe: What it adds to: simulations, arguments and what is missing are those of this `NPE`.
        beta: Weight of the trace, from 0 on; 0 is `npe`.
        num_samples: Draws of z for each simulation.

    Raises:
        TypeError: If `npe` is no `NPE`.
        ValueError: If a number is out of range; in use, if no observed site is continuous, or if
            draws of a latent have no gradient.

    Example:
        >>> FisherRegularized(NPE(256), 0.01).num_simulations
        256

    References:
        Gloeckler, Deistler and Macke (2023), Adversarial robustness of amortized Bayesian
        inference, arXiv:2305.14984, whose penalty on the Fisher information this is. The
        gradient goes through the draws of z, too: holding them fixed has another minimum, of a
        normal with twice the penalty on its variance. A moving average of gradients is left out.
    """

    def __init__(self, npe: NPE, beta: float, *, num_samples: int = 1) -> None:
        super().__init__(npe)
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"beta: expected a number from 0 on, got {beta}")
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
        self.beta, self.num_samples = beta, num_samples

    def _training_losses(
        self,
        model: Callable[..., Any],
        guide: Any,
        call: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The mean loss of each latent site and the penalty, and which simulations are finite."""
        losses, drawn = self._row_losses(model, guide, call, None)
        if self.beta:
            losses["Fisher penalty"] = self.beta * self._traces(guide, drawn)
        return means(losses, drawn.is_used), drawn.is_finite

    def _traces(self, guide: Any, drawn: Drawn) -> Tensor:
        """`tr I(x)` of each simulation, estimated from a few draws."""
        structure, (args, kwargs) = guide.structure, drawn.call
        scales = Standardisation.from_vector(structure, guide.standardisation).data
        names = [site.name for site in continuous_sites(structure)]
        total = torch.zeros(())
        # `no_grad` of a caller, as of an evaluation, is not for the gradient that is the loss.
        with torch.enable_grad():
            # Their gradient with respect to parameters counts, that along the data would not be
            # the score: of a reparameterised draw it is another, often zero.
            draws = guide.draw(
                args, kwargs, drawn.observations, num_samples=self.num_samples, batch_dims=1
            )
            for name, value in draws.values.items():
                if not value.requires_grad:
                    advice = reparameterised_only("FisherRegularized")
                    raise ValueError(f"site '{name}': is not reparameterised, and {advice}")
            moving = {name: drawn.observations[name].detach().requires_grad_() for name in names}
            for number in range(self.num_samples):
                latents = {name: value[number] for name, value in draws.values.items()}
                data = {**drawn.observations, **moving}
                parts = guide.site_log_probs(args, kwargs, latents, data, batch_dims=1)
                log_q = torch.stack([part.sum() for part in parts.values()]).sum()
                scores = torch.autograd.grad(log_q, list(moving.values()), create_graph=True)
                for name, score in zip(names, scores, strict=True):
                    part = pack_plain(structure, structure.site(name), score, 1) * scales[name][1]
                    total = total + (part.reshape(len(part), -1) ** 2).sum(1)
        return total / self.num_samples


def continuous_sites(structure: ModelStructure) -> list[SiteInfo]:
    """The observed sites whose data can move a little.

    Args:
        structure: The structure of the model.

    Raises:
        ValueError: If there is none.
    """
    found = [site for site in structure.observed if not site.is_discrete]
    if not found:
        raise ValueError(
            f"site '{structure.observed[0].name}': data are discrete and cannot move a little; "
            "expected an observed site with continuous data"
        )
    return found
