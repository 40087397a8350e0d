"""The prior of a model where the guide expects the posterior at one data set."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_amortize.arguments import underlying, with_nothing_missing
from pyro_amortize.checks import argument_problems
from pyro_amortize.handlers.prior import GivenLatents, PriorOnly
from pyro_amortize.layout import align
from pyro_amortize.observations import data_plate_sizes
from pyro_amortize.simulate import Simulations, count_nonfinite, replay, simulate, simulate_rows
from pyro_amortize.tracing import plate_sizes

_DRAWS_AT_ONCE = 10_000  # of the guide
_LEAST_EXPECTED = 10  # accepted draws at the floor, before a rate is held against it


def truncated_prior(
    model: Callable[..., Any],
    guide: Any,
    observations: Mapping[str, Any] | None = None,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    quantile: float = 1e-4,
    num_samples: int = 100_000,
    num_candidates: int = 10_000,
    min_acceptance_rate: float = 1e-3,
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
        guide: A trained guide for it. A copy is kept: training it on does not move the region.
        observations: The data set, `{site: value}`; found in the model's arguments if None.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        quantile: The fraction of the guide's mass that is cut off, from 0, which leaves the prior
            as it is, to below 1.
        num_samples: Draws of the guide for the threshold.
        num_candidates: Draws of the prior at a time, of which those in the region are kept.
        min_acceptance_rate: The least fraction of them that is worth the trouble.

    Returns:
        A model to simulate from, for `NPE`, `simulate` and the host's own handlers.

    Raises:
        ValueError: If data are missing or do not fit the model, the prior depends on them, too
            few draws of the prior are in the region, or a number is out of range.

    Example:
        >>> from pyro_amortize import AmortizedGuide
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> truncated = truncated_prior(model, guide, {"y": torch.tensor(0.5)}, quantile=0.1)
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
    own = guide.separate()
    return TruncatedPrior(
        model,
        own,
        call,
        found,
        quantile=quantile,
        threshold=_threshold(own, call, found, quantile, num_samples),
        num_candidates=num_candidates,
        min_acceptance_rate=min_acceptance_rate,
    )


class TruncatedPrior:
    """A model whose latent sites are redrawn together until they are in a region of the guide.

    Made by `truncated_prior`. As a model it has the sites of its model, whose densities are those
    of the prior, not divided by its mass in the region. In the host's own loops and in `NPE` each
    run redraws for itself; `simulate` is the cheap way to many simulations.

    Args:
        model: The model.
        guide: The guide, which nobody else trains.
        call: Arguments of the model.
        observations: The data set by site.
        quantile: The fraction of the guide's mass outside of the region.
        threshold: The least log density of the guide in the region, in nats; `-inf` for all.
        num_candidates: Draws of the prior at a time.
        min_acceptance_rate: The least fraction of them in the region.

    Attributes:
        acceptance_rate: The fraction of `num_candidates` draws of the prior in the region.

    Raises:
        ValueError: If that is below `min_acceptance_rate`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        observations: Mapping[str, Tensor],
        *,
        quantile: float,
        threshold: float,
        num_candidates: int,
        min_acceptance_rate: float,
    ) -> None:
        self.__wrapped__ = model
        self.__signature__ = inspect.signature(underlying(model))
        self.guide, self.observations = guide, dict(observations)
        self.quantile, self.threshold = quantile, threshold
        self.num_candidates, self.min_acceptance_rate = num_candidates, min_acceptance_rate
        self._call = call
        names = tuple(site.name for site in guide.structure.latents)
        self._prior = PriorOnly(guide.model, names)
        self.acceptance_rate = 1.0
        if threshold > -math.inf:
            is_inside = self.contains(self._draw_prior(num_candidates, *call))
            self.acceptance_rate = self._checked_rate(int(is_inside.sum()), num_candidates)

    @torch.no_grad()
    def contains(self, latents: Mapping[str, Any]) -> Tensor:
        """Which latents are in the region.

        Args:
            latents: Constrained values of all latent sites, `(num, *plates, *event)`.

        Returns:
            Boolean, shape `(num,)`.
        """
        if self.threshold == -math.inf:
            num = len(next(iter(latents.values())))
            return torch.ones(num, dtype=torch.bool)
        log_probs = _log_probs(self.guide, self._call, self.observations, latents)
        return log_probs >= self.threshold

    def simulate(self, num_simulations: int) -> Simulations:
        """Joint simulations with latents from the region, the model being run for these alone.

        Args:
            num_simulations: Number of simulations.

        Returns:
            The simulations, as of `simulate`.

        Raises:
            ValueError: If the number is below 1, or too few draws of the prior are in the region.
        """
        args, kwargs = self._call
        model, is_vectorized = self.guide.model, self.guide.is_vectorized
        if self.threshold == -math.inf:
            method: Any = "vectorized" if is_vectorized else "loop"
            return simulate(model, num_simulations, args=args, kwargs=kwargs, method=method)
        if num_simulations < 1:
            raise ValueError(f"num_simulations: expected at least 1, got {num_simulations}")
        latents = self._draw(num_simulations, args, kwargs)
        with torch.no_grad():
            sites = replay(model, args, kwargs, latents, 1, is_vectorized=is_vectorized)
        return count_nonfinite(sites)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model at latents from the region.

        As many are drawn as the plates around the run have elements.
        """
        model: Callable[..., Any] = self.__wrapped__
        if self.threshold == -math.inf:
            return model(*args, **kwargs)
        unseen: Any = {"_do_not_trace": True, "is_auxiliary": True}
        shape = pyro.sample("_amortize_plates", dist.Delta(torch.zeros(())), infer=unseen).shape
        drawn = self._draw(math.prod(shape), args, kwargs)
        structure = self.guide.structure
        nesting, values = structure.max_plate_nesting, {}
        for name, value in drawn.items():
            if shape:
                event_dim = len(structure.site(name).event_shape)
                own = align(value, nesting, event_dim, 1).shape[1:]
                values[name] = value.reshape(*shape[: len(shape) - nesting], *own)
            else:
                values[name] = value[0]
        with GivenLatents(values):
            return model(*args, **kwargs)

    @torch.no_grad()
    def _draw(
        self, num_draws: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Draws of the prior in the region; those of the first attempt keep their places."""
        values = self._draw_prior(num_draws, args, kwargs)
        is_inside = self.contains(values)
        num_inside, num_drawn = int(is_inside.sum()), num_draws
        while not is_inside.all():
            (empty,) = torch.nonzero(~is_inside, as_tuple=True)
            candidates = self._draw_prior(self.num_candidates, args, kwargs)
            (found,) = torch.nonzero(self.contains(candidates), as_tuple=True)
            num_inside, num_drawn = num_inside + len(found), num_drawn + self.num_candidates
            self._checked_rate(num_inside, num_drawn)
            num_filled = min(len(empty), len(found))
            for name, value in values.items():
                value[empty[:num_filled]] = candidates[name][found[:num_filled]]
            is_inside[empty[:num_filled]] = True
        return values

    def _draw_prior(
        self, num_draws: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Draws of all sites up to the last latent one, with a leading axis."""
        if self.guide.is_vectorized:
            nesting = self.guide.structure.max_plate_nesting
            sites = simulate_rows(self._prior, num_draws, args, kwargs, nesting=nesting)[0]
        else:
            sites = simulate(self._prior, num_draws, args=args, kwargs=kwargs, method="loop").sites
        computed = [site.name for site in self.guide.structure.deterministic]
        return {name: value.clone() for name, value in sites.items() if name not in computed}

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
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Tensor],
    quantile: float,
    num_samples: int,
) -> float:
    """The quantile of the guide's log density over its own draws."""
    if quantile == 0:
        return -math.inf
    found = []
    with torch.no_grad():
        for first in range(0, num_samples, _DRAWS_AT_ONCE):
            num = min(_DRAWS_AT_ONCE, num_samples - first)
            latents = guide.draw(*call, observations, num_samples=num).values
            found.append(_log_probs(guide, call, observations, latents).cpu().numpy())
    values = np.nan_to_num(np.concatenate(found), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return float(np.quantile(values, quantile, method="lower"))


def _log_probs(
    guide: Any,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Tensor],
    latents: Mapping[str, Any],
) -> Tensor:
    """Joint log density of the guide, one number per draw; the data are embedded once."""
    args, kwargs = call
    values = {site.name: torch.as_tensor(latents[site.name]) for site in guide.structure.latents}
    return guide.log_prob(values, *args, observations=observations, **kwargs)


def _check_prior(
    guide: Any,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    observations: Mapping[str, Tensor],
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
