"""The trained answer: a posterior for every data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from pyro_amortize.at_data import Posterior
from pyro_amortize.conditioned import ConditionedGuide
from pyro_amortize.densities import AnyDensity
from pyro_amortize.embeddings import Embedding
from pyro_amortize.guides import AnyGuide, EnsembleGuide
from pyro_amortize.history import TrainingHistory, warn_of_sizes
from pyro_amortize.observations import data_plate_sizes
from pyro_amortize.storage import load_guides, save_guides


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
        return Posterior(ConditionedGuide(self.guide, (args, kwargs), found, batch_dims=batch_dims))

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


def _guides_of(members: Sequence[Any]) -> list[Any]:
    for number, each in enumerate(members):
        if not isinstance(each, AmortizedPosterior):
            raise TypeError(
                f"members: expected each to be an AmortizedPosterior, got {type(each).__name__} as "
                f"member {number}"
            )
    return [each.guide for each in members]
