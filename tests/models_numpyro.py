"""The test models in NumPyro; `models_pyro.py` has the same functions."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import eqx_module
from numpyro.distributions import constraints
from numpyro.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    L1BallTransform,
    OrderedTransform,
)

from numpyro_amortize import InverseLipschitzDecoder, add_path
from tests.problems import PROBLEMS, DigitsComponents

_CONJUGATE = PROBLEMS["conjugate_normal"]
_SCALE = PROBLEMS["normal_unknown_scale"]
_SIGN = PROBLEMS["two_mode_sign"]
_PARABOLA = PROBLEMS["parabola"]
_COMPASS = PROBLEMS["compass"]
_OUTLIER = PROBLEMS["outlier"]
_ELLIPTICAL = PROBLEMS["elliptical"]
_RAMP = PROBLEMS["ramp"]
_SLOPES = PROBLEMS["slopes"]
_CONTAMINATED = PROBLEMS["contaminated_normal"]
_BETA = PROBLEMS["beta_binomial"]
_GROUPS = PROBLEMS["hierarchical_normal"]
_SERIES = PROBLEMS["autoregression"]
_BLOB = PROBLEMS["blob_image"]
_LINE = PROBLEMS["line"]
_LEVEL = PROBLEMS["local_level"]


def conjugate_normal(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", _CONJUGATE.num_rows, dim=-1):
        numpyro.sample("x", dist.Normal(z, _CONJUGATE.noise), obs=x)


def root_at_zero(x=None):
    """The conjugate model, with a term that is zero and has no gradient."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", _CONJUGATE.num_rows, dim=-1):
        loc = z + jnp.sqrt((z - z) ** 2)
        numpyro.sample("x", dist.Normal(loc, _CONJUGATE.noise), obs=x)


