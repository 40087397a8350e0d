"""The amortized guide: a posterior for every data set, built from the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array

from numpyro_amortize.alternatives import ObservedSites, read_observed
from numpyro_amortize.arguments import IndexPlates, MissingSites
from numpyro_amortize.compiler import check_compiler
from numpyro_amortize.covariates import InputPlates
from numpyro_amortize.densities import AnyDensity, Density, DiscreteDensity
from numpyro_amortize.embeddings import Embedding
from numpyro_amortize.guides.assembly import build_chain
from numpyro_amortize.guides.call import (
    CallValues,
    check_call,
    host_params,
    read_call,
    read_observations,
)
from numpyro_amortize.guides.chain import PosteriorChain
from numpyro_amortize.guides.draws import PlainDraws
from numpyro_amortize.guides.host_plates import HostPlates
from numpyro_amortize.guides.specifications import (
    check_specifications,
    pointers,
    resolve_densities,
    resolve_embeddings,
    time_inputs,
)
from numpyro_amortize.guides.steps import SiteSteps
from numpyro_amortize.guides.weights import NamedWeights, model_at
from numpyro_amortize.measure import Call, conditional_moments, measure, packed_conditionals
from numpyro_amortize.obs_mask import JoinedModel, keep_constants
from numpyro_amortize.reading import Parents, read_structure
from numpyro_amortize.simulate import Simulations
from numpyro_amortize.standardisation import Moments, Standardisation
from numpyro_amortize.structure import ModelStructure, SiteInfo


class AmortizedGuide:
    """A guide that answers with a posterior for any data set of the model.

    `q(z | x) = prod_i q(z_i | context(x), parents of z_i)`, one conditional density per latent
    site, global sites first. The networks are exactly equivariant to permutations inside
    each plate and take any plate size. Train it with `fit`, or as a guide of the host's `SVI`;
    data are found in the model's own arguments at every call.

    Args:
        model: A NumPyro model, unchanged.
        observed: Name or names of the sites that carry data; or alternatives, as
            `[("y",), ("y", "w")]`, for a guide that answers for each of these sets of sites.
        inputs: Covariates: `{argument: plate}`, `{argument: (plate, ...)}` for several leading
            dimensions, or `{argument: None}` for one without a plate. A deterministic site that
            the model computes from its arguments, and whose value it uses, counts too.
        groups: Index vectors, as in `a[county]`: `{argument: (plate of a, own plate)}`.
        sizes: Arguments that are plate sizes, `{argument: plate}`; they may change between
            calls, any other plain Python argument may not.
        missing: Observed sites of which values may be missing, marked by NaN in the data; or
            `{argument: site}` for a boolean argument, a mask or `obs_mask`, True where it is there.
        embedding: One specification for all observed sites, or `{site: specification}`.
        densities: One specification for the latents that it fits, or `{site: specification}`.
        parents: `"auto"`, or `{site: earlier latents}` for the sites whose parents you choose.

    Raises:
        ValueError: At set-up, with everything that stands in the way of a guide for this model.
        TypeError: If an embedding or density is not a specification.

    Example:
        >>> import numpyro.distributions as dist
        >>> def model(y=None):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y").setup()
        >>> print(guide.structure)
        latent sites, in the order in which the guide draws them:
          z | y
        observed sites and inputs:
          y

    References:
        Papamakarios and Murray (2016), arXiv:1605.06376; Webb et al. (2018), arXiv:1712.00287,
        for the faithful factorisation behind the choice of parents.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        observed: ObservedSites,
        inputs: InputPlates | None = None,
        groups: IndexPlates | None = None,
        sizes: Mapping[str, str] | None = None,
        missing: MissingSites = (),
        embedding: Embedding | Mapping[str, Embedding] | None = None,
        densities: AnyDensity | Mapping[str, AnyDensity] | None = None,
        parents: Parents = "auto",
    ) -> None:
        self.observed, self.alternatives = read_observed(observed)
        self.user_model = model  # as it was given
        self.model = JoinedModel(model, self.observed) if missing else model
        self.inputs = dict(inputs or {})
        self.groups = {name: (into, along) for name, (into, along) in (groups or {}).items()}
        self.sizes = dict(sizes or {})
        self.missing = missing
        self._embedding = check_specifications("embedding", embedding, Embedding)
        self._densities = check_specifications("densities", densities, Density, DiscreteDensity)
        self._parents = parents
        self.init_seed = 0  # of the networks; members of an ensemble have each their own
        self.setup_call: Call = ((), {})
        self.measured_on: Simulations | None = None
        self._observations: Mapping[str, Any] | None = None
        self._true_sizes: Mapping[str, Any] = {}
        self._structure: ModelStructure | None = None
        self._init_params: dict[str, Any] = {}

    @property
    def is_bound(self) -> bool:
        """Whether the guide has its data fixed, by `bind`."""
        return self._observations is not None

    @property
    def structure(self) -> ModelStructure:
        """What the guide has read of the model.

        Raises:
            RuntimeError: If the guide has not been set up.
        """
        if self._structure is None:
            raise RuntimeError("AmortizedGuide: not set up; call guide.setup(*args, **kwargs)")
        return self._structure

    def setup(self, *args: Any, **kwargs: Any) -> AmortizedGuide:
        """Read the model, measure the standardisation and build the networks, once.

        It uses fixed keys. `fit` and the first call of the guide do it for you.

        Args:
            *args: Positional arguments of the model; data among them are not used.
            **kwargs: Keyword arguments of the model.

        Returns:
            The guide itself.

        Raises:
            ValueError: If the model cannot have a guide; the message lists every reason.
        """
        return self.setup_over([(args, kwargs)])

    def setup_over(self, calls: Sequence[Call]) -> AmortizedGuide:
        """`setup` with the standardisation measured over several calls of the model.

        Args:
            calls: Pairs of positional and keyword arguments.
        """
        if self._structure is not None:
            return self
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(list(calls))):
            raise RuntimeError(
                "AmortizedGuide: the first call is inside jit, where the model cannot be "
                "measured; call guide.setup(*args, **kwargs) with real arrays before it"
            )
        structure = read_structure(
            self.model,
            *calls[0],
            observed=self.observed,
            inputs=self.inputs,
            sizes=self.sizes,
            groups=self.groups,
            missing=self.missing,
            alternatives=self.alternatives,
            parents=self._parents,
            pointers=pointers(self._densities),
        )
        model = keep_constants(self.model, structure.constants)
        self.setup_call = calls[0]
        times = time_inputs(self.specifications(structure)[0]).values()
        standardisation, self.measured_on = measure(model, structure, calls)
        self.build(structure, standardisation.with_times(times))
        return self

    def build(self, structure: ModelStructure, standardisation: Standardisation) -> None:
        """Build the networks from a structure and constants; `setup` and `load` end here."""
        check_compiler()
        embeddings, densities = self.specifications(structure)
        chain = build_chain(structure, embeddings, densities, jax.random.key(self.init_seed))
        self._weights = NamedWeights(chain, structure)
        self._structure = structure
        self.model = keep_constants(self.model, structure.constants)
        self._init_params = self._weights.initial(standardisation)

    def specifications(
        self, structure: ModelStructure
    ) -> tuple[dict[str, Embedding], dict[str, AnyDensity]]:
        """The embedding of each observed and the density of each latent site.

        Raises:
            ValueError: If a specification is given for a site that does not exist or fit it.
        """
        embeddings = resolve_embeddings(self._embedding, structure.observed)
        return embeddings, resolve_densities(self._densities, structure)

    def init_params(self) -> dict[str, Any]:
        """Initial parameters under the names that the host's `SVI` uses."""
        _ = self.structure
        return dict(self._init_params)

    def bind(self, observations: Mapping[str, Any]) -> AmortizedGuide:
        """This guide with its data fixed, for hosts that call it with the data left out.

        Args:
            observations: Value of each observed site, `(*plates, *event)`.

        Returns:
            A guide that shares structure and parameters with this one.
        """
        bound = copy.copy(self)
        bound._observations = dict(observations)
        return bound

    def padded(self, true_sizes: Mapping[str, Any]) -> AmortizedGuide:
        """This guide for calls of padded plates, whose networks look at what exists only.

        Args:
            true_sizes: For each padded plate the number of its elements that exist.

        Returns:
            A guide that shares structure and parameters with this one.
        """
        own = copy.copy(self)
        own._true_sizes = dict(true_sizes)
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
            ValueError: If data are missing or do not fit the model.
        """
        self.setup(*args, **kwargs)
        plates = HostPlates(self.model, self.structure, args, kwargs)
        found = self.find_observations(args, kwargs, observations, rows=plates.rows)
        params = {name: numpyro.param(name, value) for name, value in self._init_params.items()}
        params |= host_params(self.model, self.structure, args, kwargs)
        call = self.call_values(args, kwargs, found, 0, self._true_sizes, plates.rows)
        plates.open(call.sizes)
        steps = self.steps(params, args, kwargs, found, call, 0, plates.rows)
        latents = steps.run(plates.sample)
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
        check_call(self.model, self.structure, args, kwargs, self.sizes, rows)
        given = self._observations if observations is None else observations
        times = time_inputs(self.specifications(self.structure)[0])
        return read_observations(
            self.model, self.structure, args, kwargs, given, rows, batch_dims, times
        )

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
    ) -> PlainDraws:
        """One draw of the latents per data set, outside any handler.

        Args:
            params: Parameters as in `init_params`.
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            observations: Data by site with `batch_dims` leading axes.
            batch_dims: Number of leading axes of data sets.
            given: Values of some latents in place of draws.
            true_sizes: For each padded plate the number of its elements that exist.
            is_heavy: Whether the noise has heavy tails, a scalar; never if None.
            rng_key: Key of the draw.

        Returns:
            Constrained `values`, their `log_probs` `(*batch, *plates)` in nats, and for latents
            that are not given the `log_tails` of `draw_with_tails`.
        """
        draws = PlainDraws(self.structure, given or {}, is_heavy, rng_key)
        call = self.call_values(args, kwargs, observations, batch_dims, true_sizes)
        self.steps(params, args, kwargs, observations, call, batch_dims).run(draws.sample)
        return draws

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
        """Log density of every latent site at given values, all at once.

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
            Shape `(*batch, *aligned plates)` per site, in nats, constrained space.
        """
        own = (args, kwargs), latents, observations, batch_dims, conditionals, true_sizes
        chain, given = self._given(params, *own)
        return chain.log_prob(*given)

    def site_losses(
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
        rng_key: Array,
    ) -> dict[str, Array]:
        """What training at given values makes small, for every latent site.

        Minus `site_log_probs`, whose arguments and shapes these are, but for sites whose density
        has a loss of its own, in units of its own and with random numbers from the key.
        """
        own = (args, kwargs), latents, observations, batch_dims, conditionals, true_sizes
        chain, given = self._given(params, *own)
        return chain.losses(*given, rng_key=rng_key)

    def _given(
        self,
        params: Mapping[str, Any],
        call: Call,
        latents: Mapping[str, Array],
        observations: Mapping[str, Array],
        batch_dims: int,
        known: Mapping[str, Moments] | None,
        true_sizes: Mapping[str, Any] | None,
    ) -> tuple[PosteriorChain, tuple[Any, ...]]:
        """The networks, and what they are given to score values."""
        chain, standardisation = self._weights.unpack(params)
        values = self.call_values(*call, observations, batch_dims, true_sizes)
        contexts = chain.contexts(standardisation, observations, values, batch_dims)
        packed = packed_conditionals(
            model_at(self.model, params), self.structure, call, latents, known or {}, batch_dims
        )
        return chain, (standardisation, contexts, latents, packed, batch_dims)

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

    def steps(
        self,
        params: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Array],
        call: CallValues,
        batch_dims: int = 0,
        rows: Mapping[str, Array] | None = None,
    ) -> SiteSteps:
        """This guide at one call, to go through its sites; values have batch axes to the left."""
        chain, standardisation = self._weights.unpack(params)
        contexts = chain.contexts(standardisation, observations, call, batch_dims)

        model, structure = model_at(self.model, params), self.structure

        def moments(site: SiteInfo, latents: Mapping[str, Array]) -> Moments:
            values, own = {**latents, **(rows or {})}, (args, kwargs)
            return conditional_moments(model, structure, site, own, values, batch_dims)

        return SiteSteps(chain, standardisation, contexts, structure, moments, batch_dims)

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
        model, structure, sizes = self.model, self.structure, true_sizes or {}
        return read_call(model, structure, args, kwargs, observations, batch_dims, sizes, rows)
