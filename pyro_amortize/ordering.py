"""Order and parents of the latent sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

Edges = Mapping[str, Set[str]]


def order_latents(
    latents: Sequence[str],
    plates: Mapping[str, tuple[str, ...]],
    event_plates: Mapping[str, tuple[str, ...]],
    plate_sizes: Mapping[str, int],
    paths: Set[str] = frozenset(),
) -> tuple[str, ...]:
    """The order in which the guide samples the latent sites.

    Sites whose plates no observed site carries come first (they are global blocks of fixed
    size), then fewer plates, then the smaller plate, then the order in the model; sites of
    the same plates stay together. A path, which the model samples backward from its end, comes
    forward and before its end.

    Args:
        latents: Site names in model order.
        plates: Plates of each site that stay plates in the guide.
        event_plates: Plates of each site that become event dimensions.
        plate_sizes: Size of every plate.
        paths: Sites of paths, which in model order follow the site at their end.

    Returns:
        The site names in guide order.
    """

    def key(name: str) -> tuple[bool, int, int, int, int]:
        own = plates[name]
        smallest = min((plate_sizes[plate] for plate in own), default=0)
        first = [plates[other] for other in latents].index(own)
        return not event_plates[name], len(own), smallest, first, latents.index(name)

    blocks: dict[str, list[str]] = {}
    for name in latents:
        if name in paths:
            blocks[list(blocks)[-1]].insert(0, name)
        else:
            blocks[name] = [name]
    return tuple(name for end in sorted(blocks, key=key) for name in blocks[end])


def moral_graph(dependencies: Edges) -> dict[str, set[str]]:
    """The undirected graph in which a site meets its parents, children and co-parents."""
    graph: dict[str, set[str]] = {name: set() for name in dependencies}
    for child, parents in dependencies.items():
        family = {child, *parents}
        for member in family:
            graph[member] |= family - {member}
    return graph


def later_component(name: str, order: Sequence[str], graph: Edges) -> set[str]:
    """`name` and the later latents joined to it by paths through later latents only."""
    later = set(order[order.index(name) + 1 :])
    component, frontier = {name}, [name]
    while frontier:
        for neighbour in graph[frontier.pop()] & later - component:
            component.add(neighbour)
            frontier.append(neighbour)
    return component


def needed_parents(name: str, order: Sequence[str], dependencies: Edges) -> tuple[str, ...]:
    """The earlier latents on which the exact conditional posterior of `name` depends.

    The exact posterior factorises along any order; in the factor of `name` an earlier
    latent appears only if the moral graph joins it to `name` through later latents.

    Args:
        name: A latent site.
        order: All latent sites in guide order.
        dependencies: For each site of the model the sites its distribution reads.

    Returns:
        The needed earlier latents, in guide order.
    """
    graph = moral_graph(dependencies)
    touched = set().union(*(graph[site] for site in later_component(name, order, graph)))
    return tuple(site for site in order[: order.index(name)] if site in touched)


def coupled_through(
    name: str,
    order: Sequence[str],
    dependencies: Edges,
    plates: Mapping[str, tuple[str, ...]],
    reach: Mapping[str, Set[str]],
) -> tuple[str, str] | None:
    """A site and a plate through which elements of `name` depend on each other.

    Given its parents and the data, the elements of a local latent are independent over its
    plates only if every site that reads it (or a later latent joined to it) carries these
    plates too.

    Args:
        name: A latent site.
        order: All latent sites in guide order.
        dependencies: For each site of the model the sites its distribution reads.
        plates: Plates of every site of the model.
        reach: For every site its plates, and those into which index vectors along them point.

    Returns:
        `(site, plate)` where `site` reads across `plate`, or None.
    """
    component = later_component(name, order, moral_graph(dependencies))
    readers = {site for site, parents in dependencies.items() if parents & component}
    for site in sorted(component | readers):
        for plate in plates[name]:
            if plate not in reach[site]:
                return site, plate
    return None
