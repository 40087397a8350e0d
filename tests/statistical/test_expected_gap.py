"""The expected KL gap of trained guides on models whose posterior is known, in nats.

`E log p(latent | obs) - log q(latent | obs)` over joint draws, paired; the tolerances are in
`tests/catalogue.py`, fixed before any run. Noise makes a test fail, never pass.
"""

from functools import cache

import numpy as np
import pytest

from amortize_diagnostics import expected_gap, importance_summary
from tests.backends import host as host_of
from tests.catalogue import GAUSSIAN, OTHER
from tests.problems import PROBLEMS

# One problem is quick; the others train for minutes.
QUICK = "conjugate_normal"

NUM_DRAWS = 4000

# Steps, learning rate, simulations per step, and the density (None is the default spline flow).
NPE_RUNS = {
    "conjugate_normal": (1000, 2e-3, 128, "NormalDensity", GAUSSIAN),
    "linear_gaussian_2": (1500, 2e-3, 128, None, GAUSSIAN),
    "linear_gaussian_10": (2500, 2e-3, 128, None, GAUSSIAN),
    "hierarchical_normal": (1500, 2e-3, 128, None, GAUSSIAN),
    "normal_unknown_scale": (1500, 2e-3, 128, None, OTHER),
    "beta_binomial": (1000, 2e-3, 128, None, OTHER),
    "two_mode_sign": (2500, 2e-3, 256, None, OTHER),
    "crossed_effects": (1500, 2e-3, 64, None, OTHER),
    "grouped_normal": (2000, 2e-3, 128, None, OTHER),
}
_GROUPED = PROBLEMS["grouped_normal"]
# Arguments of the model and of the guide, where there are any.
CALLS = {
    "grouped_normal": (
        (_GROUPED.group, _GROUPED.num_groups),
        {"groups": {"group": ("groups", "rows")}, "sizes": {"num_groups": "groups"}},
    )
}
# Data sets, steps, learning rate. With few data sets the guide learns them by heart.
ELBO_RUNS = {
    "conjugate_normal": (500, 1000, 5e-3),
    "linear_gaussian_2": (500, 1000, 5e-3),
    "linear_gaussian_10": (1500, 1500, 3e-3),
}


@cache
def trained_by_npe(backend, problem):
    host = host_of(backend)
    steps, rate, batch, density, _ = NPE_RUNS[problem]
    model = getattr(host.models, problem)
    densities = getattr(host.package, density)() if density else None
    observed = list(PROBLEMS[problem].sample_joint(np.random.default_rng(0), 2)[1])
    args, options = call_of(host, problem)
    guide = host.guide(model, observed=observed, densities=densities, **options)
    objective = host.package.NPE(batch)
    return host.fit(model, guide, objective, args=args, num_steps=steps, learning_rate=rate)


def call_of(host, problem):
    args, options = CALLS.get(problem, ((), {}))
    args = tuple(host.array(arg) if isinstance(arg, np.ndarray) else arg for arg in args)
    return args, options


def gap_of(host, amortized, problem, args=(), seed=1):
    latents, observations = problem.sample_joint(np.random.default_rng(seed), NUM_DRAWS)
    parts = host.site_log_probs(amortized, args, latents, observations)
    log_q = sum(part.reshape(NUM_DRAWS, -1).sum(1) for part in parts.values())
    return expected_gap(problem.log_posterior(latents, observations), log_q)


def assert_small(gap, problem, tolerance):
    assert gap.upper / problem.num_latents < tolerance, gap
    assert gap.mean > -3 * gap.se, gap


def quick_or_slow(names):
    marks = {name: () if name == QUICK else pytest.mark.slow for name in names}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=mark) for name, mark in marks.items()]
    )


@quick_or_slow(sorted(NPE_RUNS))
def test_npe_reaches_the_exact_posterior(host, name):
    amortized, problem = trained_by_npe(host.name, name), PROBLEMS[name]
    gap = gap_of(host, amortized, problem, call_of(host, name)[0])
    assert_small(gap, problem, NPE_RUNS[name][-1])


@pytest.mark.slow
def test_an_ensemble_reaches_the_exact_posterior(host):
    steps, rate, batch, density, tolerance = NPE_RUNS[QUICK]
    model = getattr(host.models, QUICK)
    densities = getattr(host.package, density)()
    guides = [host.guide(model, observed="x", densities=densities) for _ in range(2)]
    ensemble, objective = host.package.EnsembleGuide(guides, [2.0, 1.0]), host.package.NPE(batch)
    amortized = host.fit(model, ensemble, objective, num_steps=steps, learning_rate=rate)
    assert_small(gap_of(host, amortized, PROBLEMS[QUICK]), PROBLEMS[QUICK], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ELBO_RUNS))
