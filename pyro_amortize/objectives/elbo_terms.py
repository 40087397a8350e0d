"""A bound taken apart: the likelihood, and the divergence of each latent site from its prior."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_amortize.objectives.gradients import (
    check_reparameterised,
    check_single,
    reparameterised_only,
)
from pyro_amortize.objectives.objective import Objective
from pyro_amortize.objectives.particle_run import check_num_particles
from pyro_amortize.tracing import base_distribution, is_factor, is_masked

_PARTICLES = "num_particles_vectorized"  # the host's plate

Site = Mapping[str, Any]
Sites = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ElboTerms:
    """The parts of an ELBO in nats, means over the particles.

    Args:
        likelihood: `E_q log p(x | z)`, summed over the observed sites.
        divergences: `KL(q(z_s | .) || p(z_s | .))` by latent site, summed over its plates. For a
            site of the guide that the model does not have, `E_q log q`.
        counts: Number of plate elements of each latent site of the model, scaled and masked as
            its density in the guide is.
    """

    likelihood: Tensor
    divergences: dict[str, Tensor]
    counts: dict[str, Tensor]


@dataclass(frozen=True)
class ParticleSites:
    """The sites of model and guide in one run with all particles.

    Args:
        model: The model's sites by name.
        guide: The guide's sites by name.
        num_particles: Number of particles, the leftmost axis of every site if more than one.
        objective: Name of the objective, for error messages.
    """

    model: Sites
    guide: Sites
    num_particles: int
    objective: str

    @property
    def latents(self) -> list[str]:
        """Latent sites of the model."""
        return [name for name, site in samples(self.model) if not site["is_observed"]]

    def plates(self, name: str) -> dict[str, tuple[int, int]]:
        """Plates of a site of the model: the size of each, and the number of its rows."""
        frames = self.model[name]["cond_indep_stack"]
        return {
            frame.name: (frame.full_size or frame.size, frame.size)
            for frame in frames
            if frame.vectorized and frame.name != _PARTICLES
        }

    def data(self) -> list[str]:
        """Observed sites of the model that hold data."""
        return [
            name
            for name, site in samples(self.model)
            if site["is_observed"] and not is_factor(site)
        ]

    def check(self) -> None:
        """Raise a ValueError if the guide misses a latent site or has a draw without gradient."""
        for name in self.latents:
            if name not in self.guide:
                raise ValueError(
                    f"site '{name}': is a latent site of the model, and the guide does not draw it"
                )
        check_reparameterised(self.guide, reparameterised_only(self.objective))

    def terms(self) -> ElboTerms:
        """The parts of the ELBO."""
        observed = [
            site["log_prob"].sum() for _, site in samples(self.model) if site["is_observed"]
        ]
        divergences, counts = {}, {}
        for name, own in samples(self.guide):
            if name in self.model:
                divergences[name] = self._divergence(name) / self.num_particles
                weights = element_weights(own)
                counts[name] = weights.sum() / self.num_particles
            else:
                divergences[name] = own["log_prob"].sum() / self.num_particles
        likelihood = sum(observed, torch.zeros(())) / self.num_particles
        return ElboTerms(likelihood, divergences, counts)

    def _divergence(self, name: str) -> Tensor:
        """Closed form for elements that model and guide scale and mask alike, else at the draws."""
        own, prior = self.guide[name], self.model[name]
        closed = self._closed_form(name)
        if closed is None:
            return own["log_prob"].sum() - prior["log_prob"].sum()
        closed = scale_and_mask(closed, own["scale"], own["mask"])
        is_alike = element_weights(own) == element_weights(prior)
        if bool(is_alike.all()):
            return closed.sum()
        return torch.where(is_alike, closed, own["log_prob"] - prior["log_prob"]).sum()

    def _closed_form(self, name: str) -> Tensor | None:
        """The divergence of each element, or None where only draws give it.

        It is given the other latents. If a parent of the site in the model is drawn after it in
        the guide, given it, the mean over that parent is not free of the site.
        """
        order = [other for other, _ in samples(self.guide)]
        later = order[order.index(name) + 1 :]
        before = self.latents[: self.latents.index(name)]
        own, prior = self.guide[name]["fn"], self.model[name]["fn"]
        is_point = isinstance(base_distribution(own), dist.Delta)  # its log density would be lost
        if set(before) & set(later) or is_point or is_masked(own) or is_masked(prior):
            return None
        try:
            found: Tensor = kl_divergence(own, prior)
        except NotImplementedError:
            return None
        is_complete = found.shape == own.batch_shape == prior.batch_shape
        return found if is_complete else None


class TermwiseELBO(Objective):
    """An objective made of the parts of an ELBO, and perhaps of more that its sites say.

    Args:
        num_particles: Draws of the guide.
    """

    def __init__(self, num_particles: int = 1) -> None:
        check_num_particles(num_particles)
        super().__init__(num_particles=num_particles, vectorize_particles=num_particles > 1)
        self._checked: tuple[Any, ...] = ()

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, whose gradient is the estimator of its gradient.

        Args:
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, a scalar.
        """
        check_single(guide, self)
        if self._checked != (model, guide):
            self._check_pair(model, guide, args, kwargs)
            self._checked = (model, guide)
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        sites = ParticleSites(
            dict(model_trace.nodes),
            dict(guide_trace.nodes),
            self.num_particles,
            type(self).__name__,
        )
        sites.check()
        return self._combine(sites.terms(), sites)

    @abstractmethod
    def _combine(self, terms: ElboTerms, sites: ParticleSites) -> Tensor:
        """The loss from the parts of the ELBO and the sites."""

    def _check_pair(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Raise an error, at their first call, if it has no meaning for this model and guide."""


def samples(sites: Sites) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace."""
    return ((name, site) for name, site in sites.items() if site["type"] == "sample")


def element_weights(site: Site) -> Tensor:
    """The scale of each plate element of a site, zero where it is masked."""
    weights: Tensor = scale_and_mask(present(site), site["scale"], None)
    return weights


def present(site: Site) -> Tensor:
    """One for each plate element of a site, zero where it is masked."""
    ones = torch.ones_like(site["log_prob"].detach())
    found: Tensor = scale_and_mask(ones, 1.0, site["mask"])
    return found


def is_finite_number(value: object) -> bool:
    """Whether a value is a finite real number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def check_number(name: str, value: float, *, lower: float) -> None:
    """Raise a ValueError if an argument is not a finite number from `lower` on."""
    if not (is_finite_number(value) and value >= lower):
        raise ValueError(f"{name}: expected a finite number of at least {lower:g}, got {value!r}")
