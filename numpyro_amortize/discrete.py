"""Discrete latent sites: labels and counts, their host types, and how later sites see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.supports import Support, read_support
from numpyro_amortize.tracing import Trace, base_distribution

ONE_HOT_VALUES = 32  # labels are one-hot beyond it too
_LABELS = (dist.CategoricalProbs, dist.CategoricalLogits)
_CHECKED_RUNS = range(1, 9)


def with_labels(fn: Any, support: Support | None) -> Support | None:
    """The support of a site, with labels that have no order told from whole numbers.

    Args:
        fn: The host distribution of the site.
        support: What its constraint says.

    Returns:
        The support, of kind categorical if the distribution is.
    """
    is_bounded = support is not None and support.kind == "integer_interval"
    if support is None or not is_bounded or not isinstance(base_distribution(fn), _LABELS):
        return support
    return replace(support, kind="categorical")


def range_problems(supports: Mapping[str, Support], run: Callable[[int], Trace]) -> list[str]:
    """Discrete sites whose range is not one fixed interval.

    A range that changes with other latents may be the same in two runs, so there are more.

    Args:
        supports: Support of each latent site.
        run: Runs the model with a seed and returns its trace.

    Returns:
        One message per site.
    """
    bounded = {
        name: support
        for name, support in supports.items()
        if support.kind in ("categorical", "integer_interval")
    }
    problems = [
        f"site '{name}': its range differs between its elements. Give all of them the largest "
        "one, as a Categorical with probability zero outside of the range"
        for name, support in bounded.items()
        if isinstance(support.lower, tuple) or isinstance(support.upper, tuple)
    ]
    if problems or not bounded:
        return problems
    traces = [run(seed) for seed in _CHECKED_RUNS]
    return [
        f"site '{name}': its range changes with other latents. Give it the largest one, as a "
        "Categorical with probability zero outside of the range"
        for name, support in bounded.items()
        if any(
            with_labels(trace[name]["fn"], read_support(trace[name]["fn"].support)) != support
            for trace in traces
        )
    ]


def pointer_problems(
    pointers: Mapping[str, str], latents: Iterable[Any], plates: Mapping[str, Any]
) -> list[str]:
    """Sites that are said to number the elements of a plate and cannot.

    Args:
        pointers: For each of these sites the plate.
        latents: The latent sites.
        plates: The plates of the model.

    Returns:
        One message per site.
    """
    found = {}
    for site in latents:
        name, into = site.name, pointers.get(site.name)
        if into is None:
            continue
        plate, support = plates.get(into), site.support
        if plate is None:
            found[name] = f"the model has no such plate; its plates are {sorted(plates)}"
        elif into in (*site.plates, *site.event_plates):
            found[name] = "the site is inside it, and its elements cannot point at each other"
        elif support.lower != 0 or support.num_values is None:
            found[name] = "its values are not whole numbers from 0 up to a largest one"
        elif support.num_values != plate.size:
            found[name] = f"it has {support.num_values} values, and the plate {plate.size} elements"
    return [
        f"densities: site '{name}': cannot point into plate '{pointers[name]}': {problem}"
        for name, problem in found.items()
    ]


def moved_pointers(structure: Any, values: Mapping[str, Array], plate: str) -> dict[str, Array]:
    """Values of the sites that point into a plate, after its elements have moved by one.

    Args:
        structure: The structure of the model.
        values: Value of each site.
        plate: The plate.
    """
    size = structure.plates[plate].size
    pointers = [site.name for site in structure.latents if site.points_into == plate]
    return {name: (values[name] + 1) % size for name in pointers}


def value_dtype(support: Support) -> Any:
    """The type in which the host draws values of a discrete support."""
    return jnp.result_type(int)  # of labels, counts and booleans alike


def feature_width(support: Support) -> int:
    """Number of features by which later sites see one coordinate of a latent."""
    return support.num_values or 1 if _is_one_hot(support) else 1


def discrete_features(support: Support, numbers: Array, loc: Array, scale: Array) -> Array:
    """Discrete values as networks see them: one-hot if they are few, else scaled logarithms.

    Args:
        support: The support of the site.
        numbers: Values numbered from 0, shape `(..., size)`.
        loc: Location of `log(1 + number)`, shape `(size,)`.
        scale: Its scale.

    Returns:
        Shape `(..., size * feature_width(support))`.
    """
    if not _is_one_hot(support):
        return jnp.arcsinh((jnp.log1p(numbers) - loc) / scale)
    width = feature_width(support)
    hot = jax.nn.one_hot(jnp.round(numbers).astype(int), width, dtype=numbers.dtype)
    return hot.reshape((*numbers.shape[:-1], numbers.shape[-1] * width))


def _is_one_hot(support: Support) -> bool:
    num = support.num_values
    return num is not None and (num <= ONE_HOT_VALUES or support.kind == "categorical")
