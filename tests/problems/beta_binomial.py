"""p ~ Beta(2, 5); k ~ Binomial(total, p)."""

from dataclasses import dataclass

from scipy.stats import beta, betabinom


@dataclass(frozen=True)
class BetaBinomial:
    a: float = 2.0
    b: float = 5.0
    total: int = 10
    num_latents: int = 1

    def sample_joint(self, rng, num):
        p = rng.beta(self.a, self.b, size=num)
        return {"p": p}, {"k": rng.binomial(self.total, p)}

    def log_posterior(self, latents, observations):
        return beta.logpdf(latents["p"], *self.posterior(observations))

    def sample_posterior(self, rng, observations):
        return {"p": rng.beta(*self.posterior(observations))}

    def log_evidence(self, observations):
        return betabinom.logpmf(observations["k"], self.total, self.a, self.b)

    def posterior(self, observations):
        """Both shapes of the Beta posterior, each (num,)."""
        k = observations["k"]
        return self.a + k, self.b + self.total - k
