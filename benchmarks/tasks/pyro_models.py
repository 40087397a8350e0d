"""The ten sbibm tasks as ordinary Pyro models; their source is in `data/sbibm/README.md`."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from tasks.published import constants, noise
from torch.nn.functional import softplus
from torchdiffeq import odeint


def gaussian_linear(x=None):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(10), math.sqrt(0.1)).to_event(1))
    pyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1), obs=x)


def gaussian_linear_uniform(x=None):
    theta = pyro.sample("theta", dist.Uniform(-torch.ones(10), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1), obs=x)


def gaussian_mixture(x=None):
    theta = pyro.sample("theta", dist.Uniform(-10 * torch.ones(2), 10.0).to_event(1))
    widths = torch.tensor([[1.0], [0.1]])
    parts = dist.Independent(dist.Normal(theta[..., None, :], widths), 1)
    kinds = dist.Categorical(torch.ones(parts.batch_shape))
    pyro.sample("x", dist.MixtureSameFamily(kinds, parts), obs=x)


class TwoMoons(dist.TorchDistribution):
    """A crescent around a point that the parameters move, their sum by its absolute value only.

    Args:
        theta: The two parameters, `(*batch, 2)`.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, theta):
        self.theta, self.radius = theta, dist.Normal(0.1, 0.01)
        total, difference = theta.sum(-1), theta[..., 1] - theta[..., 0]
        self.centre = torch.stack([-total.abs(), difference], -1) / math.sqrt(2)
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return TwoMoons(self.theta.expand(*batch_shape, 2))

    def sample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape
        angle = math.pi * (torch.rand(shape) - 0.5)
        radius = self.radius.sample(shape)
        moon = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)
        return self.centre + moon

    def log_prob(self, value):
        across, along = (value - self.centre - value.new_tensor([0.25, 0.0])).unbind(-1)
        radius = (across**2 + along**2).clamp(min=1e-12).sqrt()  # never zero: gradients
        log_prob = self.radius.log_prob(radius) - (math.pi * radius).log()
        return torch.where(across > 0, log_prob, -torch.inf)


def two_moons(x=None):
    theta = pyro.sample("theta", dist.Uniform(-torch.ones(2), 1.0).to_event(1))
    pyro.sample("x", TwoMoons(theta), obs=x)


def slcp_points(theta):
    """The distribution of one point, of which there are four."""
    first, second = theta[..., 2] ** 2, theta[..., 3] ** 2
    covariance = torch.tanh(theta[..., 4]) * first * second
    rows = [first**2 + 1e-6, covariance], [covariance, second**2 + 1e-6]
    matrix = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return dist.MultivariateNormal(theta[..., :2], matrix)


def slcp(x=None):
    theta = pyro.sample("theta", dist.Uniform(-3 * torch.ones(5), 3.0).to_event(1))
    with pyro.plate("points", 4):
        pyro.sample("x", slcp_points(theta), obs=x)


