"""A start for embeddings: a regression of the latents, before the densities are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import optax
from jax import Array

from numpyro_amortize.densities import NormalDensity
from numpyro_amortize.fit import fit
from numpyro_amortize.guides import AmortizedGuide
from numpyro_amortize.guides.weights import PARAMS
from numpyro_amortize.history import TrainingHistory
from numpyro_amortize.objectives import NPE


def pretrain(
    model: Callable[..., Any],
    guide: Any,
    objective: NPE | None = None,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_steps: int = 500,
    learning_rate: float = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    progress_bar: bool = True,
    rng_key: Array | None = None,
) -> TrainingHistory:
    """Warm the embeddings of a guide up on a regression of the latents.

    The guide's embeddings are trained on the model's simulations under heads without hidden
    layers, `E[-log Normal(z; A c, softplus(B c))]` in nats, with c the context, the earlier latents
    among it, and z the standardised unconstrained latent. What the contexts lack, such heads
    cannot make up for. The densities of the guide are left as they are; train with `fit` next.
    Use it where the embedding is deep (series, images, attention) and its density is expensive or
    learns slowly: the steps here are cheap. It adds nothing where `fit` alone is quick. Discrete
    latents keep their own densities here.

    Args:
        model: The model that the guide was made for.
        guide: An `AmortizedGuide`; it is set up if it is not.
        objective: Settings of the simulations, `NPE()` if None.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        num_steps: Number of optimiser steps.
        learning_rate: Initial rate of the default optimiser.
        optimizer: As for `fit`.
        progress_bar: Whether to show a bar with the loss and simulations per second.
        rng_key: Key of everything random; `jax.random.key(0)` if None.

    Returns:
        The losses of the regression.

    Raises:
        TypeError: If the guide is no `AmortizedGuide` or the objective no `NPE`.
        ValueError: As `fit`.

    Example:
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> def model(y=None):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> history = pretrain(model, guide, num_steps=2, progress_bar=False)
        >>> amortized = fit(model, guide, NPE(), num_steps=2, progress_bar=False)
    """
    objective = NPE() if objective is None else objective
    if not isinstance(guide, AmortizedGuide):
        raise TypeError(
            f"guide: expected an AmortizedGuide, got {type(guide).__name__}; of an ensemble, "
            "pretrain each of its guides"
        )
    if not isinstance(objective, NPE):
        raise TypeError(
            f"objective: expected NPE, got {type(objective).__name__}; the latents of simulations "
            "are what is regressed"
        )
    plain = AmortizedGuide(
        guide.user_model,
        observed=guide.alternatives or guide.observed,
        inputs=guide.inputs,
        groups=guide.groups,
        sizes=guide.sizes,
        missing=guide.missing,
        embedding=guide._embedding,
        densities=NormalDensity(hidden_dims=()),
        parents=guide._parents,
    )
    plain.init_seed = guide.init_seed
    if guide._structure is not None:
        _take_setup(plain, guide, guide.init_params())
    amortized = fit(
        model,
        plain,
        objective,
        args=args,
        kwargs=kwargs,
        num_steps=num_steps,
        learning_rate=learning_rate,
        optimizer=optimizer,
        progress_bar=progress_bar,
        rng_key=rng_key,
    )
    if guide._structure is None:
        _take_setup(guide, plain, amortized.params)
    else:
        _take_embeddings(guide, amortized.params)
    return cast(TrainingHistory, amortized.history)


def _take_setup(guide: AmortizedGuide, other: AmortizedGuide, params: Mapping[str, Any]) -> None:
    """Set a guide up as another one, with its constants and its embeddings."""
    guide.build(other.structure, other._weights.unpack(params)[1])
    guide.setup_call, guide.measured_on = other.setup_call, other.measured_on
    _take_embeddings(guide, params)


def _take_embeddings(guide: AmortizedGuide, params: Mapping[str, Any]) -> None:
    """Start from the weights of all embeddings."""
    own = dict(guide._init_params[PARAMS])
    for name, value in params[PARAMS].items():
        if name.startswith("embeddings."):
            own[name] = value
    guide._init_params = guide.init_params() | {PARAMS: own}