def test_elbo_reaches_the_exact_posterior(host, name):
    """Many data sets in one outer plate, the host's own bound, fresh data sets for the gap."""
    assert_bound_reaches_the_exact_posterior(host, name, host.trace_elbo())


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["dreg", "stl"])
def test_iwae_reaches_the_exact_posterior(host, gradient):
    """Within the tolerance of the gap, means within 0.03 sd and sds within 3 %."""
    objective = host.package.IWAE(8, gradient=gradient)
    amortized, args = assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)
    problem = PROBLEMS["conjugate_normal"]
    _, fresh = problem.sample_joint(np.random.default_rng(4), args[1])
    draws = host.sample(amortized.at(host.array(fresh["x"]), args[1]), 10_000)["z"]
    mean, sd = problem.posterior(fresh)
    error = (draws.reshape(10_000, -1).mean(0) - mean) / sd
    assert np.sqrt((error**2).mean()) < 0.03
    assert np.abs(draws.std(0) / sd - 1).mean() < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conjugate_normal", "linear_gaussian_2"])
def test_mixed_reaches_the_exact_posterior(host, name):
    package = host.package
    objective = package.Mixed({package.NPE(2): 0.5, package.IWAE(4): 0.5})
    assert_bound_reaches_the_exact_posterior(host, name, objective)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conjugate_normal", "linear_gaussian_2"])
def test_switched_training_reaches_the_exact_posterior(host, name):
    """The same guide, some steps on simulations and then as many as ever by a bound."""
    package = host.package
    before = package.NPE(2), 300
    assert_bound_reaches_the_exact_posterior(host, name, package.IWAE(4), before=before)


