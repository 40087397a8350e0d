"""a_i, b_j ~ Normal(0, 1) on two crossing plates; y_ij ~ Normal(a_i + b_j, noise)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import multivariate_normal


@dataclass(frozen=True)
class CrossedEffects:
    """The posterior correlates all effects: only sums of a row and a column are well known."""

    num_rows: int = 9
    num_columns: int = 6
    noise: float = 1.0

    @property
    def num_latents(self):
        return self.num_rows + self.num_columns

    @cached_property
    def design(self):
        """Matrix from (a, b) to the flattened means, shape (rows * columns, rows + columns)."""
        rows = np.kron(np.eye(self.num_rows), np.ones((self.num_columns, 1)))
        columns = np.kron(np.ones((self.num_rows, 1)), np.eye(self.num_columns))
        return np.hstack([rows, columns])

    @cached_property
    def covariance(self):
        """Posterior covariance of (a, b), the same for all observations."""
        precision = np.eye(self.num_latents) + self.design.T @ self.design / self.noise**2
        return np.linalg.inv(precision)

    def sample_joint(self, rng, num):
        a = rng.normal(size=(num, self.num_rows))
        b = rng.normal(size=(num, self.num_columns))
        y = a[:, :, None] + b[:, None, :]
        y = y + self.noise * rng.normal(size=y.shape)
        return {"a": a[:, :, None], "b": b}, {"y": y}

    def posterior_mean(self, observations):
        """Posterior mean of (a, b), shape (num, rows + columns)."""
        y = observations["y"].reshape(-1, self.num_rows * self.num_columns)
        return y @ self.design @ self.covariance / self.noise**2

    def log_posterior(self, latents, observations):
        a = latents["a"].reshape(-1, self.num_rows)
        effects = np.concatenate([a, latents["b"].reshape(-1, self.num_columns)], axis=1)
        deviation = effects - self.posterior_mean(observations)
        return multivariate_normal(cov=self.covariance).logpdf(deviation)

    def sample_posterior(self, rng, observations):
        mean = self.posterior_mean(observations)
        noise = rng.normal(size=mean.shape) @ np.linalg.cholesky(self.covariance).T
        a, b = np.split(mean + noise, [self.num_rows], axis=1)
        return {"a": a[:, :, None], "b": b}

    def log_evidence(self, observations):
        y = observations["y"].reshape(-1, self.num_rows * self.num_columns)
        covariance = self.design @ self.design.T + self.noise**2 * np.eye(y.shape[1])
        return multivariate_normal(cov=covariance).logpdf(y)
