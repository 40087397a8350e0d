"""z ~ Normal(0, I) of size dim; plate of rows x_i ~ Normal(A z, noise I)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import multivariate_normal, norm


@dataclass(frozen=True)
class LinearGaussian:
    """A is square, not orthogonal, with condition number 3: the posterior is correlated."""

    dim: int
    noise: float = 1.0
    num_rows: int = 20
    seed: int = 0

    @property
    def num_latents(self):
        return self.dim

    @cached_property
    def matrix(self):
        """A, of shape (dim, dim), with singular values from 1/sqrt(3) to sqrt(3)."""
        rng = np.random.default_rng(self.seed)
        left, right = (np.linalg.qr(rng.normal(size=(self.dim, self.dim)))[0] for _ in range(2))
        return left @ np.diag(np.geomspace(3**-0.5, 3**0.5, self.dim)) @ right

    @cached_property
    def covariance(self):
        """Posterior covariance, the same for all observations."""
        precision = np.eye(self.dim)
        precision += self.num_rows * self.matrix.T @ self.matrix / self.noise**2
        return np.linalg.inv(precision)

    def sample_joint(self, rng, num):
        z = rng.normal(size=(num, self.dim))
        errors = self.noise * rng.normal(size=(num, self.num_rows, self.dim))
        return {"z": z}, {"x": (z @ self.matrix.T)[:, None] + errors}

    def log_posterior(self, latents, observations):
        deviation = latents["z"] - self.posterior_mean(observations)
        return multivariate_normal(cov=self.covariance).logpdf(deviation)

    def sample_posterior(self, rng, observations):
        mean = self.posterior_mean(observations)
        scale = np.linalg.cholesky(self.covariance)
        return {"z": mean + rng.normal(size=mean.shape) @ scale.T}

    def log_evidence(self, observations):
        # Bayes at z = 0: log p(x) = log p(0) + log p(x | 0) - log p(0 | x).
        x = observations["x"]
        log_likelihood = norm.logpdf(x, 0.0, self.noise).sum(axis=(1, 2))
        at_zero = self.log_posterior({"z": np.zeros((len(x), self.dim))}, observations)
        return self.dim * norm.logpdf(0.0) + log_likelihood - at_zero

    def posterior_mean(self, observations):
        """Posterior mean, shape (num, dim)."""
        return observations["x"].sum(axis=1) @ self.matrix @ self.covariance / self.noise**2
