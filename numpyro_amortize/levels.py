"""Plate sets at which the features of an observed site exist, by plates and index vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupInfo:
    """A model argument that is an index vector, as `county` in `a[county]`.

    Args:
        name: Name of the argument.
        plate: The plate into which it points.
        along: The plate along which it runs.
    """

    name: str
    plate: str
    along: str


@dataclass(frozen=True)
class Level:
    """A plate set at which features of an observed site exist.

    Args:
        plates: The plates, sorted by dimension.
        source: Number of the level that is pooled; None for the site's own plates.
        plate: The plate of the source that is pooled, or None.
        group: The index vector by which it is pooled, or None for the whole plate.
    """

    plates: tuple[str, ...]
    source: int | None = None
    plate: str | None = None
    group: str | None = None


def closure(plates: Sequence[str], groups: Sequence[GroupInfo]) -> set[str]:
    """The plates, and those into which index vectors along them point.

    Example:
        >>> sorted(closure(["obs"], [GroupInfo("county", "counties", "obs")]))
        ['counties', 'obs']
    """
    found = set(plates)
    while more := {group.plate for group in groups if group.along in found} - found:
        found |= more
    return found


def pooling_levels(
    own: tuple[str, ...],
    latent_plates: Sequence[tuple[str, ...]],
    dims: Mapping[str, int],
    groups: Sequence[GroupInfo] = (),
) -> tuple[Level, ...]:
    """The plate sets at which the features of an observed site exist, its own first.

    Plates are pooled one at a time, each whole or by an index vector. Every plate set of a
    latent that can be reached gets a level, and every branch ends at no plate at all: nested
    plates give one chain, crossed ones a tree. The plate that the fewest latent sites carry
    is the innermost and goes first; ties go to the rightmost dimension.

    Args:
        own: Plates of the observed site.
        latent_plates: Plates of every latent site.
        dims: Dimension (negative) of every plate.
        groups: The index vectors of the model.

    Returns:
        The levels; each one's source comes before it.

    Example:
        >>> [level.plates for level in pooling_levels(("g", "n"), [("g",)], {"g": -2, "n": -1})]
        [('g', 'n'), ('g',), ()]
    """

    def key(plate: str) -> tuple[int, int]:
        return sum(plate in plates for plates in latent_plates), -dims[plate]

    levels = [Level(own)]

    def extend(number: int, wanted: set[str]) -> None:
        for plate in sorted(set(levels[number].plates) - wanted, key=key):
            rest = set(levels[number].plates) - {plate}
            group = next(
                (
                    group
                    for group in groups
                    if group.along == plate
                    and closure([group.plate], groups) & (wanted - closure(sorted(rest), groups))
                ),
                None,
            )
            kept = rest | {group.plate} if group else rest
            ordered = tuple(sorted(kept, key=lambda name: dims[name]))
            levels.append(Level(ordered, number, plate, group.name if group else None))
            number = len(levels) - 1
            if group and group.plate not in wanted:
                return extend(number, wanted)
        return None

    wanted_sets = dict.fromkeys(plates for plates in latent_plates if plates)
    for wanted in sorted(wanted_sets, key=lambda plates: -len(closure(plates, groups))):
        if all(level.plates != wanted for level in levels):
            sources = [
                number
                for number, level in enumerate(levels)
                if set(wanted) <= closure(level.plates, groups)
            ]
            if sources:
                extend(sources[-1], set(wanted))
    for number in range(len(levels)):
        if all(level.source != number for level in levels) and levels[number].plates:
            extend(number, set())
    return tuple(levels)
