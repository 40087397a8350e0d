"""Which objectives have a right gradient for a guide whose draws are not reparameterised."""

from __future__ import annotations

from typing import Any

from numpyro_amortize.structure import ModelStructure


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
        raise ValueError(
            f"site '{discrete[0]}': is discrete, and the gradient of {type(objective).__name__} is "
            "right for reparameterised draws only. Use RWS() or NPE(), or TraceGraph_ELBO(), "
            "which has score functions"
        )
