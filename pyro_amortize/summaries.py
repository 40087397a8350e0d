"""One vector for each data set: what the networks of a guide make of it as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from pyro_amortize.structure import ModelStructure


class LatentContexts(Protocol):
    """What is read of the contexts of a guide: features of each latent, and which are learned."""

    @property
    def latents(self) -> Mapping[str, Tensor]:
        """For each latent its features; sites of one group share theirs."""

    @property
    def is_learned(self) -> Mapping[str, tuple[bool, ...]]:
        """For each latent which of them are made by networks."""


def summaries(structure: ModelStructure, contexts: LatentContexts) -> Tensor:
    """Features of all latents; of those in plates the mean over the elements, and the spread.

    No gradient goes through spreads, where equal elements have none.

    Args:
        structure: The structure of the model.
        contexts: Features `(*batch, *aligned plates, size)` of each latent.

    Returns:
        Shape `(*batch, num_features)`.
    """
    axes = tuple(range(-1 - structure.max_plate_nesting, -1))
    parts = []
    for name in _distinct(contexts):
        value = contexts.latents[name]
        parts.append(value.mean(axes) if axes else value)
        if structure.site(name).plates:
            parts.append(value.detach().std(axes, correction=0))
    return torch.cat(parts, -1)


def are_learned(structure: ModelStructure, contexts: LatentContexts) -> tuple[bool, ...]:
    """Which of the summaries are features, or means of features, that a network makes.

    Args:
        structure: The structure of the model.
        contexts: As for `summaries`.
    """
    found: tuple[bool, ...] = ()
    for name in _distinct(contexts):
        own = contexts.is_learned[name]
        found += own
        if structure.site(name).plates:
            found += (False,) * len(own)
    return found


def _distinct(contexts: LatentContexts) -> list[str]:
    """One latent of each group."""
    return list({id(value): name for name, value in contexts.latents.items()}.values())
