"""Flows of both packages at equal weights: the same densities and the same draws of one noise.

Flows along an equation have them within what the solvers leave: 1e-6 at a tolerance of 1e-10.
"""

from functools import partial

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require
from tests.contract import test_circular, test_ode_flows
from tests.contract.test_flows import CONTEXT_SIZE, FLOWS, evaluated, random_flow
from tests.contract.test_ode_flows import FAMILIES

EVENT_SIZE, NUM_SITES = 4, 2


def weights_of(density, name):
    """The array of a torch parameter's name in the other package."""
    for part in name.split("."):
        density = density[int(part)] if part.isdigit() else getattr(density, part)
    return np.array(density)


@pytest.mark.parametrize("flow", FLOWS)
def test_flows_have_the_same_numbers(flow):
    assert_same_numbers(partial(random_flow, flow=flow, num_transforms=2), rtol=1e-9)


@pytest.mark.parametrize(
    "options", [{"num_steps": 10}, pytest.param({"tolerance": 1e-10}, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_flows_along_an_equation_have_the_same_numbers(family, options):
    make = partial(test_ode_flows.random_flow, family=family, **options)
    assert_same_numbers(make, rtol=1e-9 if "num_steps" in options else 1e-6)


def test_flows_on_the_circle_have_the_same_numbers():
    assert_same_numbers(partial(test_circular.random_flow, scale=0.15), rtol=1e-9)


def test_consistency_maps_have_the_same_numbers():
    def make(host, event_size, num_sites):
        spec = host.package.ConsistencyDensity(hidden_dims=(16,), num_draw_steps=3)
        density = host.build_density(spec, num_sites, event_size, CONTEXT_SIZE)
        return host.scrambled_density(density, 0.3)

    def draws(host, density, context):
        noise = np.random.default_rng(1).normal(size=(3, NUM_SITES, 5, EVENT_SIZE))
        return evaluated(host, lambda e: (density(context).from_noise(e),), noise)

    assert_same_numbers(make, rtol=1e-9, of_flow=draws)


def assert_same_numbers(make_flow, rtol, of_flow=None):
    require("numpyro")
    require("pyro")
    theirs, ours = host_of("numpyro"), host_of("pyro")
    rng = np.random.default_rng(0)
    context = rng.normal(size=(NUM_SITES, 5, CONTEXT_SIZE))
    value = rng.normal(size=(NUM_SITES, 5, EVENT_SIZE))
    found = {}
    with theirs.double_precision(), ours.double_precision():
        sizes = {"event_size": EVENT_SIZE, "num_sites": NUM_SITES}
        first, second = make_flow(theirs, **sizes), make_flow(ours, **sizes)
        for name, parameter in second.named_parameters():
            parameter.data = ours.array(weights_of(first, name))

        def numbers(host, density, inputs):
            distribution = density(host.array(context))
            drawn = distribution.from_noise(inputs)
            if host is ours:
                drawn = drawn, distribution.log_prob(drawn)
            return distribution.log_prob(inputs), *drawn

        for host, density in ((theirs, first), (ours, second)):
            if of_flow is not None:
                found[host.name] = of_flow(host, density, host.array(context))
                continue
            found[host.name] = evaluated(host, partial(numbers, host, density), value)
    for one, other in zip(found["numpyro"], found["pyro"], strict=True):
        assert one.dtype == other.dtype == np.float64
        assert one.std() > 1e-3
        np.testing.assert_allclose(other, one, rtol=rtol)
