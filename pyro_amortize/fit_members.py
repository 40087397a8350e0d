"""Training of an ensemble: each member by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.elbo import ELBO

from pyro_amortize.arguments import drawn_call
from pyro_amortize.guides import EnsembleGuide
from pyro_amortize.measure import Call
from pyro_amortize.objectives import NPE
from pyro_amortize.objectives.mixed import parts_of
from pyro_amortize.posterior import AmortizedPosterior
from pyro_amortize.tracing import run_model, seeded


def fit_members(
    fit_one: Callable[..., AmortizedPosterior],
    model: Callable[..., Any],
    ensemble: EnsembleGuide,
    objective: ELBO,
    *,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    model_args: Callable[..., Any] | None,
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
        **options: Further arguments of `fit`.

    Returns:
        The trained mixture, whose members have their histories.

    Raises:
        ValueError: If the objective trains parameters of the model, which members share.
    """
    if not all(isinstance(part, NPE) for part, _ in parts_of(objective)):
        call = drawn_call(model_args()) if model_args else (tuple(args), dict(kwargs or {}))
        check_parameters(model, call, type(objective).__name__)
    given = {"args": args, "kwargs": kwargs, "model_args": model_args}
    members = [fit_one(model, guide, objective, **given, **options) for guide in ensemble.guides]
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
    with torch.no_grad(), seeded(0):
        trace = run_model(model, *call)
    names = [name for name, site in trace.items() if site["type"] == "param"]
    if names:
        raise ValueError(
            f"objective: {objective} trains parameters {names} of the model, and an ensemble is "
            "of posteriors of one model. Train them with a single guide first, then the members "
            "with NPE()"
        )
