"""Which embedding and which density belongs to which site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_amortize.densities import (
    AnyDensity,
    CategoricalDensity,
    CircularSplineDensity,
    CountDensity,
    DiscreteDensity,
    PointerDensity,
    SplineFlowDensity,
)
from pyro_amortize.embeddings import Embedding, PlateEmbedding
from pyro_amortize.structure import ModelStructure, SiteInfo
from pyro_amortize.supports import Support

_MANY_VALUES = 256  # more are counted, fewer have a probability each


def check_specifications(argument: str, specs: Any, *kinds: type) -> Any:
    """One specification, or one by site, of one of some kinds.

    Raises:
        TypeError: If something else is given.
    """
    names = " or ".join(kind.__name__ for kind in kinds)
    given = list(specs.values()) if isinstance(specs, Mapping) else [specs]
    for spec in given:
        if spec is not None and not isinstance(spec, kinds):
            raise TypeError(
                f"{argument}: expected instances of {names}, such as those of pyro_amortize, "
                f"got {spec!r}"
            )
    return specs


def time_inputs(embeddings: Mapping[str, Any]) -> dict[str, str]:
    """For each observed site whose embedding reads times the input that has them."""
    named = {site: getattr(spec, "times", None) for site, spec in embeddings.items()}
    return {site: name for site, name in named.items() if name is not None}


def resolve_specifications(
    argument: str, specs: Any, sites: Sequence[SiteInfo], default: Any
) -> dict[str, Any]:
    """The specification of every site.

    Raises:
        ValueError: If a site that does not exist is named.
    """
    names = [site.name for site in sites]
    if not isinstance(specs, Mapping):
        return dict.fromkeys(names, default if specs is None else specs)
    for name in specs:
        if name not in names:
            raise ValueError(f"{argument}: '{name}' is not one of the sites {names}")
    return {name: specs.get(name, default) for name in names}


def resolve_embeddings(specs: Any, sites: Sequence[SiteInfo]) -> dict[str, Embedding]:
    """The embedding of every observed site.

    Raises:
        ValueError: If a site that does not exist is named.
    """
    return resolve_specifications("embedding", specs, sites, PlateEmbedding())


def resolve_densities(specs: Any, structure: ModelStructure) -> dict[str, AnyDensity]:
    """The density of every latent site; the default is chosen from its support.

    One specification for all goes to the sites that it can describe; angles then have the
    circular one of a spline flow.

    Raises:
        ValueError: If a site that does not exist is named, or a specification does not fit.
    """
    sites = structure.latents
    resolved = resolve_specifications("densities", specs, sites, None)
    if isinstance(specs, SplineFlowDensity):
        sizes = specs.num_transforms, specs.num_bins, specs.hidden_dims
        angles = [site.name for site in sites if site.support.kind == "circular"]
        resolved |= dict.fromkeys(angles, CircularSplineDensity(*sizes))
    problems = {site.name: _density_problem(resolved[site.name], site, structure) for site in sites}
    found = {name: problem for name, problem in problems.items() if problem}
    if found and (isinstance(specs, Mapping) or len(found) == len(sites)):
        name, problem = next(iter(found.items()))
        raise ValueError(
            f"densities: site '{name}': {problem}; leave it out for "
            f"{type(default_density(_support(sites, name))).__name__}"
        )
    return {
        site.name: default_density(site.support)
        if resolved[site.name] is None or problems[site.name]
        else resolved[site.name]
        for site in sites
    }


def pointers(specs: Any) -> dict[str, str]:
    """For each site that numbers the elements of a plate, by its density, that plate.

    Raises:
        ValueError: If one specification for all sites is such a density.
    """
    if isinstance(specs, PointerDensity):
        raise ValueError(
            f"densities: expected a site by name for PointerDensity, got one for all; pass "
            f"densities={{'site': PointerDensity('{specs.into}')}}"
        )
    named = specs if isinstance(specs, Mapping) else {}
    return {name: spec.into for name, spec in named.items() if isinstance(spec, PointerDensity)}


def default_density(support: Support) -> AnyDensity:
    """The density for a site whose density nobody has chosen."""
    if not support.is_discrete:
        return CircularSplineDensity() if support.kind == "circular" else SplineFlowDensity()
    num = support.num_values
    is_short = num is not None and num <= _MANY_VALUES
    return CategoricalDensity() if is_short or support.kind == "categorical" else CountDensity()


def _density_problem(
    spec: AnyDensity | None, site: SiteInfo, structure: ModelStructure
) -> str | None:
    if spec is None:
        return None
    name, support = type(spec).__name__, site.support
    is_discrete = isinstance(spec, DiscreteDensity)
    takes_both = isinstance(spec, DiscreteDensity) and spec.takes_real_values
    if support.is_discrete != is_discrete and not takes_both:
        kinds = ("discrete", "continuous") if support.is_discrete else ("continuous", "discrete")
        return f"is {kinds[0]}, but {name} is a {kinds[1]} density"
    problem = spec.problem(support)
    if isinstance(spec, PointerDensity):
        problem = problem or spec.problem_at(site, structure)
    return problem and f"{problem}, and {name} cannot describe it"


def _support(sites: Sequence[SiteInfo], name: str) -> Support:
    return next(site.support for site in sites if site.name == name)
