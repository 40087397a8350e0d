"""A bound taken apart: the likelihood, and the divergence of each latent site from its prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import compute_log_probs

from numpyro_amortize.objectives.gradients import (
    check_reparameterised,
    check_single,
    reparameterised_only,
)
from numpyro_amortize.objectives.particle_run import check_num_particles
from numpyro_amortize.tracing import (
    Trace,
    base_distribution,
    drawn_rows,
    elements_left_in,
    is_factor,
    is_masked,
    read_subsample_sizes,
    without_mask,
)

Site = Mapping[str, Any]


class ElboTerms(NamedTuple):
    """The parts of an ELBO in nats, means over the particles.

    Args:
        likelihood: `E_q log p(x | z)`, summed over the observed sites.
        divergences: `KL(q(z_s | .) || p(z_s | .))` by latent site, summed over its plates. For a
            site of the guide that the model does not have, `E_q log q`.
        counts: Number of plate elements of each latent site of the model, scaled and masked as
            its density in the guide is.
    """

    likelihood: Array
    divergences: dict[str, Array]
    counts: dict[str, Array]


@dataclass(frozen=True)
class ParticleSites:
    """The sites of model and guide in one run with one particle.

    Args:
        model: The model's sites by name.
        guide: The guide's sites by name.
        log_p: Log densities of the model's sites, scaled and masked, for each element.
        log_q: Those of the guide's sites.
        key: Key for further draws.
        num_particles: Number of particles of the objective.
        objective: Name of the objective, for error messages.
    """

    model: Trace
    guide: Trace
    log_p: Mapping[str, Array]
    log_q: Mapping[str, Array]
    key: Array
    num_particles: int
    objective: str

    @property
    def latents(self) -> list[str]:
        """Latent sites of the model."""
        return [name for name, site in samples(self.model) if not site["is_observed"]]

    def plates(self, name: str) -> dict[str, tuple[int, int]]:
        """Plates of a site of the model: the size of each, and the number of its rows."""
        sizes = read_subsample_sizes(self.guide) | read_subsample_sizes(self.model)
        return {frame.name: sizes[frame.name] for frame in self.model[name]["cond_indep_stack"]}

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
            jnp.sum(self.log_p[name]) for name, site in samples(self.model) if site["is_observed"]
        ]
        divergences, counts = {}, {}
        for name, own in samples(self.guide):
            if name in self.model:
                divergences[name] = self._divergence(name)
                counts[name] = jnp.sum(element_weights(own))
            else:
                divergences[name] = jnp.sum(self.log_q[name])
        return ElboTerms(sum(observed, jnp.zeros(())), divergences, counts)

    def _divergence(self, name: str) -> Array:
        """Closed form for elements that model and guide scale and mask alike, else at the draws."""
        log_q, log_p = self.log_q[name], self.log_p[name]
        closed = self._closed_form(name)
        if closed is None:
            return jnp.sum(log_q) - jnp.sum(log_p)
        weights, others = element_weights(self.guide[name]), element_weights(self.model[name])
        # Where it is masked it may be infinite, which times zero is no number.
        closed = jnp.where(weights == 0.0, 0.0, closed) * weights
        return jnp.sum(jnp.where(weights == others, closed, log_q - log_p))

    def _closed_form(self, name: str) -> Array | None:
        """The divergence of each element, or None where only draws give it.

        It is given the other latents. If a parent of the site in the model is drawn after it in
        the guide, given it, the mean over that parent is not free of the site.
        """
        order = [other for other, _ in samples(self.guide)]
        later = order[order.index(name) + 1 :]
        before = self.latents[: self.latents.index(name)]
        own, prior = (
            without_mask(self.guide[name]["fn"])[0],
            without_mask(self.model[name]["fn"])[0],
        )
        is_point = isinstance(base_distribution(own), dist.Delta)
        if set(before) & set(later) or is_point or is_masked(own) or is_masked(prior):
            return None
        try:
            found: Array = kl_divergence(own, prior)
        except NotImplementedError:
            return None
        is_complete = found.shape == own.batch_shape == prior.batch_shape
        return found if is_complete else None


class TermwiseELBO(ELBO, ABC):
    """An objective made of the parts of an ELBO, and perhaps of more that its sites say.

    Args:
        num_particles: Draws of the guide.
    """

    def __init__(self, num_particles: int = 1) -> None:
        check_num_particles(num_particles)
        super().__init__(num_particles=num_particles)

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in the host's signature.

        Args:
            rng_key: Key of the draws.
            param_map: Parameters by name, constrained.
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            `{"loss": loss, "mutable_state": None}`.
        """
        check_single(guide, self)
        params = dict(param_map)
        self._check_pair(params, model, guide, args, kwargs)  # once where this is compiled

        def run(key: Array, rows: Mapping[str, Any]) -> ParticleSites:
            model_key, guide_key = jax.random.split(key)
            at_rows = handlers.substitute(handlers.seed(guide, guide_key), data=dict(rows))
            log_q, guide_trace = compute_log_probs(
                at_rows, args, kwargs, params, sum_log_prob=False
            )
            replayed = handlers.replay(handlers.seed(model, model_key), guide_trace)
            log_p, model_trace = compute_log_probs(
                replayed, args, kwargs, params, sum_log_prob=False
            )
            own_key = jax.random.fold_in(key, 1)
            return ParticleSites(
                model_trace,
                guide_trace,
                log_p,
                log_q,
                own_key,
                self.num_particles,
                type(self).__name__,
            )

        def particle(key: Array, rows: Mapping[str, Any]) -> tuple[ElboTerms, Any]:
            sites = run(key, rows)
            sites.check()
            return sites.terms(), self._particle(sites)

        if self.num_particles == 1:
            found = jax.tree.map(lambda leaf: leaf[None], particle(rng_key, {}))
        else:
            keys = jax.random.split(rng_key, self.num_particles)
            rows = drawn_rows(run(keys[0], {}).guide)  # the same for all particles
            found = jax.vmap(particle, in_axes=(0, None))(keys, rows)
        terms, of_particles = found
        means = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), terms)
        return {"loss": self._combine(means, of_particles), "mutable_state": None}

    @abstractmethod
    def _combine(self, terms: ElboTerms, of_particles: Any) -> Array:
        """The loss from the parts of the ELBO and what `_particle` gave, by particle."""

    def _particle(self, sites: ParticleSites) -> Any:
        """What the objective reads of the sites of one particle besides the ELBO, arrays."""
        return ()

    def _check_pair(
        self,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Raise an error if the objective has no meaning for this model and guide."""


def samples(sites: Trace) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace."""
    return ((name, site) for name, site in sites.items() if site["type"] == "sample")


def element_weights(site: Site) -> Array:
    """The scale of each plate element of a site, zero where it is masked."""
    scale = 1.0 if site["scale"] is None else site["scale"]
    return present(site) * scale


def present(site: Site) -> Array:
    """One for each plate element of a site, zero where it is masked."""
    return jnp.where(elements_left_in(site["fn"]), 1.0, 0.0)


def is_finite_number(value: object) -> bool:
    """Whether a value is a finite real number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def check_number(name: str, value: float, *, lower: float) -> None:
    """Raise a ValueError if an argument is not a finite number from `lower` on."""
    if not (is_finite_number(value) and value >= lower):
        raise ValueError(f"{name}: expected a finite number of at least {lower:g}, got {value!r}")
