"""Importance-weighted bounds, with gradients that do not drown in noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from pyro_amortize.objectives.particles import plan_particles
from pyro_amortize.tracing import Trace, drawn_rows, read_nodes

Values = dict[str, Tensor]
LogWeights = tuple[Tensor, Tensor]  # of what is drawn once for all, and of each plate element


class IWAE(ELBO):
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
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(
                f"num_particles: expected a whole number of at least 1, got {num_particles!r}"
            )
        if gradient not in ("dreg", "stl", "plain"):
            raise ValueError(f"gradient: expected 'dreg', 'stl' or 'plain', got {gradient!r}")
        super().__init__(num_particles=num_particles)
        self.gradient = gradient
        self.nested = nested

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss without its gradient, as the host evaluates it."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss, its gradient added to those of the parameters, for the host's `SVI`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

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
        if self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        particle_dim = -int(self.max_plate_nesting) - 1
        plate = pyro.plate("num_particles_vectorized", self.num_particles, dim=particle_dim)
        run = _Run(plate(model), plate(guide), args, kwargs)
        values, guide_trace = run.guide_values({})
        _check_reparameterised(guide_trace)
        is_plain = self.gradient == "plain" or not torch.is_grad_enabled()
        leaves = values if is_plain else _leaves(values)
        model_trace = run.model_trace(leaves)
        plan = plan_particles(guide_trace, model_trace, particle_dim, nested=self.nested)
        shared = {
            name: value[:1].expand_as(value)
            for name, value in values.items()
            if name in plan.global_sites
        }
        given = shared if is_plain else _leaves(shared)
        if shared:
            values, guide_trace = run.guide_values(given | drawn_rows(guide_trace))
            leaves = values if is_plain else _leaves(values)
            model_trace = run.model_trace(leaves)
        of_model = plan.split(model_trace)
        if is_plain:
            return -plan.bound(*_difference(of_model, plan.split(guide_trace)))
        of_guide = plan.split(run.guide_values(leaves)[1])
        found = _difference(of_model, of_guide)
        weights, trained = found[1].detach().softmax(0), _trained(model_trace)
        floats = {name: leaf for name, leaf in leaves.items() if leaf.is_floating_point()}
        weighted = [plan.weighted(weights, parts) for parts in (of_model, of_guide)]
        first = _gradients(weighted[0], [*floats.values(), *trained])
        second = _gradients(weighted[1], list(floats.values()))
        at_leaves = dict(zip(floats, map(torch.sub, first, second), strict=False))
        own = {name: values[name] for name in floats if name not in given}
        # What is drawn once reaches the weights through the other draws too.
        through_own = _inner(own.values(), [at_leaves[name] for name in own])
        paths = dict(zip(given, _gradients(through_own, list(given.values())), strict=True))
        if self.gradient == "dreg":
            for name in own:
                at_leaves[name] = at_leaves[name] * _like(weights, at_leaves[name], particle_dim)
        # The bound in value; in gradient the paths through the draws, and the model's parameters.
        surrogate = (
            _inner(shared.values(), [at_leaves[name] + paths[name] for name in shared])
            + _inner(own.values(), [at_leaves[name] for name in own])
            + _inner(trained, first[len(floats) :])
        )
        return surrogate.detach() - plan.bound(*found).detach() - surrogate

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Traces of model and guide for one particle, as the host makes them."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


@dataclass(frozen=True)
class _Run:
    """Model and guide at the arguments of one call, with all particles."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def guide_values(self, given: Values) -> tuple[Values, Trace]:
        """Values of the guide's sites and the rows of its plates, some given, and its trace."""
        trace = self._trace(self.guide, given)
        draws = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        return draws | drawn_rows(trace), trace

    def model_trace(self, values: Values) -> Trace:
        """The trace of the model at values of its latents and rows of its plates."""
        return self._trace(self.model, values)

    def _trace(self, fn: Callable[..., Any], given: Values) -> Trace:
        replayed = poutine.Trace()
        for name, value in given.items():
            replayed.add_node(
                name, name=name, type="sample", is_observed=False, value=value, infer={}
            )
        run = poutine.trace(poutine.replay(fn, trace=replayed))
        return read_nodes(run.get_trace(*self.args, **self.kwargs).nodes)


def _difference(first: LogWeights, second: LogWeights) -> LogWeights:
    return first[0] - second[0], first[1] - second[1]


def _leaves(values: Values) -> Values:
    """The same values, cut from what they were drawn from, to be differentiated by."""
    return {
        name: value.detach().requires_grad_() if value.is_floating_point() else value
        for name, value in values.items()
    }


def _inner(first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
    products = [(one * other).sum() for one, other in zip(first, second, strict=True)]
    return sum(products, torch.zeros(()))


def _gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of a scalar, zero where it does not depend on an input."""
    if not (inputs and value.requires_grad):
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(each) if part is None else part
        for each, part in zip(inputs, found, strict=True)
    ]


def _like(weights: Tensor, value: Tensor, particle_dim: int) -> Tensor:
    """Weights of the particles, broadcastable to the values of a site."""
    return weights.reshape(*weights.shape, *(1,) * (value.ndim + particle_dim))


def _trained(model_trace: Trace) -> list[Tensor]:
    """The model's own parameters, unconstrained."""
    found = [site["value"] for site in model_trace.values() if site["type"] == "param"]
    free = [value.unconstrained() for value in found]
    return [value for value in free if value.requires_grad]


def _check_reparameterised(guide_trace: Trace) -> None:
    """Raise a ValueError if a draw of the guide has no gradient.

    What an `obs_mask` leaves unobserved has the same density in model and guide, and no weight.
    """
    for name, site in guide_trace.items():
        if site["type"] != "sample" or name.endswith("_unobserved"):
            continue
        if not site["fn"].has_rsample:
            raise ValueError(
                f"site '{name}': is not reparameterised, and the gradient of IWAE is right for "
                "reparameterised draws only. Use NPE(), or TraceGraph_ELBO(), which has score "
                "functions"
            )
