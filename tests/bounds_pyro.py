"""Small models with guides written by hand, for the bounds that weigh their parts."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

ZERO = torch.tensor(0.0)


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


def labels(x, y, batch_size=None):
    """z of a row ~ Normal(0, m); M labels of it ~ Normal(c z, sd), shape (M, rows)."""
    m, sd = torch.exp(pyro.param("log_m", ZERO)), torch.exp(pyro.param("log_sd", ZERO))
    c = pyro.param("c", ZERO)
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(0.0, m))
        with pyro.plate("labels", len(y), dim=-2):
            pyro.sample("y", dist.Normal(c * z, sd), obs=y[:, index])


def encoder(x, y, batch_size=None):
    a, spread = pyro.param("a", ZERO), torch.exp(pyro.param("log_spread", ZERO))
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        pyro.sample("z", dist.Normal(a * x[index], spread))


def unit_encoder(x, y, batch_size=None):
    a = pyro.param("a", ZERO)
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        pyro.sample("z", dist.Normal(a * x[index], 1.0))


def peeking_encoder(x, y, batch_size=None):
    a, b = pyro.param("a", ZERO), pyro.param("b", ZERO)
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        pyro.sample("z", dist.Normal(a * x[index] + b * y[0, index], 1.0))


def classes(x, y):
    """Two logits of a label."""
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Categorical(logits=torch.stack([0 * z, z], -1)), obs=y)


def encoder_of_classes(x, y):
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("a", ZERO) * x, 1.0))


def embedding_of_classes(x, y):
    """Reads whole numbers, which have no gradient."""
    table = pyro.param("table", torch.zeros(2))
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(table[y], 1.0))


def global_bottleneck(x, y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def global_encoder(x, y):
    pyro.sample("z", dist.Normal(pyro.param("a", ZERO), 1.0))


def global_peek(x, y):
    pyro.sample("z", dist.Normal(y.mean(), 1.0))


def linear_encoder(x, y):
    """An input for each data set, which says all that its labels do."""
    weight, spread = pyro.param("weight", ZERO), torch.exp(pyro.param("log_spread", ZERO))
    with pyro.plate("datasets", len(x), dim=-1):
        pyro.sample("z", dist.Normal(weight * x, spread))


def labels_of_datasets(x, y):
    with pyro.plate("datasets", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("labels", len(y), dim=-2):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scaled_vectors(x, batch_size=None):
    """As `vectors`, with a guide whose deviation is given and a prior with a parameter."""
    spread = torch.exp(pyro.param("prior", ZERO))
    with pyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros((len(index), 2)), spread).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])


def two_sites(x):
    """The two values of a row in two sites."""
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.stack([z, w], -1), 1.0).to_event(1), obs=x)


def guide_of_two(x):
    mean, sd = pyro.param("mean", ZERO), torch.exp(pyro.param("log_sd", ZERO))
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(mean[:, 0], sd[:, 0]))
        pyro.sample("w", dist.Normal(mean[:, 1], sd[:, 1]))


def dependent_guide(x):
    """w reads z: the mean of its distribution is not that of w."""
    mean, sd = pyro.param("mean", ZERO), torch.exp(pyro.param("log_sd", ZERO))
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(mean[:, 0], sd[:, 0]))
        pyro.sample("w", dist.Normal(mean[:, 1] + 0.5 * z, sd[:, 1]))


def correlated_guide(x):
    """A full covariance within a row."""
    mean, factor = pyro.param("mean", ZERO), torch.tensor([[0.6, 0.0], [0.3, 0.5]])
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=factor))


def chained_rows(x):
    """The prior of w reads z."""
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(torch.stack([z, w], -1), 1.0).to_event(1), obs=x)


def mixed_plates(x):
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    with pyro.plate("others", 3, dim=-1):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def guide_of_mixed_plates(x):
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("others", 3, dim=-1):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def affine_guide(x):
    """A pushed-forward normal, which does not know its mean; its divergence is that of draws."""
    mean, sd = pyro.param("mean", ZERO), torch.exp(pyro.param("log_sd", ZERO))
    with pyro.plate("rows", len(x), dim=-1):
        base = dist.Normal(torch.zeros(x.shape), 1.0).to_event(1)
        push = dist.transforms.AffineTransform(mean, sd, event_dim=1)
        pyro.sample("z", dist.TransformedDistribution(base, push))
