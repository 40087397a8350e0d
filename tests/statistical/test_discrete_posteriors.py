"""Discrete latents against enumeration: the expected gap of trained guides, and liars.

The tolerance is 0.05 nats per latent dimension, fixed before any run, as in `test_expected_gap.py`.
"""

from functools import cache

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.catalogue import OTHER
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import assert_small, gap_of

# Steps of 128 simulations.
RUNS = {"poisson_count": 1000, "regimes": 1000, "switches": 1000, "mixture_assignments": 2000}
SLOW = ("mixture_assignments", "regimes", "switches")  # a quarter of a minute to one


@cache
def trained(backend, name):
    host = host_of(backend)
    guide = host.guide(getattr(host.models, name), observed="y")
    objective = host.package.NPE(128)
    return host.fit(guide.model, guide, objective, num_steps=RUNS[name], learning_rate=2e-3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RUNS]
)
def test_npe_reaches_the_enumerated_posterior(host, name):
    gap = gap_of(host, trained(host.name, name), PROBLEMS[name])
    assert_small(gap, PROBLEMS[name], OTHER)


@pytest.mark.slow
def test_nade_reaches_the_enumerated_posterior(host):
    model, problem = host.models.switches, PROBLEMS["switches"]
    guide = host.guide(model, observed="y", densities=host.package.NADEDensity())
    options = {"num_steps": 2 * RUNS["switches"], "learning_rate": 2e-3}
    gap = gap_of(host, host.fit(model, guide, host.package.NPE(128), **options), problem)
    assert_small(gap, problem, OTHER)


@pytest.mark.slow
def test_assignment_probabilities_given_the_means_are_those_of_enumeration(host):
    """From the guide alone, within 0.02 on average, at means from the posterior itself."""
    problem, amortized = PROBLEMS["mixture_assignments"], trained(host.name, "mixture_assignments")
    latents, observations = problem.sample_joint(np.random.default_rng(5), 2000)
    exact = problem.assignment_probabilities(latents["mu"], observations["y"])
    for component in range(exact.shape[2]):
        z = np.full(latents["z"].shape, component)
        found = host.site_log_probs(amortized, (), {"mu": latents["mu"], "z": z}, observations)["z"]
        error = np.abs(np.exp(found.reshape(z.shape)) - exact[..., component])
        assert error.mean() < 0.02


@pytest.mark.slow
def test_assignments_after_weighting_and_their_evidence(host):
    """Marginal probabilities within 0.03 of enumeration; labels summed out as local latents."""
    problem, amortized = PROBLEMS["mixture_assignments"], trained(host.name, "mixture_assignments")
    _, observations = problem.sample_joint(np.random.default_rng(6), 3)
    repeated = {"y": np.repeat(observations["y"], 20_000, axis=0)}
    exact = problem.sample_posterior(np.random.default_rng(7), repeated)["z"]
    exact = exact.reshape(3, 20_000, problem.num_rows)
    evidence = problem.log_evidence(observations)
    for row in range(3):
        posterior = amortized.at(y=host.array(observations["y"][row]))
        weighted = host.importance_sample(posterior, 4000, seed=row)
        summary = weighted.summary
        assert abs(summary.log_evidence - evidence[row]) < 4 * summary.log_evidence_se + 1e-3
        assert summary.ess_fraction > 0.5
        assert summary.khat < 0.7
        errors = [
            max(
                np.abs(np.mean(z == each, axis=0) - np.mean(exact[row] == each, axis=0)).mean()
                for each in range(3)
            )
            for z in (host.sample(posterior, 4000)["z"], weighted.resample(4000)["z"])
        ]
        print(f"guide alone {errors[0]:.3f}, weighted {errors[1]:.3f}, k-hat {summary.khat:.2f}")
        assert errors[1] < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["next label", "label of another simulation"])
def test_a_guide_trained_on_wrong_labels_is_rejected(host, lie):
    model, problem = host.models.regimes, PROBLEMS["regimes"]
    bank = host.simulate(model, 5000)
    labels = np.asarray(bank["c"])
    labels = (labels + 1) % 3 if lie == "next label" else np.roll(labels, 1)
    sites = {**bank.sites, "c": host.array(labels)}
    lying = host.package.Simulations(sites, len(bank), {})
    guide = host.guide(model, observed="y")
    objective = host.package.NPE(128, simulations=lying)
    amortized = host.fit(model, guide, objective, num_steps=300, learning_rate=5e-3)
    assert gap_of(host, amortized, problem).lower > OTHER * problem.num_latents


def test_draws_of_counts_have_the_enumerated_probabilities(host):
    """Draws and scores are two code paths."""
    problem, amortized = PROBLEMS["poisson_count"], trained(host.name, "poisson_count")
    counts = np.arange(problem.largest)
    for y in (0.2, 3.5, 8.0):
        draws = host.sample(amortized.at(y=host.array(np.array(y))), 20_000)["k"]
        shares = np.bincount(draws.astype(int), minlength=60)[:60] / 20_000
        data = {"y": np.full(problem.largest, y)}
        exact = np.exp(problem.log_posterior({"k": counts}, data))
        assert 0.5 * np.abs(shares - exact).sum() < 0.08
