"""An emphasised likelihood: linear models in closed form, the scale of the prior, bad input."""

import warnings
from functools import partial
from importlib import import_module

import numpy as np
import pytest

from tests.losses import evaluate, loss_without_jit, standard_error, trained

pytestmark = pytest.mark.compiles

PARAMS = {"mean": np.array([0.3, -0.2, 0.1]), "log_s": np.array(-0.7), "log_t": np.array(0.2)}


@pytest.fixture
def bounds(host):
    return import_module(f"tests.bounds_{host.name}")


def line_data(num_rows=12, num_features=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, num_features))
    return x, x @ np.arange(1, num_features + 1) / 2 + 0.5 * rng.normal(size=num_rows)


def of_line(host, bounds, objective, params=PARAMS, *batch, num=1):
    x, y = line_data()
    data = host.array(x), host.array(y), 0.5
    models = bounds.linear, bounds.isotropic
    return evaluate(host, objective, *models, params, *data, *batch, num=num)


def optimum(x, y, variance, kappa, t_squared):
    """Variance and mean of the best isotropic guide."""
    gram, dim = x.T @ x, x.shape[1]
    s_squared = 1 / (1 / t_squared + kappa * np.trace(gram) / (dim * variance))
    mean = np.linalg.solve(
        kappa * gram / variance + np.eye(dim) / t_squared, kappa * x.T @ y / variance
    )
    return s_squared, mean