def conjugate_normal_many(x=None, num_datasets=2):
    with numpyro.plate("datasets", num_datasets, dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", _CONJUGATE.num_rows, dim=-1):
            numpyro.sample("x", dist.Normal(z, _CONJUGATE.noise), obs=x)


def _linear_gaussian(dim):
    problem = PROBLEMS[f"linear_gaussian_{dim}"]

    def model(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        with numpyro.plate("rows", problem.num_rows, dim=-1):
            mean = z @ jnp.asarray(problem.matrix.T)
            numpyro.sample("x", dist.Normal(mean, problem.noise).to_event(1), obs=x)

    def many(x=None, num_datasets=2):
        with numpyro.plate("datasets", num_datasets, dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
            with numpyro.plate("rows", problem.num_rows, dim=-1):
                mean = z @ jnp.asarray(problem.matrix.T)
                numpyro.sample("x", dist.Normal(mean, problem.noise).to_event(1), obs=x)

    return model, many


linear_gaussian_2, linear_gaussian_2_many = _linear_gaussian(2)
linear_gaussian_10, linear_gaussian_10_many = _linear_gaussian(10)


def autoregression(y=None):
    """One series is one event: `y_t = phi y_(t-1) + noise`."""
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    steps = jnp.arange(_SERIES.num_steps)
    lags = steps[:, None] - steps
    powers = phi ** jnp.clip(lags, 0)
    factor = jnp.where(lags >= 0, powers, 0.0)
    mean = jnp.zeros(_SERIES.num_steps)
    numpyro.sample("y", dist.MultivariateNormal(mean, scale_tril=factor), obs=y)


def panels(weight, y=None):
    """Several series, one event each, with a covariate of each row."""
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    with numpyro.plate("rows", len(weight), dim=-1):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        mean = (level + weight)[..., None] + phi[..., None] * jnp.ones(6)
        numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def set_as_an_event(is_there, x=None):
    """Up to 64 exchangeable numbers as one event."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    steps = dist.Normal(z[..., None] + jnp.zeros(64), 1.0)
    numpyro.sample("x", steps.mask(is_there).to_event(1), obs=x)


def ramp(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    mean = z[..., None] * jnp.linspace(-1.0, 1.0, 12)
    numpyro.sample("y", dist.Normal(mean, _RAMP.noise).to_event(1), obs=y)


def slopes(times, is_there=None, y=None):
    """Series at times of their own, each with its own slope; steps may be hidden."""
    with numpyro.plate("rows", len(times), dim=-1):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        steps = dist.Normal(slope[..., None] * times, _SLOPES.noise)
        steps = steps if is_there is None else steps.mask(is_there)
        numpyro.sample("y", steps.to_event(1), obs=y)


def blob_image(y=None):
    """One image is one event."""
    z = numpyro.sample("z", dist.Normal(0.0, _BLOB.spread).expand([2]).to_event(1))
    pixels = jnp.linspace(-1.0, 1.0, 8)
    rows = jnp.exp(-0.5 * ((pixels - z[..., :1]) / _BLOB.width) ** 2)
    columns = jnp.exp(-0.5 * ((pixels - z[..., 1:]) / _BLOB.width) ** 2)
    mean = rows[..., :, None] * columns[..., None, :]
    numpyro.sample("y", dist.Normal(mean, _BLOB.noise).to_event(2), obs=y)


def two_mode_sign(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z**2, _SIGN.noise), obs=x)


def contaminated_normal(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", _CONTAMINATED.num_rows):
        numpyro.sample("x", contaminated_row(z), obs=x)


def contaminated_set(x=None):
    """The same rows as one event."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    rows = contaminated_row(z[..., None] + jnp.zeros(_CONTAMINATED.num_rows))
    numpyro.sample("x", rows.to_event(1), obs=x)


def contaminated_row(z):
    fraction = jnp.array([1 - _CONTAMINATED.fraction, _CONTAMINATED.fraction])
    scales = jnp.array([_CONTAMINATED.spread, _CONTAMINATED.wide])
    parts = dist.Normal(jnp.stack([z, jnp.zeros_like(z)], -1), scales)
    mixing = dist.Categorical(jnp.broadcast_to(fraction, (*z.shape, 2)))
    return dist.MixtureSameFamily(mixing, parts)


def parabola(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = z[..., 0] ** 2 / 2 + z[..., 1]
    numpyro.sample("x", dist.Normal(mean, _PARABOLA.noise), obs=x)


def compass(x=None):
    z = numpyro.sample("z", dist.VonMises(_COMPASS.mean, _COMPASS.concentration))
    centre = jnp.stack([jnp.cos(2 * z), jnp.sin(2 * z)], axis=-1)
    numpyro.sample("x", dist.Normal(centre, _COMPASS.noise).to_event(1), obs=x)


def elliptical(x=None):
    df, correlation = _ELLIPTICAL.df, _ELLIPTICAL.correlation
    z = numpyro.sample("z", dist.MultivariateStudentT(df, jnp.zeros(2), jnp.eye(2)))
    square = (df + (z**2).sum(axis=-1)) / (df + 2) * (1 - correlation**2)
    scale = jnp.sqrt(square)[..., None, None] * jnp.eye(2)
    numpyro.sample("x", dist.MultivariateStudentT(df + 2.0, correlation * z, scale), obs=x)


def outlier(y=None, num_rows=_OUTLIER.num_rows):
    k = numpyro.sample("k", dist.Categorical(jnp.ones(num_rows) / num_rows))
    with numpyro.plate("rows", num_rows, dim=-1):
        scale = jnp.where(jnp.arange(num_rows) == k, _OUTLIER.spread, 1.0)
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)


def outliers_of_sets(y=None):
    """One in each set of a plate, around a mean of its own."""
    with numpyro.plate("sets", 3, dim=-2):
        k = numpyro.sample("k", dist.Categorical(jnp.ones(5) / 5))
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 5, dim=-1):
            scale = jnp.where(jnp.arange(5) == k, _OUTLIER.spread, 1.0)
            numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def beta_binomial(k=None):
    p = numpyro.sample("p", dist.Beta(_BETA.a, _BETA.b))
    numpyro.sample("k", dist.Binomial(_BETA.total, p), obs=k)


def normal_unknown_scale(x=None, num_rows=_SCALE.num_rows):
    sigma2 = numpyro.sample("sigma2", dist.InverseGamma(_SCALE.shape, _SCALE.rate))
    mu = numpyro.sample("mu", dist.Normal(0.0, jnp.sqrt(sigma2 / _SCALE.kappa)))
    with numpyro.plate("rows", num_rows, dim=-1):
        numpyro.sample("x", dist.Normal(mu, jnp.sqrt(sigma2)), obs=x)


def hierarchical_normal(y=None, num_groups=_GROUPS.num_groups):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups, dim=-1):
        theta = numpyro.sample("theta", dist.Normal(mu, _GROUPS.tau))
        numpyro.sample("y", dist.Normal(theta, _GROUPS.noise), obs=y)


def groups_by_steps(y=None, num_groups=_GROUPS.num_groups):
    return add_path(hierarchical_normal, "theta", num_steps=3)(y, num_groups)


def eight_schools_noncentered(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(sigma), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(sigma), dim=-1):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def linear_regression(features, y=None):
    """The plate of coefficients is carried by no observed site."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("coefficients", 3, dim=-1):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    mean = (features * slope[..., None, :]).sum(-1)
    with numpyro.plate("rows", len(features), dim=-1):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def nested_groups(y=None):
    """Two nested plates: groups of rows, with a latent of each group."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with numpyro.plate("groups", 4, dim=-2):
        level = numpyro.sample("level", dist.Normal(mu, scale))
        with numpyro.plate("rows", 5, dim=-1):
            numpyro.sample("y", dist.Normal(level, 0.5), obs=y)


def two_locals(y=None):
    """Two latents in one plate, one of them positive."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 4, dim=-1):
        level = numpyro.sample("level", dist.Normal(mu, 1.0))
        spread = numpyro.sample("spread", dist.LogNormal(0.0, 0.3))
        numpyro.sample("y", dist.Normal(level, spread), obs=y)


def location_chain(y=None):
    """Two latents in a row above four rows, all normal."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    theta = numpyro.sample("theta", dist.Normal(mu, 0.5))
    with numpyro.plate("rows", 4, dim=-1):
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def local_chain(x, num_rows=4, y=None):
    """A latent of each row, with a covariate and an offset that stands alone."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows, dim=-1):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = numpyro.sample("theta", dist.Normal(mu, 0.5))
        numpyro.sample("y", dist.Normal(theta + offset + x, 1.0), obs=y)


def positive_location(y=None):
    """A latent whose prior is a transformation of a normal."""
    tau = numpyro.sample("tau", dist.LogNormal(0.5, 0.3))
    with numpyro.plate("rows", 4, dim=-1):
        numpyro.sample("y", dist.Normal(tau, 1.0), obs=y)


def laplace_location(y=None):
    """A posterior with tails as heavy as those of the prior."""
    z = numpyro.sample("z", dist.Laplace(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 10.0), obs=y)


def parameter_location(y=None):
    """The scale of the prior is a parameter."""
    scale = numpyro.param("scale", jnp.array(2.0), constraint=constraints.positive)
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    with numpyro.plate("rows", 4, dim=-1):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def counts_and_rows(a=None, counts=None):
    """A second site whose data may be whole numbers, beside the rows."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("count", dist.Poisson(3.0), obs=counts)
    with numpyro.plate("rows", 3, dim=-1):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=a)


