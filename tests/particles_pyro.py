"""Small models with guides written by hand, whose exact posteriors and evidence are known."""

import pyro
import pyro.distributions as dist
import torch

from tests.problems import PROBLEMS

GROUPS = PROBLEMS["hierarchical_normal"]


def rows(x, batch_size=None):
    """z of a row ~ Normal(0, 1); x ~ Normal(z, 1)."""
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(index)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def guide_of_rows(x, batch_size=None):
    mean, log_sd = (
        pyro.param("mean", torch.zeros(len(x))),
        pyro.param("log_sd", torch.zeros(len(x))),
    )
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        pyro.sample("z", dist.Normal(mean[index], torch.exp(log_sd[index])))


def guide_of_rows_and_evidence(x):
    guide_of_rows(x)
    pyro.deterministic("log_z", pyro.param("claimed", torch.zeros(len(x))))


def guide_of_path(x, num_steps, scale):
    """The exact posterior of `add_path(rows, "z")`, forward: Gaussian, one step given the last."""
    mean, var = x / 2, 0.5
    with pyro.plate("rows", len(x), dim=-1):
        state, so_far = torch.zeros(len(x)), 0.0
        for step in range(1, num_steps + 1):
            part, before = step / num_steps, (step - 1) / num_steps
            own = part**2 * var + scale**2 * part * (1 - part)
            shared = part * before * var + scale**2 * before * (1 - part)
            gain = shared / so_far if before else 0.0
            loc = part * mean + gain * (state - before * mean)
            sd = (own - gain * shared) ** 0.5
            name = f"z_path_{step}" if step < num_steps else "z"
            state, so_far = pyro.sample(name, dist.Normal(loc, sd)), own


def guide_of_slope(x, batch_size=None):
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        pyro.sample("z", dist.Normal(0.3 * x[index], 1.1))


def hierarchy(y, batch_size=None):
    base = pyro.param("base", torch.zeros(()))
    mu = pyro.sample("mu", dist.Normal(base, 1.0))
    with pyro.plate("groups", len(y), subsample_size=batch_size, dim=-1) as index:
        theta = pyro.sample("theta", dist.Normal(mu, GROUPS.tau))
        pyro.sample("y", dist.Normal(theta, GROUPS.noise), obs=y[index])


def guide_of_hierarchy(y, batch_size=None):
    """The exact posterior, moved and stretched by four parameters."""
    names = ("mu_shift", "mu_stretch", "theta_shift", "theta_stretch")
    zero = torch.zeros(())
    mu_shift, mu_stretch, theta_shift, theta_stretch = (pyro.param(name, zero) for name in names)
    precision = 1.0 + len(y) / (GROUPS.tau**2 + GROUPS.noise**2)
    mean = y.sum() / (GROUPS.tau**2 + GROUPS.noise**2) / precision
    mu = pyro.sample("mu", dist.Normal(mean + mu_shift, precision**-0.5 * torch.exp(mu_stretch)))
    with pyro.plate("groups", len(y), subsample_size=batch_size, dim=-1) as index:
        precision = GROUPS.tau**-2 + GROUPS.noise**-2
        mean = (mu * GROUPS.tau**-2 + y[index] * GROUPS.noise**-2) / precision
        sd = precision**-0.5 * torch.exp(theta_stretch)
        pyro.sample("theta", dist.Normal(mean + theta_shift, sd))


def rows_and_constant(x):
    rows(x)
    pyro.factor("constant", torch.full((), 3.0))


def rows_of_labels(y):
    """z of a row ~ Bernoulli(0.3); y ~ Normal(2 z - 1, 1)."""
    with pyro.plate("rows", len(y), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(torch.full((len(y),), 0.3)))
        pyro.sample("y", dist.Normal(2.0 * z - 1.0, 1.0), obs=y)


def label(y):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def guide_of_label(y):
    pyro.sample("z", dist.Bernoulli(0.4))


def narrow_rows(x):
    """x is between z and z + 0.5."""
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 1.0))
        inside = (x >= z) & (x <= z + 0.5)
        pyro.factor("inside", torch.where(inside, torch.zeros(len(x)), -torch.inf))


def guide_of_narrow_rows(x):
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 0.1))


def supports():
    """Latents on several supports; as its own guide it is exact."""
    positive = pyro.sample("positive", dist.Gamma(2.0, 3.0))
    pyro.sample("interval", dist.Beta(2.0, 1.0 + positive))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([0.6, 2.0, 1.5])))
    pyro.sample("angle", dist.VonMises(1.0, 2.0))
    pyro.sample("direction", dist.ProjectedNormal(torch.tensor([0.6, 2.0, 1.5])))
    pyro.sample("vector", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("matrix", dist.LKJCholesky(2, 2.0))
    pyro.sample("label", dist.Bernoulli(0.3))


def two_modes():
    """0.7 Normal(-3, 0.5) + 0.3 Normal(3, 0.5)."""
    means, sds = torch.tensor([-3.0, 3.0]), torch.tensor([0.5, 0.5])
    pyro.sample("z", _mixture(torch.log(torch.tensor([0.7, 0.3])), means, sds))


def guide_of_two_modes():
    logits, means, log_sds = (
        pyro.param(name, torch.zeros(2)) for name in ("logits", "means", "log_sds")
    )
    pyro.sample("z", _mixture(logits, means, torch.exp(log_sds)))


def nine_modes():
    """Equal normals with sd 0.5 on a square grid, ten sds apart."""
    line = torch.tensor([-5.0, 0.0, 5.0])
    pyro.sample("z", _plane_mixture(torch.zeros(9), torch.cartesian_prod(line, line), 0.5))


def guide_of_nine_modes():
    logits = pyro.param("logits", torch.zeros(18))
    means, log_sds = (pyro.param(name, torch.zeros(18, 2)) for name in ("means", "log_sds"))
    pyro.sample("z", _plane_mixture(logits, means, torch.exp(log_sds)))


def _plane_mixture(logits, means, sds):
    parts = dist.Independent(dist.Normal(means, sds), 1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def _mixture(logits, means, sds):
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(means, sds))
