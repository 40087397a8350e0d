"""The amortized guide: a posterior for every data set, built from the model itself."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_amortize.alternatives import ObservedSites, read_observed
from pyro_amortize.arguments import IndexPlates, MissingSites
from pyro_amortize.covariates import InputPlates
from pyro_amortize.densities import AnyDensity, Density, DiscreteDensity
from pyro_amortize.embeddings import Embedding
from pyro_amortize.guides import specifications as specs
from pyro_amortize.guides.assembly import build_chain
from pyro_amortize.guides.call import CallValues, check_call, read_call, read_observations
from pyro_amortize.guides.chain import Contexts, PosteriorChain
from pyro_amortize.guides.draws import PlainDraws
from pyro_amortize.guides.host_plates import HostPlates
from pyro_amortize.guides.steps import SiteSteps
from pyro_amortize.guides.store import register_chain, stored_structure, structure_state
from pyro_amortize.measure import Call, conditional_moments, measure, packed_conditionals
from pyro_amortize.obs_mask import JoinedModel, keep_constants
from pyro_amortize.reading import Parents, read_structure
from pyro_amortize.simulate import vectorization_problem
from pyro_amortize.standardisation import Moments, Standardisation, standardisation_size
from pyro_amortize.structure import ModelStructure, SiteInfo
from pyro_amortize.tracing import seeded, with_rows

_COPIES = itertools.count(1)


class AmortizedGuide(PyroModule):
    """A guide that answers with a posterior for any data set of the model.

    `q(z | x) = prod_i q(z_i | context(x), parents of z_i)`, one conditional density per latent
    site, global sites first. The networks are exactly equivariant to permutations inside
    each plate and take any plate size. Train it with `fit`, or as a guide of the host's `SVI`;
    data are found in the model's own arguments at every call.

    Args:
        model: A Pyro model, unchanged.
        observed: Name or names of the sites that carry data; or alternatives, as
            `[("y",), ("y", "w")]`, for a guide that answers for each of these sets of sites.
        inputs: Covariates: `{argument: plate}`, `{argument: (plate, ...)}` for several leading
            dimensions, or `{argument: None}` for one without a plate. A deterministic site that
            the model computes from its arguments, and whose value it uses, counts too.
        groups: Index vectors, as in `a[..., county]`: `{argument: (plate of a, own plate)}`.
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
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
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

    standardisation: Tensor

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
        super().__init__()
        self.observed, self.alternatives = read_observed(observed)
        # Not a submodule, whatever it is.
        self._given_model = (model,)
        self._model = (JoinedModel(model, self.observed) if missing else model,)
        self.inputs = dict(inputs or {})
        self.groups = {name: (into, along) for name, (into, along) in (groups or {}).items()}
        self.sizes = dict(sizes or {})
        self.missing = missing
        check = specs.check_specifications
        self._embedding = check("embedding", embedding, Embedding)
        self._densities = check("densities", densities, Density, DiscreteDensity)
        self._parents = parents
        self.init_seed = 0  # of the networks; members of an ensemble have each their own
        self.setup_call: Call | None = None
        self._unbound: tuple[AmortizedGuide, ...] = ()
        self.store_name = "amortized"
        self._observations: Mapping[str, Any] | None = None
        self._structure: ModelStructure | None = None
        self._initial: list[Tensor] = []
        self.vectorization_problem: str | None = None

    @property
    def model(self) -> Callable[..., Any]:
        """The model that the guide was made for; its constants are kept wherever it runs."""
        return self._model[0]

    @property
    def user_model(self) -> Callable[..., Any]:
        """The model as it was given."""
        return self._given_model[0]

    @property
    def is_bound(self) -> bool:
        """Whether the guide has its data fixed, by `bind`."""
        return self._observations is not None

    @property
    def is_vectorized(self) -> bool:
        """Whether the model runs under outer plates, decided at set-up; until then not."""
        return self.setup_call is not None and self.vectorization_problem is None

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

        Deterministic: it uses fixed seeds. Later calls do nothing. `fit` and the first call of
        the guide do it for you.

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
        if self._unbound:
            self._share(self._unbound[0].setup_over(calls))
            return self
        args, kwargs = calls[0]
        if self._structure is not None:
            if self.setup_call is None:  # the networks were loaded without a call of the model
                self.setup_call = (args, kwargs)
                self.vectorization_problem = vectorization_problem(self.model, args, kwargs)
            return self
        structure = read_structure(
            self.model,
            args,
            kwargs,
            observed=self.observed,
            inputs=self.inputs,
            sizes=self.sizes,
            groups=self.groups,
            missing=self.missing,
            alternatives=self.alternatives,
            parents=self._parents,
            pointers=specs.pointers(self._densities),
        )
        model = keep_constants(self.model, structure.constants)
        self.setup_call = (args, kwargs)
        self.vectorization_problem = vectorization_problem(model, args, kwargs)
        measured = measure(model, structure, calls, is_vectorized=self.is_vectorized)
        times = specs.time_inputs(self.specifications(structure)[0]).values()
        self.build(structure, measured.with_times(times).vector())
        return self

    def build(self, structure: ModelStructure, standardisation: Tensor) -> None:
        """Build the networks from a structure and constants; `setup` and `load` end here."""
        embeddings, densities = self.specifications(structure)
        with seeded(self.init_seed):
            chain = build_chain(structure, embeddings, densities)
        self.chain = chain.to(standardisation.device)
        self.register_buffer("standardisation", standardisation)
        self._structure = structure
        self._model = (keep_constants(self.model, structure.constants),)
        self._initial = [parameter.detach().clone() for parameter in chain.parameters()]

    def specifications(
        self, structure: ModelStructure
    ) -> tuple[dict[str, Embedding], dict[str, AnyDensity]]:
        """The embedding of each observed and the density of each latent site.

        Raises:
            ValueError: If a specification is given for a site that does not exist or fit it.
        """
        embeddings = specs.resolve_embeddings(self._embedding, structure.observed)
        return embeddings, specs.resolve_densities(self._densities, structure)

    def bind(self, observations: Mapping[str, Any]) -> AmortizedGuide:
        """This guide with its data fixed, for hosts that call it with the data left out.

        Args:
            observations: Value of each observed site, `(*plates, *event)`.

        Returns:
            A guide that shares structure and parameters with this one.
        """
        bound = copy.copy(self)
        bound._observations = dict(observations)
        bound._unbound = self._unbound or (self,)
        return bound

    def separate(self) -> AmortizedGuide:
        """A copy with networks of its own, which the host's store keeps under another name."""
        own = copy.copy(self)
        own._modules = dict(self._modules) | {"chain": copy.deepcopy(self._chain())}
        own._unbound = ()
        own.store_name = f"amortized_{next(_COPIES)}"
        return own

    def _share(self, unbound: AmortizedGuide) -> None:
        """Take over the set-up of the guide that this one was bound from."""
        for name in ("_model", "_structure", "_initial", "setup_call", "vectorization_problem"):
            setattr(self, name, getattr(unbound, name))

    def forward(
        self, *args: Any, observations: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
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
        self.register()
        call = self.call_values(args, kwargs, found, rows=plates.rows)
        plates.open(call.sizes)
        latents = self.steps(args, kwargs, found, call, 0, plates.rows).run(plates.sample)
        plates.sample_unobserved(latents, found)
        return latents

    def find_observations(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Any] | None = None,
        batch_dims: int = 0,
        *,
        rows: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
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
        call = self.model, self.structure, args, kwargs
        check_call(*call, self.sizes, rows)
        given = self._observations if observations is None else observations
        times = specs.time_inputs(self.specifications(self.structure)[0])
        return read_observations(*call, given, rows, batch_dims, times)

    def register(self) -> None:
        """Put the networks into the host's parameter store, so that `SVI` trains them.

        Raises:
            RuntimeError: If the store holds another guide's parameters under their names.
        """
        register_chain(self.store_name, self._chain())

    def is_trained(self) -> bool:
        """Whether any parameter has moved since the networks were built."""
        pairs = zip(self._chain().parameters() if self._initial else (), self._initial, strict=True)
        return any(not torch.equal(parameter, initial) for parameter, initial in pairs)

    def get_extra_state(self) -> Tensor:
        """The structure as bytes, so that a state dict can be loaded before any call."""
        return structure_state(self._structure)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is left to do: the structure is read before the weights are."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        structure = stored_structure(state_dict.get(f"{prefix}_extra_state"))
        if self._structure is None and structure is not None:
            self.build(structure, torch.zeros(standardisation_size(structure)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def draw(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Tensor],
        *,
        num_samples: int,
        batch_dims: int = 0,
        given: Mapping[str, Tensor] | None = None,
        is_heavy: Tensor | None = None,
    ) -> PlainDraws:
        """Draws of the latents for each data set, outside any handler.

        Args:
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            observations: Data by site with `batch_dims` leading axes.
            num_samples: Number of draws, a new leading axis.
            batch_dims: Number of leading axes of data sets.
            given: Values of some latents in place of draws, with `batch_dims` leading axes.
            is_heavy: Whether the noise of each draw has heavy tails; never if None.

        Returns:
            Constrained `values` `(num_samples, *batch, *plates, *event)`, their `log_probs`
            `(num_samples, *batch, *plates)` in nats, and for latents that are not given the
            `log_tails` of `draw_with_tails`. The first axis of given ones has length 1.
        """
        batch_shape = next(iter((given or observations).values())).shape[:batch_dims]
        call = self.call_values(args, kwargs, observations, batch_dims)
        draws = PlainDraws(
            self.structure, call.sizes, (num_samples, *batch_shape), given or {}, is_heavy
        )
        self.steps(args, kwargs, observations, call, batch_dims).run(draws.sample)
        return draws

    def site_log_probs(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Tensor],
        observations: Mapping[str, Tensor],
        *,
        batch_dims: int = 0,
        conditionals: Mapping[str, Moments] | None = None,
    ) -> dict[str, Tensor]:
        """Log density of every latent site at given values, all at once.

        Args:
            args: The model's positional arguments.
            kwargs: The model's keyword arguments.
            latents: Constrained values with `batch_dims` leading axes.
            observations: Data by site with `batch_dims` leading axes, of length 1 where all share
                the data, which are then embedded once.
            batch_dims: Number of leading axes.
            conditionals: The model's location and scale at conditional sites, if already
                known from a simulation; read by tracing the model otherwise.

        Returns:
            Shape `(*batch, *aligned plates)` per site, in nats, constrained space.
        """
        given = self._given((args, kwargs), latents, observations, batch_dims, conditionals)
        return self._chain().log_prob(*given)

    def site_losses(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Tensor],
        observations: Mapping[str, Tensor],
        *,
        batch_dims: int = 0,
        conditionals: Mapping[str, Moments] | None = None,
    ) -> dict[str, Tensor]:
        """What training at given values makes small, for every latent site.

        Minus `site_log_probs`, whose arguments and shapes these are, but for sites whose density
        has a loss of its own, in units of its own.
        """
        given = self._given((args, kwargs), latents, observations, batch_dims, conditionals)
        return self._chain().losses(*given)

    def _given(
        self,
        call: Call,
        latents: Mapping[str, Tensor],
        observations: Mapping[str, Tensor],
        batch_dims: int,
        known: Mapping[str, Moments] | None,
    ) -> tuple[Any, ...]:
        """What the networks are given to score values."""
        values = self.call_values(*call, observations, batch_dims)
        model, structure, is_vectorized = self.model, self.structure, self.is_vectorized
        packed = packed_conditionals(
            model, structure, call, latents, known or {}, batch_dims, is_vectorized=is_vectorized
        )
        return *self._contexts(observations, values, batch_dims), latents, packed, batch_dims

    def log_prob(
        self,
        latents: Mapping[str, Tensor],
        *args: Any,
        observations: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Joint log density of latents given one data set.

        Args:
            latents: Constrained values with one leading axis of draws.
            *args: The model's positional arguments.
            observations: Data by site; found in the model's arguments if None.
            **kwargs: The model's keyword arguments.

        Returns:
            Shape `(num_draws,)`, in nats, constrained space.
        """
        num_draws = len(next(iter(latents.values())))
        found = self.find_observations(args, kwargs, observations)
        once = {name: value[None] for name, value in found.items()}
        parts = self.site_log_probs(args, kwargs, latents, once, batch_dims=1)
        return torch.stack([part.reshape(num_draws, -1).sum(1) for part in parts.values()]).sum(0)

    def steps(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Tensor],
        call: CallValues,
        batch_dims: int = 0,
        rows: Mapping[str, Tensor] | None = None,
    ) -> SiteSteps:
        """This guide at one call, to go through its sites; values have batch axes to the left."""
        constants, contexts = self._contexts(observations, call, batch_dims)
        model, structure = with_rows(self.model, rows), self.structure

        def moments(site: SiteInfo, latents: Mapping[str, Tensor]) -> Moments:
            is_vectorized, own = self.is_vectorized, (args, kwargs)
            return conditional_moments(
                model, structure, site, own, latents, is_vectorized=is_vectorized
            )

        return SiteSteps(self._chain(), constants, contexts, structure, moments)

    def call_values(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Tensor],
        batch_dims: int = 0,
        rows: Mapping[str, Tensor] | None = None,
    ) -> CallValues:
        """What one call gives to the networks besides its data."""
        return read_call(self.model, self.structure, args, kwargs, observations, batch_dims, rows)

    def _chain(self) -> PosteriorChain:
        """The networks, past the host's hook that would register them at every access."""
        return cast(PosteriorChain, self._modules["chain"])

    def _contexts(
        self, observations: Mapping[str, Tensor], call: CallValues, batch_dims: int
    ) -> tuple[Standardisation, Contexts]:
        constants = Standardisation.from_vector(self.structure, self.standardisation)
        return constants, self._chain().contexts(constants, observations, call, batch_dims)