def image_with_holes(is_there, y=None):
    """A level and the pixels of an image of it that are there, two colours."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    pixels = dist.Normal(z[..., None, None, None] + jnp.zeros((2, 4, 4)), 1.0)
    numpyro.sample("y", pixels.mask(is_there).to_event(3), obs=y)


def two_sources(y=None, w=None, num_rows=2):
    """One latent, seen once by `y` and less sharply by the rows of `w`."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    with numpyro.plate("rows", num_rows, dim=-1):
        numpyro.sample("w", dist.Normal(z, 2.0), obs=w)


def chain_of_data(y=None, w=None):
    """The second observed site depends on the first."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    y = numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.sample("w", dist.Normal(y, 1.0), obs=w)


def local_parameter(y=None):
    """The guide standardises the latents of the rows by the model's own scale, a parameter."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = numpyro.param("scale", jnp.array(2.0), constraint=constraints.positive)
    with numpyro.plate("rows", 4, dim=-1):
        theta = numpyro.sample("theta", dist.Normal(mu, scale))
        numpyro.sample("y", dist.Normal(theta, 0.5), obs=y)


class NetworkModel:
    """A model with a linear network on its covariate, whose weights start at zero."""

    def __init__(self):
        net = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        self.net = jax.tree.map(jnp.zeros_like, net)

    def __call__(self, x, y=None, kind=None):
        net = eqx_module("net", self.net)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x), dim=-1):
            numpyro.sample("y", dist.Normal(z + jax.vmap(net)(x[:, None])[:, 0], 0.5), obs=y)


def six_rows_behind_a_mask(is_there, y=None):
    """The mask does not say how many rows there are."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 6), numpyro.handlers.mask(mask=is_there):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def one_name_for_two(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    shift = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z + shift, 1.0), obs=y)


def one_name_for_two_observed(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.sample("y", dist.Normal(z, 2.0), obs=y)


MIXTURE_WEIGHTS = (0.3, 0.7)
MIXTURE_SCALE = 0.3


def mixture_priors(y=None):
    """A global and a local latent with two components each."""
    kinds = dist.Categorical(jnp.array(MIXTURE_WEIGHTS))
    components = dist.LogNormal(jnp.array([0.0, 1.0]), MIXTURE_SCALE)
    u = numpyro.sample("u", dist.MixtureSameFamily(kinds, components))
    with numpyro.plate("rows", 3, dim=-1):
        components = dist.Normal(u[..., None] + jnp.array([0.0, 1.0]), MIXTURE_SCALE)
        v = numpyro.sample("v", dist.MixtureSameFamily(kinds, components))
        numpyro.sample("y", dist.Normal(v, 1.0), obs=y)


class RegressionModule(eqx.Module):
    """A model that is a module of the library that networks are written in."""

    noise: float = 1.0

    def __call__(self, x, y=None):
        Regression()(x, y)


class Regression:
    """A model that is an object of a plain class."""

    def __call__(self, x, y=None, *, noise=1.0):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x), dim=-1):
            numpyro.sample("y", dist.Normal(intercept + x, noise), obs=y)


def regression_as(kind):
    """The same model as another kind of callable."""
    if kind == "partial":
        return partial(Regression(), noise=1.0)
    return {"module": RegressionModule, "object": Regression}[kind]()


def line(x=None, y=None, num_rows=_LINE.num_rows):
    """Regression on covariates that the model draws, and that are observed too."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows, dim=-1):
        x = numpyro.sample("x", dist.Normal(0.0, _LINE.spread), obs=x)
        numpyro.sample("y", dist.Normal(intercept + slope * x, _LINE.noise), obs=y)


def line_through(x, y=None):
    """The same regression on given covariates."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x), dim=-1):
        numpyro.sample("y", dist.Normal(intercept + slope * x, _LINE.noise), obs=y)


def regression_on(design, y=None):
    """A linear regression on the columns of a matrix, with known noise."""
    size = design.shape[1]
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    with numpyro.plate("rows", len(design), dim=-1):
        numpyro.sample("y", dist.Normal((beta * design).sum(-1), 1.0), obs=y)


def ten_gauges(gains, x=None):
    """Ten latents, each read once, with signal to noise `gains` as sds."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(gains * z, 1.0).to_event(1), obs=x)


