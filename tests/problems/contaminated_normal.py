"""z ~ Normal(0, 1); rows are Normal(z, spread) or, two of five, Normal(0, wide): outliers."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

# A lattice of z, a third of the posterior's width or finer.
_GRID = np.linspace(-7.0, 7.0, 281)
_CELL = _GRID[1] - _GRID[0]


@dataclass(frozen=True)
class ContaminatedNormal:
    """Which rows are outliers is in no moment of them; rows may be missing, NaN."""

    num_rows: int = 10
    spread: float = 0.5
    wide: float = 3.0
    fraction: float = 0.4
    num_latents: int = 1

    def sample_joint(self, rng, num):
        z = rng.normal(size=num)
        shape = (num, self.num_rows)
        inside = z[:, None] + self.spread * rng.normal(size=shape)
        outside = self.wide * rng.normal(size=shape)
        return {"z": z}, {"x": np.where(rng.uniform(size=shape) < self.fraction, outside, inside)}

    def log_posterior(self, latents, observations):
        z, x = latents["z"], observations["x"]
        log_joint = norm.logpdf(z) + self.log_likelihood(z[:, None], x).sum(1)
        return log_joint - self.log_evidence(observations)

    def log_likelihood(self, z, x):
        """Of each row, 0 where it is missing."""
        is_missing = np.isnan(x)
        x = np.where(is_missing, 0.0, x)
        inside = np.log(1 - self.fraction) + norm.logpdf(x, z, self.spread)
        outside = np.log(self.fraction) + norm.logpdf(x, 0, self.wide)
        return np.where(is_missing, 0.0, np.logaddexp(inside, outside))

    def sample_posterior(self, rng, observations):
        cumulated = np.cumsum(np.exp(self._on_grid(observations["x"])), axis=1)
        points = rng.uniform(size=len(cumulated)) * cumulated[:, -1]
        cell = np.sum(cumulated < points[:, None], axis=1)
        return {"z": _GRID[cell] + _CELL * (rng.uniform(size=len(cell)) - 0.5)}

    def log_evidence(self, observations):
        return logsumexp(self._on_grid(observations["x"]), axis=1) + np.log(_CELL)

    def _on_grid(self, x):
        """Log joint density of the data and z on the lattice."""
        total = norm.logpdf(_GRID)
        for row in np.asarray(x).T:
            total = total + self.log_likelihood(_GRID, row[:, None])
        return total
