"""Small models with guides written by hand, for the bounds that weigh their parts."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

ZERO = jnp.zeros(())


def chain():
    """a ~ Normal(0, 1); b ~ Normal(a, 1); y = 1 ~ Normal(b, 1)."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 1.0))
    numpyro.sample("y", dist.Normal(b, 1.0), obs=jnp.array(1.0))


def reversed_guide():
    """b first, then a given b: not the order of the model."""
    shift = numpyro.param("shift", jnp.array(0.0))
    b = numpyro.sample("b", dist.Normal(shift, 0.7))
    numpyro.sample("a", dist.Normal(0.8 * b, 0.6))


def vectors(x, batch_size=None):
    """z of a row ~ Normal(0, I) in two dimensions; x ~ Normal(z, 1)."""
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(index), 2)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])


def guide_of_vectors(x, batch_size=None):
    mean = numpyro.param("mean", jnp.zeros(x.shape))
    log_sd = numpyro.param("log_sd", jnp.zeros(x.shape))
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        numpyro.sample("z", dist.Normal(mean[index], jnp.exp(log_sd[index])).to_event(1))


def hidden(fn, exists):
    """The model or guide of rows with some of them masked."""
    return handlers.mask(fn, mask=exists)


def scaled(fn, scale):
    return handlers.scale(fn, scale=scale)


def linear(x, y, noise, batch_size=None):
    """y ~ Normal(x w, noise) with w ~ Normal(0, t I), t a parameter."""
    t = jnp.exp(numpyro.param("log_t", jnp.array(0.0)))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), t).to_event(1))
    with numpyro.plate("rows", len(y), subsample_size=batch_size, dim=-1) as index:
        mean = w @ x[index].T
        numpyro.sample("y", dist.Normal(mean, noise), obs=y[index])


def isotropic(x, y, noise, batch_size=None):
    mean = numpyro.param("mean", jnp.zeros(x.shape[1]))
    sd = jnp.exp(numpyro.param("log_s", jnp.array(-1.0)))
    numpyro.sample("w", dist.Normal(mean, sd).to_event(1))


