"""The trained answer: a posterior for every data set, and at one or many of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from amortize_diagnostics import (
    MutualInformation,
    SiteRates,
    mutual_information,
    site_rates,
)
from pyro_amortize.collapse import crossed_log_probs, element_densities
from pyro_amortize.densities import AnyDensity
from pyro_amortize.embeddings import Embedding
from pyro_amortize.export import posterior_tree
from pyro_amortize.guides import AnyGuide, EnsembleGuide
from pyro_amortize.history import TrainingHistory, warn_of_sizes
from pyro_amortize.importance import ROWS_AT_ONCE, ImportanceSamples, importance_samples
from pyro_amortize.missing import fill_missing_values, log_joint_of_present
from pyro_amortize.observations import data_plate_sizes
from pyro_amortize.simulate import replay, simulate
from pyro_amortize.storage import load_guides, save_guides
from pyro_amortize.structure import ModelStructure


class AmortizedPosterior:
    """A trained guide: the posterior for every data set of its model.

    `fit` returns it. Conditioning costs one pass of the networks. Of an ensemble it is made by
    `fit` or `from_members`, and has no history of its own: its `members` have theirs.

    Args:
        model: The model.
        guide: Its guide, which holds the trained parameters; an untrained one answers with a
            warning.
        history: What happened in training, or None.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AnyGuide,
        *,
        history: TrainingHistory | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.history = history
        self._members: tuple[AmortizedPosterior, ...] = ()

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
            ValueError: As `EnsembleGuide`.
        """
        guide = EnsembleGuide(_guides_of(members), weights)
        answer = cls(members[0].model, guide)
        answer._members = tuple(members)
        return answer

    @property
    def members(self) -> tuple[AmortizedPosterior, ...]:
        """The posteriors of which this is a mixture; none unless the guide is an ensemble."""
        if isinstance(self.guide, EnsembleGuide) and not self._members:
            guides = self.guide.guides
            self._members = tuple(AmortizedPosterior(self.model, guide) for guide in guides)
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
        if not self.guide.is_trained():
            warnings.warn(
                "the guide is not trained: its draws are close to the prior; call fit first",
                stacklevel=3,
            )
        batch_dims = 0 if observations is None else 1
        found = self.guide.find_observations(args, kwargs, observations, batch_dims)
        sizes = data_plate_sizes(self.guide.structure, found, batch_dims)
        warn_of_sizes(self._histories, self.guide.structure, sizes)
        return Posterior(self, args, kwargs, found, batch_dims=batch_dims)

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
        parts: list[Any] = [(each.guide, each.history) for each in members]
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
        members = [cls(model, guide, history=history) for guide, history in found]
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
        observations: Mapping[str, Tensor],
        *,
        batch_dims: int,
    ) -> None:
        self._amortized = amortized
        self._call = (tuple(args), dict(kwargs))
        self._batch_dims = batch_dims
        self.observations = dict(observations)

    @property
    def guide(self) -> AnyGuide:
        """The guide with these data bound, for the host's `Predictive` and the like."""
        if self._batch_dims:
            raise ValueError("guide: a host's guide has one data set; use at(...) for one of them")
        return self._amortized.guide.bind(self.observations)

    @torch.no_grad()
    def sample(self, num_samples: int = 1000) -> dict[str, Tensor]:
        """Draw from the guide, with the model's deterministic sites by replay.

        Args:
            num_samples: Number of draws.

        Returns:
            Constrained values by site, `(num_samples, [num_datasets,] *plates, *event)`.
        """
        latents = self._draw(num_samples)
        return latents | self._replay_deterministic(latents)

    @torch.no_grad()
    def log_prob(self, latents: Mapping[str, Any]) -> Tensor:
        """Joint log density of the guide at given latents.

        Args:
            latents: Constrained values, `(num_samples, [num_datasets,] *plates, *event)`.

        Returns:
            Shape `(num_samples, [num_datasets])`, in nats, constrained space.
        """
        parts = self._site_log_probs(self._latents(latents))
        return _total(parts.values(), 1 + self._batch_dims)

    @torch.no_grad()
    def log_joint(self, latents: Mapping[str, Any]) -> Tensor:
        """Joint log density of the model at given latents and these data.

        Args:
            latents: Constrained values, `(num_samples, [num_datasets,] *plates, *event)`.

        Returns:
            Shape `(num_samples, [num_datasets])`, in nats, constrained space.
        """
        densities = self._site_densities(latents)
        return _total(densities.values(), 1 + self._batch_dims)

    def importance_sample(
        self,
        num_samples: int = 4000,
        *,
        num_local_samples: int = 16,
        defensive_fraction: float = 0.1,
    ) -> ImportanceSamples:
        """Draw from the guide and weigh the draws by the model's joint density.

        Local latents are marginalised for each plate element given the global ones.

        Args:
            num_samples: Number of draws of the global latents.
            num_local_samples: Draws of the local latents for each of them.
            defensive_fraction: Fraction of the draws, global and local, whose noise is Student-t
                in place of normal; the weights are those of the mixture, so that light tails of
                the guide do no harm. With 0 all are the guide's own.

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
        weighted = importance_samples(
            self._amortized.guide,
            self._call,
            self.observations,
            _positive(num_samples),
            num_local_samples,
            defensive_fraction,
            self._batch_dims,
        )
        weighted.samples.update(
            {
                name: value.cpu().numpy()
                for name, value in self._replay_deterministic(weighted.samples).items()
            }
        )
        return weighted

    @torch.no_grad()
    def rates(self, num_samples: int = 100) -> SiteRates:
        """How far the guide is from the prior here, site by site.

        `E_q [log q(z_s | earlier sites, x) - log p(z_s | parents)]` of each plate element, in
        nats: zero where a site has collapsed, so that its draws are the prior's. Under an ensemble
        an element is given the elements before it, too, and means over elements are right.

        Args:
            num_samples: Number of draws.

        Returns:
            Rates of the sites by element and in the mean; `print` shows the means.

        Raises:
            ValueError: If a draw is outside the model's support.
        """
        latents = self._draw(num_samples)
        batch = 1 + self._batch_dims
        return site_rates(
            element_densities(self._structure, self._site_log_probs(latents), batch),
            element_densities(self._structure, self._site_densities(latents), batch),
        )

    @torch.no_grad()
    def mutual_information(self, num_samples: int = 4) -> MutualInformation:
        """How many nats the guide's draws tell about which of the data they belong to.

        `E_x KL(q(z | x) || p(z)) - KL(q(z) || p(z))` with the mixture over the data as `q(z)`. The
        data are those of `at_each`; after `at`, the rows of the one plate that all latents are in.
        Each costs a pass over all of them. `amortize_diagnostics.mutual_information` has more.

        Args:
            num_samples: Number of draws for each datum.

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
        latents = self._draw(num_samples)
        return mutual_information(
            crossed_log_probs(self._structure, latents, self._site_log_probs, self._batch_dims)
        )

    def to_datatree(
        self,
        num_samples: int = 1000,
        *,
        is_weighted: bool = False,
        coords: Mapping[str, Any] | None = None,
    ) -> Any:
        """Everything about this posterior as an ArviZ `DataTree`.

        Groups: posterior, prior, posterior_predictive, prior_predictive, log_likelihood,
        observed_data, and sample_stats with `lp` (log joint), `log_q` and `log_weight` of each
        draw. Dimensions are named after the plates.

        Args:
            num_samples: Number of draws.
            is_weighted: Whether the draws are resampled by their importance weights.
            coords: Labels of plates, `{plate: labels}`.

        Returns:
            The `xarray.DataTree`.

        Raises:
            ImportError: If ArviZ is not installed.
        """
        draws: Mapping[str, Any]
        if is_weighted:
            num_proposals = max(4 * num_samples, 4000)
            weighted = self.importance_sample(num_proposals)
            draws = weighted.resample(num_samples)
        else:
            draws = self.sample(num_samples)
        log_q, lp = self.log_prob(draws), self.log_joint(draws)
        densities = self._site_densities(draws)
        predictive = self._replay(self._latents(draws))
        args, kwargs = self._call
        prior = simulate(self._amortized.guide.model, num_samples, args=args, kwargs=kwargs).sites
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

    def _draw(self, num_samples: int) -> dict[str, Tensor]:
        """Draws of the latents, in blocks of rows that fit in memory."""
        rows = sum(value.numel() for value in self.observations.values())
        block, left, parts = max(ROWS_AT_ONCE // rows, 1), _positive(num_samples), []
        while left > 0:
            parts.append(
                self._amortized.guide.draw(
                    *self._call,
                    self.observations,
                    num_samples=min(block, left),
                    batch_dims=self._batch_dims,
                ).values
            )
            left -= block
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _repeated(self, latents: Mapping[str, Any]) -> dict[str, Tensor]:
        """The data, with the leading axis of the draws."""
        num = len(next(iter(latents.values())))
        return {name: value.expand(num, *value.shape) for name, value in self.observations.items()}

    def _latents(self, latents: Mapping[str, Any]) -> dict[str, Tensor]:
        like = next(iter(self.observations.values())).device
        return {
            site.name: torch.as_tensor(latents[site.name], device=like)
            for site in self._structure.latents
        }

    def _site_log_probs(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._amortized.guide.site_log_probs(
            *self._call, latents, self._repeated(latents), batch_dims=1 + self._batch_dims
        )

    def _site_densities(self, latents: Mapping[str, Any]) -> dict[str, Tensor]:
        latents = self._latents(latents)
        return log_joint_of_present(
            self._amortized.guide.model,
            self._structure,
            *self._call,
            latents,
            self._repeated(latents),
            1 + self._batch_dims,
            is_vectorized=self._amortized.guide.is_vectorized,
        )

    def _replay_deterministic(self, latents: Mapping[str, Any]) -> dict[str, Tensor]:
        names = [site.name for site in self._structure.deterministic]
        if not names:
            return {}
        sites = self._latents(latents)
        model, data = self._amortized.guide.model, self._repeated(sites)
        filled = fill_missing_values(model, self._structure, *self._call, data)
        found = self._replay(sites | filled)
        return {name: found[name] for name in names}

    @torch.no_grad()
    def _replay(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return replay(
            self._amortized.guide.model,
            *self._call,
            values,
            1 + self._batch_dims,
            is_vectorized=self._amortized.guide.is_vectorized,
        )


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


def _total(parts: Iterable[Tensor], batch_dims: int) -> Tensor:
    """The sum of densities of sites over everything but the batch axes."""
    flat = [part.reshape(*part.shape[:batch_dims], -1).sum(-1) for part in parts]
    return torch.stack(flat).sum(0)
