"""phi ~ Uniform(-1, 1); y_t ~ Normal(phi y_(t-1), 1) from y_0 = 0: one series is one event."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, truncnorm


@dataclass(frozen=True)
class Autoregression:
    num_steps: int = 50
    num_latents: int = 1

    def sample_joint(self, rng, num):
        phi = rng.uniform(-1, 1, size=num)
        y = rng.normal(size=(num, self.num_steps))
        for step in range(1, self.num_steps):
            y[:, step] += phi * y[:, step - 1]
        return {"phi": phi}, {"y": y}

    def posterior(self, observations):
        """A normal, known from the lagged products, cut to the interval."""
        y = observations["y"]
        precision = np.sum(y[:, :-1] ** 2, axis=1)
        mean, sd = np.sum(y[:, :-1] * y[:, 1:], axis=1) / precision, precision**-0.5
        return truncnorm((-1 - mean) / sd, (1 - mean) / sd, loc=mean, scale=sd)

    def log_posterior(self, latents, observations):
        return self.posterior(observations).logpdf(latents["phi"])

    def sample_posterior(self, rng, observations):
        return {"phi": self.posterior(observations).rvs(random_state=rng)}

    def log_evidence(self, observations):
        at_zero = norm.logpdf(observations["y"]).sum(axis=1) - np.log(2)
        return at_zero - self.posterior(observations).logpdf(0.0)
