"""The posterior at one data set, or at each of many: draws, densities, weights, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amortize_diagnostics import (
    Diagnosis,
    MutualInformation,
    OODScore,
    Sensitivity,
    SiteRates,
    mutual_information,
    site_rates,
)
from numpyro_amortize.auto_guide import NoiseAutoGuide
from numpyro_amortize.collapse import crossed_log_probs, element_densities
from numpyro_amortize.conditioned import ConditionedGuide, total
from numpyro_amortize.contexts import batched_data, data_contexts
from numpyro_amortize.diagnosing import diagnose
from numpyro_amortize.export import posterior_tree
from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.importance import ImportanceSamples
from numpyro_amortize.nuts import NUTSSamples, check_settings, nuts_samples
from numpyro_amortize.ood_score import ood_score
from numpyro_amortize.sensitivity import sensitivity
from numpyro_amortize.simulate import simulate
from numpyro_amortize.structure import ModelStructure


class Posterior:
    """The posterior at one data set, or at each of many.

    Made by `AmortizedPosterior.at` and `at_each`. Draws come in the host's layout, with an
    axis of data sets after that of the draws if there are many.

    Args:
        conditioned: The guide at these data.
    """

    def __init__(self, conditioned: ConditionedGuide) -> None:
        self._conditioned = conditioned
        self.observations = conditioned.observations

    @property
    def guide(self) -> AnyGuide:
        """The guide with these data bound, for the host's `Predictive` and the like."""
        if self._batch_dims:
            raise ValueError("guide: a host's guide has one data set; use at(...) for one of them")
        return self._conditioned.guide.bind(self.observations)

    @property
    def auto_guide(self) -> NoiseAutoGuide:
        """The guide at these data as an `AutoContinuous` of the host, for its `NeuTraReparam`.

        It holds the map from normal noise to the latents. `nuts` does the whole of it.

        Raises:
            ValueError: If there are many data sets, or latents that the guide does not draw.
            TypeError: If the guide's draws are no map of normal noise.
        """
        if self._batch_dims:
            raise ValueError("auto_guide: it has one data set; use at(...) for one of them")
        return NoiseAutoGuide(self._conditioned)

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

    def diagnose(
        self,
        num_samples: int = 2000,
        *,
        num_simulations: int = 1000,
        simulated: np.ndarray | None = None,
        rng_key: Array | None = None,
    ) -> Diagnosis:
        """How far to trust the answer here, and what to do next.

        The ESS fraction judges the guide's own draws, Pareto k-hat the weighted ones, predictive
        checks and the distance of the data from simulations, in what the networks make of them,
        the model. `print` says it in words, for many data sets as a table with the worst first.

        Use it at every data set that matters; it costs `num_samples` densities of the model. Of a
        guide as a whole `AmortizedPosterior.check_calibration` says more.

        Args:
            num_samples: Number of weighted draws for each data set.
            num_simulations: Number of simulations that the data are compared with, at least 100.
            simulated: Contexts of simulations in place of these, from
                `AmortizedPosterior.simulated_contexts`: made once for many data sets, or at the
                arguments that training had, where another design is told, too.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            The diagnosis. What cannot be judged is left out with a note: weights of a model or a
            guide without density.

        Raises:
            ValueError: If a number is out of range, or `simulated` is of another guide.
        """
        if num_simulations < 100:
            raise ValueError(f"num_simulations: expected at least 100, got {num_simulations}")
        return diagnose(
            self._conditioned,
            _positive(num_samples),
            num_simulations,
            simulated,
            jax.random.key(0) if rng_key is None else rng_key,
        )

    def contexts(self) -> np.ndarray:
        """What the guide's networks make of these data, pooled over the elements of plates.

        Means and spreads of the features that the densities of the latents read: an embedding for
        `typicality` and `misspecification_test` of `amortize_diagnostics`, to be compared with
        `AmortizedPosterior.simulated_contexts`. What the networks do not see is not in it.

        Returns:
            Shape `(num_datasets, num_features)`, with one row after `at`.

        References:
            Schmitt, Buerkner, Koethe and Radev (2023), Detecting model misspecification in
            amortized Bayesian inference with neural networks, arXiv:2112.08866, section 3.
        """
        return data_contexts(self._conditioned, batched_data(self._conditioned))

    def sensitivity(
        self,
        radii: Sequence[float] = (0.1, 0.3, 1.0),
        *,
        num_samples: int = 200,
        num_steps: int = 20,
        rng_key: Array | None = None,
    ) -> Sensitivity:
        """The small changes of the data that move the guide's answer most, and how far.

        `max KL(q(. | x) || q(. | x + d))` over changes of the continuous data of Euclidean length
        `|d| <= r` in units of their standardisation, by ascent from both sides of the direction
        in which the Fisher information about the data is largest, valued at draws of its own.

        Use it to see whether an answer hangs on details of the data, before and after training
        with `FisherRegularized`. It says nothing of whether the answer is right.

        Args:
            radii: Lengths r of the changes, all data of a data set together.
            num_samples: Draws from which a divergence is estimated.
            num_steps: Steps of the ascent at each radius.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            Divergences in nats, the information, and the changes; `print` shows a few lines.

        Raises:
            ValueError: If a number is out of range, or if no observed site is continuous.
            TypeError: If the guide has no density.

        References:
            Gloeckler, Deistler and Macke (2023), Adversarial robustness of amortized Bayesian
            inference, arXiv:2305.14984.
        """
        return sensitivity(
            self._conditioned,
            radii,
            num_samples,
            num_steps,
            jax.random.key(0) if rng_key is None else rng_key,
        )

    def nuts(
        self,
        num_samples: int = 1000,
        *,
        num_warmup: int = 200,
        num_chains: int = 4,
        target_accept_prob: float = 0.8,
        max_tree_depth: int = 10,
        progress_bar: bool = False,
        rng_key: Array | None = None,
    ) -> NUTSSamples:
        """Draw from the exact posterior by the host's NUTS, started and preconditioned here.

        The chains run in the normal noise that the guide's draws are made of, where the posterior
        is standard normal if the guide is exact (neural transport), and start from its draws.
        Where its draws are made of other noise, or of an ensemble, they run in unconstrained
        coordinates standardised by mean and covariance of its draws.

        Use it where the weights of `importance_sample` fail. Each draw costs some gradients of
        model and guide, and the chains stay near the modes that the guide knows.

        Args:
            num_samples: Number of draws of each chain.
            num_warmup: Number of transitions of each chain before, in which it adapts.
            num_chains: Number of chains.
            target_accept_prob: Acceptance probability that the step size is adapted to.
            max_tree_depth: Most doublings of a trajectory.
            progress_bar: Whether to show a bar.
            rng_key: Key of the chains; `jax.random.key(0)` if None.

        Returns:
            The draws, with R-hat, effective sample sizes and divergences.

        Raises:
            ValueError: If there are many data sets, if a latent is discrete, if a number is out
                of range, or if the density is not finite where a chain starts.

        References:
            Hoffman, Sountsov, Dillon, Langmore, Tran and Vasudevan (2019), NeuTra-lizing bad
            geometry in Hamiltonian Monte Carlo using neural transport, arXiv:1903.03704, eq. 6.
        """
        if self._batch_dims:
            raise ValueError("nuts: chains are for one data set; use at(...) for one of them")
        check_settings(num_samples, num_warmup, num_chains, target_accept_prob, max_tree_depth)
        key = jax.random.key(0) if rng_key is None else rng_key

        def export(draws: Mapping[str, Any], stats: Mapping[str, Any], **options: Any) -> Any:
            return self._tree(draws, stats, key, **options)

        return nuts_samples(
            self._conditioned,
            num_samples,
            num_warmup,
            num_chains,
            target_accept_prob=target_accept_prob,
            max_tree_depth=max_tree_depth,
            progress_bar=progress_bar,
            replay=self._replay_deterministic,
            export=export,
            rng_key=key,
        )

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
        if isinstance(self._conditioned.guide, EnsembleGuide) and not self._batch_dims:
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

    def ood_score(
        self, skip: Sequence[str], *, num_samples: int = 100, rng_key: Array | None = None
    ) -> OODScore:
        """How foreign data are to a hierarchical model: what its lower latents explain alone.

        `L - L_skip` in nats for each datum: the ELBO, less the bound whose skipped latents come
        from the model given the others. Data are those of `mutual_information`. Use it in place
        of the likelihood, which may be high for foreign data, beside scores of the model's own.

        Args:
            skip: The lower latents, nearest to the data first; with none the score is zero.
            num_samples: Number of draws.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            The scores; larger is more foreign.

        Raises:
            TypeError: If the guide is an ensemble.
            ValueError: If these latents cannot be skipped, or the rows share latents.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        return ood_score(self._conditioned, tuple(skip), _positive(num_samples), key)

    def to_datatree(
        self,
        num_samples: int = 1000,
        *,
        is_weighted: bool = False,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        rng_key: Array | None = None,
    ) -> Any:
        """Everything about this posterior as an ArviZ `DataTree`.

        Groups: posterior, prior, posterior_predictive, prior_predictive, log_likelihood, log_prior,
        observed_data, constant_data with the inputs, and sample_stats with `lp` (log joint),
        `log_q` and `log_weight` of each draw. Dimensions are named after the plates.

        Args:
            num_samples: Number of draws.
            is_weighted: Whether the draws are resampled by their importance weights.
            coords: Labels along a dimension, `{plate: labels}`, or of an axis named in `dims`.
            dims: Names of the event axes of a site, `{site: names}`.
            rng_key: Key of the draws; `jax.random.key(0)` if None.

        Returns:
            The `xarray.DataTree`.

        Raises:
            ImportError: If ArviZ is not installed.
            ValueError: If `dims` does not name the event axes of sites.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        own, rest = jax.random.split(key)
        if is_weighted:
            num_proposals = max(4 * num_samples, 4000)
            draws: Any = self.importance_sample(num_proposals, rng_key=own).resample(num_samples)
        else:
            draws = self.sample(num_samples, rng_key=own)
        densities = self._conditioned.site_densities(self._latents(draws))
        log_q, lp = self.log_prob(draws), total(densities.values(), 1 + self._batch_dims)
        stats = {"lp": lp, "log_q": log_q, "log_weight": lp - log_q}
        return self._tree(draws, stats, rest, densities=densities, coords=coords, dims=dims)

    def _tree(
        self,
        draws: Mapping[str, Any],
        sample_stats: Mapping[str, Any],
        rng_key: Array,
        *,
        densities: Mapping[str, Array] | None = None,
        **options: Any,
    ) -> Any:
        """Given draws of this posterior as a `DataTree`, with all that follows from them."""
        conditioned = self._conditioned
        latents = self._latents(draws)
        if densities is None:
            densities = conditioned.site_densities(latents)
        (args, kwargs), num = conditioned.call, len(next(iter(latents.values())))
        predictive_key, prior_key = jax.random.split(rng_key)
        model = model_at(conditioned.guide.model, conditioned.params)
        return posterior_tree(
            self._structure,
            self._batch_dims,
            draws=draws,
            predictive=conditioned.predict(latents, predictive_key),
            prior=simulate(model, num, args=args, kwargs=kwargs, rng_key=prior_key).sites,
            densities=densities,
            observations=self.observations,
            inputs=conditioned.inputs(),
            sample_stats=sample_stats,
            **options,
        )

    @property
    def _structure(self) -> ModelStructure:
        return self._conditioned.guide.structure

    @property
    def _batch_dims(self) -> int:
        return self._conditioned.batch_dims

    def _latents(self, latents: Mapping[str, Any]) -> dict[str, Array]:
        return {site.name: jnp.asarray(latents[site.name]) for site in self._structure.latents}

    def _replay_deterministic(self, latents: Mapping[str, Any]) -> dict[str, Array]:
        names = [site.name for site in self._structure.deterministic]
        if not names:
            return {}
        found = self._conditioned.replay(self._latents(latents))
        return {name: found[name] for name in names}


def _positive(num_samples: int) -> int:
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    return num_samples