def line_through_logarithms(exposure, y=None):
    """The same again, on a covariate that the model computes."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(exposure), dim=-1):
        x = numpyro.deterministic("x", jnp.log(exposure))
        numpyro.sample("y", dist.Normal(intercept + slope * x, _LINE.noise), obs=y)


def unused_deterministic(exposure, y=None):
    """The value of the statement is recorded and not used."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(exposure), dim=-1):
        numpyro.deterministic("x", jnp.log(exposure))
        numpyro.sample("y", dist.Normal(z + jnp.log(exposure), 1.0), obs=y)


def two_deterministics(exposure, y=None):
    """One is computed from an argument, one from a latent; rows are on the left."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(exposure), dim=-2):
        x = numpyro.deterministic("x", jnp.log(exposure)[..., None])
        mean = numpyro.deterministic("mean", z + x)
        with numpyro.plate("columns", 2, dim=-1):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def half_of_an_argument(exposure, y=None):
    """The input says less of the argument than the model uses."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(exposure), dim=-1):
        x = numpyro.deterministic("x", jnp.log(exposure))
        numpyro.sample("y", dist.Normal(z + x, exposure), obs=y)


def constants_as_a_site(y=None, num_rows=6):
    """What differs between rows is a constant of the model, said in a deterministic site."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows, dim=-1):
        t = numpyro.deterministic("t", jnp.arange(num_rows) / num_rows)
        numpyro.sample("y", dist.Normal(slope * t, 1.0), obs=y)


SUPPORTS = {
    "real": lambda: dist.Normal(1.0, 2.0),
    "positive": lambda: dist.Gamma(3.0, 1.0),
    "greater_than": lambda: dist.Pareto(2.0, 3.0),
    "interval": lambda: dist.Uniform(1.0, 3.0),
    "simplex": lambda: dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])),
    "ordered": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([2]).to_event(1), OrderedTransform()
    ),
    "corr_cholesky": lambda: dist.LKJCholesky(2, 1.0),
    "circular": lambda: dist.VonMises(2.5, 1.5),
    "circular_pair": lambda: dist.SineBivariateVonMises(0.5, -2.0, 3.0, 2.0, 1.0),
    "sphere": lambda: dist.ProjectedNormal(jnp.array([1.0, -0.5, 0.8])),
    "unit_interval": lambda: dist.Beta(2.0, 3.0),
    "less_than": lambda: _OnSupport(
        constraints.less_than(3.0), dist.Exponential(1.0), AffineTransform(3.0, -1.0)
    ),
    "positive_ordered": lambda: _OnSupport(
        constraints.positive_ordered_vector,
        dist.Normal(0.0, 1.0).expand([2]).to_event(1),
        [OrderedTransform(), ExpTransform()],
    ),
    "corr_matrix": lambda: dist.LKJ(2, 2.0),
    "lower_cholesky": lambda: dist.WishartCholesky(5.0, jnp.eye(2)),
    "positive_definite": lambda: dist.Wishart(5.0, jnp.eye(2)),
    "l1_ball": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([2]).to_event(1), L1BallTransform()
    ),
    "zero_sum": lambda: dist.ZeroSumNormal(1.5, event_shape=(3,)),
}


class _OnSupport(dist.TransformedDistribution):
    """A distribution of a user, on a support that no distribution of the host has."""

    def __init__(self, support, base, transforms):
        self._own_support = support
        super().__init__(base, transforms)

    support = property(lambda self: self._own_support)


VECTORS = (
    "simplex",
    "ordered",
    "positive_ordered",
    "circular_pair",
    "sphere",
    "l1_ball",
    "zero_sum",
)
MATRICES = ("corr_cholesky", "corr_matrix", "lower_cholesky", "positive_definite")


def with_support(kind):
    """A model with one latent `u` on this support, and three rows of data."""

    def model(y=None):
        u = numpyro.sample("u", SUPPORTS[kind]())
        first = u[..., 1, 0] if kind in MATRICES else u[..., 0] if kind in VECTORS else u
        with numpyro.plate("rows", 3, dim=-1):
            numpyro.sample("y", dist.Normal(first, 1.0), obs=y)

    return model


def wide_supports(y=None):
    """Larger events of every vector support in one model."""
    simplex = numpyro.sample("simplex", dist.Dirichlet(jnp.ones(4)))
    ordered = numpyro.sample(
        "ordered",
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([3]).to_event(1), OrderedTransform()
        ),
    )
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 1.0))
    box = numpyro.sample("box", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    mean = simplex[..., 0] + ordered[..., 0] + corr[..., 1, 0] + box[..., 0]
    with numpyro.plate("rows", 3, dim=-1):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def headings(y=None):
    """Angles and directions in a plate: one mean direction is drawn, the other is shared."""
    mean = numpyro.sample("mean", dist.VonMises(0.3, 2.0))
    with numpyro.plate("rows", 4, dim=-1):
        angle = numpyro.sample("angle", dist.VonMises(mean, 4.0))
        axis = numpyro.sample("axis", dist.ProjectedNormal(jnp.array([0.0, 2.0, 1.0])))
        numpyro.sample("y", dist.Normal(jnp.sin(angle) + axis[..., 0], 0.5), obs=y)


# Models that a guide must refuse, or that go wrong while they are simulated.


def prior_from_data(y=None):
    """An empirical Bayes prior, which needs the data before it can simulate."""
    z = numpyro.sample("z", dist.Normal(0.0 if y is None else y.mean(), 1.0))
    with numpyro.plate("rows", 4, dim=-1):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def no_latent(y=None):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def two_observed(a=None, b=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("a", dist.Normal(z, 1.0), obs=a)
    numpyro.sample("b", dist.Normal(z, 1.0), obs=b)


def improper(y=None):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def with_factor(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("push", -(z**2))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def uncovered_batch(y=None):
    z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))
    numpyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def uncovered_single(y=None):
    z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0))
    numpyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)


def uncovered_data(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z * jnp.ones(3), 1.0), obs=y)


def improper_rows(y=None):
    with numpyro.plate("rows", 3, dim=-1):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def moving_support(y=None):
    z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
    u = numpyro.sample("u", dist.Uniform(0.0, z))
    numpyro.sample("y", dist.Normal(u, 1.0), obs=y)


def elementwise_bounds(y=None):
    with numpyro.plate("rows", 2, dim=-1):
        u = numpyro.sample("u", dist.Uniform(0.0, jnp.array([1.0, 2.0])))
        numpyro.sample("y", dist.Normal(u, 1.0), obs=y)


def random_walk(y=None):
    """Every site reads the data of the row before it: teacher forcing."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    before = jnp.zeros(4) if y is None else jnp.concatenate([jnp.zeros(1), y[:-1]])
    with numpyro.plate("rows", 4, dim=-1):
        numpyro.sample("y", dist.Normal(z + before, 1.0), obs=y)


