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
