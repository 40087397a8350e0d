"""Distributions of the host and flows of zuko and flowjax on problems they can follow."""

from importlib import import_module

import pytest

from tests.catalogue import GAUSSIAN, OTHER
from tests.contract.test_adapters import softplus
from tests.external_flows import external_spline
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import assert_small, gap_of

pytestmark = pytest.mark.slow  # minutes of training for each


def trained(host, problem, density, num_steps):
    model = getattr(host.models, problem)
    guide = host.guide(model, observed="x", densities=density)
    return host.fit(model, guide, host.package.NPE(128), num_steps=num_steps, learning_rate=2e-3)


def test_a_distribution_reaches_a_gaussian(host):
    dist, problem = import_module(f"{host.name}.distributions"), PROBLEMS["conjugate_normal"]
    density = host.package.DistributionDensity(
        lambda loc, raw: dist.Normal(loc, softplus(host, raw))
    )
    amortized = trained(host, "conjugate_normal", density, 1500)
    assert_small(gap_of(host, amortized, problem), problem, GAUSSIAN)


def test_an_external_flow_bends(host):
    problem = PROBLEMS["parabola"]
    amortized = trained(host, "parabola", external_spline(host), 3000)
    assert_small(gap_of(host, amortized, problem), problem, OTHER)
