"""z ~ Normal(0, 1); y_t ~ Normal(z t, noise) at twelve t from -1 to 1: the sign is in no moment."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

_TIMES = np.linspace(-1, 1, 12)


@dataclass(frozen=True)
class Ramp:
    noise: float = 0.5
    num_latents: int = 1

    def sample_joint(self, rng, num):
        z = rng.normal(size=num)
        return {"z": z}, {"y": z[:, None] * _TIMES + self.noise * rng.normal(size=(num, 12))}

    def posterior(self, observations):
        precision = 1 + np.sum(_TIMES**2) / self.noise**2
        mean = observations["y"] @ _TIMES / self.noise**2 / precision
        return norm(mean, precision**-0.5)

    def log_posterior(self, latents, observations):
        return self.posterior(observations).logpdf(latents["z"])

    def sample_posterior(self, rng, observations):
        return {"z": self.posterior(observations).rvs(random_state=rng)}

    def log_evidence(self, observations):
        at_zero = norm.logpdf(observations["y"], 0, self.noise).sum(1) + norm.logpdf(0)
        return at_zero - self.posterior(observations).logpdf(0.0)
