"""NPE with a penalty on how far answers move when the data do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.layout import pack_plain
from numpyro_amortize.objectives.gradients import reparameterised_only
from numpyro_amortize.objectives.npe import NPE, Drawn, means
from numpyro_amortize.objectives.penalised_npe import PenalisedNPE
from numpyro_amortize.pooling import existing
from numpyro_amortize.standardisation import Standardisation
from numpyro_amortize.structure import ModelStructure, SiteInfo

_PENALTY = 2**31 - 2  # beside the key of losses that are random


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
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Any,
        call: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> tuple[dict[str, Array], Array]:
        """The mean loss of each latent site and the penalty, and which simulations are finite."""
        losses, drawn = self._row_losses(rng_key, param_map, model, guide, call, None)
        if self.beta:
            self._check_draws(param_map, guide, drawn)
            penalty = self.beta * self._traces(param_map, guide, drawn)
            losses["Fisher penalty"] = jnp.where(self._is_held_out, 0.0, penalty)
        return means(losses, drawn.is_used), drawn.is_finite

    def _traces(self, param_map: Mapping[str, Any], guide: Any, drawn: Drawn) -> Array:
        """`tr I(x)` of each simulation, estimated from a few draws."""
        structure, (args, kwargs) = guide.structure, drawn.call
        scales = Standardisation.from_params(structure, param_map).data
        moving = {site.name: drawn.observations[site.name] for site in continuous_sites(structure)}
        options: dict[str, Any] = {"batch_dims": 1, "true_sizes": self._true_sizes}

        def log_q(moving: Mapping[str, Array], latents: Mapping[str, Array]) -> Array:
            data = {**drawn.observations, **moving}
            parts = guide.site_log_probs(param_map, args, kwargs, latents, data, **options)
            return sum((self._total(structure, *each) for each in parts.items()), jnp.zeros(()))

        def squares(key: Array) -> Array:
            # Their gradient with respect to parameters counts, that along the data would not be
            # the score: of a reparameterised draw it is another, often zero.
            draws = guide.draw(param_map, args, kwargs, drawn.observations, rng_key=key, **options)
            scores = jax.grad(log_q)(moving, draws.values)
            parts = [
                pack_plain(structure, structure.site(name), score, 1) * scales[name][1]
                for name, score in scores.items()
            ]
            flat = [part.reshape(len(part), -1) for part in parts]
            return sum((jnp.sum(part**2, axis=1) for part in flat), jnp.zeros(()))

        keys = jax.random.split(jax.random.fold_in(drawn.key, _PENALTY), self.num_samples)
        return jnp.mean(jax.vmap(squares)(keys), axis=0)

    def _check_draws(self, param_map: Mapping[str, Any], guide: Any, drawn: Drawn) -> None:
        """Raise a ValueError if a latent's draws have no gradient."""
        args, kwargs = drawn.call
        values = guide.call_values(args, kwargs, drawn.observations, 1, self._true_sizes)
        steps = guide.steps(param_map, args, kwargs, drawn.observations, values, 1)

        def given(site: SiteInfo, distribution: Any) -> Array:
            if not distribution.has_rsample:
                advice = reparameterised_only("FisherRegularized")
                raise ValueError(f"site '{site.name}': is not reparameterised, and {advice}")
            return drawn.latents[site.name]

        steps.run(given)

    def _total(self, structure: ModelStructure, name: str, part: Array) -> Array:
        """The sum of log densities over simulations and the plate elements that exist."""
        plates = structure.site(name).plates
        present = existing(plates, structure.plate_dims, part[..., None], self._true_sizes)
        return jnp.sum(part) if present is None else jnp.sum(part, where=present[..., 0])


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
