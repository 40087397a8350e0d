"""Distributions of the host and flows of other libraries as densities of a guide.

Tests of draws compare with the exact distribution at fixed seeds; each of the ten p-values has
to exceed 1e-4: one failure in 1,000 changes of the seeds.
"""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import gumbel_r, kstest, laplace

from tests.backends import numpy_tree
from tests.conftest import require
from tests.external_flows import external_spline

pytestmark = pytest.mark.compiles

LEAST_P_VALUE = 1e-4
CONTEXT = np.array([0.3, -1.0, 0.5])
NUM_SITES, EVENT_SIZE = 2, 2
SHAPES = {"Laplace": laplace, "Gumbel": gumbel_r}


def softplus(host, raw):
    module = "torch.nn.functional" if host.name == "pyro" else "jax.nn"
    return import_module(module).softplus(raw)


def distribution_density(host, shape, **options):
    family = getattr(import_module(f"{host.name}.distributions"), shape)
    return host.package.DistributionDensity(
        lambda loc, raw: family(loc, softplus(host, raw)), hidden_dims=(8,), **options
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_distribution_with_the_parameters_of_the_network(host, shape):
    spec = distribution_density(host, shape)
    density = host.scrambled_density(host.build_density(spec, 1, EVENT_SIZE, 3))
    loc, raw = np.split(numpy_tree(density.network(host.array(CONTEXT), 0)).astype(float), 2)
    exact = SHAPES[shape](loc, np.log1p(np.exp(raw)))
    value = np.random.default_rng(0).normal(size=(5, EVENT_SIZE))
    found = host.density_log_prob(density, np.tile(CONTEXT, (1, 5, 1)), value[None])[0]
    np.testing.assert_allclose(found, exact.logpdf(value).sum(-1), rtol=2e-5)
    drawn, log_prob = host.density_draw(density, np.tile(CONTEXT, (4000, 1)))
    np.testing.assert_allclose(log_prob, exact.logpdf(drawn).sum(-1), rtol=2e-4, atol=2e-4)
    for axis in range(EVENT_SIZE):
        own = SHAPES[shape](exact.kwds.get("loc", loc)[axis], np.log1p(np.exp(raw))[axis])
        assert kstest(drawn[:, axis].astype(float), own.cdf).pvalue > LEAST_P_VALUE


def test_a_distribution_that_joins_the_coordinates(host):
    dist = import_module(f"{host.name}.distributions")

    def make(loc):
        covariance = host.array(np.array([[1.0, 0.8], [0.8, 1.0]]))
        return dist.MultivariateNormal(loc, covariance)

    spec = host.package.DistributionDensity(make, num_parameters=1, hidden_dims=())
    density = host.build_density(spec, 1, 2, 3)
    drawn, _ = host.density_draw(density, np.tile(CONTEXT, (2000, 1)))
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.8, abs=0.05)


def test_distributions_that_are_none_of_real_vectors(host):
    package, dist = host.package, import_module(f"{host.name}.distributions")
    with pytest.raises(ValueError, match="num_parameters: expected at least 1, got 0"):
        package.DistributionDensity(dist.Normal, num_parameters=0)
    cases = [
        (lambda loc, raw: (loc, raw), TypeError, "make: expected a distribution of .*got tuple"),
        (
            lambda loc, raw: dist.Normal(loc.sum(-1), 1.0),
            ValueError,
            r"expected a distribution of that shape.*got batch shape \(2,\) and event shape \(\)",
        ),
        (
            lambda loc, raw: dist.Normal(loc, 1.0).to_event(2),
            ValueError,
            r"make: from parameters of shape \(2, 3\)",
        ),
        (
            lambda loc, raw: dist.Gamma(softplus(host, loc), softplus(host, raw)).to_event(1),
            ValueError,
            "make: expected a distribution on the whole real line, got one on",
        ),
    ]
    for make, error, message in cases:
        with pytest.raises(error, match=message):
            host.build_density(package.DistributionDensity(make), 1, 3, 3)


@pytest.fixture
def built(host):
    return host.build_density(external_spline(host, 2, 8), NUM_SITES, EVENT_SIZE, 3)


