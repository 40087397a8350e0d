"""Flows of both packages at equal weights: the same densities and the same draws of one noise."""

from functools import partial

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require
from tests.contract.test_flows import CONTEXT_SIZE, FLOWS, evaluated, random_flow

EVENT_SIZE, NUM_SITES = 4, 2


def weights_of(density, name):
    """The array of a torch parameter's name in the other package."""
    for part in name.split("."):
        density = density[int(part)] if part.isdigit() else getattr(density, part)
    return np.array(density)


@pytest.mark.parametrize("flow", FLOWS)
def test_flows_have_the_same_numbers(flow):
    require("numpyro")
    require("pyro")
    theirs, ours = host_of("numpyro"), host_of("pyro")
    rng = np.random.default_rng(0)
    context = rng.normal(size=(NUM_SITES, 5, CONTEXT_SIZE))
    value = rng.normal(size=(NUM_SITES, 5, EVENT_SIZE))
    found = {}
    with theirs.double_precision(), ours.double_precision():
        first = random_flow(theirs, flow, EVENT_SIZE, NUM_SITES, num_transforms=2)
        second = random_flow(ours, flow, EVENT_SIZE, NUM_SITES, num_transforms=2)
        for name, parameter in second.named_parameters():
            parameter.data = ours.array(weights_of(first, name))

        def numbers(host, density, inputs):
            distribution = density(host.array(context))
            drawn = distribution.from_noise(inputs)
            if host is ours:
                drawn = drawn, distribution.log_prob(drawn)
            return distribution.log_prob(inputs), *drawn

        for host, density in ((theirs, first), (ours, second)):
            found[host.name] = evaluated(host, partial(numbers, host, density), value)
    for one, other in zip(found["numpyro"], found["pyro"], strict=True):
        assert one.dtype == other.dtype == np.float64
        assert one.std() > 1e-3
        np.testing.assert_allclose(other, one, rtol=1e-9)
