"""The ensemble of guides: a mixture of amortized posteriors of one model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array

from numpyro_amortize.guides.amortized import AmortizedGuide
from numpyro_amortize.guides.call import CallValues, host_params
from numpyro_amortize.guides.host_plates import HostPlates
from numpyro_amortize.guides.members import check_members, check_structures, check_weights
from numpyro_amortize.guides.mixture import (
    MixtureSteps,
    chain_rule,
    of_members,
    pick_members,
    without_gradient,
)
from numpyro_amortize.guides.weights import join_params, member_params
from numpyro_amortize.layout import align, natural
from numpyro_amortize.measure import Call
from numpyro_amortize.pooling import existing
from numpyro_amortize.standardisation import Moments
from numpyro_amortize.structure import ModelStructure, SiteInfo


@dataclass(frozen=True)
class EnsembleDraws:
    """Draws outside any handler, each from one member.

    Args:
        values: Constrained values by site.
        log_probs: Log densities of sites: of the mixture where values were given, of the member
            that drew them where they were not, in nats.
        log_tails: What the latter gain with heavy tails, see `draw_with_tails`.
        members: Number of the member of each draw and data set.
    """

    values: dict[str, Array]
    log_probs: dict[str, Array]
    log_tails: dict[str, Array]
    members: Array


class EnsembleGuide:
    """Several amortized guides of one model as one: the mixture of their joint densities.

    `q(z | x) = sum_m w_m q_m(z | x)`. A draw picks one member for each data set and takes all
    sites from it; the log density is the logsumexp over members of the log weight and the
    member's joint log density. It goes wherever an `AmortizedGuide` goes that is not trained:
    `AmortizedPosterior`, the host's `Predictive` and `Importance`. `fit` trains each member by
    itself.

    Use it where simulations are few and fixed: members err in different places, and there their
    mixture is wider than each. Its expected divergence from the posterior is at most the mean
    of theirs. Avoid it where simulations are free: one guide that trains longer
    costs less to evaluate, and an error that all members share stays. The density of a site
    given those before it depends on all of its elements, so that the single elements of a plate
    have no densities of their own; `IWAE` and other objectives refuse an ensemble.

    Args:
        guides: Members, made for the same model with the same `observed`, `inputs`, `groups`,
            `sizes` and `missing`; networks, densities and parents may differ. Those not set up
            yet get initial weights of their own.
        weights: Positive weights of the members, scaled to sum to one; equal ones if None.

    Raises:
        TypeError: If a member is no `AmortizedGuide`.
        ValueError: If there is no member, one is there twice, weights do not fit, or members
            disagree on the model or its sites, naming what differs.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro.handlers import seed
        >>> def model(y=None):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guides = [AmortizedGuide(model, observed="y") for _ in range(2)]
        >>> ensemble = EnsembleGuide(guides, weights=[3.0, 1.0]).setup()
        >>> ensemble.weights.tolist()
        [0.75, 0.25]
        >>> seed(ensemble, 0)(y=jnp.array(0.5))["z"].shape
        ()

    References:
        Lakshminarayanan, Pritzel and Blundell (2017), arXiv:1612.01474; Hermans, Delaunoy and
        others (2022), arXiv:2110.06581, for ensembles of posterior estimators.
    """

    is_mixture = True  # which objectives refuse

    def __init__(
        self, guides: Sequence[AmortizedGuide], weights: Sequence[float] | None = None
    ) -> None:
        self.guides = check_members(guides)
        for number, guide in enumerate(self.guides):
            guide.init_seed = number
        self.weights = check_weights(weights, len(self.guides))
        self._observations: Mapping[str, Any] | None = None
        self._picked: Array | None = None
        self._agree = False

    @property
    def model(self) -> Callable[..., Any]:
        """The model that the guides were made for; its constants are kept wherever it runs."""
        return self.guides[0].model

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the sites that carry data."""
        return self.guides[0].observed

    @property
    def sizes(self) -> dict[str, str]:
        """Arguments of the model that are plate sizes, with their plates."""
        return self.guides[0].sizes

    @property
    def structure(self) -> ModelStructure:
        """What the guides have read of the model; parents are those of the first.

        Raises:
            RuntimeError: If the guides have not been set up.
            ValueError: If they have read other sites of the model.
        """
        if not self._agree:
            check_structures([guide.structure for guide in self.guides])
            self._agree = True
        return self.guides[0].structure

    def setup(self, *args: Any, **kwargs: Any) -> EnsembleGuide:
        """Set up every member, once.

        Args:
            *args: Positional arguments of the model; data among them are not used.
            **kwargs: Keyword arguments of the model.

        Returns:
            The ensemble itself.

        Raises:
            ValueError: If the model cannot have a guide, or the members read other sites in it.
        """
        return self.setup_over([(args, kwargs)])

    def setup_over(self, calls: Sequence[Call]) -> EnsembleGuide:
        """`setup` with the standardisation measured over several calls of the model.

        Args:
            calls: Pairs of positional and keyword arguments.
        """
        for guide in self.guides:
            guide.setup_over(calls)
        _ = self.structure
        return self

    def init_params(self) -> dict[str, Any]:
        """Initial parameters under the names that the host's `SVI` uses."""
        return join_params([guide.init_params() for guide in self.guides])

    def bind(self, observations: Mapping[str, Any]) -> EnsembleGuide:
        """This guide with its data fixed, for hosts that call it with the data left out.

        Args:
            observations: Value of each observed site, `(*plates, *event)`.

        Returns:
            An ensemble of the same members.
        """
        bound = copy.copy(self)
        bound._observations = dict(observations)
        return bound

    def following(self, draws: EnsembleDraws) -> EnsembleGuide:
        """This guide for further draws that go on from others: each stays with its member.

        Args:
            draws: Draws, whose values of some sites are `given` in further ones.

        Returns:
            An ensemble of the same members. Its `draw` picks no member.
        """
        own = copy.copy(self)
        own._picked = draws.members
        return own

    def __call__(
        self, *args: Any, observations: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Array]:
        """Sample every latent site, as a guide of the host.

        Args:
            *args: The model's positional arguments.
            observations: Data by site; found in the model's arguments if None.
            **kwargs: The model's keyword arguments.

        Returns:
            The latent values, constrained.

        Raises:
            ValueError: If data are missing or do not fit the model, or the call looks at some of
                the rows of a subsampled plate.
        """
        self.setup(*args, **kwargs)
        plates = HostPlates(self.model, self.structure, args, kwargs)
        found = self.find_observations(args, kwargs, observations, rows=plates.rows)
        own = {name: numpyro.param(name, value) for name, value in self.init_params().items()}
        params = without_gradient(own) | host_params(self.model, self.structure, args, kwargs)
        call = self.call_values(args, kwargs, found, rows=plates.rows)
        for plate, factor in call.factors.items():
            if factor > 1:
                raise ValueError(
                    f"plate '{plate}': this call looks at a part of its rows, and which member a "
                    "draw is from depends on all of them. Call with a plate that is not subsampled"
                )
        plates.open(call.sizes)
        members = [
            guide.steps(own, args, kwargs, found, call, 0, plates.rows)
            for guide, own in self._with_params(params)
        ]
        latents = MixtureSteps(members, self._log_weights(), self.structure).run(plates.sample)
        plates.sample_unobserved(latents, found)
        return latents

    def find_observations(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Any] | None = None,
        batch_dims: int = 0,
        *,
        rows: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """The data of a call: given, bound, or read by tracing the model.

        Args:
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            observations: Data by site, or None.
            batch_dims: Number of leading axes of data sets.
            rows: For each subsampled plate the indices of its rows in this call.

        Returns:
            Value of each observed site.

        Raises:
            ValueError: If a site has no data, or data of a wrong shape, type or value.
        """
        given = self._observations if observations is None else observations
        return self.guides[0].find_observations(args, kwargs, given, batch_dims, rows=rows)

    def draw(
        self,
        params: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Array],
        *,
        batch_dims: int = 0,
        given: Mapping[str, Array] | None = None,
        true_sizes: Mapping[str, Any] | None = None,
        is_heavy: Array | None = None,
        rng_key: Array,
    ) -> EnsembleDraws:
        """One draw of the latents per data set, outside any handler.

        Args:
            params: Parameters as in `init_params`.
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            observations: Data by site with `batch_dims` leading axes.
            batch_dims: Number of leading axes of data sets.
            given: Values of some latents in place of draws; for an ensemble that is `following`
                the draws they are from.
            true_sizes: For each padded plate the number of its elements that exist.
            is_heavy: Whether the noise has heavy tails, a scalar; never if None.
            rng_key: Key of the draw.

        Returns:
            As `AmortizedGuide.draw`, with the member of each draw.

        Raises:
            ValueError: If values are given without the members that they are from.
        """
        if given and self._picked is None:
            raise ValueError(
                "given: expected an ensemble that knows which members these values are from, "
                "ensemble.following(draws)"
            )
        own_key, *keys = jax.random.split(rng_key, 1 + len(self.guides))
        parts = [
            guide.draw(
                own,
                args,
                kwargs,
                observations,
                batch_dims=batch_dims,
                given=given,
                true_sizes=true_sizes,
                is_heavy=is_heavy,
                rng_key=key,
            )
            for (guide, own), key in zip(self._with_params(params), keys, strict=True)
        ]
        members = self._picked
        if members is None:
            batch_shape = next(iter(observations.values())).shape[:batch_dims]
            members = pick_members(self._log_weights(), batch_shape, own_key)
        values: dict[str, Array] = dict(parts[0].values)
        log_probs: dict[str, Array] = {}
        log_tails: dict[str, Array] = {}
        log_weights = self._log_weights()
        for site in self.structure.latents:
            name = site.name
            densities = [part.log_probs[name] for part in parts]
            if name in (given or {}):
                found, log_weights = self._mixed(
                    log_weights, site, densities, batch_dims, true_sizes
                )
                log_probs[name] = natural(found, self.structure, site, 0)
                continue
            values[name] = of_members([part.values[name] for part in parts], members)
            log_probs[name] = of_members(densities, members)
            log_tails[name] = of_members([part.log_tails[name] for part in parts], members)
        return EnsembleDraws(values, log_probs, log_tails, members)

    def site_log_probs(
        self,
        params: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Array],
        observations: Mapping[str, Array],
        *,
        batch_dims: int = 0,
        conditionals: Mapping[str, Moments] | None = None,
        true_sizes: Mapping[str, Any] | None = None,
    ) -> dict[str, Array]:
        """Log density of every latent site at given values, given all that comes before it.

        Args:
            params: Parameters as in `init_params`.
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            latents: Constrained values with `batch_dims` leading axes.
            observations: Data by site with `batch_dims` leading axes.
            batch_dims: Number of leading axes.
            conditionals: The model's location and scale at conditional sites, if already
                known from a simulation; read by tracing the model otherwise.
            true_sizes: For each padded plate the number of its elements that exist.

        Returns:
            Shape `(*batch, *aligned plates)` per site, in nats, constrained space. Over all sites
            and elements they add up to the log density of the mixture; one element alone is
            given the sites before and the elements before it.
        """
        parts = [
            guide.site_log_probs(
                own,
                args,
                kwargs,
                latents,
                observations,
                batch_dims=batch_dims,
                conditionals=conditionals,
                true_sizes=true_sizes,
            )
            for guide, own in self._with_params(params)
        ]
        log_weights, found = self._log_weights(), {}
        for site in self.structure.latents:
            densities = [part[site.name] for part in parts]
            found[site.name], log_weights = self._mixed(
                log_weights, site, densities, batch_dims, true_sizes
            )
        return found

    def log_prob(
        self,
        params: Mapping[str, Any],
        latents: Mapping[str, Array],
        *args: Any,
        observations: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Array:
        """Joint log density of latents given one data set.

        Args:
            params: Parameters as in `init_params`.
            latents: Constrained values with one leading axis of draws.
            *args: The model's positional arguments.
            observations: Data by site; found in the model's arguments if None.
            **kwargs: The model's keyword arguments.

        Returns:
            Shape `(num_draws,)`, in nats, constrained space.
        """
        found = self.find_observations(args, kwargs, observations)

        def one(latents: Mapping[str, Array]) -> Array:  # the data are embedded once for all
            parts = self.site_log_probs(params, args, kwargs, latents, found)
            return jnp.sum(jnp.stack([jnp.sum(part) for part in parts.values()]))

        return jax.vmap(one)(dict(latents))

    def sample_posterior(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        *args: Any,
        observations: Mapping[str, Any] | None = None,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draws of the latents, in the signature of the host's automatic guides.

        Args:
            rng_key: Key of the draws.
            params: Parameters as in `init_params`.
            *args: The model's positional arguments.
            observations: Data by site; found in the model's arguments if None.
            sample_shape: Leading shape of the draws.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained values of shape `(*sample_shape, *plates, *event)`.
        """
        found = self.find_observations(args, kwargs, observations)

        def one(key: Array) -> dict[str, Array]:
            return self.draw(params, args, kwargs, found, rng_key=key).values

        for _ in sample_shape:
            one = jax.vmap(one)
        return one(jax.random.split(rng_key, sample_shape))

    def call_values(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Array],
        batch_dims: int = 0,
        true_sizes: Mapping[str, Any] | None = None,
        rows: Mapping[str, Array] | None = None,
    ) -> CallValues:
        """What one call gives to the networks besides its data."""
        return self.guides[0].call_values(args, kwargs, observations, batch_dims, true_sizes, rows)

    def _log_weights(self) -> Array:
        return jnp.log(jnp.asarray(self.weights, jnp.result_type(float)))

    def _with_params(
        self, params: Mapping[str, Any]
    ) -> list[tuple[AmortizedGuide, dict[str, Any]]]:
        """The members, each with its parameters."""
        return [(guide, member_params(params, k)) for k, guide in enumerate(self.guides)]

    def _mixed(
        self,
        log_weights: Array,
        site: SiteInfo,
        log_probs: Sequence[Array],
        batch_dims: int,
        true_sizes: Mapping[str, Any] | None,
    ) -> tuple[Array, Array]:
        """`chain_rule` in the aligned layout, past elements that padding has added."""
        structure = self.structure
        nesting = structure.max_plate_nesting
        aligned = jnp.stack(
            jnp.broadcast_arrays(*(align(each, nesting, 0, batch_dims) for each in log_probs))
        )
        exists = existing(site.plates, structure.plate_dims, aligned[..., None], true_sizes or {})
        if exists is not None:
            aligned = jnp.where(exists[..., 0], aligned, 0.0)
        return chain_rule(log_weights, aligned, batch_dims)


AnyGuide = AmortizedGuide | EnsembleGuide