def test_flows_of_sites_have_their_own_numbers(host, built, rng):
    context, value = rng.normal(size=(NUM_SITES, 4, 3)), rng.normal(size=(NUM_SITES, 4, EVENT_SIZE))
    together = host.density_log_prob(built, context, value)
    assert together.shape == (NUM_SITES, 4)
    for index in range(NUM_SITES):
        alone = host.density_log_prob(built, context[index], value[index], index)
        np.testing.assert_allclose(together[index], alone, rtol=1e-5)
    assert not np.allclose(*host.density_log_prob(built, context[[0, 0]], value[[0, 0]]))


def test_draws_of_a_flow_agree_with_its_density(host, built):
    """At a draw the density is that of the draw; each conditional probability is uniform."""
    num = 4000
    drawn, log_prob = host.density_draw(built, np.tile(CONTEXT, (num, 1)))
    again = host.density_log_prob(built, np.tile(CONTEXT, (num, 1)), drawn, 0)
    np.testing.assert_allclose(log_prob, again, rtol=1e-3, atol=1e-3)
    edges = np.linspace(-8, 8, 321)
    grid = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1)
    context = np.broadcast_to(CONTEXT, (*grid.shape[:-1], 3))
    mass = np.exp(host.density_log_prob(built, context, grid, 0).astype(float))
    assert mass.sum() * (edges[1] - edges[0]) ** 2 == pytest.approx(1, abs=2e-3)
    for axis in range(2):
        shares = np.cumsum(mass.sum(1 - axis))
        cdf = shares - 0.5 * mass.sum(1 - axis)
        uniform = np.interp(drawn[:, axis], edges, cdf / shares[-1])
        assert kstest(uniform, "uniform").pvalue > LEAST_P_VALUE


def test_the_gradient_reaches_the_context(host, built):
    """Or else no embedding would be trained."""
    value = host.array(np.ones(EVENT_SIZE))
    score = host.compiled(lambda context: built(context, 0).log_prob(value)[None])
    assert np.all(np.abs(host.jacobian(score, CONTEXT)) > 1e-6)


def test_a_guide_of_flows(host, tmp_path):
    """It trains, and needs its flows again to be loaded."""
    model, spec = host.models.linear_gaussian_2, external_spline(host, 2, 8)
    guide = host.guide(model, observed="x", densities=spec)
    amortized = host.fit(model, guide, host.package.NPE(32), num_steps=60, learning_rate=5e-3)
    losses = amortized.history.losses
    assert losses[-10:].mean() < losses[:10].mean() - 0.1
    amortized.save(tmp_path / "guide.safetensors")
    load = host.package.AmortizedPosterior.load
    with pytest.raises(ValueError, match=r"make=.*not of this package; pass densities="):
        load(tmp_path / "guide.safetensors", model)
    loaded = load(tmp_path / "guide.safetensors", model, densities=spec)
    latents, data = {"z": np.ones((1, 2))}, {"x": np.ones((1, 2))}
    np.testing.assert_allclose(
        host.site_log_probs(loaded, (), latents, data)["z"],
        host.site_log_probs(amortized, (), latents, data)["z"],
        rtol=1e-5,
    )


def test_flows_that_are_none(host, built):
    build = host.build_density
    package, spec = host.package, external_spline(host, 2, 8)
    module = "torch" if host.name == "pyro" else "equinox"
    with pytest.raises(TypeError, match=f"make: expected an? {module} module.*got list"):
        build(package.ExternalFlowDensity(lambda *_: []), 1, 2, 3)
    with pytest.raises(ValueError, match=r"make: .*expected .*\(2,\).* got .*\(5,\)"):
        build(package.ExternalFlowDensity(lambda _, *rest: spec.make(5, *rest)), 1, 2, 3)


def test_a_module_that_gives_no_distribution():
    require("pyro")
    host = import_module("tests.backends").host("pyro")
    linear = import_module("torch.nn").Linear
    spec = host.package.ExternalFlowDensity(lambda size, context: linear(context, size))
    with pytest.raises(TypeError, match="maps contexts to a torch distribution, .*to Tensor"):
        host.build_density(spec, 1, 2, 3)
