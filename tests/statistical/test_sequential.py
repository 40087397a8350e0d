"""Truncated sequential NPE against the exact posterior at one data set."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

NUM_ROUNDS, NUM_SIMULATIONS, NUM_DRAWS = 3, 50_000, 40_000


def test_linear_gaussian(host, monkeypatch):
    """Means within 0.05 and sds within 5 per cent; densities at the exact mean do not drift up.

    For data near the edge of the region the truncated posterior is narrower than the exact one.
    A network of few units that is not trained to the end carries that over to the data set, where
    it leaves sds up to 7 per cent too small; so these networks are larger, and without patience.
    """
    problem, model = PROBLEMS["linear_gaussian_2"], host.models.linear_gaussian_2
    _, data = problem.sample_joint(np.random.default_rng(1), 1)
    x, mean = host.array(data["x"][0]), problem.posterior_mean(data)[0]
    sd = np.sqrt(np.diag(problem.covariance))
    exact = multivariate_normal(mean, problem.covariance).logpdf(mean)
    module, at_mean = host.module("sequential"), []
    fit = module.fit

    def fit_and_look(*arguments, **options):
        amortized = fit(*arguments, **options)
        at_mean.append(float(host.log_prob(amortized.at(x), {"z": mean[None]})[0]) - exact)
        return amortized

    monkeypatch.setattr(module, "fit", fit_and_look)
    spec = host.package.SplineFlowDensity(num_transforms=2, hidden_dims=(128, 128))
    embedding = host.package.PlateEmbedding(32, (128,), num_rounds=1)
    amortized = host.fit_sequential(
        model,
        host.guide(model, observed="x", densities=spec, embedding=embedding),
        {"x": x},
        objective=host.package.NPE(256),
        num_rounds=NUM_ROUNDS,
        num_simulations=NUM_SIMULATIONS,
        num_steps=3000,
        learning_rate=3e-3,
        patience=None,
    )
    draws = host.sample(amortized.at(x), NUM_DRAWS)["z"]
    errors, ratios = (draws.mean(0) - mean) / sd, draws.std(0) / sd
    print(f"means off by {errors} sd, ratios of sds {ratios}")
    print(f"log density at the exact mean, minus the exact one, by round {at_mean}")
    print(amortized.history)
    assert np.abs(errors).max() < 0.05
    assert np.abs(ratios - 1).max() < 0.05
    assert len(at_mean) == NUM_ROUNDS
    assert max(at_mean) < 0.1
    first, *others = amortized.history.acceptance_rates
    assert first == 1.0
    assert (0.005 < np.array(others)).all()
    assert (np.array(others) < 0.5).all()
