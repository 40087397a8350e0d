"""The expected KL gap of guides trained by bounds that weigh their parts, in nats.

Where the posterior of the problem is the optimum of such a bound, the guide must reach it.
"""

import warnings
from importlib import import_module

import numpy as np
import pytest
from scipy.stats import norm

from amortize_diagnostics import expected_gap
from tests.catalogue import GAUSSIAN
from tests.losses import trained
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import (
    assert_bound_reaches_the_exact_posterior,
    assert_small,
)

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


def test_a_bottleneck_whose_input_says_what_the_labels_say(host):
    """With beta = 1 it is the posterior; the guide reads the mean of a copy of the labels."""
    problem, bounds = PROBLEMS["conjugate_normal"], import_module(f"tests.bounds_{host.name}")
    _, observations = problem.sample_joint(np.random.default_rng(2), 500)
    params = {"weight": np.array(0.0), "log_spread": np.array(0.0)}
    found = trained(
        host,
        host.package.VIBLoss(1.0),
        bounds.labels_of_datasets,
        bounds.linear_encoder,
        params,
        host.array(observations["x"].mean(1)),
        host.array(observations["x"].T),
        num_steps=1500,
    )
    latents, fresh = problem.sample_joint(np.random.default_rng(3), 4000)
    mean = found["weight"] * fresh["x"].mean(1)
    log_q = norm.logpdf(latents["z"], mean, np.exp(found["log_spread"]))
    assert_small(expected_gap(problem.log_posterior(latents, fresh), log_q), problem, GAUSSIAN)


def test_a_kernel_divergence_from_a_prior_that_the_aggregate_has(host):
    objective = host.package.InfoELBO(0.0, 2.0)
    assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)


def test_moments_that_the_aggregate_has(host):
    """In variant "i" it would be drawn away from the posterior, whose means vary less."""
    objective = host.package.DIPELBO(1.0, 1.0, variant="ii")
    assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)
