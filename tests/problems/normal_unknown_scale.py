"""sigma2 ~ InverseGamma(3, 2); mu ~ Normal(0, sqrt(sigma2 / kappa)); x_i ~ Normal(mu, sigma)."""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from scipy.stats import invgamma, norm


@dataclass(frozen=True)
class NormalUnknownScale:
    """Normal-inverse-gamma prior, so the joint posterior is of the same family."""

    shape: float = 3.0
    rate: float = 2.0
    kappa: float = 0.5
    num_rows: int = 20
    num_latents: int = 2

    def sample_joint(self, rng, num):
        sigma2 = invgamma.rvs(self.shape, scale=self.rate, size=num, random_state=rng)
        mu = np.sqrt(sigma2 / self.kappa) * rng.normal(size=num)
        errors = np.sqrt(sigma2)[:, None] * rng.normal(size=(num, self.num_rows))
        return {"sigma2": sigma2, "mu": mu}, {"x": mu[:, None] + errors}

    def log_posterior(self, latents, observations):
        location, kappa, shape, rate = self.posterior(observations)
        sigma2, mu = latents["sigma2"], latents["mu"]
        log_scale = invgamma.logpdf(sigma2, shape, scale=rate)
        return log_scale + norm.logpdf(mu, location, np.sqrt(sigma2 / kappa))

    def sample_posterior(self, rng, observations):
        location, kappa, shape, rate = self.posterior(observations)
        sigma2 = invgamma.rvs(shape, scale=rate, random_state=rng)
        return {
            "sigma2": sigma2,
            "mu": location + np.sqrt(sigma2 / kappa) * rng.normal(size=location.shape),
        }

    def log_evidence(self, observations):
        _, kappa, shape, rate = self.posterior(observations)
        return (
            gammaln(shape)
            - gammaln(self.shape)
            + self.shape * np.log(self.rate)
            - shape * np.log(rate)
            + 0.5 * np.log(self.kappa / kappa)
            - 0.5 * self.num_rows * np.log(2 * np.pi)
        )

    def posterior(self, observations):
        """Location (num,), kappa, shape and rate (num,) of the posterior."""
        x = observations["x"]
        mean = x.mean(axis=1)
        kappa = self.kappa + self.num_rows
        spread = np.sum((x - mean[:, None]) ** 2, axis=1)
        shrinkage = self.kappa * self.num_rows * mean**2 / kappa
        rate = self.rate + 0.5 * (spread + shrinkage)
        return self.num_rows * mean / kappa, kappa, self.shape + 0.5 * self.num_rows, rate
