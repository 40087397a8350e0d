"""Real data: eight schools against the reference posterior of posteriordb (10,000 draws)."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import halfcauchy, multivariate_normal, norm

from amortize_diagnostics import importance_summary
from tests.backends import host as host_of
from tests.backends import num_distinct

pytestmark = pytest.mark.slow  # minutes of training

DATA = Path(__file__).parents[2] / "data" / "posteriordb" / "eight_schools.npz"
NUM_DRAWS = 10000


@cache
def reference():
    with np.load(DATA) as file:
        return {name: file[name] for name in file}


@cache
def trained(backend, centering):
    host = host_of(backend)
    model = getattr(host.models, f"eight_schools_{centering}")
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"})
    args = (host.array(reference()["data_sigma"]),)
    return host.fit(
        model, guide, host.package.NPE(128), args=args, num_steps=4000, learning_rate=2e-3
    )


@cache
def posterior(backend, centering):
    host = host_of(backend)
    data = reference()
    return trained(backend, centering).at(
        host.array(data["data_sigma"]), y=host.array(data["data_y"])
    )


@cache
def weighted(backend, centering):
    host = host_of(backend)
    return host.importance_sample(posterior(backend, centering), NUM_DRAWS)


def errors(draws):
    """Largest error of a mean in reference standard deviations, and of a standard deviation."""
    data = reference()
    means, sds = [], []
    for name in ("mu", "tau", "theta"):
        sd = data[f"sd_{name}"]
        means.append(np.max(np.abs(draws[name].mean(0) - data[f"mean_{name}"]) / sd))
        sds.append(np.max(np.abs(draws[name].std(0) / sd - 1)))
    return max(means), max(sds)


@cache
def exact_log_evidence():
    """Given tau the data are normal, so that one integral is left."""
    data = reference()

    def joint(tau):
        covariance = 25.0 + np.diag(data["data_sigma"] ** 2 + tau**2)
        log_density = multivariate_normal(np.zeros(8), covariance).logpdf(data["data_y"])
        return np.exp(log_density + halfcauchy.logpdf(tau, 0, 5) + 30.0)

    parts = [quad(joint, *ends, epsabs=0, epsrel=1e-9)[0] for ends in ((0, 10), (10, np.inf))]
    return np.log(sum(parts)) - 30.0


def test_noncentered_guide_alone(host):
    draws = host.sample(posterior(host.name, "noncentered"), NUM_DRAWS)
    mean, sd = errors(draws)
    assert mean < 0.15
    assert sd < 0.15


def test_noncentered_guide_weighted(host):
    found = weighted(host.name, "noncentered")
    mean, sd = errors(found.resample(NUM_DRAWS))
    assert mean < 0.06
    assert sd < 0.06
    assert found.summary.khat < 0.5
    assert found.summary.ess_fraction > 0.5
    error = found.summary.log_evidence - exact_log_evidence()
    print(f"log evidence off by {error:.4f}, standard error {found.summary.log_evidence_se:.4f}")
    assert abs(error) < 3 * found.summary.log_evidence_se
    assert found.summary.log_evidence_se < 0.02


def test_noncentered_nuts_from_the_guide(host):
    """The last step of the chain of corrections: guide, weights, NUTS."""
    chains = host.nuts(posterior(host.name, "noncentered"), 1000, num_warmup=200, num_chains=2)
    mean, sd = errors(chains.samples)
    assert mean < 0.1
    assert sd < 0.1
    assert chains.space == "noise"
    assert chains.summary.lowest_ess > 400
    assert max(np.max(each) for each in chains.summary.rhat.values()) < 1.02
    assert chains.summary.num_divergent <= 10


def test_training_took_at_most_three_minutes(host):
    assert trained(host.name, "noncentered").history.seconds < 180


@pytest.mark.slow
def test_centered_guide(host):
    """Reported beside the other: weighted moments and evidence must agree with it."""
    found = weighted(host.name, "centered")
    mean, sd = errors(found.resample(NUM_DRAWS))
    assert mean < 0.15
    assert sd < 0.15
    other = weighted(host.name, "noncentered").summary
    error = np.hypot(found.summary.log_evidence_se, other.log_evidence_se)
    assert abs(found.summary.log_evidence - other.log_evidence) < 4 * error + 0.01


def test_two_parametrisations_have_one_joint_density(host):
    """theta = mu + tau z with Jacobian tau per school: replay, densities and data line up."""
    draws = host.sample(posterior(host.name, "noncentered"), 50)
    inner = posterior(host.name, "noncentered")
    theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["z"]
    np.testing.assert_allclose(draws["theta"], theta, rtol=1e-4, atol=1e-4)
    own = host.log_joint(inner, {name: draws[name] for name in ("mu", "tau", "z")})
    data = reference()
    expected = norm.logpdf(draws["mu"], 0, 5) + halfcauchy.logpdf(draws["tau"], 0, 5)
    expected += norm.logpdf(draws["z"]).sum(1)
    expected += norm.logpdf(data["data_y"], theta, data["data_sigma"]).sum(1)
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-3)


def test_weights_are_joint_density_over_guide_density(host):
    inner = posterior(host.name, "noncentered")
    draws = host.sample(inner, 4000, seed=3)
    plain = importance_summary(host.log_joint(inner, draws) - host.log_prob(inner, draws))
    marginal = weighted(host.name, "noncentered").summary
    error = np.hypot(plain.log_evidence_se, marginal.log_evidence_se)
    assert abs(plain.log_evidence - marginal.log_evidence) < 4 * error + 1e-3


def test_guide_three_times_too_wide_is_not_certified(host, tmp_path, monkeypatch):
    """k-hat of its weights passes; the ESS fraction says that its own draws are no good."""
    data = reference()
    model = host.models.eight_schools_noncentered
    args = (host.array(data["data_sigma"]),)
    guide = host.guide(
        model,
        observed="y",
        inputs={"sigma": "schools"},
        densities=host.package.NormalDensity(),
    )
    amortized = host.fit(
        model, guide, host.package.NPE(128), args=args, num_steps=1500, learning_rate=2e-3
    )
    amortized.save(tmp_path / "guide.safetensors")
    family = host.module("densities.normal")
    positive = family.positive

    def answer():
        loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
        inner = loaded.at(*args, y=host.array(data["data_y"]))
        return host.sample(inner, 4000), host.importance_sample(inner, 4000).summary

    draws, good = answer()
    monkeypatch.setattr(family, "positive", lambda raw: 3 * positive(raw))
    wide_draws, wide = answer()
    assert 2.5 < wide_draws["mu"].std() / draws["mu"].std() < 3.5
    assert good.ess_fraction > 0.5
    assert "Guide's own draws: good" in str(good)
    assert wide.ess_fraction < 0.3
    assert "Guide's own draws: good" not in str(wide)
    assert wide.khat < wide.khat_threshold
    assert "Weighted draws: reliable" in str(wide)
    error = 4 * np.hypot(good.log_evidence_se, wide.log_evidence_se)
    assert abs(good.log_evidence - wide.log_evidence) < error


def test_many_school_sets_in_one_call(host):
    data = reference()
    model = host.models.eight_schools_noncentered
    sigma = host.array(data["data_sigma"])
    sets = host.simulate(model, 20, args=(sigma,))
    amortized = trained(host.name, "noncentered")
    many = amortized.at_each(sigma, observations={"y": sets["y"]})
    draws = host.sample(many, 100)
    assert draws["theta"].shape == (100, 20, 8)
    assert num_distinct(draws["mu"]) > 0.99
    # Truth is inside the central 98 % for almost all of 160 schools.
    lower, upper = np.quantile(draws["theta"], [0.01, 0.99], axis=0)
    theta = np.asarray(sets["theta"])
    assert np.mean((theta > lower) & (theta < upper)) > 0.93