def local_level(y=None, num_steps=_LEVEL.num_steps):
    """A loop in Python: a site for each step."""
    x = 0.0
    for t in range(num_steps):
        scale = _LEVEL.step if t else 1.0
        x = numpyro.sample(f"x_{t}", dist.Normal(x, scale))
        numpyro.sample(f"y_{t}", dist.Normal(x, _LEVEL.noise), obs=None if y is None else y[t])


def local_level_of_rows(y=None, num_steps=3, num_rows=4):
    """The same loop inside of a plate: one series for each row."""
    with numpyro.plate("rows", num_rows, dim=-1):
        x = 0.0
        for t in range(num_steps):
            scale = _LEVEL.step if t else 1.0
            x = numpyro.sample(f"x_{t}", dist.Normal(x, scale))
            numpyro.sample(f"y_{t}", dist.Normal(x, _LEVEL.noise), obs=None if y is None else y[t])


def level_as_an_event(y=None, num_steps=_LEVEL.num_steps):
    """The same walk once more, path and data as one event each."""
    scales = jnp.array([1.0] + [_LEVEL.step] * (num_steps - 1))
    increments = numpyro.sample("increments", dist.Normal(jnp.zeros(num_steps), scales).to_event(1))
    path = numpyro.deterministic("path", jnp.cumsum(increments, -1))
    numpyro.sample("y", dist.Normal(path, _LEVEL.noise).to_event(1), obs=y)


def padded_panels(is_there, y=None, num_steps=5):
    """Series of different lengths, padded: the density of each step is masked by the model."""
    t = jnp.arange(num_steps) / 5
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        steps = dist.Normal(level[..., None] + slope[..., None] * t, 0.5)
        numpyro.sample("y", steps.mask(True if is_there is None else is_there).to_event(1), obs=y)


