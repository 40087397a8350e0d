"""How far an answer moves when the data move a little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The changes of data that move an amortized answer most, and how far.

    The exact posterior moves, too: compare guides with each other, or radii with what is known of
    the errors of the data. A divergence of `d^2 / 2` nats is a shift of a normal by `d` standard
    deviations.

    Args:
        radii: Euclidean lengths of the changes, all data of a data set together, in units of the
            data's standardisation: of their prior predictive sd or so. Shape `(num_radii,)`.
        divergence: `KL(q(. | x) || q(. | x + change))` in nats at the worst change found, shape
            `(num_radii, num_datasets)`: less than or equal to the true worst one, but for noise.
        se: Standard errors of these from the number of draws, same shape.
        trace: `tr I(x)` of the Fisher information about the data, shape `(num_datasets,)`.
        largest: Its largest eigenvalue, same shape; small changes move the answer by
            `largest * radius^2 / 2` nats at most.
        changes: By site the worst changes in the data's own units, shape
            `(num_radii, num_datasets, ...)`.

    Example:
        >>> one = np.ones((1, 1))
        >>> print(Sensitivity(one[0], 0.02 * one, 0.001 * one, 2 * one[0], one[0], {"y": one}))
        1 data set. Worst changes of the data found:
          1 data sd: 0.0200 nats, as a shift of 0.20 sd
        Fisher information about the data: trace 2, largest eigenvalue 1.

    References:
        Gloeckler, Deistler and Macke (2023), Adversarial robustness of amortized Bayesian
        inference, arXiv:2305.14984, for the attack and the information.
    """

    radii: Array
    divergence: Array
    se: Array
    trace: Array
    largest: Array
    changes: Mapping[str, Array]

    @property
    def shift(self) -> Array:
        """Divergences as shifts of a normal, in its standard deviations, same shape."""
        return np.sqrt(2 * np.maximum(self.divergence, 0.0))

    @property
    def worst(self) -> int:
        """The data set whose answer moves most at the largest radius."""
        return int(np.argmax(self.divergence[int(np.argmax(self.radii))]))

    def __str__(self) -> str:
        """The divergence at each radius, of many data sets the median and the largest."""
        num = len(self.trace)
        middle, most = np.median(self.divergence, axis=1), np.max(self.divergence, axis=1)
        lines = [f"{num} data set{'s' * (num > 1)}. Worst changes of the data found:"]
        for radius, each, top in zip(self.radii, middle, most, strict=True):
            shift = np.sqrt(2 * max(top, 0.0))
            text = (
                f"{each:.3g} nats in the median, at most {top:.3g}"
                if num > 1
                else f"{top:.4f} nats"
            )
            lines.append(f"  {radius:g} data sd: {text}, as a shift of {shift:.2f} sd")
        if num > 1:
            lines[-1] += f" (data set {self.worst})"
        lines.append(
            f"Fisher information about the data: trace {np.median(self.trace):.3g}, largest "
            f"eigenvalue {np.median(self.largest):.3g}" + (" in the median." if num > 1 else ".")
        )
        return "\n".join(lines)
