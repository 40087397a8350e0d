"""Flows trained on posteriors that are known: bent with two arms, and Gaussian."""

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.catalogue import GAUSSIAN, OTHER
from tests.contract.test_flows import FLOWS, STEPWISE_FLOWS
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import (
    assert_bound_reaches_the_exact_posterior,
    assert_small,
    gap_of,
)

pytestmark = pytest.mark.slow  # minutes of training for each

NUM_STEPS = {"conjugate_normal": 1500, "parabola": 3000, "linear_gaussian_2": 1500}


def trained_by_npe(backend, problem, density):
    host = host_of(backend)
    model = getattr(host.models, problem)
    guide = host.guide(model, observed="x", densities=density)
    return host.fit(
        model, guide, host.package.NPE(128), num_steps=NUM_STEPS[problem], learning_rate=2e-3
    )


def density_of(host, flow):
    family, options = FLOWS[flow]
    return getattr(host.package, family)(**options)


@pytest.mark.parametrize("flow", [name for name in FLOWS if name != "radial"])
def test_npe_bends(host, flow):
    problem = PROBLEMS["parabola"]
    amortized = trained_by_npe(host.name, "parabola", density_of(host, flow))
    assert_small(gap_of(host, amortized, problem), problem, OTHER)
    # Both arms of the posterior, and as much on each.
    draws = host.sample(amortized.at(x=host.array(np.array(3.0))), 4000)["z"]
    exact = problem.sample_posterior(np.random.default_rng(0), {"x": np.full(4000, 3.0)})["z"]
    for part in (lambda z: z[:, 0] > 0, lambda z: np.abs(z[:, 0]) < 0.5):
        assert abs(np.mean(part(draws)) - np.mean(part(exact))) < 0.06


@pytest.mark.parametrize("flow", ["planar", "radial"])
def test_maps_from_a_context_reach_a_gaussian(host, flow):
    problem = PROBLEMS["conjugate_normal"]
    amortized = trained_by_npe(host.name, "conjugate_normal", density_of(host, flow))
    assert_small(gap_of(host, amortized, problem), problem, GAUSSIAN)


def test_a_normal_does_not_bend(host):
    """The tolerance above means something."""
    problem = PROBLEMS["parabola"]
    amortized = trained_by_npe(host.name, "parabola", host.package.NormalDensity())
    assert gap_of(host, amortized, problem).lower > problem.num_latents * OTHER


@pytest.mark.parametrize("flow", [name for name in STEPWISE_FLOWS if name != "spline coupling"])
def test_npe_reaches_a_gaussian(host, flow):
    problem = PROBLEMS["linear_gaussian_2"]
    amortized = trained_by_npe(host.name, "linear_gaussian_2", density_of(host, flow))
    assert_small(gap_of(host, amortized, problem), problem, GAUSSIAN)


@pytest.mark.parametrize("flow", [name for name in STEPWISE_FLOWS if name != "spline coupling"])
def test_elbo_reaches_a_gaussian(host, flow):
    """Reparameterised draws of a chain, one coordinate after the other where it is that."""
    family, options = FLOWS[flow]
    density = getattr(host.package, family)(num_transforms=2, **options)
    assert_bound_reaches_the_exact_posterior(
        host, "linear_gaussian_2", host.trace_elbo(), density=density
    )