class Distracted(dist.TorchDistribution):
    """Four points of SLCP among 92 numbers that are nothing but noise, in a fixed order.

    Args:
        points: The distribution of a point. `log_prob` is that of the points alone: the noise is
            independent of them, and its scale matrices are singular in single precision.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, points):
        self.order = torch.as_tensor(constants("slcp_distractors")["permutation"]).long()
        parts = dist.MultivariateStudentT(torch.tensor(2.0), *map(torch.as_tensor, noise()))
        self.noise = dist.MixtureSameFamily(dist.Categorical(torch.ones(20)), parts)
        self.points = points
        shape = points.batch_shape, torch.Size([len(self.order)])
        super().__init__(*shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Distracted(self.points.expand(batch_shape))

    def sample(self, sample_shape=()):
        shape = torch.Size(sample_shape)
        points = torch.stack([self.points.sample(shape) for _ in range(4)], -2)
        noise = self.noise.sample(shape + self.batch_shape)
        return torch.cat([points.flatten(-2), noise], -1)[..., self.order]

    def log_prob(self, value):
        value = value[..., torch.argsort(self.order)]
        points = value[..., :8].unflatten(-1, (4, 2)).unbind(-2)
        return sum(map(self.points.log_prob, points))


def slcp_distractors(x=None):
    theta = pyro.sample("theta", dist.Uniform(-3 * torch.ones(5), 3.0).to_event(1))
    pyro.sample("x", Distracted(slcp_points(theta)), obs=x)


def glm_prior():
    precision = torch.as_tensor(constants("bernoulli_glm")["prior_precision"])
    return dist.MultivariateNormal(torch.zeros(10), precision_matrix=precision)


def design():
    return torch.as_tensor(constants("bernoulli_glm")["design_matrix"])


class SpikeSums(dist.TorchDistribution):
    """Sums of the rows of a design over those in which a spike falls; sufficient statistics.

    Args:
        theta: Coefficients, `(*batch, 10)`. `log_prob` leaves out the number of spike trains with
            equal sums, which does not depend on them.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, theta):
        self.theta = theta
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return SpikeSums(self.theta.expand(*batch_shape, -1))

    def sample(self, sample_shape=()):
        spikes = dist.Bernoulli(logits=self.theta @ design().T).sample(torch.Size(sample_shape))
        return spikes @ design()

    def log_prob(self, value):
        return (self.theta * value).sum(-1) - softplus(self.theta @ design().T).sum(-1)


def bernoulli_glm(x=None):
    pyro.sample("x", SpikeSums(pyro.sample("theta", glm_prior())), obs=x)


def bernoulli_glm_raw(x=None):
    theta = pyro.sample("theta", glm_prior())
    pyro.sample("x", dist.Bernoulli(logits=theta @ design().T).to_event(1), obs=x)


def solution(derivative, start, times, step):
    """States at times, along the last axis."""
    times = torch.as_tensor(times)
    found = odeint(derivative, start, times, method="rk4", options={"step_size": step})
    return [state.movedim(0, -1) for state in found]


def sir(x=None, population=1e6):
    beta = pyro.sample("beta", dist.LogNormal(math.log(0.4), 0.5))
    gamma = pyro.sample("gamma", dist.LogNormal(math.log(0.125), 0.2))

    def derivative(_, state):
        susceptible, infected = state
        caught, recovered = beta * susceptible * infected, gamma * infected
        return -caught, caught - recovered

    one = torch.ones_like(beta) / population
    _, infected = solution(derivative, (1 - one, one), 17.0 * torch.arange(10), 0.5)
    pyro.sample("x", dist.Binomial(1000, infected.clamp(0, 1)).to_event(1), obs=x)


def lotka_volterra(x=None):
    alpha = pyro.sample("alpha", dist.LogNormal(-0.125, 0.5))
    beta = pyro.sample("beta", dist.LogNormal(-3.0, 0.5))
    gamma = pyro.sample("gamma", dist.LogNormal(-0.125, 0.5))
    delta = pyro.sample("delta", dist.LogNormal(-3.0, 0.5))

    def derivative(_, state):
        log_prey, log_predators = state
        return alpha - beta * log_predators.exp(), -gamma + delta * log_prey.exp()

    start = torch.full_like(alpha, math.log(30.0)), torch.zeros_like(alpha)
    states = solution(derivative, start, 2.1 * torch.arange(10), 0.075)
    logs = torch.cat(states, -1).clamp(math.log(1e-10), math.log(1e4))
    pyro.sample("x", dist.LogNormal(logs, 0.1).to_event(1), obs=x)


MODELS = {
    model.__name__: model
    for model in (
        two_moons,
        gaussian_mixture,
        slcp,
        slcp_distractors,
        gaussian_linear,
        gaussian_linear_uniform,
        bernoulli_glm,
        bernoulli_glm_raw,
        sir,
        lotka_volterra,
    )
}
