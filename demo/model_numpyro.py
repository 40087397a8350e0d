"""The eight schools model in NumPyro, non-centred as in posteriordb."""

import numpyro
import numpyro.distributions as dist


def eight_schools(sigma, y=None):
    """Estimated coaching effects `y` with known standard errors `sigma`, one of each a school."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        return numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
