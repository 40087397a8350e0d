"""Which objectives have a right gradient for a guide whose draws are not reparameterised."""

from __future__ import annotations

from typing import Any

from pyro.infer import RenyiELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO

from pyro_amortize.structure import ModelStructure

# They leave out the score of the draws, or the part of it that the weights depend on.
_NEED_REPARAMETERISED_DRAWS = (RenyiELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO)


def check_gradients(structure: ModelStructure, objective: Any) -> None:
    """Raise a ValueError if an objective's gradient would be wrong at discrete latent sites.

    Bounds with score functions are right for any draws, with more noise; NPE has no draws.

    Args:
        structure: The structure of the model.
        objective: The objective.
    """
    discrete = [site.name for site in structure.latents if site.support.is_discrete]
    if discrete and isinstance(objective, _NEED_REPARAMETERISED_DRAWS):
        raise ValueError(
            f"site '{discrete[0]}': is discrete, and the gradient of {type(objective).__name__} is "
            "right for reparameterised draws only. Use RWS() or NPE(), or TraceGraph_ELBO(), "
            "which has score functions"
        )
