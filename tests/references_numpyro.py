"""Models of posteriordb in NumPyro; `references_pyro.py` has the same functions.

Flat priors are replaced by proper ones, wide enough to move no posterior mean by 0.01 of its
standard deviation; regressions are written on centred covariates, which is the same posterior.
Sites with the names of the data sets are the published parameters.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints


def kidscore_momiq(mom_iq, kid_score=None):
    centre = numpyro.sample("centre", dist.Normal(100.0, 50.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.deterministic("beta", jnp.stack([centre - 100.0 * slope, slope], -1))
    with numpyro.plate("children", len(mom_iq), dim=-1):
        mean = centre + slope * (mom_iq - 100.0)
        numpyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def logearn_interaction(height, male, log_earn=None):
    """A line for women and one for men, each around its own height in units of 4 inches."""
    centre_w = numpyro.sample("centre_w", dist.Normal(9.0, 2.0))
    slope_w = numpyro.sample("slope_w", dist.Normal(0.0, 1.0))
    centre_m = numpyro.sample("centre_m", dist.Normal(9.0, 2.0))
    slope_m = numpyro.sample("slope_m", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    women = [centre_w - 64.0 * slope_w / 4.0, slope_w / 4.0]
    men = [centre_m - 70.0 * slope_m / 4.0, slope_m / 4.0]
    beta = [*women, men[0] - women[0], men[1] - women[1]]
    numpyro.deterministic("beta", jnp.stack(beta, -1))
    with numpyro.plate("people", len(height), dim=-1):
        of_women = centre_w + slope_w * (height - 64.0) / 4.0
        of_men = centre_m + slope_m * (height - 70.0) / 4.0
        mean = of_women + (of_men - of_women) * male
        numpyro.sample("log_earn", dist.Normal(mean, sigma), obs=log_earn)


def ark(lags, y=None):
    """A regression on the values before: the same likelihood as of the series, not its law."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("steps", len(lags), dim=-1):
        mean = alpha + (lags * beta).sum(-1)
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def gp_regr(x, y=None):
    """One curve is one event; sigma is a variance."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    squares = (x[:, None] - x) ** 2
    kernel = alpha[..., None, None] ** 2 * jnp.exp(-0.5 * squares / rho[..., None, None] ** 2)
    covariance = kernel + (sigma[..., None, None] + 1e-6) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def low_dim_gauss_mix(num_rows, y=None):
    """The two centres by their mean and distance: independent normals that are ordered."""
    middle = numpyro.sample("middle", dist.Normal(0.0, 2.0**0.5))
    distance = numpyro.sample("distance", dist.HalfNormal(2.0 * 2.0**0.5))
    mu = numpyro.deterministic(
        "mu", jnp.stack([middle - distance / 2.0, middle + distance / 2.0], -1)
    )
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    kinds = dist.Categorical(jnp.stack([theta, 1.0 - theta], -1))
    with numpyro.plate("rows", num_rows, dim=-1):
        rows = dist.MixtureSameFamily(kinds, dist.Normal(mu, sigma))
        numpyro.sample("y", rows, obs=y)


class HiddenMarkov(dist.Distribution):
    """A chain of two states seen through unit normal noise, the states summed out.

    Args:
        transition: `(2, 2)`, from each state.
        centres: `(2,)`.
        num_steps: Length of the series; the first state is either with equal probability.
    """

    arg_constraints = {
        "transition": constraints.independent(constraints.simplex, 1),
        "centres": constraints.real_vector,
    }
    support = constraints.real_vector
    pytree_data_fields = ("transition", "centres")
    pytree_aux_fields = ("num_steps",)

    def __init__(self, transition, centres, num_steps, *, validate_args=None):
        self.transition, self.centres, self.num_steps = transition, centres, num_steps
        super().__init__((), (num_steps,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        if sample_shape:
            keys = jax.random.split(key, sample_shape)
            return jax.vmap(self.sample)(keys)

        def advance(state, key):
            state = jax.random.categorical(key, jnp.log(self.transition[state]))
            return state, state

        of_states, of_noise = jax.random.split(key)
        keys = jax.random.split(of_states, self.num_steps)
        first = jax.random.bernoulli(keys[0]).astype(int)
        _, rest = jax.lax.scan(advance, first, keys[1:])
        states = jnp.concatenate([first[None], rest])
        return self.centres[states] + jax.random.normal(of_noise, (self.num_steps,))

    def log_prob(self, value):
        emission = dist.Normal(self.centres, 1.0).log_prob(value[..., None])
        steps = jnp.moveaxis(emission, -2, 0)
        log_transition = jnp.log(self.transition)

        def advance(forward, own):
            return logsumexp(forward[..., None] + log_transition, axis=-2) + own, None

        forward, _ = jax.lax.scan(advance, steps[0] - jnp.log(2.0), steps[1:])
        return logsumexp(forward, axis=-1)


def hmm_example(y=None):
    """One series is one event; that both centres are positive and ordered has no effect here."""
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(jnp.array([3.0, 10.0]), 1.0).to_event(1))
    transition = jnp.stack([theta1, theta2], -2)
    numpyro.sample("y", HiddenMarkov(transition, mu, 100), obs=y)
