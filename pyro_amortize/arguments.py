"""The arguments of a call: index vectors, plate sizes, masks and settings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_amortize.levels import GroupInfo
from pyro_amortize.structure import MissingInfo, ModelStructure, PlateInfo

IndexPlates = Mapping[str, tuple[str, str]]
MissingSites = str | Sequence[str] | Mapping[str, str]


def given_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The model's arguments by name, as the call gives them."""
    return inspect.signature(underlying(model)).bind(*args, **kwargs)


def underlying(model: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside a module and under handlers, whose own calls take anything."""
    if isinstance(model, torch.nn.Module):
        return underlying(model.forward)
    if isinstance(getattr(model, "msngr", None), Messenger):  # reparam, trace
        return underlying(model.fn)  # type: ignore[attr-defined]
    wrapped = getattr(model, "__wrapped__", None)
    if isinstance(wrapped, partial):  # scope around another handler
        return underlying(wrapped)
    if not isinstance(model, partial):
        return model
    if model.args and isinstance(model.args[0], Messenger):  # partial(handler's call, handler, fn)
        fn, *given = model.args[1:]
        return _filled(fn, given, model.keywords)
    return _filled(model.func, model.args, model.keywords)


def _filled(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """The function under handlers with some of its arguments given."""
    return partial(underlying(fn), *args, **kwargs) if args or kwargs else underlying(fn)


def bound_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The model's arguments by name, with the defaults of those that the call leaves out."""
    bound = given_arguments(model, args, kwargs)
    bound.apply_defaults()
    return bound


def is_array(value: Any) -> bool:
    """Whether an argument holds numbers that a host can compute with."""
    return isinstance(value, Tensor)


def drawn_call(drawn: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from what a sampler of arguments returns.

    Raises:
        TypeError: If that is neither a tuple nor a dict.
    """
    if isinstance(drawn, tuple):
        return drawn, {}
    if isinstance(drawn, dict):
        return (), drawn
    raise TypeError(
        "model_args: expected a tuple of positional or a dict of keyword arguments, got "
        f"{type(drawn).__name__}"
    )


def read_settings(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sizes: Mapping[str, str],
) -> dict[str, Any]:
    """Arguments that are plain Python values: they belong to the model that a guide learns."""
    return {
        name: value
        for name, value in bound_arguments(model, args, kwargs).arguments.items()
        if isinstance(value, bool | int | float | str) and name not in sizes
    }


def size_problems(
    arguments: Mapping[str, Any], sizes: Mapping[str, str], plates: Mapping[str, PlateInfo]
) -> list[str]:
    """What is wrong with the declared plate sizes."""
    problems = []
    for name, plate in sizes.items():
        if name not in arguments:
            problems.append(
                f"sizes '{name}': the model has no such argument; it has {list(arguments)}"
            )
        elif plate not in plates:
            problems.append(f"sizes '{name}': no site is in a plate called '{plate}'")
    return problems


def group_problems(
    arguments: Mapping[str, Any],
    groups: Sequence[GroupInfo],
    plates: Mapping[str, PlateInfo],
    subsampled: Mapping[str, tuple[int, int]],
) -> list[str]:
    """Index vectors that do not exist, do not fit their plates, or point out of range.

    Args:
        arguments: The model's arguments by name.
        groups: The declared index vectors.
        plates: The plates of the model.
        subsampled: For each subsampled plate its size and the number of rows of this call.
    """
    problems, seen = [], set()
    for group in groups:
        missing = [plate for plate in (group.plate, group.along) if plate not in plates]
        if group.name not in arguments:
            problems.append(
                f"groups '{group.name}': the call has no such argument; it has {list(arguments)}"
            )
        elif missing:
            problems.append(f"groups '{group.name}': no site is in a plate called '{missing[0]}'")
        elif (group.plate, group.along) in seen:
            problems.append(
                f"groups '{group.name}': a second index vector from plate '{group.along}' into "
                f"'{group.plate}'. Rows that belong to several elements of one plate are not "
                "supported; write the site in that plate as one vector with .to_event(1)"
            )
        else:
            num_rows = subsampled.get(group.along, (plates[group.along].size,))[0]
            problem = index_problem(
                group, arguments[group.name], plates[group.plate].size, num_rows
            )
            problems += [problem] if problem else []
        seen.add((group.plate, group.along))
    return problems


def index_problem(group: GroupInfo, value: Any, size: int, num_rows: int) -> str | None:
    """What is wrong with an index vector, or None.

    Args:
        group: The declaration.
        value: The argument.
        size: Size of the plate into which it points.
        num_rows: Size of the plate along which it runs.

    Returns:
        The problem in words.
    """
    is_whole = is_array(value) and not (value.is_floating_point() or value.dtype == torch.bool)
    if not is_whole:
        found = getattr(value, "dtype", type(value).__name__)
        return f"groups '{group.name}': expected an array of whole numbers, got {found}"
    if tuple(value.shape) != (num_rows,):
        return (
            f"groups '{group.name}': expected one index for each row of plate '{group.along}', "
            f"got shape {tuple(value.shape)}"
        )
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= size:
        return (
            f"groups '{group.name}': expected indices from 0 to {size - 1} into plate "
            f"'{group.plate}' of size {size}, got {low} to {high}"
        )
    return None


def index_argument_problems(
    arguments: Mapping[str, Any], groups: Sequence[GroupInfo], sizes: Mapping[str, str]
) -> list[str]:
    """Index vectors that no run of the model needs to be told wrong.

    Args:
        arguments: The model's arguments by name.
        groups: The declared index vectors.
        sizes: For each argument that is a plate size, that plate.

    Returns:
        One message per problem.
    """
    known = {plate: arguments[name] for name, plate in sizes.items() if name in arguments}
    problems = []
    for group in groups:
        if group.name in arguments:
            value = arguments[group.name]
            num_rows = (
                len(value) if is_array(value) and value.ndim == 1 else known.get(group.along, -1)
            )
            size = known.get(group.plate, sys.maxsize)
            problem = index_problem(group, value, size, num_rows)
            problems += [problem] if problem else []
    return problems


def index_values(
    structure: ModelStructure,
    arguments: Mapping[str, Any],
    sizes: Mapping[str, int],
    subsampled: Mapping[str, tuple[int, int]],
    rows: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Value of each index vector at the rows of one call.

    Args:
        structure: The structure of the model.
        arguments: The model's arguments by name.
        sizes: Number of rows of every plate.
        subsampled: For each subsampled plate its size and its number of rows.
        rows: For each subsampled plate the indices of the rows to look at; all if None.

    Raises:
        ValueError: If an index vector does not fit the plates of this call.
    """
    found, drawn = {}, rows or {}
    for group in structure.groups:
        value, is_drawn = arguments.get(group.name), group.along in drawn
        num_rows = subsampled[group.along][0] if is_drawn else sizes[group.along]
        problem = index_problem(group, value, sizes[group.plate], num_rows)
        if problem:
            raise ValueError(problem)
        index = arguments[group.name]
        found[group.name] = index[drawn[group.along]] if is_drawn else index
    return found


def missing_infos(missing: MissingSites) -> tuple[MissingInfo, ...]:
    """The sites of which values may be missing, from what the user declares."""
    if isinstance(missing, Mapping):
        return tuple(MissingInfo(site, argument) for argument, site in missing.items())
    names = (missing,) if isinstance(missing, str) else missing
    return tuple(MissingInfo(name) for name in names)


def missing_problems(
    arguments: Mapping[str, Any], missing: Sequence[MissingInfo], observed: Sequence[str]
) -> list[str]:
    """What is wrong with the declared sites and arguments of missing values."""
    problems = []
    for info in missing:
        if info.site not in observed:
            problems.append(
                f"missing '{info.site}': expected one of the observed sites {list(observed)}"
            )
        if info.argument is None:
            continue
        value = arguments.get(info.argument)
        if info.argument not in arguments:
            problems.append(
                f"missing '{info.argument}': the model has no such argument; it has "
                f"{list(arguments)}"
            )
        elif value is not None and (not is_array(value) or value.dtype != torch.bool):
            found = getattr(value, "dtype", type(value).__name__)
            problems.append(
                f"missing '{info.argument}': expected a boolean array, True where site "
                f"'{info.site}' is observed, got {found}"
            )
    return problems


def missing_parent_problems(
    incomplete: Sequence[str], dependencies: Mapping[str, set[str]]
) -> list[str]:
    """Observed sites on which others depend, so that a missing value would not drop out.

    Args:
        incomplete: Observed sites of which values may be missing.
        dependencies: For each site of the model the sites its distribution reads.

    Returns:
        One message per site.
    """
    problems = []
    for name in incomplete:
        children = sorted(child for child, parents in dependencies.items() if name in parents)
        if children:
            problems.append(
                f"site '{name}': may have no data, but sites {children} depend on it, so that it "
                "would have to be integrated out. Make it a latent that another site observes"
            )
    return problems


def mask_shape_problem(info: MissingInfo, mask: Any, shape: Sequence[int]) -> str | None:
    """What is wrong with the shape of a mask, or None.

    Args:
        info: The declaration.
        mask: The argument.
        shape: Shape of the site, with its events if the mask is for their positions.

    Returns:
        The problem in words.
    """
    own = tuple(mask.shape)
    tail = zip(reversed(own), reversed(shape), strict=False)
    if len(own) <= len(shape) and all(size in (1, of_site) for size, of_site in tail):
        return None
    whole = "" if info.has_positions else " without its events"
    return (
        f"missing '{info.argument}': expected shape {tuple(shape)}, that of site "
        f"'{info.site}'{whole}, got shape {own}"
    )


def with_nothing_missing(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    missing: Sequence[MissingInfo],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of the model with masks true everywhere and nothing NaN, to read its structure.

    Args:
        model: The user's model.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        missing: Sites of which values may be missing.

    Returns:
        Positional and keyword arguments.
    """
    if not missing:
        return args, dict(kwargs)
    masks = [info.argument for info in missing if info.argument is not None]
    bound = given_arguments(model, args, kwargs)
    for name, value in bound.arguments.items():
        if name in masks and value is not None:
            bound.arguments[name] = torch.ones_like(value, dtype=torch.bool)
        elif is_array(value) and value.is_floating_point():  # a model may make a mask of NaN
            bound.arguments[name] = torch.where(torch.isnan(value), 0.0, value)
    return bound.args, bound.kwargs
