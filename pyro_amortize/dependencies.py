"""Which sites of a model read which others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from pyro.ops.provenance import track_provenance
from torch import Tensor

from pyro_amortize.tracing import (
    free_data,
    is_factor,
    is_rows,
    log_densities,
    run_model,
    seeded,
)

_TRIES = 4  # draws of a discrete site are often equal


def read_dependencies(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Collection[str],
) -> dict[str, set[str]]:
    """For each of these sites the others that its distribution reads.

    Pyro follows operations on tensors, and loses what is written into a tensor in place, leaves
    torch on the way, or passes through a function with a gradient of its own, as solvers of
    differential equations do. So each site is also moved by itself, with all others held, and the
    sites whose densities change read it too.

    Args:
        model: The user's model.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        names: The sites.
    """
    with poutine.block(), torch.no_grad(), seeded(0):
        found: Any = get_dependencies(free_data(model), args, dict(kwargs))["prior_dependencies"]
    read = {child: set(found[child]) - {child} for child in names}
    for parent, children in _moved(model, args, kwargs).items():
        for child in children & set(names):
            read[child].add(parent)
    return read


def _moved(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, set[str]]:
    """For each site those whose log densities change with its value alone."""

    def densities(values: Mapping[str, Any]) -> dict[str, Tensor]:
        with seeded(0):
            return log_densities(run_model(model, args, kwargs, values=values))

    with torch.no_grad(), pyro.validation_enabled(is_validate=False):
        with seeded(0):
            drawn = {
                name: site
                for name, site in run_model(model, args, kwargs).items()
                if site["type"] == "sample"
                and not (site["is_observed"] or is_rows(site) or is_factor(site))
            }
            others = {name: _another(site) for name, site in drawn.items()}
        values = {name: site["value"] for name, site in drawn.items()}
        before = densities(values)
        moved = {}
        for name, other in others.items():
            try:
                after = densities({**values, name: other})
            except Exception:  # whatever a model does with values far from each other
                moved[name] = set(before) - {name}
                continue
            moved[name] = {
                child
                for child, density in before.items()
                if child != name and _differ(density, after[child])
            }
    return moved


def _another(site: Mapping[str, Any]) -> Tensor:
    """Another draw of a site, different from its value if a few draws can be."""
    for _ in range(_TRIES):
        other: Tensor = site["fn"].sample()
        if not torch.equal(other, site["value"]):
            break
    return other


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether log densities differ at all: a site that is not read leaves every bit."""
    both_nan = first.isnan() & second.isnan()
    return bool(((first != second) & ~both_nan).any())


@track_provenance.register
def _keep_shape(x: torch.Size, provenance: frozenset) -> torch.Size:
    """A shape stays one in Pyro's runs for dependencies, which make it a tuple without `numel`."""
    return x
