"""z ~ Normal(0, 1); plate of rows x_i ~ Normal(z, noise)."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class ConjugateNormal:
    noise: float = 1.0
    num_rows: int = 20
    num_latents: int = 1

    def sample_joint(self, rng, num):
        z = rng.normal(size=num)
        x = z[:, None] + self.noise * rng.normal(size=(num, self.num_rows))
        return {"z": z}, {"x": x}

    def log_posterior(self, latents, observations):
        mean, sd = self.posterior(observations)
        return norm.logpdf(latents["z"], mean, sd)

    def sample_posterior(self, rng, observations):
        mean, sd = self.posterior(observations)
        return {"z": mean + sd * rng.normal(size=mean.shape)}

    def log_evidence(self, observations):
        # Bayes at z = 0: log p(x) = log p(0) + log p(x | 0) - log p(0 | x).
        x = observations["x"]
        log_likelihood = norm.logpdf(x, 0.0, self.noise).sum(axis=1)
        at_zero = self.log_posterior({"z": np.zeros(len(x))}, observations)
        return norm.logpdf(0.0) + log_likelihood - at_zero

    def posterior(self, observations):
        """Mean `(num,)` and standard deviation of the posterior."""
        x = observations["x"]
        precision = 1.0 + self.num_rows / self.noise**2
        return x.sum(axis=1) / self.noise**2 / precision, precision**-0.5