def panels_masked_as_a_whole(is_there, y=None):
    """A series with a hole is left out: what is there of it says nothing."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        series = dist.Normal(slope[..., None] + jnp.zeros(5), 0.5).to_event(1)
        numpyro.sample("y", series.mask(is_there.all(-1)), obs=y)


def walk_along_a_plate(y=None):
    """Every row depends on the rows before it, which a plate denies."""
    with numpyro.plate("rows", 5, dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.cumsum(z, -1), 1.0), obs=y)


def summed_plate(y=None):
    """Elements of a local latent meet in a site outside their plate."""
    with numpyro.plate("rows", 3, dim=-1):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(u, 1.0), obs=y)
    numpyro.sample("total", dist.Normal(u.sum(-1), 1.0))


def summed_inside(y=None):
    """Elements of a local latent meet inside their own plate."""
    with numpyro.plate("rows", 3, dim=-1):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(u + u.mean(-1, keepdims=True), 1.0), obs=y)


def hidden_constant(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        numpyro.sample("y", dist.Normal(z + jnp.arange(3.0), 1.0), obs=y)


def separate_margins(ya=None, yb=None):
    left, right = numpyro.plate("left", 3, dim=-2), numpyro.plate("right", 2, dim=-1)
    with right:
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("yb", dist.Normal(b, 1.0), obs=yb)
    with left:
        a = numpyro.sample("a", dist.Normal(b.mean(), 1.0))
        numpyro.sample("ya", dist.Normal(a, 1.0), obs=ya)


def pairs_without_data(ya=None, yb=None):
    left, right = numpyro.plate("left", 3, dim=-2), numpyro.plate("right", 2, dim=-1)
    with left:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("ya", dist.Normal(a, 1.0), obs=ya)
    with right:
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("yb", dist.Normal(b, 1.0), obs=yb)
    with left, right:
        numpyro.sample("u", dist.Normal(a + b, 1.0))


def masked(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        rows = dist.Normal(z, 1.0).expand([3]).mask(jnp.array([True, True, False]))
        numpyro.sample("y", rows, obs=y)


def masked_by_handler(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with (
        numpyro.plate("rows", 3, dim=-1),
        numpyro.handlers.mask(mask=jnp.array([True, True, False])),
    ):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


masked_whole = numpyro.handlers.mask(conjugate_normal, mask=jnp.zeros((), bool))


def masked_inside_event(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    rows = dist.Normal(z, 1.0).expand([3]).mask(jnp.array([True, True, False]))
    numpyro.sample("y", rows.to_event(1), obs=y)


def scaled(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def subsampled(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 6, subsample_size=3, dim=-1):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def sometimes_nan(y=None):
    """NaN in 5 % of the simulations."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    mean = jnp.where(z > 1.645, jnp.nan, z)
    with numpyro.plate("rows", 2, dim=-1):
        numpyro.sample("y", dist.Normal(mean, 1.0, validate_args=False), obs=y)


def always_nan(y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z * jnp.nan, 1.0, validate_args=False), obs=y)


def with_parameter(y=None):
    scale = numpyro.param("scale", jnp.array(2.0), constraint=dist.constraints.positive)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 50, dim=-1):
        numpyro.sample("y", dist.Normal(z, scale), obs=y)


def flaky_family(flag, y=None):
    """Its conditional site changes family with a plain argument."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        family = dist.Normal(mu, 1.0) if flag is None else dist.Uniform(mu - 1.0, mu + 1.0)
        u = numpyro.sample("u", family)
        numpyro.sample("y", dist.Normal(u, 1.0), obs=y)


def with_own_check(y=None):
    if y is not None and y < 0:
        raise ValueError("the model's own complaint")
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.LogNormal(z, 1.0), obs=y)


def python_branch(y=None):
    """Cannot be traced or vectorised: it branches in Python on a drawn value."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    mean = z if z > 0 else -z
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def cross_plate_sum(y=None):
    """A reduction without a dimension: right alone, wrong under an outer plate (trap 6)."""
    with numpyro.plate("parts", 3, dim=-1):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)


def reduced_deterministic(y=None):
    """The same reduction in a deterministic site, which no density reads."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        a = numpyro.sample("a", dist.Normal(mu, 1.0))
        numpyro.deterministic("share", a / a.sum())
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)


def paired_rows(a=None, b=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-1):
        numpyro.sample("a", dist.Normal(z, 1.0), obs=a)
        numpyro.sample("b", dist.Normal(z, 2.0), obs=b)


_CROSSED, _GROUPED = PROBLEMS["crossed_effects"], PROBLEMS["grouped_normal"]


def crossed_effects(num_rows=_CROSSED.num_rows, num_columns=_CROSSED.num_columns, y=None):
    rows, columns = (
        numpyro.plate("rows", num_rows, dim=-2),
        numpyro.plate("columns", num_columns, dim=-1),
    )
    with columns:
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with rows:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with rows, columns:
        numpyro.sample("y", dist.Normal(a + b, _CROSSED.noise), obs=y)


def crossed_effects_flat(row, column, num_rows, num_columns, y=None):
    with numpyro.plate("columns", num_columns):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("cells", len(row)):
        numpyro.sample("y", dist.Normal(a[row] + b[column], _CROSSED.noise), obs=y)


def item_response(num_students, num_items, y=None, *, is_discriminating=True):
    """Students answer items, right or wrong: the 2PL model, or 1PL with equal discriminations."""
    students = numpyro.plate("students", num_students, dim=-2)
    items = numpyro.plate("items", num_items, dim=-1)
    with items:
        difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 1.0))
        discrimination = 1.0
        if is_discriminating:
            discrimination = numpyro.sample("discrimination", dist.LogNormal(0.0, 0.5))
    with students:
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
    with students, items:
        logits = discrimination * (ability - difficulty)
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


item_response_1pl = partial(item_response, is_discriminating=False)


def grouped_normal(group, num_groups, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", num_groups):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(theta[group], _GROUPED.noise), obs=y)


def normals_of_any_number(num_groups, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", num_groups, dim=-1):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, _GROUPED.noise), obs=y)


def scaled_scalar(scale, y=None):
    z = numpyro.sample("z", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=None if y is None else jnp.asarray(y))


def three_levels(class_of, school_of, num_classes, num_schools, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("schools", num_schools):
        school = numpyro.sample("school", dist.Normal(mu, 1.0))
    with numpyro.plate("classes", num_classes):
        klass = numpyro.sample("klass", dist.Normal(school[school_of], 0.5))
    with numpyro.plate("pupils", len(class_of)):
        numpyro.sample("y", dist.Normal(klass[class_of], 1.0), obs=y)


def two_indices(first, second, num_teams, y=None):
    with numpyro.plate("teams", num_teams):
        skill = numpyro.sample("skill", dist.Normal(0.0, 1.0))
    with numpyro.plate("games", len(first)):
        numpyro.sample("y", dist.Normal(skill[first] - skill[second], 1.0), obs=y)


def rows_of_any_number(num_rows=6, y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def rows_behind_a_mask(is_there, y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(is_there)), numpyro.handlers.mask(mask=is_there):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def rows_beside_a_mask(is_there, y=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(is_there)):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def rows_with_an_obs_mask(is_there=None, y=None, num_rows=6):
    """The host splits `y` in an observed and an unobserved site."""
    num_rows = num_rows if is_there is None else len(is_there)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y, obs_mask=is_there)


def rows_with_a_mask_of_nan(y=None, num_rows=6):
    """The model itself sees in the data what is missing."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", num_rows):
        is_there = None if y is None else ~jnp.isnan(y)
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y, obs_mask=is_there)


