"""Pointers of both packages at equal weights: the same probabilities."""

import numpy as np

from tests.backends import host as host_of
from tests.conftest import require
from tests.contract.test_pointer import built
from tests.parity.test_flow_numbers import weights_of


def test_pointers_have_the_same_numbers():
    require("numpyro")
    require("pyro")
    theirs, ours = host_of("numpyro"), host_of("pyro")
    rng, found = np.random.default_rng(0), []
    context = rng.normal(size=(2, 6, 5, 3))
    value = rng.integers(0, 5, size=(2, 6, 1)).astype(float)
    with theirs.double_precision(), ours.double_precision():
        first, second = (built(host, num_sites=2) for host in (theirs, ours))
        for name, parameter in second.named_parameters():
            parameter.data = ours.array(weights_of(first, name))
        for host, density in ((theirs, first), (ours, second)):
            found.append(host.density_log_prob(density, context, value))
    assert found[0].dtype == found[1].dtype == np.float64
    assert found[0].std() > 0.1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
