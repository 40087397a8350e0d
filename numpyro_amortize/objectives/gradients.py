"""What objectives need of the draws of a guide for a right gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.structure import ModelStructure
from numpyro_amortize.tracing import Trace, is_unobserved


def check_gradients(structure: ModelStructure, objective: Any) -> None:
    """Raise a ValueError if an objective's gradient would be wrong at discrete latent sites.

    Bounds with score functions are right for any draws, with more noise; NPE has no draws.
    The host's own flag `can_infer_discrete` says which bounds have them.

    Args:
        structure: The structure of the model.
        objective: The objective.
    """
    discrete = [site.name for site in structure.latents if site.support.is_discrete]
    if discrete and not getattr(objective, "can_infer_discrete", True):
        advice = reparameterised_only(type(objective).__name__)
        raise ValueError(f"site '{discrete[0]}': is discrete, and {advice}")


def check_reparameterised(guide_trace: Trace, advice: str) -> None:
    """Raise a ValueError if a draw of the guide has no gradient.

    What an `obs_mask` leaves unobserved has the same density in model and guide, and no weight.

    Args:
        guide_trace: A trace of the guide.
        advice: Which gradient would be wrong, and what to use.
    """
    for name, site in guide_trace.items():
        if site["type"] != "sample" or is_unobserved(name):
            continue
        if not site["fn"].has_rsample:
            raise ValueError(f"site '{name}': is not reparameterised, and {advice}")


def reparameterised_only(objective: str) -> str:
    """The end of an error text: that an objective needs such draws, and what to use."""
    return (
        f"the gradient of {objective} is right for reparameterised draws only. Use RWS() or NPE(), "
        "or TraceGraph_ELBO(), which has score functions"
    )


@jax.custom_jvp
def with_gradient(value: Array, at: Any, gradient: Any) -> Array:
    """A value whose gradient is given, in place of that of how it was computed.

    Args:
        value: The value, a scalar.
        at: Arrays with respect to which the gradient is.
        gradient: The gradient, a tree like `at`; it is held fixed.

    Returns:
        The value.
    """
    del at, gradient
    return value


@with_gradient.defjvp
def _along(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (value, _, gradient), (_, direction, _) = primals, tangents
    products = jax.tree.map(lambda one, other: jnp.sum(one * other), gradient, direction)
    return value, sum(jax.tree.leaves(products), jnp.zeros_like(value))


def check_single(guide: Any, objective: Any) -> None:
    """Raise a TypeError if a guide is a mixture of guides, without a chain of its own.

    Args:
        guide: What an objective is to look at.
        objective: The objective.
    """
    if getattr(guide, "is_mixture", False):
        name = type(objective).__name__.lstrip("_")
        raise TypeError(
            f"{name}: needs a guide whose draws and densities are those of one chain of sites; "
            f"{type(guide).__name__} draws from one of its members, and single elements of its "
            "plates have no densities of their own. AmortizedGuide is such a guide: "
            f"fit(model, ensemble, {name}(...)) trains each of ensemble.guides"
        )
