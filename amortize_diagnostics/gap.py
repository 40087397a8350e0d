"""The expected KL gap of a guide on a model whose posterior is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Gap:
    """The expected gap of a guide to the exact posterior, with its standard error.

    `mean` estimates `E_x KL(p(z | x) || q(z | x))` in nats; zero only for the exact posterior.

    Assert on `upper` to accept a guide (`gap.upper < tolerance`) and on `lower` to reject a bad
    one (`gap.lower > tolerance`): noise then makes a test fail and never pass. No gap of
    normalised densities is negative, so `gap.upper > 0` checks the densities themselves.

    Args:
        mean: Mean log density ratio in nats.
        se: Standard error of `mean` in nats.
        num: Number of joint draws.

    Example:
        >>> gap = Gap(mean=0.25, se=0.25, num=100)
        >>> gap.lower, gap.upper
        (-0.5, 1.0)
    """

    mean: float
    se: float
    num: int

    @property
    def lower(self) -> float:
        """`mean - 3 se`, in nats."""
        return self.mean - 3.0 * self.se

    @property
    def upper(self) -> float:
        """`mean + 3 se`, in nats."""
        return self.mean + 3.0 * self.se

    def __str__(self) -> str:
        """The gap in one line."""
        return f"gap {self.mean:.4f} ± {self.se:.4f} nats over {self.num} joint draws"


def expected_gap(log_posterior: ArrayLike, log_guide: ArrayLike) -> Gap:
    """Estimate how far a guide is from the exact posterior, averaged over data sets.

    `mean = (1/num) sum_i [log p(z_i | x_i) - log q(z_i | x_i)]` in nats, over joint draws
    `(z_i, x_i)` of the model. The difference is taken draw by draw: most of the noise is common
    to both densities and cancels.

    Use it where the posterior is known in closed form. It is no check of one answer on real
    data, for which see `importance_summary`.

    Args:
        log_posterior: Exact log posterior density of each joint draw, shape `(num,)`, in nats
            and normalised, in the constrained space.
        log_guide: Log density of the guide at the same draws, shape `(num,)`, same space.

    Returns:
        The mean gap with its standard error.

    Raises:
        ValueError: If the shapes differ or are not `(num,)` with at least two draws, or if a
            density is not finite. A guide that gives a posterior draw zero density has an
            infinite gap.

    Example:
        >>> expected_gap([-1.0, -2.0, -1.5], [-1.5, -2.5, -2.0])
        Gap(mean=0.5, se=0.0, num=3)
    """
    exact = np.asarray(log_posterior, dtype=np.float64)
    guide = np.asarray(log_guide, dtype=np.float64)
    if exact.ndim != 1 or exact.shape != guide.shape or exact.size < 2:
        raise ValueError(
            "log_posterior and log_guide: expected two arrays of one shape (num,) with num >= 2, "
            f"got {exact.shape} and {guide.shape}. Pass one density per joint draw."
        )
    for name, values in (("log_posterior", exact), ("log_guide", guide)):
        num_bad = int(np.count_nonzero(~np.isfinite(values)))
        if num_bad:
            raise ValueError(
                f"{name}: expected finite log densities, got {num_bad} of {values.size} that are "
                "not. Check that both densities cover the support of the joint draws."
            )
    difference = exact - guide
    se = np.std(difference, ddof=1) / np.sqrt(difference.size)
    return Gap(mean=float(np.mean(difference)), se=float(se), num=difference.size)