def test_kappa_of_one_is_the_elbo(host, bounds):
    found, expected = (
        of_line(host, bounds, objective, num=3)
        for objective in (host.package.DataEmphasizedELBO(1.0), host.package.WeightedELBO())
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
    for name in PARAMS:
        np.testing.assert_allclose(found["gradient"][name], expected["gradient"][name], rtol=1e-5)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_auto_is_latent_dimensions_over_rows_and_weighs_the_likelihood_alone(
    host, bounds, batch, num
):
    """3 latents, 12 rows, subsampled or not. Per row and likelihood, `NLL + KL / D`."""
    package = host.package
    objectives = (
        package.DataEmphasizedELBO(num_particles=num),
        package.DataEmphasizedELBO(0.25, num_particles=num),
        package.WeightedELBO(num, kl_weight=0.0),
        package.WeightedELBO(num),
    )
    if host.name == "pyro":
        of_line(host, bounds, objectives[0], PARAMS, *batch)
    auto, quarter, likelihood, elbo = (
        of_line(host, bounds, objective, PARAMS, *batch)["loss"][0] for objective in objectives
    )
    divergence = elbo - likelihood
    if num == 1:
        assert auto == pytest.approx(quarter, rel=1e-6)
        assert auto / 0.25 == pytest.approx(12 * (likelihood / 12 + divergence / 3), rel=1e-5)
    # Not the wrong versions, which also scale the latent site or the prior.
    assert abs(auto - 0.25 * elbo) > 0.1
    s2, t2 = np.exp(2 * PARAMS["log_s"]), np.exp(2 * PARAMS["log_t"])
    square = (PARAMS["mean"] ** 2).sum()
    assert divergence == pytest.approx(
        0.5 * (3 * s2 / t2 + square / t2 - 3 + 3 * np.log(t2 / s2)), rel=0.2 if num > 1 else 1e-3
    )


def test_batches_are_unbiased(host, bounds):
    objective, num = host.package.DataEmphasizedELBO(), 600 if host.name == "pyro" else 5000
    whole = of_line(host, bounds, objective, num=num)
    batches = of_line(host, bounds, objective, PARAMS, 3, num=num)
    for first, second in [
        (whole["loss"], batches["loss"]),
        *((whole["gradient"][name], batches["gradient"][name]) for name in PARAMS),
    ]:
        se = np.hypot(standard_error(first), standard_error(second))
        assert np.all(np.abs(first.mean(0) - second.mean(0)) <= 4.5 * se + 1e-5)


def test_trained_values_are_the_closed_form(host, bounds):
    x, y = line_data()
    kappa, variance = 3.0, 0.25
    fixed = {"mean": np.zeros(3), "log_s": np.array(-1.0), "log_t": np.array(0.0)}
    # The prior's scale has its own optimum, where the other two depend on it.
    found = trained(
        host,
        host.package.DataEmphasizedELBO(kappa, num_particles=32),
        bounds.linear,
        bounds.isotropic,
        fixed,
        host.array(x),
        host.array(y),
        0.5,
        num_steps=1500,
    )
    t_squared = np.exp(2 * found["log_t"])
    s_squared, mean = optimum(x, y, variance, kappa, t_squared)
    np.testing.assert_allclose(np.exp(found["log_s"]), np.sqrt(s_squared), rtol=0.01)
    np.testing.assert_allclose(found["mean"], mean, rtol=0.01)
    assert t_squared == pytest.approx(s_squared + (mean**2).sum() / 3, rel=0.02)


def test_the_gradient_in_the_scale_of_the_prior_vanishes_at_its_closed_form(host, bounds):
    """`D (1 - t*^2 / t^2)`; without `D log t^2` it would be below zero for every t."""
    best = np.exp(2 * PARAMS["log_s"]) + (PARAMS["mean"] ** 2).sum() / 3
    for factor in (0.5, 1.0, 2.0):
        params = PARAMS | {"log_t": 0.5 * np.log(best * factor)}
        found = of_line(host, bounds, host.package.DataEmphasizedELBO(7.0), params)
        gradient = found["gradient"]["log_t"][0]
        assert gradient == pytest.approx(3 * (1 - 1 / factor), abs=1e-4)
        without = gradient - 3
        assert without < -0.5


def cosine_features():
    """The card's regression: 2000 features, 40 rows."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, 40)
    frequencies, phases = rng.normal(size=2000), rng.uniform(0, 2 * np.pi, 2000)

    def features(x):
        return np.sqrt(2 / 2000) * np.cos(x[:, None] * frequencies + phases)

    return features, features(x), np.sin(2 * x) + 0.1 * rng.normal(size=40)


def fixed_point(x, y, variance, kappa):
    """The optimum over guide and prior scale: its variances and mean."""
    (num_rows, dim), t_squared = x.shape, 1.0
    gram, trace = x @ x.T, (x**2).sum()
    for _ in range(2000):
        s_squared = 1 / (1 / t_squared + kappa * trace / (dim * variance))
        ridge = variance / (kappa * t_squared) * np.eye(num_rows)
        mean = x.T @ np.linalg.solve(gram + ridge, y)
        t_squared = s_squared + (mean**2).sum() / dim
    return s_squared, t_squared, mean


def test_far_more_features_than_rows(host, bounds):
    """At kappa = 1 the guide hugs the prior; the optimum is the objective's own."""
    features, x, y = cosine_features()
    points = np.linspace(-3, 3, 500)
    found, means = {}, {}
    for kappa in (1.0, 50.0):
        s2, t2, mean = fixed_point(x, y, 0.01, kappa)
        error = np.mean((features(points) @ mean - np.sin(2 * points)) ** 2)
        found[kappa], means[kappa] = (s2 / t2, error), mean
        params = {"mean": mean, "log_s": 0.5 * np.log(s2), "log_t": 0.5 * np.log(t2)}
        arrays = host.array(x), host.array(y), 0.1
        models = bounds.linear, bounds.isotropic
        auto = host.package.DataEmphasizedELBO("auto" if kappa > 1 else 1.0, num_particles=256)
        gradient = evaluate(host, auto, *models, params, *arrays, num=20)["gradient"]
        np.testing.assert_allclose(gradient["log_t"], 0.0, atol=0.2)
        scale = 4.5 * standard_error(gradient["log_s"])
        assert abs(gradient["log_s"].mean()) < scale < 0.1 * 2000 * (1 - s2 / t2)
    np.testing.assert_allclose(found[1.0], (0.917, 0.0085), rtol=0.03)
    np.testing.assert_allclose(found[50.0], (0.468, 0.0013), rtol=0.04)
    assert found[1.0][1] > 4 * found[50.0][1]


def test_kappa_out_of_range(host):
    for kappa in (0, -1.0, float("nan"), float("inf"), "often", True):
        with pytest.raises(ValueError, match=r"kappa: expected a positive number or 'auto', got "):
            host.package.DataEmphasizedELBO(kappa)


def test_auto_refuses_what_it_cannot_count(host, bounds):
    objective = host.package.DataEmphasizedELBO()
    x = host.array(np.zeros(4))
    loss = partial(loss_without_jit, host, objective)
    written = import_module(f"tests.particles_{host.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = {"mean": np.zeros(4), "log_sd": np.zeros(4)}
        with pytest.raises(ValueError, match=r"site 'z': is a latent in plates \['rows'\], one of"):
            loss(written.rows, written.guide_of_rows, x, params=params)
        no_plate = r"site 'y': is observed in plates \[\], and kappa='auto' needs one"
        with pytest.raises(ValueError, match=no_plate):
            loss(bounds.chain, bounds.reversed_guide, params={"shift": np.array(0.0)})
        sizes = r"kappa: 'auto' needs data in a plate, all of one size, got \{'first': 4, 'second'"
        params = {"mean": np.array(0.0)}
        with pytest.raises(ValueError, match=sizes):
            loss(bounds.two_plates, bounds.guide_of_w, x, x[:3], params=params)
        loss(bounds.two_plates, bounds.guide_of_w, x, x, params=params)


def test_a_model_without_parameters_has_nothing_to_learn(host, bounds):
    x, params = host.array(np.zeros(4)), {"mean": np.array(0.0)}
    objective = host.package.DataEmphasizedELBO()
    with pytest.warns(UserWarning, match="the model has no param sites, so that there is nothing"):
        loss_without_jit(host, objective, bounds.two_plates, bounds.guide_of_w, x, x, params=params)
    loss_without_jit(host, objective, bounds.two_plates, bounds.guide_of_w, x, x, params=params)


def test_a_prior_scale_that_went_to_zero_is_named(host, bounds):
    x, y = (host.array(value) for value in line_data())
    params = PARAMS | {"log_t": np.array(-60.0)}
    objective, models = host.package.DataEmphasizedELBO(), (bounds.linear, bounds.isotropic)
    with pytest.raises(ValueError, match="site 'w': its divergence from the prior is (inf|nan)"):
        loss_without_jit(host, objective, *models, x, y, 0.5, params=params)
