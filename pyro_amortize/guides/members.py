"""What the members of an ensemble must have in common, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_amortize.guides.amortized import AmortizedGuide
from pyro_amortize.structure import ModelStructure

_DECLARED = ("observed", "alternatives", "inputs", "groups", "sizes", "missing")


def check_members(guides: Sequence[Any]) -> tuple[AmortizedGuide, ...]:
    """The members of an ensemble, made for one model with the same declarations.

    Args:
        guides: What the user gave.

    Returns:
        The guides.

    Raises:
        TypeError: If a member is no `AmortizedGuide`.
        ValueError: If there is none, one is there twice or has data bound, or they were made for
            different models or observed sites.
    """
    members = tuple(guides)
    if not members:
        raise ValueError("guides: expected at least one guide, got none")
    for number, guide in enumerate(members):
        if not isinstance(guide, AmortizedGuide):
            raise TypeError(
                f"guides: expected each to be an AmortizedGuide, got {type(guide).__name__} as "
                f"member {number}; of an ensemble give its own guides, *ensemble.guides"
            )
        if guide.is_bound:
            raise ValueError(f"guides: member {number} has data bound to it; give the plain guide")
    if len({id(guide) for guide in members}) < len(members):
        raise ValueError(
            "guides: the same guide is there twice; make one AmortizedGuide for each member, or "
            "give it a larger weight"
        )
    first = members[0]
    for number, guide in enumerate(members[1:], 1):
        found = []
        if guide.user_model is not first.user_model:
            found.append(f"model: expected {first.user_model}, got {guide.user_model}")
        for name in _DECLARED:
            expected, got = getattr(first, name), getattr(guide, name)
            if expected != got:
                found.append(f"{name}: expected {expected}, got {got}")
        _raise_differences(number, found)
    return members


def check_structures(structures: Sequence[ModelStructure]) -> None:
    """Raise a ValueError if members have read different sites.

    Parents may differ, and so may what follows from them.

    Args:
        structures: What the members have read of the model.
    """
    for number, structure in enumerate(structures[1:], 1):
        first = _without_parents(structures[0])
        found = first.differences(_without_parents(structure))
        orders = [[site.name for site in each.latents] for each in (structures[0], structure)]
        if not found and orders[0] != orders[1]:
            found = [f"latent sites: expected the order {orders[0]}, got {orders[1]}"]
        _raise_differences(number, found)


def _raise_differences(number: int, found: Sequence[str]) -> None:
    if found:
        lines = "\n".join(f"  - {difference}" for difference in found)
        raise ValueError(
            "guides: expected members of one model that agree on its latent and observed sites; "
            f"member {number} differs from member 0:\n{lines}"
        )


def _without_parents(structure: ModelStructure) -> ModelStructure:
    latents = (
        replace(site, parents=(), pruned=(), is_conditional=False, is_own_row=False, coupled=None)
        for site in structure.latents
    )
    return replace(structure, latents=tuple(latents))


def check_weights(weights: Sequence[float] | None, num_members: int) -> np.ndarray:
    """Weights of members, which sum to one.

    Args:
        weights: Positive numbers, or None for equal ones.
        num_members: Number of members.

    Raises:
        ValueError: If their number is another, or one is not a positive number.
    """
    if weights is None:
        return np.full(num_members, 1 / num_members)
    values = np.asarray(weights, float)
    if values.shape != (num_members,):
        raise ValueError(
            f"weights: expected one for each of {num_members} members, got shape {values.shape}"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(
            f"weights: expected positive numbers, got {values.tolist()}; leave members without "
            "weight out"
        )
    return values / values.sum()
