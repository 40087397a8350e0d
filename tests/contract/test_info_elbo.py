"""InfoELBO: its special cases, the kernel divergence in closed form, its two estimators."""

from importlib import import_module

import numpy as np
import pytest

from tests.contract.test_iwae import MOVED
from tests.contract.test_weighted_elbo import mean_field
from tests.losses import evaluate, loss_without_jit, standard_error

pytestmark = pytest.mark.compiles

X = np.random.default_rng(0).normal(size=(8, 2))


@pytest.fixture
def bounds(host):
    return import_module(f"tests.bounds_{host.name}")


def of_vectors(host, bounds, objective, *batch, x=X, sd=0.5, mean=0.0, num=1):
    params = {"mean": np.full(x.shape, mean), "log_sd": np.full(x.shape, np.log(sd))}
    models = bounds.vectors, bounds.guide_of_vectors
    return evaluate(host, objective, *models, params, host.array(x), *batch, num=num)


def divergences(host, bounds, num_elements, sd, *, num=1, particles=1, **options):
    """N MMD^2 of each evaluation: what a weight of one more adds to the loss."""
    x = np.zeros((num_elements, 2))
    one, two = (
        of_vectors(
            host,
            bounds,
            host.package.InfoELBO(0.0, lam, num_particles=particles, **options),
            x=x,
            sd=sd,
            num=num,
        )["loss"]
        for lam in (1.0 + 1e-6, 1e4)
    )
    return (two - one).astype(float) / (1e4 - 1) / num_elements


def assert_same(found, expected):
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    for name, value in expected["gradient"].items():
        np.testing.assert_allclose(found["gradient"][name], value, rtol=1e-4, atol=1e-5)


def test_the_elbo_and_the_weighted_elbo_are_among_them(host, bounds):
    package = host.package
    for options in ({}, {"kernel_scale": 0.3, "estimator": "v"}):
        found = of_vectors(host, bounds, package.InfoELBO(0.0, 1.0, **options), num=2)
        assert_same(found, of_vectors(host, bounds, mean_field(host), num=2))
    for weight in (0.3, 4.0):
        found = of_vectors(host, bounds, package.InfoELBO(1 - weight, weight), num=2)
        expected = package.WeightedELBO(kl_weight=weight)
        assert_same(found, of_vectors(host, bounds, expected, num=2))


