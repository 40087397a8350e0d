"""The expected KL gap of guides trained by bounds that weigh their parts, in nats.

Where the posterior of the problem is the optimum of such a bound, the guide must reach it.
"""

import warnings
from importlib import import_module

import pytest

from tests.statistical.test_expected_gap import assert_bound_reaches_the_exact_posterior

pytestmark = pytest.mark.slow


def test_the_elbo_with_weight_one(host):
    """Free bits far below what the latents say change nothing."""
    objective = host.package.WeightedELBO(kl_weight=1.0, free_bits=0.1)
    assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)


def test_an_emphasised_likelihood_is_that_of_a_smaller_noise(host, monkeypatch):
    """Rows with twice the noise and a likelihood to the power four: the problem's own posterior."""
    noisy = import_module(f"tests.bounds_{host.name}").noisy_datasets
    monkeypatch.setattr(host.models, "conjugate_normal_many", noisy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DataEmphasizedELBO: the model has no param")
        objective = host.package.DataEmphasizedELBO(4.0)
        assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)