def two_plates(x, y):
    """Data in two plates, of sizes that may differ."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("first", len(x), dim=-1):
        numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
    with numpyro.plate("second", len(y), dim=-1):
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def guide_of_w(*args):
    numpyro.sample("w", dist.Normal(numpyro.param("mean", jnp.array(0.0)), 0.5))


def noisy_datasets(x=None, num_datasets=2):
    """z ~ Normal(0, 1); rows x ~ Normal(z, 2)."""
    with numpyro.plate("datasets", num_datasets, dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 20, dim=-1):
            numpyro.sample("x", dist.Normal(z, 2.0), obs=x)


def labels(x, y, batch_size=None):
    """z of a row ~ Normal(0, m); M labels of it ~ Normal(c z, sd), shape (M, rows)."""
    m, sd = jnp.exp(numpyro.param("log_m", ZERO)), jnp.exp(numpyro.param("log_sd", ZERO))
    c = numpyro.param("c", ZERO)
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = numpyro.sample("z", dist.Normal(0.0, m))
        with numpyro.plate("labels", len(y), dim=-2):
            numpyro.sample("y", dist.Normal(c * z, sd), obs=y[:, index])


def encoder(x, y, batch_size=None):
    a, spread = numpyro.param("a", ZERO), jnp.exp(numpyro.param("log_spread", ZERO))
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        numpyro.sample("z", dist.Normal(a * x[index], spread))


def unit_encoder(x, y, batch_size=None):
    a = numpyro.param("a", ZERO)
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        numpyro.sample("z", dist.Normal(a * x[index], 1.0))


def peeking_encoder(x, y, batch_size=None):
    a, b = numpyro.param("a", ZERO), numpyro.param("b", ZERO)
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        numpyro.sample("z", dist.Normal(a * x[index] + b * y[0, index], 1.0))


def classes(x, y):
    """Two logits of a label."""
    with numpyro.plate("rows", len(x), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Categorical(logits=jnp.stack([0 * z, z], -1)), obs=y)


def encoder_of_classes(x, y):
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("z", dist.Normal(numpyro.param("a", ZERO) * x, 1.0))


def embedding_of_classes(x, y):
    """Reads whole numbers, which have no gradient."""
    table = numpyro.param("table", jnp.zeros(2))
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("z", dist.Normal(table[y], 1.0))


def global_bottleneck(x, y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def global_encoder(x, y):
    numpyro.sample("z", dist.Normal(numpyro.param("a", ZERO), 1.0))


def global_peek(x, y):
    numpyro.sample("z", dist.Normal(y.mean(), 1.0))


def linear_encoder(x, y):
    """An input for each data set, which says all that its labels do."""
    weight, spread = numpyro.param("weight", ZERO), jnp.exp(numpyro.param("log_spread", ZERO))
    with numpyro.plate("datasets", len(x), dim=-1):
        numpyro.sample("z", dist.Normal(weight * x, spread))


def labels_of_datasets(x, y):
    with numpyro.plate("datasets", len(x), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("labels", len(y), dim=-2):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scaled_vectors(x, batch_size=None):
    """As `vectors`, with a guide whose deviation is given and a prior with a parameter."""
    spread = jnp.exp(numpyro.param("prior", ZERO))
    with numpyro.plate("rows", len(x), subsample_size=batch_size, dim=-1) as index:
        z = numpyro.sample("z", dist.Normal(jnp.zeros((len(index), 2)), spread).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])


def two_sites(x):
    """The two values of a row in two sites."""
    with numpyro.plate("rows", len(x), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.stack([z, w], -1), 1.0).to_event(1), obs=x)


def guide_of_two(x):
    mean, sd = numpyro.param("mean", ZERO), jnp.exp(numpyro.param("log_sd", ZERO))
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("z", dist.Normal(mean[:, 0], sd[:, 0]))
        numpyro.sample("w", dist.Normal(mean[:, 1], sd[:, 1]))


def dependent_guide(x):
    """w reads z: the mean of its distribution is not that of w."""
    mean, sd = numpyro.param("mean", ZERO), jnp.exp(numpyro.param("log_sd", ZERO))
    with numpyro.plate("rows", len(x), dim=-1):
        z = numpyro.sample("z", dist.Normal(mean[:, 0], sd[:, 0]))
        numpyro.sample("w", dist.Normal(mean[:, 1] + 0.5 * z, sd[:, 1]))


def correlated_guide(x):
    """A full covariance within a row."""
    mean, factor = numpyro.param("mean", ZERO), jnp.array([[0.6, 0.0], [0.3, 0.5]])
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("z", dist.MultivariateNormal(mean, scale_tril=factor))


def chained_rows(x):
    """The prior of w reads z."""
    with numpyro.plate("rows", len(x), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(jnp.stack([z, w], -1), 1.0).to_event(1), obs=x)


def mixed_plates(x):
    with numpyro.plate("rows", len(x), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
    with numpyro.plate("others", 3, dim=-1):
        numpyro.sample("w", dist.Normal(0.0, 1.0))


def guide_of_mixed_plates(x):
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("others", 3, dim=-1):
        numpyro.sample("w", dist.Normal(0.0, 1.0))


def affine_guide(x):
    """A pushed-forward normal, which does not know its mean; its divergence is that of draws."""
    mean, sd = numpyro.param("mean", ZERO), jnp.exp(numpyro.param("log_sd", ZERO))
    with numpyro.plate("rows", len(x), dim=-1):
        base = dist.Normal(jnp.zeros(x.shape), 1.0).to_event(1)
        push = dist.transforms.IndependentTransform(dist.transforms.AffineTransform(mean, sd), 1)
        numpyro.sample("z", dist.TransformedDistribution(base, push))
