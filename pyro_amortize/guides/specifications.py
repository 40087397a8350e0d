"""Which embedding and which density belongs to which site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_amortize.structure import SiteInfo


def check_specifications(argument: str, specs: Any, kind: type) -> Any:
    """One specification, or one by site, of the right kind.

    Raises:
        TypeError: If something else is given.
    """
    given = list(specs.values()) if isinstance(specs, Mapping) else [specs]
    for spec in given:
        if spec is not None and not isinstance(spec, kind):
            raise TypeError(
                f"{argument}: expected instances of {kind.__name__}, such as those of "
                f"pyro_amortize, got {spec!r}"
            )
    return specs


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
