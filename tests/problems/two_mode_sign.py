"""z ~ Normal(0, 1); x ~ Normal(z^2, noise). The sign of z is never known."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

# A lattice on z >= 0, fine beside the posterior's width noise / (2 z) up to z = 8, on which the
# trapezoid rule is exact to rounding.
_GRID = np.linspace(0.0, 8.0, 1601)


@dataclass(frozen=True)
class TwoModeSign:
    noise: float = 0.3
    num_latents: int = 1

    def sample_joint(self, rng, num):
        z = rng.normal(size=num)
        return {"z": z}, {"x": z**2 + self.noise * rng.normal(size=num)}

    def log_posterior(self, latents, observations):
        log_joint = self._log_joint(latents["z"], observations["x"])
        return log_joint - self.log_evidence(observations)

    def sample_posterior(self, rng, observations):
        # Inverse transform on the lattice, then the sign; draws are exact up to its spacing.
        density = np.exp(self._on_grid(observations))
        cumulated = np.cumsum(density, axis=1)
        points = rng.uniform(size=len(density)) * cumulated[:, -1]
        cell = np.sum(cumulated < points[:, None], axis=1)
        size = np.abs(_GRID[cell] + (rng.uniform(size=len(cell)) - 0.5) * _GRID[1])
        return {"z": np.where(rng.uniform(size=len(cell)) < 0.5, -size, size)}

    def mass_near_zero(self, width, observations):
        """Probability of |z| < width given each observation, `(num,)`."""
        z = np.asarray(width)[:, None] * np.linspace(-1, 1, 2001)
        log_joint = self._log_joint(z, np.asarray(observations["x"])[:, None])
        density = np.exp(log_joint - self.log_evidence(observations)[:, None])
        return np.trapezoid(density, z, axis=1)

    def log_evidence(self, observations):
        return logsumexp(self._on_grid(observations), axis=1) + np.log(2 * _GRID[1])

    def _on_grid(self, observations):
        log_joint = self._log_joint(_GRID, np.asarray(observations["x"])[:, None])
        log_joint[:, 0] -= np.log(2)  # both halves of the line share the point zero
        return log_joint

    def _log_joint(self, z, x):
        return norm.logpdf(z) + norm.logpdf(x, z**2, self.noise)