def closed_form(variance, h, dim):
    return (
        (h / (h + 2 * variance)) ** (dim / 2)
        - 2 * (h / (h + 1 + variance)) ** (dim / 2)
        + (h / (h + 2)) ** (dim / 2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["u", "v"])
def test_the_kernel_divergence_is_the_closed_form(host, bounds, estimator):
    """d = 2, s = 1, guide with variance 1/4, 4000 elements."""
    options = {"kernel_scale": 1.0, "estimator": estimator}
    found = divergences(host, bounds, 4000, 0.5, num=4, **options)
    error = 3 * standard_error(found) + (5e-4 if estimator == "v" else 1e-6)
    assert abs(found.mean() - closed_form(0.25, 1.0, 2)) < error < 0.1 * found.mean()


def test_the_default_scale_is_that_of_the_dimension(host, bounds):
    found = divergences(host, bounds, 500, 0.5, num=4)
    given = divergences(host, bounds, 500, 0.5, num=4, kernel_scale=np.sqrt(2.0))
    np.testing.assert_allclose(found, given, rtol=1e-4)


def test_only_the_u_statistic_is_unbiased(host, bounds):
    """At the prior, 1000 batches of 20 in each of 10 evaluations; E k = h / (h + 2)."""
    batch, expected = 20, 1 / 3
    found = {
        estimator: divergences(
            host,
            bounds,
            batch,
            1.0,
            num=10,
            particles=1000,
            estimator=estimator,
            kernel_scale=1.0,
        )
        for estimator in ("u", "v")
    }
    bias = 2 * (1 - expected) / batch
    for estimator, mean in (("u", 0.0), ("v", bias)):
        error = 4 * standard_error(found[estimator])
        assert abs(found[estimator].mean() - mean) < error < 0.1 * bias
    # The wrong one: diagonals kept, divisor B (B - 1).
    wrong = found["v"] * batch / (batch - 1)
    assert wrong.mean() > 0.9 * bias


def test_draws_of_the_prior_have_no_gradient(host, bounds):
    """alpha = 1 leaves the prior's parameter in the kernel divergence alone."""
    params = {"mean": np.full(X.shape, 0.3), "log_sd": np.zeros(X.shape), "prior": np.array(0.1)}
    for alpha, is_zero in ((1.0, True), (0.5, False)):
        objective = host.package.InfoELBO(alpha, 20.0)
        models = bounds.scaled_vectors, bounds.guide_of_vectors
        gradient = evaluate(host, objective, *models, params, host.array(X))["gradient"]
        assert (gradient["prior"][0] == 0.0) == is_zero
        assert np.abs(gradient["mean"]).max() > 0.01


def test_gradients_through_the_draws_of_the_guide(host, bounds):
    """In the deviation: that of the closed form, on average."""
    x, spread = np.zeros((50, 2)), 0.5
    slope = spread * (closed_form((spread + 1e-5) ** 2, 1.0, 2) - closed_form(spread**2, 1.0, 2))
    gradients = [
        of_vectors(
            host,
            bounds,
            host.package.InfoELBO(1.0, lam, kernel_scale=1.0, num_particles=200),
            x=x,
            sd=spread,
            num=10,
        )["gradient"]["log_sd"].sum((1, 2))
        for lam in (0.0, 100.0)
    ]
    found = (gradients[1] - gradients[0]) / 100 / 50
    assert abs(found.mean() - slope / 1e-5) < 4 * standard_error(found) < 0.05 * abs(slope / 1e-5)


def test_a_guide_that_is_the_prior_has_the_likelihood_alone(host, bounds):
    """On average: the divergence of each element is zero, and the U-statistic has mean zero."""
    package = host.package
    found, likelihood = (
        of_vectors(host, bounds, each, sd=1.0, num=10)["loss"]
        for each in (
            package.InfoELBO(0.0, 3.0, num_particles=500),
            package.WeightedELBO(500, kl_weight=0.0),
        )
    )
    error = np.hypot(standard_error(found), standard_error(likelihood))
    assert abs(found.mean() - likelihood.mean()) < 4 * error


def test_batches_stand_for_the_whole_plate(host, bounds):
    """A weight for all N elements, not for those of the batch: it doubles with N."""
    x, objective = np.repeat(X, 2, 0), host.package.InfoELBO(1.0, 1e4, estimator="v")
    whole, half = (
        of_vectors(host, bounds, objective, 8, x=each, sd=0.2, num=400)["loss"] for each in (x, X)
    )
    error = np.hypot(standard_error(whole), 2 * standard_error(half))
    assert abs(whole.mean() - 2 * half.mean()) < 4 * error < 0.2 * abs(whole.mean())


def test_masked_elements_do_not_count(host, bounds):
    """Whatever their draws are."""
    exists = np.arange(8) < 5
    found = []
    for far in (0.0, 50.0):
        mean = np.where(exists, 0.5, far)[:, None] * np.ones(2)
        params = {"mean": mean, "log_sd": np.zeros(X.shape)}
        models = [
            bounds.hidden(each, host.array(exists))
            for each in (bounds.vectors, bounds.guide_of_vectors)
        ]
        objective = host.package.InfoELBO(1.0, 10.0)
        found.append(evaluate(host, objective, *models, params, host.array(X))["loss"])
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_several_sites_are_joined(host, bounds):
    """Two scalar sites of a row are a vector: the same mean in law."""
    params = {"mean": np.full(X.shape, 0.5), "log_sd": np.full(X.shape, -0.5)}
    objective = host.package.InfoELBO(1.0, 1e4, num_particles=200)
    found = [
        evaluate(host, objective, *models, params, host.array(X), num=10)["loss"]
        for models in (
            (bounds.vectors, bounds.guide_of_vectors),
            (bounds.two_sites, bounds.guide_of_two),
        )
    ]
    error = np.hypot(*map(standard_error, found))
    assert abs(found[0].mean() - found[1].mean()) < 4 * error < 0.2 * found[0].mean()


def test_arguments_out_of_range(host):
    make = host.package.InfoELBO
    with pytest.raises(ValueError, match="alpha: expected a finite number of at most 1, got 1.5"):
        make(1.5, 1.0)
    with pytest.raises(ValueError, match="lam: expected a finite number of at least 0, got -0.1"):
        make(1.0, -0.1)
    with pytest.raises(ValueError, match="lam: expected at least 1 - alpha = 0.5, below which the"):
        make(0.5, 0.4)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="kernel_scale: expected a positive number, got"):
            make(0.0, 2.0, kernel_scale=scale)
    with pytest.raises(ValueError, match="estimator: expected 'u' or 'v', got 'w'"):
        make(0.0, 2.0, estimator="w")


def test_models_that_it_is_not_for(host, bounds):
    written = import_module(f"tests.particles_{host.name}")
    objective, x = host.package.InfoELBO(0.0, 2.0), host.array(X)
    one = {"mean": np.zeros((1, 2)), "log_sd": np.zeros((1, 2))}
    both = {"mean": np.zeros(X.shape), "log_sd": np.zeros(X.shape)}
    moved = dict.fromkeys([*MOVED, "base"], np.zeros(()))
    chained = bounds.chained_rows, bounds.guide_of_two
    for models, data, params, message in (
        (
            (bounds.vectors, bounds.guide_of_vectors),
            (x[:1],),
            one,
            r"plate \['rows'\]: has one element, and InfoELBO compares",
        ),
        (chained, (x,), both, r"site 'w': its prior depends on \['z'\], and InfoELBO draws"),
        (
            (written.hierarchy, written.guide_of_hierarchy),
            (x[:, 0],),
            moved,
            "site 'mu': is in no plate, and InfoELBO is for latents",
        ),
        (
            (bounds.chain, bounds.reversed_guide),
            (),
            {"shift": np.zeros(())},
            r"sites \['a', 'b'\]: are in no plate, and InfoELBO compares",
        ),
        (
            (bounds.mixed_plates, bounds.guide_of_mixed_plates),
            (x[:, 0],),
            {},
            r"site 'w': is in plates \['others'\] and site 'z' in",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            loss_without_jit(host, objective, *models, *data, params=params)
    # Without a kernel divergence there is nothing to compare.
    loss_without_jit(host, host.package.InfoELBO(0.5, 0.5), *chained, x, params=both)
