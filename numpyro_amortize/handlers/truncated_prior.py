"""The prior of a model where the guide expects the posterior at one data set."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

from numpyro_amortize.arguments import with_nothing_missing
from numpyro_amortize.checks import argument_problems
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.handlers.prior import GivenLatents, PriorOnly
from numpyro_amortize.observations import data_plate_sizes
from numpyro_amortize.simulate import Simulations, count_nonfinite, replay, simulate, simulate_rows
from numpyro_amortize.tracing import plate_sizes

_DRAWS_AT_ONCE = 10_000  # of the guide
_CANDIDATES_OF_A_RUN = 64  # draws of the prior at once, inside of the model
_LEAST_EXPECTED = 10  # accepted draws at the floor, before a rate is held against it


def truncated_prior(
    model: Callable[..., Any],
    guide: Any,
    params: Mapping[str, Any],
    observations: Mapping[str, Any] | None = None,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    quantile: float = 1e-4,
    num_samples: int = 100_000,
    num_candidates: int = 10_000,
    min_acceptance_rate: float = 1e-3,
    rng_key: Array | None = None,
) -> TruncatedPrior:
    """The model with its prior cut down to where the guide sees the posterior at one data set.

    `p~(z) = p(z) 1[log q(z | x) >= t] / c`, with `t` the `quantile` of `log q(z | x)` over draws of
    the guide, in nats: the region of highest density that holds all but this fraction of the
    guide's mass. Inside of it the posterior given x is that of the model, so that the plain `NPE`
    stays right there, and simulations are not spent elsewhere; `fit_sequential` does it in rounds.
    Use it when one data set matters and simulations are dear. Avoid it where the posterior is not
    much narrower than the prior, and where many latents are local: all are redrawn together.

    Args:
        model: The model.
        guide: A guide for it.
        params: The trained parameters, `amortized.params`.
        observations: The data set, `{site: value}`; found in the model's arguments if None.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        quantile: The fraction of the guide's mass that is cut off, from 0, which leaves the prior
            as it is, to below 1.
        num_samples: Draws of the guide for the threshold.
        num_candidates: Draws of the prior at a time, of which those in the region are kept.
        min_acceptance_rate: The least fraction of them that is worth the trouble.
        rng_key: Key of these draws; `jax.random.key(0)` if None.

    Returns:
        A model to simulate from, for `NPE`, `simulate` and the host's own handlers.

    Raises:
        ValueError: If data are missing or do not fit the model, the prior depends on them, too
            few draws of the prior are in the region, or a number is out of range.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_amortize import AmortizedGuide
        >>> def model(y=None):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y").setup()
        >>> params, data = guide.init_params(), {"y": jnp.array(0.5)}
        >>> truncated = truncated_prior(model, guide, params, data, quantile=0.1)
        >>> bool(truncated.contains(truncated.simulate(20).sites).all())
        True

    References:
        Deistler, Goncalves and Macke (2022), Truncated proposals for scalable and hassle-free
        simulation-based inference, arXiv:2210.04815.
    """
    _check_numbers(quantile, num_samples, num_candidates, min_acceptance_rate)
    call = tuple(args), dict(kwargs or {})
    guide.setup(*call[0], **call[1])
    found = guide.find_observations(*call, observations)
    _check_prior(guide, call, found)
    key = jax.random.key(0) if rng_key is None else rng_key
    guide_key, prior_key = jax.random.split(key)
    return TruncatedPrior(
        model,
        guide,
        params,
        call,
        found,
        quantile=quantile,
        threshold=_threshold(guide, params, call, found, quantile, num_samples, guide_key),
        num_candidates=num_candidates,
        min_acceptance_rate=min_acceptance_rate,
        rng_key=prior_key,
    )


class TruncatedPrior:
    """A model whose latent sites are redrawn together until they are in a region of the guide.

    Made by `truncated_prior`. As a model it has the sites of its model, whose densities are those
    of the prior, not divided by its mass in the region. In the host's own loops and in `NPE` each
    run redraws for itself; `simulate` is the cheap way to many simulations.

    Args:
        model: The model.
        guide: The guide.
        params: Its parameters.
        call: Arguments of the model.
        observations: The data set by site.
        quantile: The fraction of the guide's mass outside of the region.
        threshold: The least log density of the guide in the region, in nats; `-inf` for all.
        num_candidates: Draws of the prior at a time.
        min_acceptance_rate: The least fraction of them in the region.
        rng_key: Key of the draws that measure it.

    Attributes:
        acceptance_rate: The fraction of `num_candidates` draws of the prior in the region.

    Raises:
        ValueError: If that is below `min_acceptance_rate`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        params: Mapping[str, Any],
        call: tuple[tuple[Any, ...], dict[str, Any]],
        observations: Mapping[str, Array],
        *,
        quantile: float,
        threshold: float,
        num_candidates: int,
        min_acceptance_rate: float,
        rng_key: Array,
    ) -> None:
        self.__wrapped__ = model
        self.__signature__ = inspect.signature(model)
        self.guide, self.params, self.observations = guide, params, dict(observations)
        self.quantile, self.threshold = quantile, threshold
        self.num_candidates, self.min_acceptance_rate = num_candidates, min_acceptance_rate
        self._call = call
        names = tuple(site.name for site in guide.structure.latents)
        self._prior = PriorOnly(guide.model, names)
        self.acceptance_rate = 1.0
        if threshold > -math.inf:
            _, is_inside = self._draw_prior(num_candidates, rng_key)
            self.acceptance_rate = self._checked_rate(int(is_inside.sum()), num_candidates)

    def contains(self, latents: Mapping[str, Any]) -> Array:
        """Which latents are in the region.

        Args:
            latents: Constrained values of all latent sites, `(num, *plates, *event)`.

        Returns:
            Boolean, shape `(num,)`.
        """
        if self.threshold == -math.inf:
            return jnp.ones(len(next(iter(latents.values()))), bool)
        values = {site.name: latents[site.name] for site in self.guide.structure.latents}
        log_probs = _compiled_log_probs(
            self.guide, self.params, self._call, self.observations, values
        )
        return log_probs >= self.threshold

    def simulate(self, num_simulations: int, *, rng_key: Array | None = None) -> Simulations:
        """Joint simulations with latents from the region, the model being run for these alone.

        Args:
            num_simulations: Number of simulations.
            rng_key: Key of everything random; `jax.random.key(0)` if None.

        Returns:
            The simulations, as of `simulate`.

        Raises:
            ValueError: If the number is below 1, or too few draws of the prior are in the region.
        """
        args, kwargs = self._call
        model = self.guide.model
        if self.threshold == -math.inf:
            own = model_at(model, self.params)
            return simulate(own, num_simulations, args=args, kwargs=kwargs, rng_key=rng_key)
        if num_simulations < 1:
            raise ValueError(f"num_simulations: expected at least 1, got {num_simulations}")
        key = jax.random.key(0) if rng_key is None else rng_key
        prior_key, model_key = jax.random.split(key)
        latents = self._draw(num_simulations, prior_key)
        return count_nonfinite(_replayed(model, self.params, self._call, latents, model_key))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model at latents from the region.

        They are NaN if none is found where twenty are expected at `min_acceptance_rate`, once in
        some hundred million runs.
        """
        model: Callable[..., Any] = self.__wrapped__
        if self.threshold == -math.inf:
            return model(*args, **kwargs)
        with GivenLatents(self._draw_one(args, kwargs, numpyro.prng_key())):
            return model(*args, **kwargs)

    def _draw(self, num_draws: int, rng_key: Array) -> dict[str, Array]:
        """Draws of the prior in the region: batches of one size, of each what is inside."""
        kept: list[dict[str, np.ndarray]] = []
        num_inside, num_drawn = 0, 0
        while num_inside < num_draws:
            rng_key, own_key = jax.random.split(rng_key)
            values, is_inside = self._draw_prior(self.num_candidates, own_key)
            kept.append({name: np.asarray(value)[is_inside] for name, value in values.items()})
            num_inside, num_drawn = num_inside + is_inside.sum(), num_drawn + self.num_candidates
            self._checked_rate(int(num_inside), num_drawn)
        return {
            name: jnp.asarray(np.concatenate([part[name] for part in kept])[:num_draws])
            for name in kept[0]
        }

    def _draw_prior(self, num_draws: int, rng_key: Array) -> tuple[dict[str, Array], np.ndarray]:
        """Draws of all sites up to the last latent one, and which of them are in the region."""
        values, log_probs = _scored_draws(
            self._prior,
            self.guide,
            self.params,
            self._call,
            self._call,
            self.observations,
            num_draws,
            rng_key,
        )
        return values, np.asarray(log_probs >= self.threshold)

    def _draw_one(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rng_key: Array
    ) -> dict[str, Array]:
        """One draw of the prior in the region, the first of the first batch that has one."""

        def attempt(number: Any) -> tuple[dict[str, Array], Array]:
            values, log_probs = _scored_draws(
                self._prior,
                self.guide,
                self.params,
                (args, kwargs),
                self._call,
                self.observations,
                _CANDIDATES_OF_A_RUN,
                jax.random.fold_in(rng_key, number),
            )
            is_inside = log_probs >= self.threshold
            first = jnp.argmax(is_inside)
            return {name: value[first] for name, value in values.items()}, jnp.any(is_inside)

        def is_open(state: Any) -> Array:
            number, (_, is_found) = state
            return ~is_found & (number < most)

        most = math.ceil(_LEAST_EXPECTED / (self.min_acceptance_rate * _CANDIDATES_OF_A_RUN)) * 2
        start = jnp.ones((), int), attempt(0)
        _, (values, is_found) = jax.lax.while_loop(
            is_open, lambda state: (state[0] + 1, attempt(state[0])), start
        )
        return {
            name: jnp.where(is_found, value, jnp.nan)
            if jnp.issubdtype(value.dtype, jnp.floating)
            else value
            for name, value in jax.lax.stop_gradient(values).items()
        }

    def _checked_rate(self, num_inside: int, num_drawn: int) -> float:
        """The acceptance rate, or a ValueError if it is below the floor for sure."""
        rate, floor = num_inside / num_drawn, self.min_acceptance_rate
        if rate < floor and num_drawn * floor >= _LEAST_EXPECTED:
            raise ValueError(
                f"truncated_prior: acceptance rate {rate:.2g} at quantile={self.quantile:g} "
                f"({num_inside} of {num_drawn} draws of the prior), expected at least "
                f"min_acceptance_rate={floor:g}. Take fewer rounds, a smaller quantile, which "
                "makes the region larger, or a lower floor if draws of the prior are cheap"
            )
        return rate


def _threshold(
    guide: Any,
    params: Mapping[str, Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Array],
    quantile: float,
    num_samples: int,
    rng_key: Array,
) -> float:
    """The quantile of the guide's log density over its own draws."""
    if quantile == 0:
        return -math.inf
    num = min(num_samples, _DRAWS_AT_ONCE)
    keys = jax.random.split(rng_key, -(-num_samples // num))
    found = [_log_probs_of_draws(guide, params, call, observations, num, key) for key in keys]
    values = np.concatenate([np.asarray(part) for part in found])[:num_samples]
    values = np.nan_to_num(values, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return float(np.quantile(values, quantile, method="lower"))


def _log_probs(
    guide: Any,
    params: Mapping[str, Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Array],
    latents: Mapping[str, Any],
) -> Array:
    """Joint log density of the guide, one number per draw; the data are embedded once."""
    args, kwargs = call
    return guide.log_prob(params, latents, *args, observations=observations, **kwargs)


_compiled_log_probs = eqx.filter_jit(_log_probs)


@eqx.filter_jit
def _log_probs_of_draws(
    guide: Any,
    params: Mapping[str, Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Array],
    num_samples: int,
    rng_key: Array,
) -> Array:
    """The same over draws of the guide."""

    def draw(key: Array) -> dict[str, Array]:
        return guide.draw(params, *call, observations, rng_key=key).values

    latents = jax.vmap(draw)(jax.random.split(rng_key, num_samples))
    return _log_probs(guide, params, call, observations, latents)


@eqx.filter_jit
def _scored_draws(
    prior: PriorOnly,
    guide: Any,
    params: Mapping[str, Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    guide_call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Array],
    num_draws: int,
    rng_key: Array,
) -> tuple[dict[str, Array], Array]:
    """Draws of the prior with all sites up to the last latent one, and their log densities."""
    sites, _ = simulate_rows(model_at(prior, params), num_draws, *call, rng_key)
    computed = [site.name for site in guide.structure.deterministic]
    values = {name: value for name, value in sites.items() if name not in computed}
    latents = {site.name: values[site.name] for site in guide.structure.latents}
    return values, _log_probs(guide, params, guide_call, observations, latents)


@eqx.filter_jit
def _replayed(
    model: Callable[..., Any],
    params: Mapping[str, Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    values: Mapping[str, Array],
    rng_key: Array,
) -> dict[str, Array]:
    """All sites of the model given its latents."""
    return replay(model_at(model, params), *call, values, 1, rng_key)


def _check_prior(
    guide: Any,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Array],
) -> None:
    """Raise a ValueError if the prior moves with the data, or has latents of another number."""
    structure = guide.structure
    args, kwargs = with_nothing_missing(guide.model, *call, structure.missing)
    declared = [item.name for item in (*structure.inputs, *structure.groups)]
    declared += [info.argument for info in structure.missing if info.argument]
    observed = tuple(site.name for site in structure.observed)
    for problem in argument_problems(guide.model, args, kwargs, observed, tuple(declared)):
        raise ValueError(f"truncated_prior: {problem}")
    sizes = plate_sizes(guide.model, *call)
    for plate, size in data_plate_sizes(structure, observations).items():
        if sizes.get(plate, size) != size:
            raise ValueError(
                f"plate '{plate}': the data have {size} elements along it and the model draws "
                f"{sizes[plate]} at these arguments. Pass the argument that sets the size, in "
                "args= or kwargs="
            )


def _check_numbers(
    quantile: float, num_samples: int, num_candidates: int, min_acceptance_rate: float
) -> None:
    if not 0 <= quantile < 1:
        raise ValueError(f"quantile: expected at least 0 and below 1, got {quantile}")
    if num_samples < 1 or quantile and num_samples * quantile < 1:
        raise ValueError(
            f"num_samples: expected at least 1 / quantile draws for the threshold, got "
            f"{num_samples} at quantile={quantile:g}"
        )
    if num_candidates < 1:
        raise ValueError(f"num_candidates: expected at least 1, got {num_candidates}")
    if not 0 < min_acceptance_rate <= 1:
        raise ValueError(
            f"min_acceptance_rate: expected above 0 and at most 1, got {min_acceptance_rate}"
        )
