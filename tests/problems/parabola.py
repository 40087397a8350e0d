"""z ~ Normal(0, I) in the plane; x ~ Normal(z_1^2 / 2 + z_2, noise): bent, with two arms."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

# A lattice of the first coordinate, a third of its posterior's width or finer, on which the
# trapezoid rule is exact to rounding.
_GRID = np.linspace(-8.0, 8.0, 321)
_CELL = _GRID[1] - _GRID[0]


@dataclass(frozen=True)
class Parabola:
    noise: float = 0.5
    num_latents: int = 2

    def sample_joint(self, rng, num):
        z = rng.normal(size=(num, 2))
        return {"z": z}, {"x": self.mean(z) + self.noise * rng.normal(size=num)}

    def mean(self, z):
        return 0.5 * z[:, 0] ** 2 + z[:, 1]

    def log_posterior(self, latents, observations):
        z, x = latents["z"], observations["x"]
        log_joint = norm.logpdf(z).sum(1) + norm.logpdf(x, self.mean(z), self.noise)
        return log_joint - self.log_evidence(observations)

    def sample_posterior(self, rng, observations):
        # Inverse transform on the lattice for the first; the second is normal given the first.
        x = observations["x"]
        cumulated = np.cumsum(np.exp(self._on_grid(x)), axis=1)
        points = rng.uniform(size=len(x)) * cumulated[:, -1]
        cell = np.sum(cumulated < points[:, None], axis=1)
        first = _GRID[cell] + _CELL * (rng.uniform(size=len(x)) - 0.5)
        variance = 1 / (1 + self.noise**-2)
        mean = variance * (x - 0.5 * first**2) / self.noise**2
        second = mean + np.sqrt(variance) * rng.normal(size=len(x))
        return {"z": np.stack([first, second], -1)}

    def log_evidence(self, observations):
        return logsumexp(self._on_grid(observations["x"]), axis=1) + np.log(_CELL)

    def _on_grid(self, x):
        """Log joint density of data and first coordinate, the second one integrated out."""
        spread = np.hypot(1.0, self.noise)
        return norm.logpdf(_GRID) + norm.logpdf(np.asarray(x)[:, None], 0.5 * _GRID**2, spread)
