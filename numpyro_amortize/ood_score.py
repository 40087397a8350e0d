"""What data cost a hierarchical model whose lower latents do not see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jax import Array

from amortize_diagnostics import OODScore
from numpyro_amortize.collapse import row_plate
from numpyro_amortize.conditioned import ConditionedGuide
from numpyro_amortize.guides import EnsembleGuide
from numpyro_amortize.layout import align
from numpyro_amortize.structure import ModelStructure, SiteInfo


def ood_score(
    conditioned: ConditionedGuide, skip: Sequence[str], num_samples: int, rng_key: Array
) -> OODScore:
    """The bound of each datum, less the bound with latents drawn from the model.

    Args:
        conditioned: The guide at the data.
        skip: Latents that are drawn from the model given the others.
        num_samples: Number of draws.
        rng_key: Key of the draws.

    Returns:
        The scores.

    Raises:
        TypeError: If the guide is an ensemble.
        ValueError: If a name is no latent, if none is left, if the guide draws a latent that is
            left from one that is skipped, or if the rows of one data set share latents.
    """
    structure, batch_dims = conditioned.guide.structure, 1 + conditioned.batch_dims
    _check_skip(conditioned, structure, skip)
    rows = None if conditioned.batch_dims else row_plate(structure, "ood_score")
    own_key, prior_key = jax.random.split(rng_key)
    latents = conditioned.sample(num_samples, own_key)
    kept = {name: value for name, value in latents.items() if name not in skip}
    drawn = conditioned.predict(kept, prior_key)
    mixed = {**latents, **{name: drawn[name] for name in skip}}
    log_q = conditioned.site_log_probs(latents)

    def by_datum(sites: Iterable[SiteInfo], densities: Mapping[str, Array]) -> np.ndarray:
        """Sums over sites and all plates but that of the rows, `(num_samples, num_data)`."""
        nesting, total = structure.max_plate_nesting, np.zeros(())
        for site in sites:
            aligned = np.asarray(align(densities[site.name], nesting, 0, batch_dims), float)
            row = None if rows is None else structure.plates[rows].dim
            others = [batch_dims + nesting + dim for dim in range(-nesting, 0) if dim != row]
            total = total + aligned.sum(tuple(others))
        return total

    own, other = (conditioned.site_densities(values) for values in (latents, mixed))
    upper = [site for site in structure.latents if site.name not in skip]
    full = by_datum((*structure.observed, *structure.latents), own)
    full = full - by_datum(structure.latents, log_q)
    skipped = by_datum((*structure.observed, *upper), other) - by_datum(upper, log_q)
    difference = full - skipped
    return OODScore(
        difference.mean(0),
        difference.std(0) / num_samples**0.5,
        full.mean(0),
        skipped.mean(0),
        tuple(skip),
    )


def _check_skip(
    conditioned: ConditionedGuide, structure: ModelStructure, skip: Sequence[str]
) -> None:
    """Raise an error if these latents cannot be left to the model."""
    if isinstance(conditioned.guide, EnsembleGuide):
        raise TypeError(
            "ood_score: needs a guide of one chain of sites, got EnsembleGuide. Take one of "
            "amortized.members"
        )
    names = [site.name for site in structure.latents]
    unknown = sorted(set(skip) - set(names))
    if unknown or set(skip) == set(names):
        raise ValueError(
            f"skip: expected some but not all of the latents {names}, got {list(skip)}"
        )
    for site in structure.latents:
        below = [name for name in site.parents if name in skip]
        if site.name not in skip and below:
            raise ValueError(
                f"site '{site.name}': the guide draws it from {below}, which are to be skipped. "
                f"Skip it, too, or make a guide with parents={{'{site.name}': ...}} without them"
            )
