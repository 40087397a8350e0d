"""Sites with a value of their own: constants of the model, conditioned or observed as such."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_amortize.arguments import bound_arguments, is_array
from pyro_amortize.checks import is_same, is_value, perturbed, read_data
from pyro_amortize.tracing import Trace


def fixed_sites(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    observed: Sequence[str],
) -> tuple[tuple[str, ...], list[str]]:
    """Sites that carry data without being named as observed.

    Data that do not come from the call's arguments, as those of `condition`, are constants of
    the model.

    Args:
        model: The user's model.
        args: Positional arguments of one call.
        kwargs: Keyword arguments of one call.
        observed: Names of the observed sites.

    Returns:
        The constants, and one message for each site whose data come from an argument.
    """
    data = read_data(model, args, kwargs)
    names = [name for name in data if name not in observed]
    moved = _follow_arguments(model, args, kwargs, names) if names else set()
    problems = [
        f"site '{name}': carries data in this call but is not named in observed=. Name it "
        "there, or call the model without its data"
        for name in names
        if name in moved
    ]
    return tuple(name for name in names if name not in moved), problems


def _follow_arguments(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Sequence[str],
) -> set[str]:
    """Sites whose data change with an argument of the call, or are one."""
    bound = bound_arguments(model, args, kwargs)
    data = read_data(model, args, kwargs)
    moved: set[str] = set()
    for argument, value in bound.arguments.items():
        moved |= {name for name in names if is_value(data[name], value)}
        changed = dict(bound.arguments) | {argument: _changed(value)}
        call = inspect.BoundArguments(bound.signature, changed)
        after = read_data(model, call.args, call.kwargs)
        moved |= {name for name in names if not is_same(data[name], after[name])}
    return moved


def _changed(value: Any) -> Any:
    """An argument with all its arrays perturbed."""
    if isinstance(value, list | tuple):
        return type(value)(map(_changed, value))
    if isinstance(value, dict):
        return {key: _changed(item) for key, item in value.items()}
    return perturbed(value) if is_array(value) else value


def evidence_problems(fixed: Sequence[str], dependencies: Mapping[str, set[str]]) -> list[str]:
    """Constants that depend on other sites, so that they say something about these.

    Args:
        fixed: Names of the constants.
        dependencies: For each site of the model the sites its distribution reads.

    Returns:
        One message per site.
    """
    return [
        f"site '{name}': has a fixed value and depends on sites {sorted(dependencies[name])}, so "
        "that it is data about them. Name it in observed="
        for name in fixed
        if dependencies[name]
    ]


def repetition_problems(first: Trace, second: Trace, fixed: Sequence[str]) -> list[str]:
    """Sites that take the same value in runs under different seeds.

    Args:
        first: One run of the model.
        second: Another run.
        fixed: Names of the constants.

    Returns:
        One message per site.
    """
    return [
        f"site '{name}': takes the same value in every run of the model. If a handler sets it "
        "(substitute, replay, seed), take that away; condition makes a site a constant, and a "
        "site named in observed= may be conditioned on its data"
        for name, site in first.items()
        if site["type"] == "sample"
        and name not in fixed
        and site["value"].numel()
        and not site["fn"].support.is_discrete
        and bool((site["value"] == second[name]["value"]).all())
    ]
