"""The trained answer: a posterior for every data set, and at one or many of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amortize_diagnostics import (
    MutualInformation,
    SiteRates,
    mutual_information,
    site_rates,
)
from numpyro_amortize.collapse import crossed_log_probs, element_densities
from numpyro_amortize.conditioned import ConditionedGuide, total
from numpyro_amortize.densities import AnyDensity
from numpyro_amortize.embeddings import Embedding
from numpyro_amortize.export import posterior_tree
from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import join_params, member_params, model_at
from numpyro_amortize.history import TrainingHistory, warn_of_sizes
from numpyro_amortize.importance import ImportanceSamples
from numpyro_amortize.measure import Call
from numpyro_amortize.observations import data_plate_sizes
from numpyro_amortize.padding import CallPadding, PaddedCall
from numpyro_amortize.simulate import simulate
from numpyro_amortize.storage import load_guides, save_guides
from numpyro_amortize.structure import ModelStructure


class AmortizedPosterior:
    """A trained guide: the posterior for every data set of its model.

    `fit` returns it. Conditioning costs one pass of the networks. Of an ensemble it is made by
    `fit` or `from_members`, and has no history of its own: its `members` have theirs.

    Args:
        model: The model.
        guide: Its guide.
        params: Trained parameters; None for an untrained guide, which answers with a warning.
        history: What happened in training, or None.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AnyGuide,
        *,
        params: Mapping[str, Any] | None = None,
        history: TrainingHistory | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.history = history
        self._members: tuple[AmortizedPosterior, ...] = ()
        self._params = params
        self._padding: CallPadding | None = None

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters under the names that the host's `SVI` uses."""
        return self.guide.init_params() if self._params is None else self._params

    @classmethod
    def from_members(
        cls, members: Sequence[AmortizedPosterior], weights: Sequence[float] | None = None
    ) -> AmortizedPosterior:
        """The mixture of trained posteriors of one model, see `EnsembleGuide`.

        Args:
            members: The posteriors.
            weights: Their positive weights, scaled to sum to one; equal ones if None.

        Returns:
            The posterior for every data set.

        Raises:
            TypeError: If a member is no `AmortizedPosterior`, or is an ensemble itself.
            ValueError: As `EnsembleGuide`; and if parameters of the model differ.
        """
        guide = EnsembleGuide(_guides_of(members), weights)
        params = join_params([each.params for each in members])
        answer = cls(members[0].model, guide, params=params)
        answer._members = tuple(members)
        return answer

    @property
    def members(self) -> tuple[AmortizedPosterior, ...]:
        """The posteriors of which this is a mixture; none unless the guide is an ensemble."""
        if isinstance(self.guide, EnsembleGuide) and not self._members:
            self._members = tuple(
                AmortizedPosterior(
                    self.model, guide, params=self._params and member_params(self._params, number)
                )
                for number, guide in enumerate(self.guide.guides)
            )
        return self._members

    def at(self, *args: Any, **kwargs: Any) -> Posterior:
        """The posterior at one data set.

        Args:
            *args: The model's own positional arguments, data included.
            **kwargs: The model's own keyword arguments, data included.

        Returns:
            The posterior there.

        Raises:
            ValueError: If data are missing or do not fit the model.
        """
        return self._condition(args, kwargs, None)

    def at_each(self, *args: Any, observations: Mapping[str, Any], **kwargs: Any) -> Posterior:
        """The posteriors at each of many data sets that share the other arguments.

        Args:
            *args: The model's positional arguments, without data.
            observations: Data by observed site, with a leading axis of data sets.
            **kwargs: The model's keyword arguments, without data.

        Returns:
            The posteriors; everything it gives has one more axis, after that of the draws.

        Raises:
            ValueError: If data are missing or do not fit the model.
        """
        return self._condition(args, kwargs, observations)

    def _condition(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Any] | None,
    ) -> Posterior:
        self.guide.setup(*args, **kwargs)
        if any(each._params is None for each in (self, *self.members)):
            warnings.warn(
                "the guide is not trained: its draws are close to the prior; call fit first",
                stacklevel=3,
            )
        batch_dims = 0 if observations is None else 1
        found = self.guide.find_observations(args, kwargs, observations, batch_dims)
        sizes = data_plate_sizes(self.guide.structure, found, batch_dims)
        warn_of_sizes(self._histories, self.guide.structure, sizes)
        return Posterior(self, args, kwargs, found, batch_dims=batch_dims)

    def pad(self, call: Call, observations: Mapping[str, Any]) -> PaddedCall:
        """A call along with whose size compiled code need not change, if the model allows it.

        Plates whose size changed in training are padded.

        Args:
            call: Arguments of the model.
            observations: Data by site.

        Returns:
            The padded call.
        """
        guide = self.guide
        if self._padding is None:
            trained = [item for history in self._histories for item in history.plate_sizes.items()]
            varying = sorted({name for name, (low, high) in trained if low < high})
            self._padding = CallPadding(guide.model, guide.structure, guide.sizes, varying)
        leaves = jax.tree.leaves((call, dict(observations)))
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        if not self._padding.plates or is_traced or self._padding.find_problem([call]):
            return PaddedCall(call, {}, {}, {})
        return self._padding.pad(call)

    @property
    def _histories(self) -> list[TrainingHistory]:
        """What is known of the training of the guide, or of each member of an ensemble."""
        histories = [each.history for each in (self, *self.members)]
        return [history for history in histories if history is not None]

    def save(self, path: str | PathLike[str]) -> None:
        """Write networks, standardisation, structure and history to one safetensors file.

        Args:
            path: The file. Either package can load it for the same model.
        """
        weights = self.guide.weights.tolist() if isinstance(self.guide, EnsembleGuide) else None
        members = self.members or (self,)
        parts: list[Any] = [(each.guide, each.params, each.history) for each in members]
        save_guides(path, parts, weights)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        model: Callable[..., Any],
        *,
        embedding: Embedding | Mapping[str, Embedding] | None = None,
        densities: AnyDensity | Mapping[str, AnyDensity] | None = None,
    ) -> AmortizedPosterior:
        """Read what `save` wrote.

        Args:
            path: The file.
            model: The model that the guide was trained for.
            embedding: As in training, if it is not of this package.
            densities: As in training, if they are not of this package.

        Returns:
            The trained posterior.

        Raises:
            ValueError: If the file is of a newer format, or belongs to another model.
        """
        found, weights = load_guides(path, model, embedding=embedding, densities=densities)
        members = [
            cls(model, guide, params=params, history=history) for guide, params, history in found
        ]
        return members[0] if weights is None else cls.from_members(members, weights)


