"""intercept, slope ~ Normal(0, 1); rows x_i ~ Normal(0, spread), y_i ~ Normal(line, noise)."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class Line:
    """Bayesian linear regression. The covariates are drawn too, and say nothing by themselves."""

    noise: float = 1.0
    spread: float = 1.0
    num_rows: int = 10
    num_latents: int = 2

    def sample_joint(self, rng, num, x=None):
        """Joint draws; the covariates are drawn, or the given ones for all."""
        intercept, slope = rng.normal(size=(2, num))
        if x is None:
            x = self.spread * rng.normal(size=(num, self.num_rows))
        x = np.broadcast_to(x, (num, np.shape(x)[-1]))
        y = intercept[:, None] + slope[:, None] * x + self.noise * rng.normal(size=x.shape)
        return {"intercept": intercept, "slope": slope}, {"x": x, "y": y}

    def moments(self, observations):
        """Posterior mean `(num, 2)` and precision `(num, 2, 2)` of intercept and slope."""
        x, y = observations["x"], observations["y"]
        design = np.stack([np.ones_like(x), x], -1)
        precision = np.eye(2) + np.einsum("nri,nrj->nij", design, design) / self.noise**2
        mean = np.linalg.solve(precision, np.einsum("nri,nr->ni", design, y)[..., None])
        return mean[..., 0] / self.noise**2, precision

    def log_posterior(self, latents, observations):
        mean, precision = self.moments(observations)
        deviation = np.stack([latents["intercept"], latents["slope"]], -1) - mean
        square = np.einsum("ni,nij,nj->n", deviation, precision, deviation)
        return 0.5 * np.linalg.slogdet(precision)[1] - np.log(2 * np.pi) - 0.5 * square

    def sample_posterior(self, rng, observations):
        mean, precision = self.moments(observations)
        scale = np.linalg.inv(np.linalg.cholesky(precision))
        draws = mean + np.einsum("nij,ni->nj", scale, rng.normal(size=mean.shape))
        return {"intercept": draws[:, 0], "slope": draws[:, 1]}

    def log_evidence(self, observations):
        # Bayes at zero: log p(x, y) = log p(0) + log p(x) + log p(y | 0) - log p(0 | x, y).
        x, y = observations["x"], observations["y"]
        zero = {name: np.zeros(len(x)) for name in ("intercept", "slope")}
        joint = norm.logpdf(x, 0, self.spread).sum(1) + norm.logpdf(y, 0, self.noise).sum(1)
        return 2 * norm.logpdf(0.0) + joint - self.log_posterior(zero, observations)
