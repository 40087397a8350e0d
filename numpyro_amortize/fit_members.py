"""Training of an ensemble: each member by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from numpyro.infer.elbo import ELBO

from numpyro_amortize.arguments import drawn_call
from numpyro_amortize.guides import EnsembleGuide
from numpyro_amortize.guides.weights import member_params
from numpyro_amortize.measure import Call
from numpyro_amortize.objectives import NPE
from numpyro_amortize.objectives.mixed import parts_of
from numpyro_amortize.posterior import AmortizedPosterior
from numpyro_amortize.tracing import run_model


def fit_members(
    fit_one: Callable[..., AmortizedPosterior],
    model: Callable[..., Any],
    ensemble: EnsembleGuide,
    objective: ELBO,
    *,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    model_args: Callable[..., Any] | None,
    rng_key: Array | None,
    params: Mapping[str, Any] | None,
    **options: Any,
) -> AmortizedPosterior:
    """Train the members of an ensemble one after another, on draws of their own.

    Args:
        fit_one: `fit`, for one guide.
        model: The model that the guides were made for.
        ensemble: The ensemble.
        objective: The objective of each member.
        args: As for `fit`.
        kwargs: As for `fit`.
        model_args: As for `fit`.
        rng_key: As for `fit`; each member gets a key of its own.
        params: Parameters of the ensemble to start from, or None.
        **options: Further arguments of `fit`.

    Returns:
        The trained mixture, whose members have their histories.

    Raises:
        ValueError: If the objective trains parameters of the model, which members share.
    """
    key = jax.random.key(0) if rng_key is None else rng_key
    if not all(isinstance(part, NPE) for part, _ in parts_of(objective)):
        call = drawn_call(model_args(key)) if model_args else (tuple(args), dict(kwargs or {}))
        check_parameters(model, call, type(objective).__name__)
    given = {"args": args, "kwargs": kwargs, "model_args": model_args}
    members = [
        fit_one(
            model,
            guide,
            objective,
            rng_key=jax.random.fold_in(key, number),
            params=params and member_params(params, number),
            **given,
            **options,
        )
        for number, guide in enumerate(ensemble.guides)
    ]
    answer = AmortizedPosterior.from_members(members, ensemble.weights.tolist())
    answer.guide = ensemble
    return answer


def check_parameters(model: Callable[..., Any], call: Call, objective: str) -> None:
    """Raise a ValueError if an objective would train a model once for each member.

    Args:
        model: The model.
        call: Arguments of it.
        objective: Name of the objective.
    """
    trace = run_model(model, *call, jax.random.key(0))
    names = [name for name, site in trace.items() if site["type"] == "param"]
    if names:
        raise ValueError(
            f"objective: {objective} trains parameters {names} of the model, and an ensemble is "
            "of posteriors of one model. Train them with a single guide first, then the members "
            "with NPE()"
        )
