"""Training for one data set in rounds, each simulating where the last one saw the posterior."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pyro_amortize.fit import fit
from pyro_amortize.guides import AmortizedGuide
from pyro_amortize.handlers import truncated_prior
from pyro_amortize.history import TrainingHistory, joined_histories
from pyro_amortize.objectives import NPE
from pyro_amortize.posterior import AmortizedPosterior
from pyro_amortize.simulate import Simulations, count_nonfinite, simulate
from pyro_amortize.training_step import MakeOptimizer


def fit_sequential(
    model: Callable[..., Any],
    guide: AmortizedGuide,
    observations: Mapping[str, Any] | None = None,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    objective: NPE | None = None,
    num_rounds: int = 5,
    num_simulations: int = 2000,
    quantile: float = 1e-4,
    num_samples: int = 100_000,
    min_acceptance_rate: float = 1e-3,
    num_steps: int = 3000,
    learning_rate: float = 1e-3,
    optimizer: MakeOptimizer | None = None,
    patience: int | None = 500,
    compile: bool = False,
    progress_bar: bool = True,
) -> AmortizedPosterior:
    """Truncated sequential neural posterior estimation (TSNPE): simulations for one data set.

    The first round simulates from the prior, each further one from the `truncated_prior` of the
    guide as it is. The guide is trained on the simulations of all rounds by the plain `NPE`, of
    which a tenth is held out for early stopping. A truncated prior is proportional to the prior in
    its region, and so is the mixture of all rounds where their regions overlap: the minimum at
    the data set is the model's posterior there, but for about `quantile` of its mass, without
    weights and for every density. Use it when simulations are dear and the posterior is much
    narrower than the prior. Avoid it when there are several data sets: the answer is good near
    this one only; and with many local latents, which would have to be in the region all at once.

    Args:
        model: The model that the guide was made for.
        guide: The guide; it is set up if it is not, and trained on if it is trained.
        observations: The data set, `{site: value}`; found in the model's arguments if None.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        objective: An `NPE` without a source of simulations, for the number of them in a step and
            what to do about values that are not finite or missing; `NPE()` if None.
        num_rounds: Number of rounds.
        num_simulations: Simulations of each round, at least 20.
        quantile: The fraction of the guide's mass that a round cuts off.
        num_samples: Draws of the guide for the threshold.
        min_acceptance_rate: The least fraction of prior draws in the region, see `truncated_prior`.
        num_steps: Most optimiser steps of each round.
        learning_rate: Initial rate of each round's default optimiser.
        optimizer: As for `fit`, one for each round.
        patience: Steps without a better held-out loss after which a round ends; None for
            `num_steps` in every round.
        compile: As for `fit`.
        progress_bar: Whether to show a bar for each round.

    Returns:
        The posterior, trained for this data set, with the history of all rounds. Its
        `acceptance_rates` should fall and then level; `importance_sample` has the certificate.

    Raises:
        ValueError: If data are missing or do not fit the model, the objective has simulations of
            its own, a number is out of range, or the acceptance rate is below its floor.
        TypeError: If the objective is no `NPE`.
        FloatingPointError: If the loss or its gradient is not finite.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> rounds = {"num_rounds": 2, "num_simulations": 50, "num_steps": 2, "progress_bar": False}
        >>> amortized = fit_sequential(model, guide, {"y": torch.tensor(0.5)}, **rounds)
        >>> amortized.at(y=torch.tensor(0.5)).sample(3)["z"].shape
        torch.Size([3])

    References:
        Deistler, Goncalves and Macke (2022), Truncated proposals for scalable and hassle-free
        simulation-based inference, arXiv:2210.04815.
    """
    objective = NPE() if objective is None else objective
    _check(objective, num_rounds, num_simulations)
    if not isinstance(guide, AmortizedGuide):
        raise TypeError(
            f"guide: expected an AmortizedGuide, got {type(guide).__name__}; of an ensemble, run "
            "each member and join the answers, AmortizedPosterior.from_members"
        )
    start = time.perf_counter()
    args, kwargs = tuple(args), dict(kwargs or {})
    guide.setup(*args, **kwargs)
    guide.find_observations(args, kwargs, observations)  # before anything is simulated
    method: Any = "vectorized" if guide.is_vectorized else "loop"
    bank = simulate(guide.model, num_simulations, args=args, kwargs=kwargs, method=method)
    rates: list[float] = [1.0]
    histories: list[TrainingHistory] = []
    for number in range(num_rounds):
        if number:
            region = truncated_prior(
                model,
                guide,
                observations,
                args=args,
                kwargs=kwargs,
                quantile=quantile,
                num_samples=num_samples,
                min_acceptance_rate=min_acceptance_rate,
            )
            bank = _joined(bank, region.simulate(num_simulations))
            rates.append(region.acceptance_rate)
        amortized = fit(
            model,
            guide,
            objective.on_bank(bank),
            args=args,
            kwargs=kwargs,
            num_steps=num_steps,
            learning_rate=learning_rate,
            optimizer=optimizer,
            patience=patience,
            compile=compile,
            progress_bar=progress_bar,
        )
        if amortized.history is not None:
            histories.append(amortized.history)
    history = replace(
        joined_histories(histories),
        num_simulations=num_rounds * num_simulations,
        seconds=time.perf_counter() - start,
        acceptance_rates=tuple(rates),
    )
    return AmortizedPosterior(model, guide, history=history)


def _joined(bank: Simulations, new: Simulations) -> Simulations:
    """The simulations of all rounds; rows keep their numbers, and stay held out or not."""
    return count_nonfinite(
        {name: torch.cat([value, new[name]]) for name, value in bank.sites.items()}
    )


def _check(objective: Any, num_rounds: int, num_simulations: int) -> None:
    if not isinstance(objective, NPE):
        raise TypeError(
            f"objective: expected NPE, got {type(objective).__name__}; nothing else is right for "
            "simulations from a truncated prior"
        )
    if objective.simulations is not None or objective.model_args is not None:
        raise ValueError(
            "objective: the simulations are those of the rounds, for one data set; leave "
            "NPE(simulations=) and NPE(model_args=) out"
        )
    if num_rounds < 1:
        raise ValueError(f"num_rounds: expected at least 1, got {num_rounds}")
    if num_simulations < 20:
        raise ValueError(
            f"num_simulations: expected at least 20 in a round, of which some are held out, got "
            f"{num_simulations}"
        )
