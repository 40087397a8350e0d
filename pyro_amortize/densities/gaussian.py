"""What Gaussian families share: scales with a floor, triangular factors, where components start."""

from __future__ import annotations

import math
import warnings
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

_MANY_COORDINATES = 50  # for a matrix of each context


def check_floor(floor: float) -> None:
    """Raise a ValueError if a floor of scales is not between 0 and 1, where scales start."""
    if not 0 < floor < 1:
        raise ValueError(f"floor: expected a positive number below 1, got {floor}")


def warn_of_outputs(family: str, event_size: int, num_outputs: int) -> None:
    """Warn where a family has a matrix of many coordinates for each context.

    Args:
        family: Name of the family, with what makes it so.
        event_size: Number of coordinates.
        num_outputs: Outputs of the network of one site.
    """
    if event_size > _MANY_COORDINATES:
        warnings.warn(
            f"{family}: {event_size} coordinates take {num_outputs:,} outputs for each context, "
            "which grow with their square; LowRankNormalDensity(rank=...) has few",
            stacklevel=3,
        )


def floored(raw: Tensor, floor: float) -> Tensor:
    """Map network outputs to numbers above a floor, zero to one."""
    return floor + softplus(raw + math.log(math.expm1(1 - floor)))


def cholesky_factor(diagonal: Tensor, below: Tensor) -> Tensor:
    """Lower triangular matrices of their entries.

    Those below the diagonal are relative to it, so that correlations do not depend on scales:
    networks learn them as well where a posterior is narrow.

    Args:
        diagonal: Shape `(*batch, size)`.
        below: Entries below it, row by row, in units of the diagonal entry of their row, shape
            `(*batch, size * (size - 1) / 2)`.

    Returns:
        Shape `(*batch, size, size)`.

    Example:
        >>> cholesky_factor(torch.tensor([1.0, 2.0]), torch.tensor([3.0]))
        tensor([[1., 0.],
                [6., 2.]])
    """
    size = diagonal.shape[-1]
    rows = []
    for row in range(size):  # joined, which has no scatter for a gradient
        start = row * (row - 1) // 2
        own = diagonal[..., row : row + 1]
        entries = [own * below[..., start : start + row], own]
        rows.append(pad(torch.cat(entries, -1), (0, size - row - 1)))
    return torch.stack(rows, -2)


def solve_lower(matrix: Tensor, vector: Tensor, *, has_unit_diagonal: bool = False) -> Tensor:
    """Solve lower triangular systems.

    Args:
        matrix: Shape `(*batch, size, size)`.
        vector: Shape `(*batch, size)`; batches are broadcast.
        has_unit_diagonal: Whether to take ones for the diagonal, whatever is there.

    Returns:
        Shape `(*batch, size)`.
    """
    return torch.linalg.solve_triangular(
        matrix, vector[..., None], upper=False, unitriangular=has_unit_diagonal
    )[..., 0]


@cache
def spread_out(num: int, size: int) -> tuple[tuple[float, ...], ...]:
    """Points spread like a standard normal, with their mirror images; the same every time.

    Normal quantiles of an additive recurrence with powers of a generalised golden ratio, scaled
    to variance one in each coordinate; one point alone is at zero.

    Args:
        num: Number of points.
        size: Number of coordinates.

    Returns:
        The points.

    Example:
        >>> [round(value, 3) for (value,) in spread_out(3, 1)]
        [1.225, 0.0, -1.225]
    """
    ratio = 2.0
    for _ in range(50):  # converges to the root of ratio ** (size + 1) = ratio + 1
        ratio = (1 + ratio) ** (1 / (size + 1))
    quantile, columns = NormalDist().inv_cdf, []
    for axis in range(size):
        shares = [0.5 + (point - (num - 1) / 2) * ratio ** -(axis + 1) for point in range(num)]
        column = [quantile(share % 1.0) for share in shares]
        spread = math.sqrt(sum(value**2 for value in column) / num) or 1.0
        columns.append([value / spread for value in column])
    return tuple(zip(*columns, strict=True))
