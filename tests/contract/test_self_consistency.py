"""The variance of log weights, against its closed form for a Gaussian."""

from importlib import import_module

import numpy as np
import pytest

from tests.contract.test_model_parameters import Y
from tests.losses import EXACT, OFF, X, evaluate, of_rows

pytestmark = pytest.mark.compiles

# Of KL(q || p) at OFF in mean and log_sd: half the mean gradient of the variance on its own draws.
DIVERGENCE = np.array([2 * OFF["mean"] - X, 2 * np.exp(2 * OFF["log_sd"]) - 1])
HIERARCHY = ("base", "mu_shift", "mu_stretch", "theta_shift", "theta_stretch")


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


def variance():
    """Of the log weight at OFF, which is a polynomial in a standard normal draw e.

    log w = const - z^2 / 2 - (X - z)^2 / 2 + e^2 / 2 with z = mean + sd e.
    """
    mean, sd = OFF["mean"], np.exp(OFF["log_sd"])
    linear, square = -2 * mean * sd + X * sd, -(sd**2) + 0.5
    return linear**2 + 2 * square**2


def test_value_and_gradient_of_rows(host, written):
    """In the mean over the rows, so that they are those of one row."""
    num_rows = 100_000
    objective = host.package.SelfConsistency(8)
    loss, gradient = of_rows(host, written, objective, OFF, num_rows)
    assert -loss * num_rows == pytest.approx(variance(), rel=0.02)
    found = [-gradient[name].mean() * num_rows for name in OFF]
    np.testing.assert_allclose(found, 2 * DIVERGENCE, atol=0.06)


def test_at_the_exact_posterior_every_draw_gives_zero(host, written):
    objective = host.package.SelfConsistency(8)
    loss, gradient = of_rows(host, written, objective, EXACT, 1000)
    assert abs(loss) < 1e-9
    for value in gradient.values():
        np.testing.assert_allclose(value * 1000, 0.0, atol=1e-4)


def test_parameters_of_the_model_are_not_trained(host, written):
    params = dict.fromkeys(HIERARCHY, np.array(0.2))
    models = written.hierarchy, written.guide_of_hierarchy
    objective = host.package.SelfConsistency(8)
    found = evaluate(host, objective, *models, params, host.array(Y), num=3)["gradient"]
    np.testing.assert_array_equal(found["base"], 0.0)
    for name in HIERARCHY[1:]:
        assert np.abs(found[name]).min() > 1e-3, name


def test_scales_do_not_reach_it(host, written):
    """Neither those of batches of rows nor one of all sites."""
    handlers = import_module("pyro.poutine" if host.name == "pyro" else "numpyro.handlers")
    models, x = (written.rows, written.guide_of_slope), host.array(np.full(40, X))
    objective = host.package.SelfConsistency(16)
    scaled = [handlers.scale(fn, scale=0.1) for fn in models]
    whole, batches, small = (
        evaluate(host, objective, *each, {}, x, *args, num=300)["loss"]
        for each, args in ((models, ()), (models, (10,)), (scaled, ()))
    )
    for found in (batches, small):
        se = np.hypot(found.std(), whole.std()) / np.sqrt(300)
        assert abs(found.mean() - whole.mean()) < 4 * se
        assert se < 0.05 * whole.mean()


def test_bad_input(host, written):
    with pytest.raises(ValueError, match="num_particles: expected .* at least 2, got 1"):
        host.package.SelfConsistency(1)
    params = dict.fromkeys(HIERARCHY, np.zeros(()))
    models = written.hierarchy, written.guide_of_hierarchy
    with pytest.raises(ValueError, match=r"plate 'groups': is subsampled, and sites \['mu'\] are"):
        evaluate(host, host.package.SelfConsistency(8), *models, params, host.array(Y), 2)
