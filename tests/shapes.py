"""Shapes of models that every guide must be able to follow: which test model, with which call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def _same_names(sites: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return dict(sites)


def _steps(sites: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The data of a loop, one site for each step, as one array."""
    return {"y": np.stack([sites[f"y_{t}"] for t in range(len(sites))])}


@dataclass(frozen=True)
class Shape:
    """One call of one test model, and what is declared about it.

    Args:
        observed: Name or names of the observed sites.
        options: Further arguments of the guide: inputs, groups, sizes, missing.
        arguments: Arguments of the model by name; floats go in with the default precision.
        data: The model's data arguments for given values of its observed sites.
        is_discrete: Whether a latent site is discrete: no bound of NumPyro takes it.
        embedding: Name of an embedding of the package for observed events, if not the default.
        scale: Spread of the random weights; deep networks need a small one.
        computed: For each input that is a deterministic site, the argument it is computed from.
        padded: Plates whose size the arguments set, so that NumPyro can pad them.
        has_plates: Whether the model has a plate at all.
    """

    observed: str | tuple[str, ...] = "y"
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] = _same_names
    is_discrete: bool = False
    embedding: str | None = None
    scale: float = 0.1
    computed: Mapping[str, str] = field(default_factory=dict)
    padded: tuple[str, ...] = ()
    has_plates: bool = True


_SCHOOLS = Shape(
    options={"inputs": {"sigma": "schools"}},
    arguments={"sigma": np.linspace(9.0, 18.0, 5)},
    padded=("schools",),
)
_ROWS = np.array([-1.0, 0.5, 2.0, 0.3])
_CELLS = np.array([[0, 0, 1, 2, 2, 1], [0, 1, 1, 0, 1, 0]])

SHAPES = {
    # One latent or several, above rows.
    "conjugate_normal": Shape("x"),
    "linear_gaussian_2": Shape("x"),
    "normal_unknown_scale": Shape(
        "x", {"sizes": {"num_rows": "rows"}}, {"num_rows": 5}, padded=("rows",)
    ),
    "location_chain": Shape(),
    "wide_supports": Shape(),
    "two_sources": Shape(
        ("y", "w"), {"sizes": {"num_rows": "rows"}}, {"num_rows": 3}, padded=("rows",)
    ),
    # Covariates.
    "line": Shape(("x", "y"), {"sizes": {"num_rows": "rows"}}, {"num_rows": 4}, padded=("rows",)),
    "line_through": Shape(
        options={"inputs": {"x": "rows"}}, arguments={"x": _ROWS}, padded=("rows",)
    ),
    "line_through_logarithms": Shape(
        options={"inputs": {"x": "rows"}},
        arguments={"exposure": np.exp(_ROWS)},
        computed={"x": "exposure"},
    ),
    "linear_regression": Shape(
        options={"inputs": {"features": "rows"}},
        arguments={"features": np.outer(_ROWS, [1.0, 0.5, -1.0]) ** 2},
        padded=("rows",),
    ),
    # Latents of each row or group.
    "hierarchical_normal": Shape(
        options={"sizes": {"num_groups": "groups"}}, arguments={"num_groups": 5}, padded=("groups",)
    ),
    "groups_by_steps": Shape(
        options={"sizes": {"num_groups": "groups"}}, arguments={"num_groups": 4}, padded=("groups",)
    ),
    "eight_schools_noncentered": _SCHOOLS,
    "eight_schools_centered": _SCHOOLS,
    "two_locals": Shape(),
    "local_chain": Shape(
        options={"inputs": {"x": "rows"}, "sizes": {"num_rows": "rows"}},
        arguments={"x": _ROWS, "num_rows": 4},
        padded=("rows",),
    ),
    "mixture_priors": Shape(),
    "headings": Shape(),
    "local_parameter": Shape(),
    "counts_of_groups": Shape(
        options={"sizes": {"num_groups": "groups"}}, arguments={"num_groups": 4}, padded=("groups",)
    ),
    "factor_analysis": Shape(
        "x",
        {"sizes": {"num_rows": "data", "batch_size": "data"}},
        {"num_rows": 6, "batch_size": 6},
    ),
    # Several plates.
    "nested_groups": Shape(),
    "grouped_normal": Shape(
        options={
            "groups": {"group": ("groups", "rows")},
            "sizes": {"num_groups": "groups"},
        },
        arguments={"group": np.array([0, 2, 2, 1, 0, 2]), "num_groups": 3},
        padded=("groups", "rows"),
    ),
    "three_levels": Shape(
        options={
            "groups": {"class_of": ("classes", "pupils"), "school_of": ("schools", "classes")},
            "sizes": {"num_classes": "classes", "num_schools": "schools"},
        },
        arguments={
            "class_of": np.array([0, 0, 1, 2, 2, 1, 3]),
            "school_of": np.array([0, 1, 1, 0]),
            "num_classes": 4,
            "num_schools": 2,
        },
        scale=0.05,
        padded=("schools", "classes", "pupils"),
    ),
    "crossed_effects": Shape(
        options={"sizes": {"num_rows": "rows", "num_columns": "columns"}},
        arguments={"num_rows": 3, "num_columns": 4},
        scale=0.05,
        padded=("rows", "columns"),
    ),
    "crossed_effects_flat": Shape(
        options={
            "groups": {"row": ("rows", "cells"), "column": ("columns", "cells")},
            "sizes": {"num_rows": "rows", "num_columns": "columns"},
        },
        arguments={"row": _CELLS[0], "column": _CELLS[1], "num_rows": 3, "num_columns": 2},
        scale=0.05,
        padded=("rows", "columns", "cells"),
    ),
    "item_response": Shape(
        options={"sizes": {"num_students": "students", "num_items": "items"}},
        arguments={"num_students": 4, "num_items": 3},
        scale=0.05,
        padded=("students", "items"),
    ),
    # Missing values.
    "rows_behind_a_mask": Shape(
        options={"missing": {"is_there": "y"}},
        arguments={"is_there": np.array([True, False, True, True])},
        padded=("rows",),
    ),
    "rows_with_an_obs_mask": Shape(
        options={"missing": {"is_there": "y"}},
        arguments={"is_there": np.array([True, False, True, True])},
    ),
    # Discrete latents.
    "mixture_assignments": Shape(
        options={"sizes": {"num_rows": "rows"}},
        arguments={"num_rows": 4},
        is_discrete=True,
        padded=("rows",),
    ),
    "every_discrete_support": Shape(is_discrete=True),
    "switches_in_a_plate": Shape(is_discrete=True),
    # Time and images.
    "autoregression": Shape(embedding="SequenceEmbedding", has_plates=False),
    "panels": Shape(
        options={"inputs": {"weight": "rows"}},
        arguments={"weight": _ROWS},
        embedding="SequenceEmbedding",
        padded=("rows",),
    ),
    "local_level_of_rows": Shape(
        ("y_0", "y_1", "y_2"),
        {"sizes": {"num_rows": "rows"}},
        {"num_rows": 4},
        data=_steps,
        padded=("rows",),
    ),
    "padded_panels": Shape(
        options={"missing": {"is_there": "y"}},
        arguments={"is_there": np.arange(5) < np.array([[2], [5], [3]])},
        embedding="SequenceEmbedding",
    ),
    "blob_image": Shape(embedding="ImageEmbedding", has_plates=False),
}