FORWARD = {  # by the divergence from the posterior to the guide
    "wake": lambda package: package.RWS(16, insomnia=1.0),
    "RWS": lambda package: package.RWS(8, num_simulations=2),
    "WakeSleep": lambda package: package.WakeSleep(num_simulations=2),
    "VIS, score": lambda package: package.VIS(16),
    "VIS, path": lambda package: package.VIS(16, guide_gradient="path"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORWARD)
def test_forward_divergences_reach_the_exact_posterior(host, name):
    objective = FORWARD[name](host.package)
    assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_trajectory_balance_reaches_the_exact_posterior(host, noise):
    objective = host.package.TrajectoryBalance(16, noise=noise)
    assert_bound_reaches_the_exact_posterior(host, "conjugate_normal", objective)


def assert_bound_reaches_the_exact_posterior(host, name, objective, *, before=None, density=None):
    problem, (num_datasets, steps, rate) = PROBLEMS[name], ELBO_RUNS[name]
    model = getattr(host.models, f"{name}_many")
    _, observations = problem.sample_joint(np.random.default_rng(2), num_datasets)
    args = (host.array(observations["x"]), num_datasets)
    if density is None and name == "conjugate_normal":
        density = host.package.NormalDensity()
    elif density is None:  # correlated: one triangular affine map is exact
        density = host.package.SplineFlowDensity(num_transforms=2)
    guide = host.guide(model, observed="x", sizes={"num_datasets": "datasets"}, densities=density)
    options = {}
    if before:
        first, num_steps = before
        arguments = (None, num_datasets)
        amortized = host.fit(model, guide, first, args=arguments, num_steps=num_steps)
        options = host.start_from(amortized)
    amortized = host.fit(
        model, guide, objective, args=args, num_steps=steps, learning_rate=rate, **options
    )
    rounds = 8
    latents, fresh = problem.sample_joint(np.random.default_rng(3), rounds * num_datasets)
    shape = (rounds, num_datasets)
    z = latents["z"].reshape(*shape, 1, *latents["z"].shape[1:])
    x = fresh["x"].reshape(*shape, *fresh["x"].shape[1:])
    log_q = host.site_log_probs(amortized, args, {"z": z}, {"x": x})["z"].reshape(-1)
    assert_small(expected_gap(problem.log_posterior(latents, fresh), log_q), problem, GAUSSIAN)
    return amortized, args


def test_the_prior_as_posterior_is_rejected(host):
    """The measure can fail: an untrained guide is close to the prior."""
    model, problem = host.models.conjugate_normal, PROBLEMS["conjugate_normal"]
    gap = gap_of(host, host.untrained(model, host.guide(model, observed="x")), problem)
    assert gap.lower > 10 * GAUSSIAN


@pytest.mark.slow
def test_two_modes_hold_half_of_the_mass_each(host):
    """And the bridge between them what the exact posterior has there."""
    amortized = trained_by_npe(host.name, "two_mode_sign")
    values = np.array([0.8, 1.5, 2.5])
    widths = 0.4 * np.sqrt(values)
    bridges = PROBLEMS["two_mode_sign"].mass_near_zero(widths, {"x": values})
    for number, (x, width, bridge) in enumerate(zip(values, widths, bridges, strict=True)):
        draws = host.sample(amortized.at(x=host.array(x)), 4000, seed=number)["z"]
        assert abs(np.mean(draws > 0) - 0.5) < 0.05
        assert abs(np.mean(np.abs(draws) < width) - bridge) < 0.05


@pytest.mark.slow
def test_density_on_the_unit_interval_integrates_to_one(host):
    """A missing Jacobian of the support shows here (beta-binomial)."""
    amortized = trained_by_npe(host.name, "beta_binomial")
    p = (np.arange(20000) + 0.5) / 20000
    for k in (0, 3, 10):
        data = np.full(len(p), k)
        log_q = host.site_log_probs(amortized, (), {"p": p}, {"k": data})["p"].reshape(-1)
        assert np.exp(log_q.astype(float)).mean() == pytest.approx(1.0, abs=5e-3)
        exact = PROBLEMS["beta_binomial"].log_posterior({"p": p}, {"k": data})
        assert np.abs(np.exp(log_q) - np.exp(exact)).mean() < 0.3


@pytest.mark.slow
def test_draws_agree_with_the_density_that_scores_them(host):
    """Draws and scores are two code paths: the mean of log q over draws is minus the entropy."""
    amortized = trained_by_npe(host.name, "hierarchical_normal")
    problem = PROBLEMS["hierarchical_normal"]
    _, observations = problem.sample_joint(np.random.default_rng(5), 1)
    posterior = amortized.at(y=host.array(observations["y"][0]))
    draws = host.sample(posterior, 4000)
    repeated = {"y": np.broadcast_to(observations["y"], (4000, problem.num_groups))}
    log_p = problem.log_posterior(draws, repeated)
    gap = expected_gap(host.log_prob(posterior, draws), log_p)  # the reverse divergence
    assert gap.upper / problem.num_latents < 2 * GAUSSIAN
    assert gap.mean > -3 * gap.se


@pytest.mark.slow
def test_evidence_of_joint_and_of_marginalised_weights_is_exact(host):
    amortized = trained_by_npe(host.name, "hierarchical_normal")
    problem = PROBLEMS["hierarchical_normal"]
    _, observations = problem.sample_joint(np.random.default_rng(6), 3)
    exact = problem.log_evidence(observations)
    for row in range(3):
        posterior = amortized.at(y=host.array(observations["y"][row]))
        draws = host.sample(posterior, 4000, seed=row)
        joint = host.log_joint(posterior, draws) - host.log_prob(posterior, draws)
        summaries = [
            importance_summary(joint),
            host.importance_sample(posterior, 2000, seed=row).summary,
        ]
        for summary in summaries:
            assert abs(summary.log_evidence - exact[row]) < 4 * summary.log_evidence_se + 1e-3
            assert summary.khat < summary.khat_threshold
        assert summaries[1].ess_fraction >= summaries[0].ess_fraction - 0.02


@pytest.mark.slow
def test_weighted_draws_have_the_exact_moments(host):
    amortized = trained_by_npe(host.name, "hierarchical_normal")
    problem = PROBLEMS["hierarchical_normal"]
    _, observations = problem.sample_joint(np.random.default_rng(7), 4)
    posterior = amortized.at_each(observations={"y": host.array(observations["y"])})
    weighted = host.importance_sample(posterior, 4000)
    assert weighted.log_weights.shape == (4000, 4)
    assert weighted.samples["theta"].shape == (4000, 4, 8)
    exact = problem.log_evidence(observations)
    summary = weighted.summary
    assert np.all(np.abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se + 1e-3)
    draws = weighted.resample(4000)
    mean, sd = problem.posterior_of_mu(observations)
    assert np.all(np.abs(draws["mu"].mean(0) - mean) < 4.5 * sd / np.sqrt(4000 * 0.5))
    theta, own = problem.posterior_of_theta(mean, observations)
    total = np.hypot(own, sd * problem.tau**-2 / (problem.tau**-2 + problem.noise**-2))
    error = np.abs(draws["theta"].mean(0) - theta)
    assert np.all(error < 4.5 * total / np.sqrt(4000 * 0.5))
    np.testing.assert_allclose(draws["theta"].std(0), total, rtol=0.08)
