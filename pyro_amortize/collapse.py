"""Meters of posterior collapse: what the draws of a guide owe to the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_amortize.layout import align
from pyro_amortize.structure import ModelStructure


def element_densities(
    structure: ModelStructure, densities: Mapping[str, Tensor], batch_dims: int
) -> dict[str, np.ndarray]:
    """Log densities of the latent sites, one number for each element of their own plates.

    Plates that no observed site carries are part of a site's event: they are summed over.

    Args:
        structure: The structure of the model.
        densities: By site, shape `(*batch, *plates)`, of a guide or of the model.
        batch_dims: Number of batch axes.

    Returns:
        By latent site, shape `(*batch, *plates)` without absent plates, in nats.
    """
    nesting, found = structure.max_plate_nesting, {}
    for site in structure.latents:
        aligned = align(densities[site.name], nesting, 0, batch_dims).cpu().numpy()
        own = {structure.plates[plate].dim for plate in site.plates}
        others = [batch_dims + nesting + dim for dim in range(-nesting, 0) if dim not in own]
        found[site.name] = aligned.sum(tuple(others))
    return found


def crossed_log_probs(
    structure: ModelStructure,
    latents: Mapping[str, Tensor],
    log_probs: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    batch_dims: int,
) -> dict[str, np.ndarray]:
    """Log density of a guide's draws at every datum, not only at their own.

    The data are the data sets, if there are many; else the rows of the plate that all latents
    are in. Draws are moved along the data, one place at a time.

    Args:
        structure: The structure of the model.
        latents: Draws, `(num_draws, [num_datasets,] *plates, *event)`, at least two data.
        log_probs: The guide's log density of each site, given values of all.
        batch_dims: 1 if the data are data sets, 0 if they are rows.

    Returns:
        By site in the order of the guide, shape `(num_draws, num_data, num_data)`: entry
        `[draw, i, j]` is the draw from datum `i` under the guide at datum `j`, in nats.

    Raises:
        ValueError: If there is one data set and its rows are no data of their own.
    """
    rows = None if batch_dims else structure.plates[row_plate(structure, "mutual information")].dim
    axes = {
        site.name: 1 if rows is None else rows - len(site.event_shape) for site in structure.latents
    }
    first = structure.latents[0].name
    num_draws, num_data = len(latents[first]), latents[first].shape[axes[first]]
    crossed = {name: np.empty((num_draws, num_data, num_data)) for name in axes}
    at = np.arange(num_data)
    for shift in range(num_data):
        moved = {name: torch.roll(latents[name], shift, axis) for name, axis in axes.items()}
        densities = element_densities(structure, log_probs(moved), 1 + batch_dims)
        for name, density in densities.items():
            by_datum = density.reshape(num_draws, num_data, -1).sum(-1)
            crossed[name][:, (at - shift) % num_data, at] = by_datum
    return crossed


def row_plate(structure: ModelStructure, purpose: str) -> str:
    """The plate whose rows are data of their own: each is answered by itself.

    Args:
        structure: The structure of the model.
        purpose: What needs it, for errors.

    Returns:
        The name of the plate.

    Raises:
        ValueError: If a latent is shared by rows, or reads more than its own row.
    """
    plates = structure.latents[0].plates
    for site in structure.latents:
        if not site.is_own_row or len(plates) != 1 or site.plates != plates:
            raise ValueError(
                f"site '{site.name}': {purpose} needs many data, expected every latent "
                "to read its own row of one plate, got one that belongs to the whole data set. "
                "Give many data sets: at_each(observations=...)"
            )
    return plates[0]
