"""The ten sbibm tasks as ordinary NumPyro models; their source is in `data/sbibm/README.md`."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.nn import softplus
from numpyro.distributions import constraints
from tasks.published import constants, noise


def gaussian_linear(x=None):
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(10), math.sqrt(0.1)).to_event(1))
    numpyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1), obs=x)


def gaussian_linear_uniform(x=None):
    theta = numpyro.sample("theta", dist.Uniform(-jnp.ones(10), 1.0).to_event(1))
    numpyro.sample("x", dist.Normal(theta, math.sqrt(0.1)).to_event(1), obs=x)


def gaussian_mixture(x=None):
    theta = numpyro.sample("theta", dist.Uniform(-10 * jnp.ones(2), 10.0).to_event(1))
    widths = jnp.array([[1.0], [0.1]])
    parts = dist.Normal(theta[..., None, :], widths).to_event(1)
    kinds = dist.Categorical(logits=jnp.zeros(2))
    numpyro.sample("x", dist.MixtureSameFamily(kinds, parts), obs=x)


class TwoMoons(dist.Distribution):
    """A crescent around a point that the parameters move, their sum by its absolute value only.

    Args:
        theta: The two parameters, `(*batch, 2)`.
    """

    support = constraints.real_vector
    pytree_data_fields = ("centre",)

    def __init__(self, theta):
        total, difference = theta.sum(-1), theta[..., 1] - theta[..., 0]
        self.centre = jnp.stack([-jnp.abs(total), difference], -1) / math.sqrt(2)
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape
        keys = jax.random.split(key)
        angle = math.pi * (jax.random.uniform(keys[0], shape) - 0.5)
        radius = 0.1 + 0.01 * jax.random.normal(keys[1], shape)
        moon = jnp.stack([radius * jnp.cos(angle) + 0.25, radius * jnp.sin(angle)], -1)
        return self.centre + moon

    def log_prob(self, value):
        across, along = jnp.moveaxis(value - self.centre - jnp.array([0.25, 0.0]), -1, 0)
        radius = jnp.sqrt(jnp.maximum(across**2 + along**2, 1e-12))  # never zero: gradients
        log_prob = dist.Normal(0.1, 0.01).log_prob(radius) - jnp.log(math.pi * radius)
        return jnp.where(across > 0, log_prob, -jnp.inf)


def two_moons(x=None):
    theta = numpyro.sample("theta", dist.Uniform(-jnp.ones(2), 1.0).to_event(1))
    numpyro.sample("x", TwoMoons(theta), obs=x)


def slcp_points(theta):
    """The distribution of one point, of which there are four."""
    first, second = theta[..., 2] ** 2, theta[..., 3] ** 2
    covariance = jnp.tanh(theta[..., 4]) * first * second
    rows = [first**2 + 1e-6, covariance], [covariance, second**2 + 1e-6]
    matrix = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    return dist.MultivariateNormal(theta[..., :2], matrix)


def slcp(x=None):
    theta = numpyro.sample("theta", dist.Uniform(-3 * jnp.ones(5), 3.0).to_event(1))
    with numpyro.plate("points", 4):
        numpyro.sample("x", slcp_points(theta), obs=x)


class Distracted(dist.Distribution):
    """Four points of SLCP among 92 numbers that are nothing but noise, in a fixed order.

    Args:
        points: The distribution of a point. `log_prob` is that of the points alone: the noise is
            independent of them, and its scale matrices are singular in single precision.
    """

    support = constraints.real_vector
    pytree_data_fields = ("points",)

    def __init__(self, points):
        self.points = points
        size = len(constants("slcp_distractors")["permutation"])
        super().__init__(points.batch_shape, (size,), validate_args=False)

    @staticmethod
    def noise_distribution():
        parts = dist.MultivariateStudentT(2.0, *map(jnp.asarray, noise()))
        return dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(20)), parts)

    def sample(self, key, sample_shape=()):
        keys = jax.random.split(key)
        points = jnp.stack(
            [self.points.sample(own, sample_shape) for own in jax.random.split(keys[0], 4)], -2
        )
        noise = self.noise_distribution().sample(keys[1], sample_shape + self.batch_shape)
        found = jnp.concatenate([points.reshape(*points.shape[:-2], 8), noise], -1)
        return found[..., constants("slcp_distractors")["permutation"]]

    def log_prob(self, value):
        value = value[..., jnp.argsort(constants("slcp_distractors")["permutation"])]
        points = jnp.moveaxis(value[..., :8].reshape(*value.shape[:-1], 4, 2), -2, 0)
        return sum(map(self.points.log_prob, points))


def slcp_distractors(x=None):
    theta = numpyro.sample("theta", dist.Uniform(-3 * jnp.ones(5), 3.0).to_event(1))
    numpyro.sample("x", Distracted(slcp_points(theta)), obs=x)


def glm_prior():
    precision = constants("bernoulli_glm")["prior_precision"]
    return dist.MultivariateNormal(jnp.zeros(10), precision_matrix=precision)


def design():
    return jnp.asarray(constants("bernoulli_glm")["design_matrix"])


class SpikeSums(dist.Distribution):
    """Sums of the rows of a design over those in which a spike falls; sufficient statistics.

    Args:
        theta: Coefficients, `(*batch, 10)`. `log_prob` leaves out the number of spike trains with
            equal sums, which does not depend on them.
    """

    support = constraints.real_vector
    pytree_data_fields = ("theta",)

    def __init__(self, theta):
        self.theta = theta
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def sample(self, key, sample_shape=()):
        spikes = dist.Bernoulli(logits=self.theta @ design().T).sample(key, sample_shape)
        return spikes.astype(float) @ design()

    def log_prob(self, value):
        return (self.theta * value).sum(-1) - softplus(self.theta @ design().T).sum(-1)


def bernoulli_glm(x=None):
    numpyro.sample("x", SpikeSums(numpyro.sample("theta", glm_prior())), obs=x)


def bernoulli_glm_raw(x=None):
    theta = numpyro.sample("theta", glm_prior())
    numpyro.sample("x", dist.Bernoulli(logits=theta @ design().T).to_event(1), obs=x)


def solution(derivative, start, times, step):
    """States at times, along the last axis."""
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        diffrax.Tsit5(),
        t0=times[0],
        t1=times[-1],
        dt0=step,
        y0=start,
        saveat=diffrax.SaveAt(ts=times),
    )
    return [jnp.moveaxis(state, 0, -1) for state in found.ys]


def sir(x=None, population=1e6):
    beta = numpyro.sample("beta", dist.LogNormal(math.log(0.4), 0.5))
    gamma = numpyro.sample("gamma", dist.LogNormal(math.log(0.125), 0.2))

    def derivative(_, state, args):
        susceptible, infected = state
        caught, recovered = beta * susceptible * infected, gamma * infected
        return -caught, caught - recovered

    one = jnp.ones_like(beta) / population
    _, infected = solution(derivative, (1 - one, one), 17.0 * jnp.arange(10), 0.5)
    numpyro.sample("x", dist.Binomial(1000, jnp.clip(infected, 0, 1)).to_event(1), obs=x)


def lotka_volterra(x=None):
    alpha = numpyro.sample("alpha", dist.LogNormal(-0.125, 0.5))
    beta = numpyro.sample("beta", dist.LogNormal(-3.0, 0.5))
    gamma = numpyro.sample("gamma", dist.LogNormal(-0.125, 0.5))
    delta = numpyro.sample("delta", dist.LogNormal(-3.0, 0.5))

    def derivative(_, state, args):
        log_prey, log_predators = state
        return alpha - beta * jnp.exp(log_predators), -gamma + delta * jnp.exp(log_prey)

    start = jnp.full_like(alpha, math.log(30.0)), jnp.zeros_like(alpha)
    states = solution(derivative, start, 2.1 * jnp.arange(10), 0.075)
    logs = jnp.clip(jnp.concatenate(states, -1), math.log(1e-10), math.log(1e4))
    numpyro.sample("x", dist.LogNormal(logs, 0.1).to_event(1), obs=x)


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
