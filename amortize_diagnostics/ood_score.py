"""How much likelihood a model loses when its lower latents do not see the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OODScore:
    """A score for data out of the distribution that a hierarchical model was trained on.

    `score = bound - skip_bound` in nats. Upper latents say what the data are like as a whole, lower
    ones their details; the likelihood alone may rate foreign data high by details. Compare scores
    with those of data that belong to the model: larger is more foreign.

    Args:
        score: The score of each datum, shape `(num_data,)`; not below zero but for noise, if the
            guide is exact.
        se: Its standard error from the number of draws, same shape.
        bound: The evidence lower bound of each datum, same shape.
        skip_bound: The bound whose skipped latents come from the model, same shape.
        skip: Names of these latents.

    Example:
        >>> print(OODScore(np.array([0.4, 3.0]), np.full(2, 0.1), np.zeros(2), np.zeros(2), ("z",)))
        2 data, skipping z: score 1.700 nats in the median, at most 3.000 ± 0.100 (number 1)

    References:
        Havtorn, Frellsen, Hauberg and Maaloe (2021), Hierarchical VAEs know what they don't know,
        arXiv:2102.08248.
    """

    score: Array
    se: Array
    bound: Array
    skip_bound: Array
    skip: tuple[str, ...]

    def __str__(self) -> str:
        worst = int(np.argmax(self.score))
        return (
            f"{len(self.score)} data, skipping {', '.join(self.skip) or 'nothing'}: score "
            f"{np.median(self.score):.3f} nats in the median, at most {self.score[worst]:.3f} ± "
            f"{self.se[worst]:.3f} (number {worst})"
        )
