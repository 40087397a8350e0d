"""Order-agnostic NADE of both packages at equal weights: the same probabilities."""

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require
from tests.contract.test_nade import built
from tests.parity.test_flow_numbers import weights_of


@pytest.mark.parametrize("kind", ["labels", "real"])
def test_nade_has_the_same_numbers(kind):
    require("numpyro")
    require("pyro")
    theirs, ours = host_of("numpyro"), host_of("pyro")
    rng, found = np.random.default_rng(0), []
    context, value = rng.normal(size=(2, 5, 3)), rng.integers(0, 3, size=(2, 5, 4)).astype(float)
    value = value if kind == "labels" else rng.normal(size=(2, 5, 4))
    with theirs.double_precision(), ours.double_precision():
        first, second = (built(host, kind, 4, num_sites=2) for host in (theirs, ours))
        for name, parameter in second.named_parameters():
            parameter.data = ours.array(weights_of(first, name))
        for host, density in ((theirs, first), (ours, second)):
            found.append(host.density_log_prob(density, context, value))
    assert found[0].dtype == found[1].dtype == np.float64
    assert found[0].std() > 0.1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
