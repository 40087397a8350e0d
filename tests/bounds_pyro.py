"""Small models with guides written by hand, for the bounds that weigh their parts."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine


def chain():
    """a ~ Normal(0, 1); b ~ Normal(a, 1); y = 1 ~ Normal(b, 1)."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(1.0))


def reversed_guide():
    """b first, then a given b: not the order of the model."""
    shift = pyro.param("shift", torch.tensor(0.0))
    b = pyro.sample("b", dist.Normal(shift, 0.7))
    pyro.sample("a", dist.Normal(0.8 * b, 0.6))


def vectors(x, batch_size=None):
    """z of a row ~ Normal(0, I) in two dimensions; x ~ Normal(z, 1)."""
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(index), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])


def guide_of_vectors(x, batch_size=None):
    mean = pyro.param("mean", torch.zeros(x.shape))
    log_sd = pyro.param("log_sd", torch.zeros(x.shape))
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        pyro.sample("z", dist.Normal(mean[index], torch.exp(log_sd[index])).to_event(1))


def hidden(fn, exists):
    """The model or guide of rows with some of them masked."""
    return poutine.mask(fn, mask=exists)


def scaled(fn, scale):
    return poutine.scale(fn, scale=scale)


def linear(x, y, noise, batch_size=None):
    """y ~ Normal(x w, noise) with w ~ Normal(0, t I), t a parameter."""
    t = torch.exp(pyro.param("log_t", torch.tensor(0.0)))
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), t).to_event(1))
    with pyro.plate("rows", len(y), subsample_size=batch_size, dim=-1) as index:
        mean = (w * x[index]).sum(-1)
        pyro.sample("y", dist.Normal(mean, noise), obs=y[index])


def isotropic(x, y, noise, batch_size=None):
    mean = pyro.param("mean", torch.zeros(x.shape[1]))
    sd = torch.exp(pyro.param("log_s", torch.tensor(-1.0)))
    pyro.sample("w", dist.Normal(mean, sd).to_event(1))


def two_plates(x, y):
    """Data in two plates, of sizes that may differ."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("first", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)
    with pyro.plate("second", len(y), dim=-1):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def guide_of_w(*args):
    pyro.sample("w", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.5))


def noisy_datasets(x=None, num_datasets=2):
    """z ~ Normal(0, 1); rows x ~ Normal(z, 2)."""
    with pyro.plate("datasets", num_datasets, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20, dim=-1):
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)
