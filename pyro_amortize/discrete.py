"""Discrete latent sites: labels and counts, their host types, and how later sites see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_amortize.supports import Support, read_support
from pyro_amortize.tracing import Trace, base_distribution

ONE_HOT_VALUES = 32  # labels are one-hot beyond it too
_LABELS = (dist.Categorical,)
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


def value_dtype(support: Support) -> torch.dtype:
    """The type in which the host draws values of a discrete support."""
    return torch.long if support.kind == "categorical" else torch.get_default_dtype()


def feature_width(support: Support) -> int:
    """Number of features by which later sites see one coordinate of a latent."""
    return support.num_values or 1 if _is_one_hot(support) else 1


def discrete_features(support: Support, numbers: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
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
        return torch.asinh((torch.log1p(numbers) - loc) / scale)
    width = feature_width(support)
    label = numbers.round().clamp(0, width - 1)[..., None]
    hot = (label == torch.arange(width, device=numbers.device)).to(numbers.dtype)
    return hot.reshape((*numbers.shape[:-1], numbers.shape[-1] * width))


def _is_one_hot(support: Support) -> bool:
    num = support.num_values
    return num is not None and (num <= ONE_HOT_VALUES or support.kind == "categorical")
