"""Importance-weighted bounds, with gradients that do not drown in noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_amortize.objectives.gradients import check_reparameterised, reparameterised_only
from pyro_amortize.objectives.particle_run import (
    ParticleObjective,
    difference,
    gradients,
    inner,
    leaves_of,
)
from pyro_amortize.objectives.particles import plan_particles
from pyro_amortize.tracing import Trace, drawn_rows


class IWAE(ParticleObjective):
    """The importance-weighted bound, a loss for `fit` and for the host's `SVI`.

    `L = sum_j scale * (logsumexp_k log w_jk - log K)` in nats, with `w_jk` the weight of particle
    k at plate element j; each element that is independent of the others has weights of its own.
    It is above the ELBO and below the log evidence, and tight where the guide is the posterior.
    Use it when the guide's family is too small for the posterior. Avoid it with many latents
    that share their weights, where one particle takes them all, and with discrete latents.

    With latents in no plate beside latents in plates there are two bounds. Joint weights are over
    the whole trace, the tightest while it is small. The nested bound draws the former once,
    `log p(z) / q(z) + L(z)`, and does not degrade with the number of elements. Weights per element
    with several draws of `z` would be no bound.

    Args:
        num_particles: Draws of the guide, K.
        gradient: For the parameters of the guide: `"dreg"`, doubly reparameterised, unbiased,
            whose signal grows with K relative to its noise; `"stl"`, "sticking the landing", less
            noise near the posterior but for K > 1 not the gradient of this bound; `"plain"`, the
            total derivative, in which noise takes over as K grows.
        nested: Whether latents in no plate are drawn once for all particles; None for only where
            plates are subsampled.

    Raises:
        ValueError: If `num_particles` is below 1 or `gradient` unknown; in use, if a draw of the
            guide is not reparameterised, if the plates allow no such bound, or if all particles
            of a plate element have density zero.

    Example:
        >>> IWAE(8).num_particles
        8

    References:
        Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519, equation 8; Tucker, Lawson, Gu and
        Maddison (2019), arXiv:1810.04152, equation 8; Roeder, Wu and Duvenaud (2017),
        arXiv:1703.09194.
    """

    def __init__(
        self,
        num_particles: int = 16,
        *,
        gradient: Literal["dreg", "stl", "plain"] = "dreg",
        nested: bool | None = None,
    ) -> None:
        super().__init__(num_particles)
        if gradient not in ("dreg", "stl", "plain"):
            raise ValueError(f"gradient: expected 'dreg', 'stl' or 'plain', got {gradient!r}")
        self.gradient = gradient
        self.nested = nested

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, whose gradient is the estimator that was asked for.

        Args:
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, a scalar.
        """
        run = self.start(model, guide, args, kwargs)
        values, guide_trace = run.guide_values({})
        check_reparameterised(guide_trace, reparameterised_only("IWAE"))
        is_plain = self.gradient == "plain" or not torch.is_grad_enabled()
        leaves = values if is_plain else leaves_of(values)
        model_trace = run.model_trace(leaves)
        plan = plan_particles(guide_trace, model_trace, run.particle_dim, nested=self.nested)
        shared = {
            name: value[:1].expand_as(value)
            for name, value in values.items()
            if name in plan.global_sites
        }
        given = shared if is_plain else leaves_of(shared)
        if shared:
            values, guide_trace = run.guide_values(given | drawn_rows(guide_trace))
            leaves = values if is_plain else leaves_of(values)
            model_trace = run.model_trace(leaves)
        of_model = plan.split(model_trace)
        if is_plain:
            return -plan.bound(*difference(of_model, plan.split(guide_trace)))
        of_guide = plan.split(run.guide_values(leaves)[1])
        found = difference(of_model, of_guide)
        weights, trained = found[1].detach().softmax(0), _trained(model_trace)
        floats = {name: leaf for name, leaf in leaves.items() if leaf.is_floating_point()}
        weighted = [plan.weighted(weights, parts) for parts in (of_model, of_guide)]
        first = gradients(weighted[0], [*floats.values(), *trained])
        second = gradients(weighted[1], list(floats.values()))
        at_leaves = dict(zip(floats, map(torch.sub, first, second), strict=False))
        own = {name: values[name] for name in floats if name not in given}
        # What is drawn once reaches the weights through the other draws too.
        through_own = inner(own.values(), [at_leaves[name] for name in own])
        paths = dict(zip(given, gradients(through_own, list(given.values())), strict=True))
        if self.gradient == "dreg":
            for name in own:
                at_leaves[name] = at_leaves[name] * _like(
                    weights, at_leaves[name], run.particle_dim
                )
        # The bound in value; in gradient the paths through the draws, and the model's parameters.
        surrogate = (
            inner(shared.values(), [at_leaves[name] + paths[name] for name in shared])
            + inner(own.values(), [at_leaves[name] for name in own])
            + inner(trained, first[len(floats) :])
        )
        return surrogate.detach() - plan.bound(*found).detach() - surrogate


def _like(weights: Tensor, value: Tensor, particle_dim: int) -> Tensor:
    """Weights of the particles, broadcastable to the values of a site."""
    return weights.reshape(*weights.shape, *(1,) * (value.ndim + particle_dim))


def _trained(model_trace: Trace) -> list[Tensor]:
    """The model's own parameters, unconstrained."""
    found = [site["value"] for site in model_trace.values() if site["type"] == "param"]
    free = [value.unconstrained() for value in found]
    return [value for value in free if value.requires_grad]
