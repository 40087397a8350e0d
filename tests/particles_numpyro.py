"""Small models with guides written by hand, whose exact posteriors and evidence are known."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from tests.problems import PROBLEMS

GROUPS = PROBLEMS["hierarchical_normal"]


def rows(x, batch_size=None):
    """z of a row ~ Normal(0, 1); x ~ Normal(z, 1)."""
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(len(index)), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def guide_of_rows(x, batch_size=None):
    mean, log_sd = (
        numpyro.param("mean", jnp.zeros(len(x))),
        numpyro.param("log_sd", jnp.zeros(len(x))),
    )
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        numpyro.sample("z", dist.Normal(mean[index], jnp.exp(log_sd[index])))


def guide_of_rows_and_evidence(x):
    guide_of_rows(x)
    numpyro.deterministic("log_z", numpyro.param("claimed", jnp.zeros(len(x))))


def guide_of_path(x, num_steps, scale):
    """The exact posterior of `add_path(rows, "z")`, forward: Gaussian, one step given the last."""
    mean, var = x / 2, 0.5
    with numpyro.plate("rows", len(x), dim=-1):
        state, so_far = jnp.zeros(len(x)), 0.0
        for step in range(1, num_steps + 1):
            part, before = step / num_steps, (step - 1) / num_steps
            own = part**2 * var + scale**2 * part * (1 - part)
            shared = part * before * var + scale**2 * before * (1 - part)
            gain = shared / so_far if before else 0.0
            loc = part * mean + gain * (state - before * mean)
            sd = (own - gain * shared) ** 0.5
            name = f"z_path_{step}" if step < num_steps else "z"
            state, so_far = numpyro.sample(name, dist.Normal(loc, sd)), own


def guide_of_slope(x, batch_size=None):
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        numpyro.sample("z", dist.Normal(0.3 * x[index], 1.1))


def hierarchy(y, batch_size=None):
    base = numpyro.param("base", jnp.zeros(()))
    mu = numpyro.sample("mu", dist.Normal(base, 1.0))
    with numpyro.plate("groups", len(y), subsample_size=batch_size, dim=-1) as index:
        theta = numpyro.sample("theta", dist.Normal(mu, GROUPS.tau))
        numpyro.sample("y", dist.Normal(theta, GROUPS.noise), obs=y[index])


def guide_of_hierarchy(y, batch_size=None):
    """The exact posterior, moved and stretched by four parameters."""
    names = ("mu_shift", "mu_stretch", "theta_shift", "theta_stretch")
    zero = jnp.zeros(())
    mu_shift, mu_stretch, theta_shift, theta_stretch = (numpyro.param(name, zero) for name in names)
    precision = 1.0 + len(y) / (GROUPS.tau**2 + GROUPS.noise**2)
    mean = y.sum() / (GROUPS.tau**2 + GROUPS.noise**2) / precision
    mu = numpyro.sample("mu", dist.Normal(mean + mu_shift, precision**-0.5 * jnp.exp(mu_stretch)))
    with numpyro.plate("groups", len(y), subsample_size=batch_size, dim=-1) as index:
        precision = GROUPS.tau**-2 + GROUPS.noise**-2
        mean = (mu * GROUPS.tau**-2 + y[index] * GROUPS.noise**-2) / precision
        sd = precision**-0.5 * jnp.exp(theta_stretch)
        numpyro.sample("theta", dist.Normal(mean + theta_shift, sd))


def rows_and_constant(x):
    rows(x)
    numpyro.factor("constant", jnp.full((), 3.0))


def rows_of_labels(y):
    """z of a row ~ Bernoulli(0.3); y ~ Normal(2 z - 1, 1)."""
    with numpyro.plate("rows", len(y), dim=-1):
        z = numpyro.sample("z", dist.Bernoulli(jnp.full((len(y),), 0.3)))
        numpyro.sample("y", dist.Normal(2.0 * z - 1.0, 1.0), obs=y)


def label(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def guide_of_label(y):
    numpyro.sample("z", dist.Bernoulli(0.4))


def narrow_rows(x):
    """x is between z and z + 0.5."""
    with numpyro.plate("rows", len(x), dim=-1):
        z = numpyro.sample("z", dist.Uniform(jnp.zeros(len(x)), 1.0))
        inside = (x >= z) & (x <= z + 0.5)
        numpyro.factor("inside", jnp.where(inside, jnp.zeros(len(x)), -jnp.inf))


def guide_of_narrow_rows(x):
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("z", dist.Uniform(jnp.zeros(len(x)), 0.1))


def supports():
    """Latents on several supports; as its own guide it is exact."""
    positive = numpyro.sample("positive", dist.Gamma(2.0, 3.0))
    numpyro.sample("interval", dist.Beta(2.0, 1.0 + positive))
    numpyro.sample("simplex", dist.Dirichlet(jnp.array([0.6, 2.0, 1.5])))
    numpyro.sample("angle", dist.VonMises(1.0, 2.0))
    numpyro.sample("direction", dist.ProjectedNormal(jnp.array([0.6, 2.0, 1.5])))
    numpyro.sample("vector", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("matrix", dist.LKJCholesky(2, 2.0))
    numpyro.sample("label", dist.Bernoulli(0.3))


def two_modes():
    """0.7 Normal(-3, 0.5) + 0.3 Normal(3, 0.5)."""
    means, sds = jnp.array([-3.0, 3.0]), jnp.array([0.5, 0.5])
    numpyro.sample("z", _mixture(jnp.log(jnp.array([0.7, 0.3])), means, sds))


def guide_of_two_modes():
    logits, means, log_sds = (
        numpyro.param(name, jnp.zeros(2)) for name in ("logits", "means", "log_sds")
    )
    numpyro.sample("z", _mixture(logits, means, jnp.exp(log_sds)))


def nine_modes():
    """Equal normals with sd 0.5 on a square grid, ten sds apart."""
    centres = jnp.stack(jnp.meshgrid(*[jnp.array([-5.0, 0.0, 5.0])] * 2), -1).reshape(9, 2)
    numpyro.sample("z", _plane_mixture(jnp.zeros(9), centres, jnp.full((9, 2), 0.5)))


def guide_of_nine_modes():
    logits = numpyro.param("logits", jnp.zeros(18))
    means, log_sds = (numpyro.param(name, jnp.zeros((18, 2))) for name in ("means", "log_sds"))
    numpyro.sample("z", _plane_mixture(logits, means, jnp.exp(log_sds)))


def _plane_mixture(logits, means, sds):
    parts = dist.Normal(means, sds).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def _mixture(logits, means, sds):
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(means, sds))
