"""The trained answer: a posterior for every data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np
from jax import Array

from amortize_diagnostics import Calibration, Diagnosis
from amortize_diagnostics.paired import check_numbers
from amortize_diagnostics.report import Report
from numpyro_amortize.arguments import drawn_call
from numpyro_amortize.at_data import Posterior
from numpyro_amortize.calibration import calibrate, known_call, simulate_data
from numpyro_amortize.conditioned import ConditionedGuide
from numpyro_amortize.contexts import simulated_contexts
from numpyro_amortize.densities import AnyDensity
from numpyro_amortize.embeddings import Embedding
from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import join_params, member_params
from numpyro_amortize.history import TrainingHistory, warn_of_sizes
from numpyro_amortize.measure import Call
from numpyro_amortize.observations import data_plate_sizes
from numpyro_amortize.padding import CallPadding, PaddedCall
from numpyro_amortize.storage import load_guides, save_guides

_NUM_CALLS = 200  # of a sampler of arguments


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
        return Posterior(self._at(args, kwargs, None))

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
        return Posterior(self._at(args, kwargs, observations))

    def _at(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observations: Mapping[str, Any] | None,
    ) -> ConditionedGuide:
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
        call = tuple(args), dict(kwargs)
        padded = self.pad(call, found)
        return ConditionedGuide(self.guide, self.params, call, padded, found, batch_dims=batch_dims)

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

    def check_calibration(
        self,
        num_datasets: int = 300,
        num_draws: int = 999,
        *,
        num_local: int = 0,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        missing: float | Callable[[Array, str, tuple[int, ...]], Array] = 0.0,
        rng_key: Array | None = None,
    ) -> Calibration:
        """Judge the guide as a whole on simulated data, whose latents are known.

        Simulates data sets, draws from the guide at all of them, and compares: ranks of every
        latent and of log likelihood and log joint density (SBC), coverage of regions of highest
        density, z-scores and contraction, and coverage of balls around random points (TARP).
        With `num_local` also what a classifier has learned to tell the guide's draws from truths
        by, given the data (L-C2ST): errors that cancel over all data sets.
        `print` shows a table with a verdict; `to_datatree` and `plot` go to ArviZ.

        Use it after training, whatever the objective. A pass speaks for data that the model
        simulates, on average; for one real data set see `importance_sample`. The default sees
        shifts of 0.3 posterior standard deviations and widths wrong by 30 %.

        Args:
            num_datasets: Number of simulated data sets, at least 50.
            num_draws: Number of draws for each of them, at least 20.
            num_local: Number of other simulations on which the classifier of a local check is
                trained, such as 2000, which takes some seconds; 0 for no such check.
            args: The model's positional arguments; with `kwargs`, those of set-up if both are None.
            kwargs: The model's keyword arguments.
            missing: What is hidden of the data, as for `NPE`.
            rng_key: Key of simulations and draws; `jax.random.key(0)` if None.

        Returns:
            The table and what is behind it.

        Raises:
            ValueError: If there are too few data sets, draws or simulations, if the model has a
                factor site, if too few simulations are finite, if a draw is NaN, or if every
                latent is constant.
            TypeError: If the arguments of the model are not known.

        References:
            See `amortize_diagnostics.CalibrationRun`.
        """
        check_numbers(num_datasets, num_draws, ("num_draws", "num_datasets"))
        if num_local and num_local < 100:
            raise ValueError(f"num_local: expected 0 or at least 100, got {num_local}")
        call = known_call(self.guide, args, kwargs)
        self.guide.setup(*call[0], **call[1])
        keys = jax.random.split(jax.random.key(0) if rng_key is None else rng_key)
        data = simulate_data(
            self.guide, self.params, call, num_datasets, num_local, missing, keys[0]
        )
        conditioned = self._at(*call, data.observations)
        past = self._at(*call, data.past[1]) if num_local else None
        return calibrate(conditioned, data, num_draws, past, keys[1])

    def simulated_contexts(
        self,
        num_simulations: int = 1000,
        *,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        model_args: Callable[[Array], tuple[Any, ...] | dict[str, Any]] | None = None,
        missing: float | Callable[[Array, str, tuple[int, ...]], Array] = 0.0,
        rng_key: Array | None = None,
    ) -> np.ndarray:
        """What the guide's networks make of simulated data, to compare data with.

        Pass it to `Posterior.diagnose(simulated=...)`, or with `Posterior.contexts` to
        `typicality` and `misspecification_test` of `amortize_diagnostics`. Made as training
        simulated, it tells data at another design, too: at covariates or sizes that the guide has
        not seen, where `diagnose` by itself simulates at the design of the data.

        Args:
            num_simulations: Number of simulations, at least 100.
            args: The model's positional arguments; with `kwargs`, those of set-up if both are None.
            kwargs: The model's keyword arguments.
            model_args: Draws the model's arguments in place of these, as for `NPE`: it is called
                up to 200 times, and each call has its share of the simulations.
            missing: What is hidden of the data, as for `NPE`.
            rng_key: Key of arguments and simulations; `jax.random.key(0)` if None.

        Returns:
            Shape `(num_simulations, num_features)`; with `model_args` there may be a few more, and
            simulations that are not finite are left out.

        Raises:
            ValueError: If there are too few simulations, if arguments come from two places, or if
                the model has a factor site.
            TypeError: If the arguments of the model are not known, or not drawn as a tuple or dict.
        """
        if num_simulations < 100:
            raise ValueError(f"num_simulations: expected at least 100, got {num_simulations}")
        if model_args is not None and not (args is None and kwargs is None):
            raise ValueError("args, kwargs: model_args draws the arguments; leave these out")
        key, argument_key = jax.random.split(jax.random.key(0) if rng_key is None else rng_key)
        if model_args is None:
            calls = [known_call(self.guide, args, kwargs)]
        else:
            keys = jax.random.split(argument_key, min(num_simulations, _NUM_CALLS))
            calls = [drawn_call(model_args(each)) for each in keys]
        self.guide.setup(*calls[0][0], **calls[0][1])
        return simulated_contexts(self.guide, self.params, calls, num_simulations, missing, key)

    def report(
        self,
        path: str | PathLike[str],
        *,
        calibration: Calibration | None = None,
        diagnosis: Diagnosis | None = None,
        title: str | None = None,
    ) -> None:
        """Write one page that says what the guide is and how far to trust it.

        The verdict on simulated data, the course of training, the table of checks, ranks with
        their bands, coverage, and the sites with what the guide's factors read. The page is one
        file without scripts that loads nothing.

        Args:
            path: The file, such as `"report.html"`.
            calibration: What `check_calibration` found; it is called if None, and the page says
                so if it is refused.
            diagnosis: What `Posterior.diagnose` says of the answers at data sets, to be shown too.
            title: Title of the page; the model's name if None.

        Raises:
            RuntimeError: If the guide has not been set up.
        """
        structure, unchecked = self.guide.structure, ""
        if calibration is None:
            try:
                calibration = self.check_calibration()
            except (TypeError, ValueError) as error:
                unchecked = str(error)
        Report(
            title or str(getattr(self.model, "__name__", type(self.model).__name__)),
            structure,
            calibration=calibration,
            unchecked=unchecked,
            histories=self._histories,
            answers="" if diagnosis is None else str(diagnosis),
        ).write(path)

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


def _guides_of(members: Sequence[Any]) -> list[Any]:
    for number, each in enumerate(members):
        if not isinstance(each, AmortizedPosterior):
            raise TypeError(
                f"members: expected each to be an AmortizedPosterior, got {type(each).__name__} as "
                f"member {number}"
            )
    return [each.guide for each in members]
