"""Flows along an ordinary differential equation trained on posteriors that are known."""

from functools import cache

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.catalogue import OTHER
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import (
    assert_bound_reaches_the_exact_posterior,
    assert_small,
    gap_of,
)

pytestmark = pytest.mark.slow  # a minute of training for each

# Options, steps and simulations for each.
RUNS = {
    ("FlowMatchingDensity", "two_mode_sign"): ({}, 2500, 256),
    ("FlowMatchingDensity", "linear_gaussian_2"): ({}, 1500, 128),
    ("FlowMatchingDensity", "parabola"): ({}, 3000, 128),
    ("DiffusionDensity", "two_mode_sign"): ({}, 2500, 256),
    ("DiffusionDensity", "linear_gaussian_2"): ({}, 1500, 128),
    ("ContinuousFlowDensity", "linear_gaussian_2"): ({"num_steps": 8}, 1000, 128),
    ("ConsistencyDensity", "two_mode_sign"): ({}, 2500, 256),
}
WITH_DENSITY = [run for run in RUNS if run[0] != "ConsistencyDensity"]


@cache
def trained(backend, family, problem):
    host, (options, num_steps, num_simulations) = host_of(backend), RUNS[family, problem]
    model = getattr(host.models, problem)
    density = getattr(host.package, family)(**options)
    guide = host.guide(model, observed="x", densities=density)
    objective = host.package.NPE(num_simulations)
    return host.fit(model, guide, objective, num_steps=num_steps, learning_rate=2e-3)


@pytest.mark.parametrize(("family", "name"), WITH_DENSITY)
def test_npe_reaches_the_exact_posterior(host, family, name):
    problem = PROBLEMS[name]
    assert_small(gap_of(host, trained(host.name, family, name), problem), problem, OTHER)


def test_elbo_reaches_the_exact_posterior(host):
    """By gradients through the solver."""
    density = host.package.ContinuousFlowDensity(num_steps=4)
    assert_bound_reaches_the_exact_posterior(
        host, "conjugate_normal", host.trace_elbo(), density=density
    )


@pytest.mark.parametrize("family", [family for family, name in RUNS if name == "two_mode_sign"])
def test_two_modes_hold_half_of_the_mass_each(host, family):
    """And the bridge between them what the exact posterior has there."""
    amortized = trained(host.name, family, "two_mode_sign")
    values = np.array([0.8, 1.5, 2.5])
    widths = 0.4 * np.sqrt(values)
    bridges = PROBLEMS["two_mode_sign"].mass_near_zero(widths, {"x": values})
    for number, (x, width, bridge) in enumerate(zip(values, widths, bridges, strict=True)):
        draws = host.sample(amortized.at(x=host.array(x)), 4000, seed=number)["z"]
        assert abs(np.mean(draws > 0) - 0.5) < 0.05
        assert abs(np.mean(np.abs(draws) < width) - bridge) < 0.05


def test_draws_without_a_density_are_in_the_exact_cells(host):
    """Divergence of the shares of draws in 20 cells of equal exact mass, a part of the whole."""
    amortized, num = trained(host.name, "ConsistencyDensity", "two_mode_sign"), 4000
    divergences = []
    for number, x in enumerate((0.8, 1.5, 2.5)):
        z = np.linspace(-8, 8, 8001)
        log_density = PROBLEMS["two_mode_sign"].log_posterior({"z": z}, {"x": np.full(len(z), x)})
        below = np.cumsum(np.exp(log_density))
        ends = np.interp(np.arange(1, 20) / 20, below / below[-1], z)
        draws = host.sample(amortized.at(x=host.array(np.array(x))), num, seed=number)["z"]
        counts = np.bincount(np.searchsorted(ends, draws.ravel()), minlength=20)
        divergences.append(-np.mean(np.log(20 * counts / num)))
    print(divergences)
    assert np.mean(divergences) < OTHER
