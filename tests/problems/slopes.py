"""slope_r ~ Normal(0, 1); y_rt ~ Normal(slope_r time_rt, noise): series at times of their own."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class Slopes:
    num_rows: int = 8
    num_steps: int = 12
    noise: float = 0.5

    @property
    def num_latents(self):
        return self.num_rows

    @cached_property
    def times(self):
        return self.draw_times(np.random.default_rng(0))

    def draw_times(self, rng):
        """Gaps are exponential, so that no two rows are alike."""
        return rng.exponential(1 / 6, (self.num_rows, self.num_steps)).cumsum(-1)

    def sample_joint(self, rng, num):
        slope = rng.normal(size=(num, self.num_rows))
        noise = self.noise * rng.normal(size=(num, self.num_rows, self.num_steps))
        return {"slope": slope}, {"y": slope[..., None] * self.times + noise}

    def posterior(self, observations):
        precision = 1 + (self.times**2).sum(-1) / self.noise**2
        mean = (self.times * observations["y"]).sum(-1) / self.noise**2 / precision
        return norm(mean, precision**-0.5)

    def log_posterior(self, latents, observations):
        return self.posterior(observations).logpdf(latents["slope"]).sum(1)

    def sample_posterior(self, rng, observations):
        return {"slope": self.posterior(observations).rvs(random_state=rng)}

    def log_evidence(self, observations):
        at_zero = norm.logpdf(observations["y"], 0, self.noise).sum((1, 2))
        at_zero = at_zero + self.num_rows * norm.logpdf(0)
        return at_zero - self.posterior(observations).logpdf(0.0).sum(1)
