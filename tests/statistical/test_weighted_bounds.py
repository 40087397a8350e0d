"""The expected KL gap of guides trained by bounds that weigh their parts, in nats.

Where the posterior of the problem is the optimum of such a bound, the guide must reach it.
"""

import pytest

from tests.statistical.test_expected_gap import assert_bound_reaches_the_exact_posterior

pytestmark = pytest.mark.slow


def test_the_elbo_with_weight_one(host):
    """Free bits far below what the latents say change nothing."""
    objective = host.package.WeightedELBO(kl_weight=1.0, free_bits=0.1)
    assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)
