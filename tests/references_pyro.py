"""Models of posteriordb in Pyro; `references_numpyro.py` has the same functions.

Flat priors are replaced by proper ones, wide enough to move no posterior mean by 0.01 of its
standard deviation; regressions are written on centred covariates, which is the same posterior.
Sites with the names of the data sets are the published parameters.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def kidscore_momiq(mom_iq, kid_score=None):
    centre = pyro.sample("centre", dist.Normal(100.0, 50.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    pyro.deterministic("beta", torch.stack([centre - 100.0 * slope, slope], -1), event_dim=1)
    with pyro.plate("children", len(mom_iq), dim=-1):
        mean = centre + slope * (mom_iq - 100.0)
        pyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def logearn_interaction(height, male, log_earn=None):
    """A line for women and one for men, each around its own height in units of 4 inches."""
    centre_w = pyro.sample("centre_w", dist.Normal(9.0, 2.0))
    slope_w = pyro.sample("slope_w", dist.Normal(0.0, 1.0))
    centre_m = pyro.sample("centre_m", dist.Normal(9.0, 2.0))
    slope_m = pyro.sample("slope_m", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(3.0))
    women = [centre_w - 64.0 * slope_w / 4.0, slope_w / 4.0]
    men = [centre_m - 70.0 * slope_m / 4.0, slope_m / 4.0]
    beta = [*women, men[0] - women[0], men[1] - women[1]]
    pyro.deterministic("beta", torch.stack(beta, -1), event_dim=1)
    with pyro.plate("people", len(height), dim=-1):
        of_women = centre_w + slope_w * (height - 64.0) / 4.0
        of_men = centre_m + slope_m * (height - 70.0) / 4.0
        mean = of_women + (of_men - of_women) * male
        pyro.sample("log_earn", dist.Normal(mean, sigma), obs=log_earn)


def ark(lags, y=None):
    """A regression on the values before: the same likelihood as of the series, not its law."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("steps", len(lags), dim=-1):
        mean = alpha + (lags * beta).sum(-1)
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def gp_regr(x, y=None):
    """One curve is one event; sigma is a variance."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    squares = (x[:, None] - x) ** 2
    kernel = alpha[..., None, None] ** 2 * torch.exp(-0.5 * squares / rho[..., None, None] ** 2)
    covariance = kernel + (sigma[..., None, None] + 1e-6) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def low_dim_gauss_mix(num_rows, y=None):
    """The two centres by their mean and distance: independent normals that are ordered."""
    middle = pyro.sample("middle", dist.Normal(0.0, 2.0**0.5))
    distance = pyro.sample("distance", dist.HalfNormal(2.0 * 2.0**0.5))
    mu = torch.stack([middle - distance / 2.0, middle + distance / 2.0], -1)
    mu = pyro.deterministic("mu", mu, event_dim=1)
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    kinds = dist.Categorical(torch.stack([theta, 1.0 - theta], -1))
    with pyro.plate("rows", num_rows, dim=-1):
        rows = dist.MixtureSameFamily(kinds, dist.Normal(mu, sigma))
        pyro.sample("y", rows, obs=y)


class HiddenMarkov(dist.TorchDistribution):
    """A chain of two states seen through unit normal noise, the states summed out.

    Args:
        transition: `(*batch, 2, 2)`, from each state.
        centres: `(*batch, 2)`.
        num_steps: Length of the series; the first state is either with equal probability.
    """

    arg_constraints = {
        "transition": constraints.independent(constraints.simplex, 1),
        "centres": constraints.real_vector,
    }
    support = constraints.real_vector

    def __init__(self, transition, centres, num_steps, *, validate_args=None):
        self.transition, self.centres, self.num_steps = transition, centres, num_steps
        batch_shape = torch.broadcast_shapes(transition.shape[:-2], centres.shape[:-1])
        super().__init__(batch_shape, (num_steps,), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        batch_shape = torch.Size(batch_shape)
        return HiddenMarkov(
            self.transition.expand(*batch_shape, 2, 2),
            self.centres.expand(*batch_shape, 2),
            self.num_steps,
            validate_args=False,
        )

    def sample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape
        into_second = self.transition[..., 1].expand(*shape, 2)
        states = [torch.bernoulli(torch.full(shape, 0.5)).long()]
        for _ in range(self.num_steps - 1):
            probability = into_second.gather(-1, states[-1][..., None])[..., 0]
            states.append(torch.bernoulli(probability).long())
        centres = self.centres.expand(*shape, 2).gather(-1, torch.stack(states, -1))
        return centres + torch.randn(centres.shape)

    def log_prob(self, value):
        emission = dist.Normal(self.centres[..., None, :], 1.0).log_prob(value[..., None])
        log_transition = self.transition.log()
        forward = emission[..., 0, :] - torch.tensor(2.0).log()
        for step in range(1, self.num_steps):
            moved = torch.logsumexp(forward[..., None] + log_transition, -2)
            forward = moved + emission[..., step, :]
        return torch.logsumexp(forward, -1)


def hmm_example(y=None):
    """One series is one event; that both centres are positive and ordered has no effect here."""
    theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
    mu = pyro.sample("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1))
    transition = torch.stack([theta1, theta2], -2)
    pyro.sample("y", HiddenMarkov(transition, mu, 100), obs=y)
