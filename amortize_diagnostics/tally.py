"""Counts and moments of draws around truths, block by block, so that draws need not be kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize_diagnostics.coverage import Recovery, recovery_of
from amortize_diagnostics.paired import check_no_nan
from amortize_diagnostics.ranks import RankStatistics, ranks_from_counts

Array = NDArray[np.float64]


class Tally:
    """How many draws of one quantity are below each truth, and their moments.

    Args:
        name: What errors call the quantity.
        truths: The quantity at the truths, shape `(num_datasets, ...)`.
        squash: Location and scale; moments are then those of `arcsinh((x - location) / scale)`.

    Raises:
        ValueError: If a truth is NaN.

    Example:
        >>> tally = Tally("z", np.zeros(50))
        >>> tally.add(np.linspace(-1, 1, 20)[:, None] * np.ones(50))
        >>> tally.num_draws, int(tally.ranks(np.random.default_rng(0)).ranks[0])
        (20, 10)
    """

    def __init__(
        self, name: str, truths: ArrayLike, *, squash: tuple[Array, Array] | None = None
    ) -> None:
        self.name, self.squash = name, squash
        self.truths = np.asarray(truths, float)
        check_no_nan(f"{name}: truths", self.truths)
        self.num_draws = 0
        self.num_minus_infinity = 0
        self._below = np.zeros(self.truths.shape, np.int64)
        self._equal = np.zeros(self.truths.shape, np.int64)
        self._mean = np.zeros(self.truths.shape)
        self._squares = np.zeros(self.truths.shape)

    def add(self, draws: ArrayLike) -> None:
        """Count a block of draws.

        Args:
            draws: Shape `(num_block, num_datasets, ...)`.

        Raises:
            ValueError: If the shape does not belong to that of the truths, or a draw is NaN.
        """
        block = np.asarray(draws, float)
        if block.shape[1:] != self.truths.shape or not len(block):
            raise ValueError(
                f"{self.name}: expected draws of shape (num_draws, *{self.truths.shape}) beside "
                f"truths of shape {self.truths.shape}, got {block.shape}. Put the draws first."
            )
        check_no_nan(f"{self.name}: draws", block)
        self._below += np.count_nonzero(block < self.truths, axis=0)
        self._equal += np.count_nonzero(block == self.truths, axis=0)
        self.num_minus_infinity += int(np.count_nonzero(np.isneginf(block)))
        before, own = self.num_draws, len(block)
        self.num_draws += own
        with np.errstate(invalid="ignore"):  # infinite log densities have no moments
            block = self.squashed(block)
            mean = block.mean(0)
            step = mean - self._mean
            self._mean += step * own / self.num_draws
            self._squares += np.sum((block - mean) ** 2, 0)
            self._squares += step**2 * before * own / self.num_draws

    def squashed(self, values: Array) -> Array:
        """Values on the scale of the moments."""
        if self.squash is None:
            return values
        location, scale = self.squash
        return np.arcsinh((values - location) / scale)

    @property
    def is_constant(self) -> NDArray[np.bool_]:
        """Which scalars have one value in all draws and truths, shape `(...)`."""
        never_moves = np.all(self.truths == self.truths[:1], axis=0)
        return never_moves & np.all(self._equal == self.num_draws, axis=0)

    @property
    def fraction_minus_infinity(self) -> float:
        """The fraction of draws at which the quantity is minus infinity."""
        return self.num_minus_infinity / (self.num_draws * self.truths.size)

    def ranks(self, rng: np.random.Generator) -> RankStatistics:
        """Ranks of the truths, with ties broken at random."""
        return ranks_from_counts(self._below, self._equal, self.num_draws, rng)

    def recovery(self, prior_variance: Array) -> Recovery:
        """Posterior z-scores and contraction.

        Args:
            prior_variance: Of each scalar, shape `(...)`.
        """
        variances, truths = self._squares / (self.num_draws - 1), self.squashed(self.truths)
        return recovery_of(self._mean, variances, truths, self.num_draws, prior_variance)
