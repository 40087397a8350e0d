"""mu ~ Normal(0, 1); plate of theta_j ~ Normal(mu, tau), y_j ~ Normal(theta_j, noise)."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class HierarchicalNormal:
    """All scales are known, so the joint posterior is Gaussian: mu | y, then theta_j | mu, y_j."""

    tau: float = 0.7
    noise: float = 0.5
    num_groups: int = 8

    @property
    def num_latents(self):
        return 1 + self.num_groups

    def sample_joint(self, rng, num):
        mu = rng.normal(size=num)
        theta = mu[:, None] + self.tau * rng.normal(size=(num, self.num_groups))
        y = theta + self.noise * rng.normal(size=theta.shape)
        return {"mu": mu, "theta": theta}, {"y": y}

    def log_posterior(self, latents, observations):
        mu, theta = latents["mu"], latents["theta"]
        global_ = norm.logpdf(mu, *self.posterior_of_mu(observations))
        local = norm.logpdf(theta, *self.posterior_of_theta(mu, observations))
        return global_ + local.sum(axis=1)

    def sample_posterior(self, rng, observations):
        mean, sd = self.posterior_of_mu(observations)
        mu = mean + sd * rng.normal(size=mean.shape)
        mean, sd = self.posterior_of_theta(mu, observations)
        return {"mu": mu, "theta": mean + sd * rng.normal(size=mean.shape)}

    def log_evidence(self, observations):
        # Bayes at mu = 0, with theta integrated out: y_j ~ Normal(0, sqrt(tau^2 + noise^2)).
        y = observations["y"]
        log_likelihood = norm.logpdf(y, 0.0, np.hypot(self.tau, self.noise)).sum(axis=1)
        return (
            norm.logpdf(0.0)
            + log_likelihood
            - norm.logpdf(0.0, *self.posterior_of_mu(observations))
        )

    def posterior_of_mu(self, observations):
        """Mean (num,) and standard deviation of mu given y."""
        variance = self.tau**2 + self.noise**2
        precision = 1.0 + self.num_groups / variance
        return observations["y"].sum(axis=1) / variance / precision, precision**-0.5

    def posterior_of_theta(self, mu, observations):
        """Mean (num, num_groups) and standard deviation of theta given mu and y."""
        precision = self.tau**-2 + self.noise**-2
        mean = mu[:, None] * self.tau**-2 + observations["y"] * self.noise**-2
        return mean / precision, precision**-0.5
