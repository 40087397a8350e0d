"""z and x in the plane, together Student-t with `df` degrees: all coordinates large together."""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln


@dataclass(frozen=True)
class Elliptical:
    df: float = 3.0
    correlation: float = 0.6
    num_latents: int = 2

    def sample_joint(self, rng, num):
        first, second = rng.normal(size=(2, num, 2))
        spread = np.sqrt(self.df / rng.chisquare(self.df, size=num))[:, None]
        mixed = self.correlation * first + np.sqrt(1 - self.correlation**2) * second
        return {"z": spread * first}, {"x": spread * mixed}

    def given(self, value):
        """Degrees of freedom, location and scale of the other one."""
        df = self.df + 2
        square = (self.df + np.sum(np.asarray(value) ** 2, -1)) / df
        scale = np.sqrt(square * (1 - self.correlation**2))
        return df, self.correlation * value, scale

    def log_posterior(self, latents, observations):
        return _log_student(latents["z"], *self.given(observations["x"]))

    def sample_posterior(self, rng, observations):
        df, loc, scale = self.given(observations["x"])
        spread = scale * np.sqrt(df / rng.chisquare(df, size=len(loc)))
        return {"z": loc + spread[:, None] * rng.normal(size=loc.shape)}

    def log_evidence(self, observations):
        return _log_student(observations["x"], self.df, 0.0, 1.0)


def _log_student(value, df, loc, scale):
    """Log density in the plane."""
    square = np.sum((value - loc) ** 2, -1) / scale**2
    constant = gammaln(df / 2 + 1) - gammaln(df / 2) - np.log(df * np.pi)
    return constant - 2 * np.log(scale) - (df / 2 + 1) * np.log1p(square / df)
