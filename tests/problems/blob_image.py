"""z ~ Normal(0, spread) in the plane; y is an 8 x 8 image of a blob at z, with normal noise."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

_PIXELS = np.linspace(-1.0, 1.0, 8)
# Half of the posterior's width or finer, on which the trapezoid rule is exact to rounding; four
# standard deviations of the prior to each side.
_AXIS = np.linspace(-2.0, 2.0, 81)
_CELL = _AXIS[1] - _AXIS[0]
_GRID = np.stack([part.ravel() for part in np.meshgrid(_AXIS, _AXIS, indexing="ij")], -1)


@dataclass(frozen=True)
class BlobImage:
    width: float = 0.4
    noise: float = 0.5
    spread: float = 0.5
    num_latents: int = 2

    def image(self, z):
        """Shape `(num, 8, 8)`: the first coordinate of `z` is the row."""
        rows, columns = (
            np.exp(-0.5 * ((_PIXELS - z[:, axis, None]) / self.width) ** 2) for axis in range(2)
        )
        return rows[:, :, None] * columns[:, None, :]

    def sample_joint(self, rng, num):
        z = self.spread * rng.normal(size=(num, 2))
        return {"z": z}, {"y": self.image(z) + self.noise * rng.normal(size=(num, 8, 8))}

    def log_posterior(self, latents, observations):
        z, y = latents["z"], observations["y"]
        log_joint = norm.logpdf(z, 0, self.spread).sum(1)
        log_joint += norm.logpdf(y, self.image(z), self.noise).sum((1, 2))
        return log_joint - self.log_evidence(observations)

    def sample_posterior(self, rng, observations):
        # Inverse transform on the lattice, then uniform in its cell.
        y = np.ascontiguousarray(observations["y"])
        cumulated = _cumulated(self, y.tobytes())
        points = rng.uniform(size=len(y)) * cumulated[:, -1]
        cell = np.array(
            [np.searchsorted(row, point) for row, point in zip(cumulated, points, strict=True)]
        )
        return {"z": _GRID[cell] + _CELL * (rng.uniform(size=(len(y), 2)) - 0.5)}

    def log_evidence(self, observations):
        blocks = np.array_split(observations["y"], max(len(observations["y"]) // 500, 1))
        found = [logsumexp(self.on_grid(block), axis=1) for block in blocks]
        return np.concatenate(found) + 2 * np.log(_CELL)

    def on_grid(self, y):
        """Log joint density at every point of the lattice, shape `(num, points)`."""
        y, images = y.reshape(len(y), -1), self.image(_GRID).reshape(len(_GRID), -1)
        square = (y**2).sum(1)[:, None] - 2 * y @ images.T + (images**2).sum(1)
        log_noise = np.log(self.noise) + 0.5 * np.log(2 * np.pi)
        prior = norm.logpdf(_GRID, 0, self.spread).sum(1)
        return prior - 0.5 * square / self.noise**2 - y.shape[1] * log_noise


@lru_cache(maxsize=1)
def _cumulated(problem, data):
    """Cumulated densities; one set of data sets is asked for many draws."""
    log_joint = problem.on_grid(np.frombuffer(data).reshape(-1, 8, 8))
    log_joint -= log_joint.max(axis=1, keepdims=True)
    return np.cumsum(np.exp(log_joint), axis=1)
