"""x_0 ~ Normal(0, 1), x_t ~ Normal(x_(t-1), step); y_t ~ Normal(x_t, noise): a site for each."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import multivariate_normal


@dataclass(frozen=True)
class LocalLevel:
    """An unrolled random walk seen with noise, by the algebra of one Gaussian."""

    num_steps: int = 6
    step: float = 0.7
    noise: float = 0.8

    @property
    def num_latents(self):
        return self.num_steps

    @cached_property
    def prior(self):
        """Covariance of the path."""
        increments = np.diag([1.0] + [self.step**2] * (self.num_steps - 1))
        sums = np.tril(np.ones((self.num_steps, self.num_steps)))
        return sums @ increments @ sums.T

    @cached_property
    def covariance(self):
        """Posterior covariance, the same for all observations."""
        return np.linalg.inv(np.linalg.inv(self.prior) + np.eye(self.num_steps) / self.noise**2)

    def sample_joint(self, rng, num):
        path = rng.normal(size=(num, self.num_steps)) @ np.linalg.cholesky(self.prior).T
        seen = path + self.noise * rng.normal(size=path.shape)
        return _sites("x", path), _sites("y", seen)

    def log_posterior(self, latents, observations):
        deviation = _series("x", latents) - self._mean(observations)
        return np.atleast_1d(multivariate_normal(cov=self.covariance).logpdf(deviation))

    def sample_posterior(self, rng, observations):
        mean = self._mean(observations)
        scale = np.linalg.cholesky(self.covariance)
        return _sites("x", mean + rng.normal(size=mean.shape) @ scale.T)

    def log_evidence(self, observations):
        covariance = self.prior + self.noise**2 * np.eye(self.num_steps)
        series = _series("y", observations)
        return np.atleast_1d(multivariate_normal(cov=covariance).logpdf(series))

    def _mean(self, observations):
        return _series("y", observations) @ self.covariance / self.noise**2


def _sites(stem, series):
    return {f"{stem}_{step}": series[:, step] for step in range(series.shape[1])}


def _series(stem, sites):
    return np.stack([sites[f"{stem}_{step}"] for step in range(len(sites))], -1)
