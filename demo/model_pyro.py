"""The eight schools model in Pyro, non-centred as in posteriordb."""

import pyro
import pyro.distributions as dist


def eight_schools(sigma, y=None):
    """Estimated coaching effects `y` with known standard errors `sigma`, one of each a school."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)