class Posterior:
    """The posterior at one data set, or at each of many.

    Made by `AmortizedPosterior.at` and `at_each`. Draws come in the host's layout, with an
    axis of data sets after that of the draws if there are many.

    Args:
        amortized: Where it comes from.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        observations: Data by site.
        batch_dims: 1 if the data have a leading axis of data sets, else 0.
    """

    def __init__(
        self,
        amortized: AmortizedPosterior,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Array],
        *,
        batch_dims: int,
    ) -> None:
        self._amortized = amortized
        self._call = (tuple(args), dict(kwargs))
        self._batch_dims = batch_dims
        self.observations = dict(observations)
        self._conditioned = ConditionedGuide(
            amortized.guide,
            amortized.params,
            self._call,
            amortized.pad(self._call, observations),
            observations,
            batch_dims=batch_dims,
        )

    @property
    def guide(self) -> AnyGuide:
        """The guide with these data bound, for the host's `Predictive` and the like."""
        if self._batch_dims:
            raise ValueError("guide: a host's guide has one data set; use at(...) for one of them")
        return self._amortized.guide.bind(self.observations)

    def sample(self, num_samples: int = 1000, *, rng_key: Array | None = None) -> dict[str, Array]:
        """Draw from the guide, with the model's deterministic sites by replay.

        Args:
            num_samples: Number of draws.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            Constrained values by site, `(num_samples, [num_datasets,] *plates, *event)`.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        latents = self._conditioned.sample(_positive(num_samples), key)
        return latents | self._replay_deterministic(latents)

    def log_prob(self, latents: Mapping[str, Any]) -> Array:
        """Joint log density of the guide at given latents.

        Args:
            latents: Constrained values, `(num_samples, [num_datasets,] *plates, *event)`.

        Returns:
            Shape `(num_samples, [num_datasets])`, in nats, constrained space.
        """
        return self._conditioned.log_prob(self._latents(latents))

    def log_joint(self, latents: Mapping[str, Any]) -> Array:
        """Joint log density of the model at given latents and these data.

        Args:
            latents: Constrained values, `(num_samples, [num_datasets,] *plates, *event)`.

        Returns:
            Shape `(num_samples, [num_datasets])`, in nats, constrained space.
        """
        densities = self._conditioned.site_densities(self._latents(latents))
        return total(densities.values(), 1 + self._batch_dims)

    def importance_sample(
        self,
        num_samples: int = 4000,
        *,
        num_local_samples: int = 16,
        defensive_fraction: float = 0.1,
        rng_key: Array | None = None,
    ) -> ImportanceSamples:
        """Draw from the guide and weigh the draws by the model's joint density.

        Local latents are marginalised for each plate element given the global ones.

        Args:
            num_samples: Number of draws of the global latents.
            num_local_samples: Draws of the local latents for each of them.
            defensive_fraction: Fraction of the draws, global and local, whose noise is Student-t
                in place of normal; the weights are those of the mixture, so that light tails of
                the guide do no harm. With 0 all are the guide's own.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            Weighted draws with ESS fraction, Pareto k-hat and log evidence.

        Raises:
            ValueError: If a number or fraction is out of range.

        References:
            Vehtari, Simpson, Gelman, Yao and Gabry (2024), arXiv:1507.02646; Hesterberg (1995),
            Weighted average importance sampling and defensive mixture distributions,
            Technometrics 37.
        """
        if num_local_samples < 1:
            raise ValueError(f"num_local_samples: expected at least 1, got {num_local_samples}")
        if not 0 <= defensive_fraction < 1:
            raise ValueError(
                f"defensive_fraction: expected at least 0 and below 1, got {defensive_fraction}"
            )
        key = jax.random.key(0) if rng_key is None else rng_key
        weighted = self._conditioned.importance_sample(
            _positive(num_samples), num_local_samples, defensive_fraction, key
        )
        weighted.samples.update(
            {
                name: np.asarray(value)
                for name, value in self._replay_deterministic(weighted.samples).items()
            }
        )
        return weighted

    def rates(self, num_samples: int = 100, *, rng_key: Array | None = None) -> SiteRates:
        """How far the guide is from the prior here, site by site.

        `E_q [log q(z_s | earlier sites, x) - log p(z_s | parents)]` of each plate element, in
        nats: zero where a site has collapsed, so that its draws are the prior's. Under an ensemble
        an element is given the elements before it, too, and means over elements are right.

        Args:
            num_samples: Number of draws.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            Rates of the sites by element and in the mean; `print` shows the means.

        Raises:
            ValueError: If a draw is outside the model's support.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        latents = self._conditioned.sample(_positive(num_samples), key)
        batch = 1 + self._batch_dims
        return site_rates(
            element_densities(self._structure, self._conditioned.site_log_probs(latents), batch),
            element_densities(self._structure, self._conditioned.site_densities(latents), batch),
        )

    def mutual_information(
        self, num_samples: int = 4, *, rng_key: Array | None = None
    ) -> MutualInformation:
        """How many nats the guide's draws tell about which of the data they belong to.

        `E_x KL(q(z | x) || p(z)) - KL(q(z) || p(z))` with the mixture over the data as `q(z)`. The
        data are those of `at_each`; after `at`, the rows of the one plate that all latents are in.
        Each costs a pass over all of them. `amortize_diagnostics.mutual_information` has more.

        Args:
            num_samples: Number of draws for each datum.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            The information, in all and what each site adds to the sites before it.

        Raises:
            ValueError: If there are fewer than two data, if the rows share latents, or if they
                are data of an ensemble, whose members answer for all rows at once.
        """
        if isinstance(self._amortized.guide, EnsembleGuide) and not self._batch_dims:
            raise ValueError(
                "mutual_information: rows have no posteriors of their own in an EnsembleGuide, of "
                "which one member answers for all of them. Give many data sets: "
                "at_each(observations=...), or take one of amortized.members"
            )
        key = jax.random.key(0) if rng_key is None else rng_key
        latents = self._conditioned.sample(_positive(num_samples), key)
        log_probs = self._conditioned.site_log_probs
        return mutual_information(
            crossed_log_probs(self._structure, latents, log_probs, self._batch_dims)
        )

    def to_datatree(
        self,
        num_samples: int = 1000,
        *,
        is_weighted: bool = False,
        coords: Mapping[str, Any] | None = None,
        rng_key: Array | None = None,
    ) -> Any:
        """Everything about this posterior as an ArviZ `DataTree`.

        Groups: posterior, prior, posterior_predictive, prior_predictive, log_likelihood,
        observed_data, and sample_stats with `lp` (log joint), `log_q` and `log_weight` of each
        draw. Dimensions are named after the plates.

        Args:
            num_samples: Number of draws.
            is_weighted: Whether the draws are resampled by their importance weights.
            coords: Labels of plates, `{plate: labels}`.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            The `xarray.DataTree`.

        Raises:
            ImportError: If ArviZ is not installed.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        keys = jax.random.split(key, 3)
        draws: Mapping[str, Any]
        if is_weighted:
            num_proposals = max(4 * num_samples, 4000)
            weighted = self.importance_sample(num_proposals, rng_key=keys[0])
            draws = weighted.resample(num_samples)
        else:
            draws = self.sample(num_samples, rng_key=keys[0])
        log_q, lp = self.log_prob(draws), self.log_joint(draws)
        latents = self._latents(draws)
        densities = self._conditioned.site_densities(latents)
        predictive = self._conditioned.predict(latents, keys[1])
        args, kwargs = self._call
        model = model_at(self._amortized.guide.model, self._amortized.params)
        prior = simulate(model, num_samples, args=args, kwargs=kwargs, rng_key=keys[2]).sites
        return posterior_tree(
            self._structure,
            self._batch_dims,
            coords,
            draws=draws,
            predictive=predictive,
            prior=prior,
            densities=densities,
            observations=self.observations,
            lp=lp,
            log_q=log_q,
        )

    @property
    def _structure(self) -> ModelStructure:
        return self._amortized.guide.structure

    def _latents(self, latents: Mapping[str, Any]) -> dict[str, Array]:
        return {site.name: jnp.asarray(latents[site.name]) for site in self._structure.latents}

    def _replay_deterministic(self, latents: Mapping[str, Any]) -> dict[str, Array]:
        names = [site.name for site in self._structure.deterministic]
        if not names:
            return {}
        found = self._conditioned.replay(self._latents(latents))
        return {name: found[name] for name in names}


def _guides_of(members: Sequence[Any]) -> list[Any]:
    for number, each in enumerate(members):
        if not isinstance(each, AmortizedPosterior):
            raise TypeError(
                f"members: expected each to be an AmortizedPosterior, got {type(each).__name__} as "
                f"member {number}"
            )
    return [each.guide for each in members]


def _positive(num_samples: int) -> int:
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    return num_samples