def covariates_with_an_obs_mask(is_there=None, x=None, y=None):
    """What is unobserved of `x` is read by `y`: it would have to be inferred."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 4):
        x = numpyro.sample("x", dist.Normal(mean, 1.0), obs=x, obs_mask=is_there)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def groups_with_an_obs_mask(x, is_there=None, y=None):
    """A local latent and a covariate that is observed; `y` reads both."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 5):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        x = numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(theta + x, 0.5), obs=y, obs_mask=is_there)


def counts_of_groups(num_groups=5, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups):
        rate = numpyro.sample("rate", dist.LogNormal(mu, 0.5))
        numpyro.sample("y", dist.Poisson(rate), obs=y)


_MIXTURE = PROBLEMS["mixture_assignments"]
_REGIMES = PROBLEMS["regimes"]
_SWITCHES = PROBLEMS["switches"]


def mixture_assignments(y=None, num_rows=_MIXTURE.num_rows):
    centres = jnp.array(_MIXTURE.centres)
    mu = numpyro.sample("mu", dist.Normal(centres, _MIXTURE.spread).to_event(1))
    with numpyro.plate("rows", num_rows, dim=-1):
        z = numpyro.sample("z", dist.Categorical(jnp.array(_MIXTURE.weights)))
        mean = (mu * jax.nn.one_hot(z, len(_MIXTURE.weights))).sum(-1)
        numpyro.sample("y", dist.Normal(mean, _MIXTURE.noise), obs=y)


def poisson_count(y=None):
    k = numpyro.sample("k", dist.Poisson(PROBLEMS["poisson_count"].rate))
    numpyro.sample("y", dist.Normal(k, PROBLEMS["poisson_count"].noise), obs=y)


def regimes(y=None):
    c = numpyro.sample("c", dist.Categorical(jnp.array(_REGIMES.weights)))
    loc, scale = jnp.array(_REGIMES.centres)[c], jnp.array(_REGIMES.spreads)[c]
    t = numpyro.sample("t", dist.Normal(loc, scale))
    with numpyro.plate("rows", _REGIMES.num_rows, dim=-1):
        numpyro.sample("y", dist.Normal(t, _REGIMES.noise), obs=y)


def switches(y=None):
    b = numpyro.sample("b", dist.Bernoulli(jnp.array([_SWITCHES.probability] * 3)).to_event(1))
    mean = (b * jnp.array(_SWITCHES.sizes)).sum(-1)
    numpyro.sample("y", dist.Normal(mean, _SWITCHES.noise), obs=y)


def switches_in_a_plate(y=None):
    """The same in a plate that no observed site carries, and two rows."""
    with numpyro.plate("switches", 3, dim=-1):
        b = numpyro.sample("b", dist.Bernoulli(jnp.array(_SWITCHES.probability)))
    mean = (b[..., None, :] * jnp.array(_SWITCHES.sizes)).sum(-1)
    with numpyro.plate("rows", 2, dim=-1):
        numpyro.sample("y", dist.Normal(mean, _SWITCHES.noise), obs=y)


