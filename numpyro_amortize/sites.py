"""Checks of the sites of a model one by one: masks, scales, and what no plate covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger

from numpyro_amortize.loops import is_scanned, scan_problem, unrolled_problems
from numpyro_amortize.tracing import Trace, free_data, is_masked


class _Names(Messenger):
    """Counts the sample statements of each name; the host stops at the second."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self.counts: Counter[str] = Counter()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample":
            self.counts[msg["name"]] += 1


def name_problems(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Names that several sites of a model share, which it cannot be traced with.

    Args:
        model: The user's model.
        args: Positional arguments of one call.
        kwargs: Keyword arguments of one call.

    Returns:
        One message per name.
    """
    names = _Names(free_data(handlers.seed(model, jax.random.key(0))))
    with handlers.block():
        names(*args, **kwargs)
    return [
        f"site '{name}': {count} sites of the model have this name. Give each its own"
        for name, count in names.counts.items()
        if count > 1
    ]


def site_problems(
    sites: Trace,
    observed: tuple[str, ...],
    fixed: Sequence[str],
    masked: Sequence[str],
    rows: Mapping[str, tuple[int, int]],
) -> list[str]:
    """Sites that are not there, or that no guide can take.

    Args:
        sites: The sample sites of one run.
        observed: Names of the observed sites.
        fixed: Names of the sites with a value of their own.
        masked: Observed sites whose masks are declared.
        rows: Size of every plate, and the number of rows in the run.

    Returns:
        One message per problem.
    """
    problems = [
        f"observed site '{name}': the model gives it an obs_mask, and the guide would not see by "
        f"what. Declare the mask, an argument of the model: missing={{'argument': '{name}'}}; or "
        f"missing='{name}' if the model makes it from NaN in the data"
        for name in observed
        if f"{name}_unobserved" in sites
    ]
    problems += unrolled_problems(sites)
    if problems:  # the parts of such sites would be complained of one by one
        return problems
    problems = [
        f"observed site '{name}': the model has no such site; its sites are {sorted(sites)}"
        for name in observed
        if name not in sites
    ]
    if not observed:
        problems.append("observed: expected at least one site name, got none")
    if not set(sites) - {*observed, *fixed}:
        problems.append("the model has no latent site: nothing is left to infer")
    for name, site in sites.items():
        if is_masked(site["fn"]) and name not in masked:
            problems.append(_mask_problem(name, observed))
        if not _has_plain_scale(site, rows):
            problems.append(
                f"site '{name}': scaled sites are not supported. Make the guide for the model "
                "without the scale; the host's SVI may be given the scaled model with it"
            )
        if is_scanned(site) and _is_uncovered(site):
            problems.append(scan_problem(name))
        elif _is_uncovered(site):
            problems.append(
                f"site '{name}': batch shape {tuple(site['fn'].batch_shape)} is not covered by "
                "plates. Use a plate, or .to_event() if its elements are one vector"
            )
    return problems


def _has_plain_scale(site: Mapping[str, Any], rows: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a site is scaled by its subsampled plates only."""
    expected = 1.0
    for frame in site["cond_indep_stack"]:
        size, num_rows = rows.get(frame.name, (1, 1))
        expected *= size / num_rows
    scales = np.asarray(1.0 if site["scale"] is None else site["scale"])
    return bool(np.allclose(scales, expected))


def _mask_problem(name: str, observed: Sequence[str]) -> str:
    if name not in observed:
        return f"site '{name}': masked latents are not supported; take the site out of the mask"
    return (
        f"site '{name}': is masked, and the guide would not see by what. Pass the mask as an "
        f"argument of the model and declare it: missing={{'argument': '{name}'}}"
    )


def _is_uncovered(site: Mapping[str, Any]) -> bool:
    """Whether a site has batch dimensions, of whatever size, that belong to no plate."""
    batch_shape = tuple(site["fn"].batch_shape)
    dims = {frame.dim for frame in site["cond_indep_stack"]}
    depth = max((-dim for dim in dims), default=0)
    return len(batch_shape) > depth or any(
        size > 1 and dim not in dims
        for dim, size in zip(range(-len(batch_shape), 0), batch_shape, strict=True)
    )
