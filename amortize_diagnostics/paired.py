"""Draws beside the truths that they should cover: one check of their shapes and values."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MIN_DATASETS = 50
MIN_DRAWS = 20


def checked_pair(
    draws: ArrayLike, truths: ArrayLike, names: tuple[str, str] = ("draws", "truths")
) -> tuple[Array, Array]:
    """Draws and truths as floating point numbers of shapes that belong together.

    Args:
        draws: Shape `(num_draws, num_datasets, ...)`.
        truths: Shape `(num_datasets, ...)`.
        names: What errors call the two.

    Returns:
        Both arrays.

    Raises:
        ValueError: If the shapes do not belong together, if there are fewer than 20 draws or 50
            data sets, or if a value is NaN.
    """
    many, single = np.asarray(draws, float), np.asarray(truths, float)
    if single.ndim == 0 or many.shape[1:] != single.shape:
        raise ValueError(
            f"{names[0]} and {names[1]}: expected shapes (num_draws, num_datasets, ...) and "
            f"(num_datasets, ...), got {many.shape} and {single.shape}. Put the draws first."
        )
    check_numbers(len(single), len(many), names)
    for name, values in zip(names, (many, single), strict=True):
        check_no_nan(name, values)
    return many, single


def check_numbers(
    num_datasets: int, num_draws: int, names: tuple[str, str] = ("num_draws", "num_datasets")
) -> None:
    """Raise a ValueError if there are too few data sets or draws to judge a guide by."""
    if num_datasets < MIN_DATASETS:
        raise ValueError(
            f"{names[1]}: expected at least {MIN_DATASETS} data sets, got {num_datasets}. Fewer "
            "hide errors of the size of the posterior itself; 300 see a shift of 0.3 of it."
        )
    if num_draws < MIN_DRAWS:
        raise ValueError(
            f"{names[0]}: expected at least {MIN_DRAWS} draws of each data set, got {num_draws}. "
            "Draw more, 999 if they are cheap."
        )


def check_no_nan(name: str, values: Array) -> None:
    """Raise a ValueError if some values are NaN."""
    num_bad = int(np.count_nonzero(np.isnan(values)))
    if num_bad:
        raise ValueError(
            f"{name}: expected numbers, got NaN in {num_bad} of {values.size}. Look for a guide "
            "or a model that overflows; a rank of NaN would mean nothing."
        )