def every_discrete_support(y=None):
    """A global of each kind, a local one that reads them, and one with too many values to list."""
    flag = numpyro.sample("flag", dist.Bernoulli(jnp.array(0.3)))
    label = numpyro.sample("label", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    few = numpyro.sample("few", dist.Binomial(5, jnp.array(0.4)))
    many = numpyro.sample("many", dist.Binomial(1000, jnp.array(0.3)))
    count = numpyro.sample("count", dist.Poisson(jnp.array(4.0)))
    waits = numpyro.sample("waits", dist.Geometric(jnp.array(0.3)))
    pair = numpyro.sample("pair", dist.Poisson(jnp.array([1.0, 5.0])).to_event(1))
    loc = flag + label + few + many / 100.0 + count + waits + pair.sum(-1)
    with numpyro.plate("rows", 4, dim=-1):
        own = numpyro.sample("own", dist.NegativeBinomialProbs(3.0, jnp.array(0.4)))
        numpyro.sample("y", dist.Normal(loc + own, 1.0), obs=y)


def poisson_thinned(y=None):
    """The range of the second count is the first count."""
    n = numpyro.sample("n", dist.Poisson(jnp.array(6.0)))
    k = numpyro.sample("k", dist.Binomial(n, jnp.array(0.5)))
    numpyro.sample("y", dist.Normal(k, 1.0), obs=y)


def binomial_pair(y=None):
    k = numpyro.sample("k", dist.Binomial(jnp.array([3, 5]), jnp.array(0.5)).to_event(1))
    numpyro.sample("y", dist.Normal(k.sum(-1), 1.0), obs=y)


def crossed_switches(y=None):
    """Discrete elements on one of two crossing plates."""
    students = numpyro.plate("students", 4, dim=-2)
    items = numpyro.plate("items", 3, dim=-1)
    with students:
        a = numpyro.sample("a", dist.Normal(jnp.array(0.0), 1.0))
    with items:
        d = numpyro.sample("d", dist.Bernoulli(jnp.array(0.5)))
    with students, items:
        numpyro.sample("y", dist.Normal(a - d, 1.0), obs=y)


def multinomial_counts(y=None):
    k = numpyro.sample("k", dist.Multinomial(4, jnp.array([0.3, 0.7])))
    numpyro.sample("y", dist.Normal(k[..., 0], 1.0), obs=y)


def factor_analysis(x=None, num_rows=10, batch_size=10):
    with numpyro.plate("data", num_rows, subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=None if x is None else x[rows])


_DIGITS = DigitsComponents()


def digits_components(x=None, num_rows=_DIGITS.num_rows, batch_size=_DIGITS.num_rows):
    """Probabilistic principal components of images, whose parameters are learned."""
    loadings = numpyro.param("loadings", jnp.asarray(_DIGITS.initial_loadings, float))
    centre = numpyro.param("centre", jnp.asarray(_DIGITS.pixel_means, float))
    noise = numpyro.param("noise", jnp.array(0.3), constraint=constraints.positive)
    with numpyro.plate("images", num_rows, subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(loadings)]).to_event(1))
        pixels = dist.Normal(z @ loadings + centre, noise).to_event(1)
        numpyro.sample("x", pixels, obs=None if x is None else x[rows])


def linear_auto_encoder(x=None, num_rows=10, batch_size=10):
    """Loadings are learned, the noise is 1."""
    start = jnp.array([[0.5, 0.2, -0.1], [-0.3, 0.4, 0.2], [0.1, -0.2, 0.6]])
    loadings = numpyro.param("loadings", start)
    with numpyro.plate("data", num_rows, subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        mean = dist.Normal(z @ loadings, 1.0).to_event(1)
        numpyro.sample("x", mean, obs=None if x is None else x[rows])


class DecodedRows:
    """Two latents of each row behind a learned decoder, with noise 1."""

    def __init__(self, inverse_lipschitz):
        self.decoder = InverseLipschitzDecoder(
            2,
            3,
            inverse_lipschitz=inverse_lipschitz,
            hidden_dims=(16,),
            rng_key=jax.random.key(0),
        )

    def __call__(self, x=None, num_rows=10, batch_size=10):
        decoder = eqx_module("decoder", self.decoder)
        with numpyro.plate("data", num_rows, subsample_size=batch_size) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            mean = dist.Normal(decoder(z), 1.0).to_event(1)
            numpyro.sample("x", mean, obs=None if x is None else x[rows])


def shared_mean(x=None, num_rows=10, batch_size=10):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", num_rows, subsample_size=batch_size) as rows:
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=None if x is None else x[rows])


def covariate_of_drawn_rows(weight, x=None, batch_size=10, *, with_mean=True):
    """Prior and likelihood of each row read its covariate, which the statement `t` hands on."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0)) if with_mean else 0.0
    with numpyro.plate("data", len(weight), subsample_size=batch_size) as rows:
        t = numpyro.deterministic("t", weight[rows])
        z = numpyro.sample("z", dist.Normal(mu + t, 1.0))
        numpyro.sample("x", dist.Normal(z - 2.0 * t, 0.5), obs=None if x is None else x[rows])


def mean_of_drawn_rows(weight, x=None, batch_size=3):
    """A deterministic site of the arguments and of the rows that are drawn, in no plate."""
    data = numpyro.plate("data", len(weight), subsample_size=batch_size)
    with data as rows:
        pass
    t = numpyro.deterministic("t", weight[rows].mean())
    with data:
        z = numpyro.sample("z", dist.Normal(t, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=None if x is None else x[rows])


def mask_of_drawn_rows(is_there, x=None, batch_size=3):
    with numpyro.plate("data", len(is_there), subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.handlers.mask(mask=is_there[rows]):
            numpyro.sample("x", dist.Normal(z, 0.5), obs=None if x is None else x[rows])


def group_of_drawn_rows(group, num_groups, x=None, batch_size=2):
    with numpyro.plate("groups", num_groups):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(group), subsample_size=batch_size) as rows:
        obs = None if x is None else x[rows]
        numpyro.sample("x", dist.Normal(theta[..., group[rows]], 0.5), obs=obs)
