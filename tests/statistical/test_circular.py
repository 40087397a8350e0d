"""A posterior with two modes on a circle, at any angle: exact by a sum around it."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import vonmises

from tests.catalogue import GAUSSIAN, OTHER
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import assert_small, gap_of

pytestmark = pytest.mark.slow

PROBLEM = PROBLEMS["compass"]
GRID = np.linspace(-np.pi, np.pi, 4000, endpoint=False)


def log_densities(host, amortized, x):
    """Of the guide and of the exact posterior, around the circle."""
    data = {"x": np.broadcast_to(x, (len(GRID), 2))}
    found = host.site_log_probs(amortized, (), {"z": GRID}, data)["z"].reshape(-1)
    return found.astype(float), PROBLEM.log_posterior({"z": GRID}, data)


def trained(host, density, objective, **options):
    model = host.models.compass
    guide = host.guide(model, observed="x", densities={"z": density})
    options = {"num_steps": 2000, "learning_rate": 2e-3} | options
    return host.fit(model, guide, objective, **options)


def test_npe_learns_two_modes_across_the_cut(host):
    """And a flow on the line, whose density jumps there, comes less close."""
    package = host.package
    amortized = trained(host, package.CircularSplineDensity(), package.NPE(128))
    gap = gap_of(host, amortized, PROBLEM)
    assert_small(gap, PROBLEM, OTHER)
    on_the_line = trained(host, package.SplineFlowDensity(), package.NPE(128))
    other = gap_of(host, on_the_line, PROBLEM)
    print(f"{host.name}: circle {gap}, line {other}")
    assert other.mean > gap.mean + 0.03

    x = np.array([1.0, 0.0])  # north or south: one of the modes is at pi
    log_q, log_p = log_densities(host, amortized, x)
    cell = GRID[1] - GRID[0]
    assert np.exp(log_q).sum() * cell == pytest.approx(1.0, abs=1e-3)
    for part in (np.abs(GRID) > np.pi / 2, GRID > np.pi / 2, GRID < -np.pi / 2):
        exact, found = (np.exp(each[part]).sum() * cell for each in (log_p, log_q))
        assert abs(found - exact) < 0.05
    assert abs(log_q[0] - log_q[-1]) < 0.05
    draws = host.sample(amortized.at(x=host.array(x)), 4000)["z"]
    south = np.exp(log_q[np.abs(GRID) > np.pi / 2]).sum() * cell
    assert abs(np.mean(np.abs(draws) > np.pi / 2) - south) < 0.03


def test_a_bound_reaches_a_posterior_at_the_cut(host):
    """z ~ VonMises(0, 0.3), x ~ Normal((cos z, sin z), 0.6 I): von Mises again, here about pi."""
    module, dist = import_module(host.name), import_module(f"{host.name}.distributions")
    arrays = import_module("torch" if host.name == "pyro" else "jax.numpy")

    def model(x=None):
        z = module.sample("z", dist.VonMises(0.0, 0.3))
        centre = arrays.stack([arrays.cos(z), arrays.sin(z)], -1)
        module.sample("x", dist.Normal(centre, 0.6).to_event(1), obs=x)

    x = np.array([-1.1, 0.05])
    density = host.package.CircularSplineDensity(hidden_dims=(8,))
    guide = host.guide(model, observed="x", densities=density)
    options = {"kwargs": {"x": host.array(x)}, "num_steps": 2000, "learning_rate": 5e-3}
    amortized = host.fit(model, guide, host.trace_elbo(8), **options)
    data = {"x": np.broadcast_to(x, (len(GRID), 2))}
    log_q = host.site_log_probs(amortized, (), {"z": GRID}, data)["z"].reshape(-1).astype(float)
    first, second = x / 0.6**2 + np.array([0.3, 0.0])
    log_p = vonmises.logpdf(GRID, np.hypot(first, second), np.arctan2(second, first))
    divergence = np.sum(np.exp(log_p) * (log_p - log_q)) * (GRID[1] - GRID[0])
    print(f"{host.name}: {divergence:.4f} nats")
    assert divergence < GAUSSIAN
