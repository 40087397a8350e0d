"""z ~ VonMises(mean, concentration); x ~ Normal((cos 2z, sin 2z), noise I): which end is north?"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, vonmises

# Around the circle the trapezoid rule is exact to rounding on so fine a lattice.
_GRID = np.linspace(-np.pi, np.pi, 1024, endpoint=False)
_CELL = _GRID[1] - _GRID[0]


@dataclass(frozen=True)
class Compass:
    mean: float = 0.3
    concentration: float = 0.5
    noise: float = 0.5
    num_latents: int = 1

    def sample_joint(self, rng, num):
        z = rng.vonmises(self.mean, self.concentration, size=num)
        centre = np.stack([np.cos(2 * z), np.sin(2 * z)], -1)
        return {"z": z}, {"x": centre + self.noise * rng.normal(size=(num, 2))}

    def log_posterior(self, latents, observations):
        log_joint = self._log_joint(latents["z"][:, None], observations["x"])[:, 0]
        return log_joint - self.log_evidence(observations)

    def sample_posterior(self, rng, observations):
        # Inverse transform on the lattice; draws are exact up to its spacing.
        density = np.exp(self._log_joint(_GRID, observations["x"]))
        cumulated = np.cumsum(density, axis=1)
        points = rng.uniform(size=len(density)) * cumulated[:, -1]
        cell = np.sum(cumulated < points[:, None], axis=1)
        z = _GRID[cell] + (rng.uniform(size=len(cell)) - 0.5) * _CELL
        return {"z": np.where(z < -np.pi, z + 2 * np.pi, z)}

    def log_evidence(self, observations):
        return logsumexp(self._log_joint(_GRID, observations["x"]), axis=1) + np.log(_CELL)

    def _log_joint(self, z, x):
        prior = vonmises.logpdf(z, self.concentration, self.mean)
        x = np.asarray(x)
        parts = (norm.logpdf(x[:, :1], np.cos(2 * z), self.noise),)
        parts += (norm.logpdf(x[:, 1:], np.sin(2 * z), self.noise),)
        return prior + sum(parts)
