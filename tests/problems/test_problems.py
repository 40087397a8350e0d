"""The truths are true: checked by Bayes' rule, by integrals, and by liars that must differ."""

import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.special import i0
from scipy.stats import (
    binom,
    halfnorm,
    invgamma,
    kstest,
    multivariate_normal,
    multivariate_t,
    norm,
    poisson,
)

from amortize_diagnostics import expected_gap
from tests.problems import PROBLEMS

each_problem = pytest.mark.parametrize("name", sorted(PROBLEMS))


def mixture_joint(problem, latents, y):
    mu, z = latents["mu"], latents["z"]
    weights = np.array(problem.weights)
    total = norm.logpdf(mu - np.array(problem.centres), 0, problem.spread).sum(1)
    for n in range(problem.num_rows):
        own = mu[np.arange(len(mu)), z[:, n]]
        total = total + np.log(weights[z[:, n]]) + norm.logpdf(y[:, n] - own, 0, problem.noise)
    return total


def poisson_joint(problem, latents, y):
    k = latents["k"]
    return poisson.logpmf(k, problem.rate) + norm.logpdf(y - k, 0, problem.noise)


def regimes_joint(problem, latents, y):
    c, t = latents["c"], latents["t"]
    prior = np.log(np.take(problem.weights, c))
    prior += norm.logpdf(t, np.take(problem.centres, c), np.take(problem.spreads, c))
    return prior + sum(norm.logpdf(row, t, problem.noise) for row in y.T)


def switches_joint(problem, latents, y):
    b = latents["b"]
    on = b.sum(1)
    prior = on * np.log(0.4) + (3 - on) * np.log(0.6)
    mean = sum(b[:, d] * size for d, size in enumerate(problem.sizes))
    return prior + norm.logpdf(y, mean, problem.noise)


def outlier_joint(problem, latents, y):
    scale = np.ones_like(y)
    np.put_along_axis(scale, latents["k"][:, None], problem.spread, 1)
    return norm.logpdf(y, 0, scale).sum(1) - np.log(problem.num_rows)


DISCRETE = {
    "outlier": outlier_joint,
    "mixture_assignments": mixture_joint,
    "poisson_count": poisson_joint,
    "regimes": regimes_joint,
    "switches": switches_joint,
}


def log_joint(problem, name, latents, observations):
    """The model's joint density once more, from its one-line description."""
    if name == "conjugate_normal":
        z, x = latents["z"], observations["x"]
        return norm.logpdf(z) + norm.logpdf(x, z[:, None], problem.noise).sum(1)
    if name.startswith("linear_gaussian"):
        z, x = latents["z"], observations["x"]
        mean = np.stack([problem.matrix @ row for row in z])[:, None]
        return norm.logpdf(z).sum(1) + norm.logpdf(x, mean, problem.noise).sum((1, 2))
    if name == "normal_unknown_scale":
        variance, mu, x = latents["sigma2"], latents["mu"], observations["x"]
        prior = invgamma.logpdf(variance, problem.shape, scale=problem.rate)
        prior += norm.logpdf(mu, 0, np.sqrt(variance / problem.kappa))
        return prior + norm.logpdf(x, mu[:, None], np.sqrt(variance)[:, None]).sum(1)
    if name == "two_mode_sign":
        z, x = latents["z"], observations["x"]
        return norm.logpdf(z) + norm.logpdf(x, z**2, problem.noise)
    if name == "parabola":
        first, second = latents["z"].T
        prior = norm.logpdf(first) + norm.logpdf(second)
        return prior + norm.logpdf(observations["x"], first**2 / 2 + second, problem.noise)
    if name == "elliptical":
        together = np.concatenate([latents["z"], observations["x"]], 1)
        mixed = problem.correlation * (1 - np.eye(2))
        shape = np.eye(4) + np.kron(mixed, np.eye(2))
        return multivariate_t(np.zeros(4), shape, problem.df).logpdf(together)
    if name == "compass":
        z, (first, second) = latents["z"], observations["x"].T
        prior = problem.concentration * np.cos(z - problem.mean)
        prior = prior - np.log(2 * np.pi * i0(problem.concentration))
        likelihood = norm.logpdf(first, np.cos(2 * z), problem.noise)
        return prior + likelihood + norm.logpdf(second, np.sin(2 * z), problem.noise)
    if name == "beta_binomial":
        p, k = latents["p"], observations["k"]
        prior = np.log(30 * p * (1 - p) ** 4)  # Beta(2, 5)
        return prior + binom.logpmf(k, problem.total, p)
    if name in DISCRETE:
        return DISCRETE[name](problem, latents, observations["y"])
    if name == "crossed_effects":
        a, b, y = latents["a"], latents["b"], observations["y"]
        prior = norm.logpdf(a).sum((1, 2)) + norm.logpdf(b).sum(1)
        return prior + norm.logpdf(y, a + b[:, None], problem.noise).sum((1, 2))
    if name == "line":
        intercept, slope = latents["intercept"], latents["slope"]
        x, y = observations["x"], observations["y"]
        mean = intercept[:, None] + slope[:, None] * x
        prior = norm.logpdf(intercept) + norm.logpdf(slope)
        prior += norm.logpdf(x, 0, problem.spread).sum(1)
        return prior + norm.logpdf(y, mean, problem.noise).sum(1)
    if name == "local_level":
        x, y = (
            [values[f"{stem}_{step}"] for step in range(problem.num_steps)]
            for stem, values in (("x", latents), ("y", observations))
        )
        prior = norm.logpdf(x[0]) + norm.logpdf(np.diff(x, axis=0), 0, problem.step).sum(0)
        return prior + norm.logpdf(y, x, problem.noise).sum(0)
    if name == "contaminated_normal":
        z, x = latents["z"], observations["x"]
        inside, outside = norm.pdf(x, z[:, None], 0.5), norm.pdf(x, 0, 3.0)
        return norm.logpdf(z) + np.log(0.6 * inside + 0.4 * outside).sum(1)
    if name == "slopes":
        slope, y = latents["slope"], observations["y"]
        mean = slope[..., None] * problem.times
        return norm.logpdf(slope).sum(1) + norm.logpdf(y, mean, problem.noise).sum((1, 2))
    if name == "ramp":
        z, y = latents["z"], observations["y"]
        mean = z[:, None] * np.linspace(-1, 1, 12)
        return norm.logpdf(z) + norm.logpdf(y, mean, problem.noise).sum(1)
    if name == "autoregression":
        phi, y = latents["phi"], observations["y"]
        before = np.concatenate([np.zeros((len(y), 1)), y[:, :-1]], axis=1)
        return np.log(0.5) + norm.logpdf(y, phi[:, None] * before).sum(1)
    if name == "blob_image":
        z, y = latents["z"], observations["y"]
        places = np.linspace(-1, 1, 8)
        rows, columns = np.meshgrid(places, places, indexing="ij")
        centre = z[:, :, None, None]
        square = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2
        mean = np.exp(-square / (2 * problem.width**2))
        prior = norm.logpdf(z, 0, problem.spread).sum(1)
        return prior + norm.logpdf(y, mean, problem.noise).sum((1, 2))
    mu, theta, y = latents["mu"], latents["theta"], observations["y"]
    if name == "grouped_normal":
        tau = latents["tau"]
        prior = norm.logpdf(mu) + halfnorm.logpdf(tau)
        prior += norm.logpdf(theta, mu[:, None], tau[:, None]).sum(1)
        rows = [norm.logpdf(y[:, n], theta[:, g], 1.0) for n, g in enumerate(problem.group)]
        return prior + np.sum(rows, axis=0)
    local = norm.logpdf(theta, mu[:, None], problem.tau) + norm.logpdf(y, theta, problem.noise)
    return norm.logpdf(mu) + local.sum(1)


@each_problem
def test_posterior_is_the_joint_over_the_evidence(name, rng):
    problem = PROBLEMS[name]
    latents, observations = problem.sample_joint(rng, 200)
    # Latents of other rows too: the identity holds everywhere, not only at likely values.
    for roll in (0, 1):
        elsewhere = {site: np.roll(value, roll, axis=0) for site, value in latents.items()}
        expected = log_joint(problem, name, elsewhere, observations)
        expected -= problem.log_evidence(observations)
        np.testing.assert_allclose(
            problem.log_posterior(elsewhere, observations), expected, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("conjugate_normal", (-8, 8)),
        ("two_mode_sign", (-8, 8)),
        ("beta_binomial", (0, 1)),
        ("compass", (-np.pi, np.pi)),
        ("autoregression", (-1, 1)),
        ("contaminated_normal", (-8, 8)),
    ],
)
def test_posterior_of_one_latent_integrates_to_one(name, interval, rng):
    problem = PROBLEMS[name]
    latents, observations = problem.sample_joint(rng, 3)
    (site,) = latents
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in observations.items()}
        peak = abs(latents[site][row])

        def density(value, one=one):
            return np.exp(problem.log_posterior({site: np.array([value])}, one))[0]

        points = (peak,) if name == "beta_binomial" else (-peak, peak)
        total, _ = quad(density, *interval, points=points)
        assert total == pytest.approx(1.0, abs=1e-6)


def test_posterior_of_unknown_scale_integrates_to_one(rng):
    problem = PROBLEMS["normal_unknown_scale"]
    _, observations = problem.sample_joint(rng, 1)
    location, _, shape, rate = problem.posterior(observations)
    top = 20 * rate[0] / shape

    def density(mu, sigma2):
        latents = {"mu": np.array([mu]), "sigma2": np.array([sigma2])}
        return np.exp(problem.log_posterior(latents, observations))[0]

    half_width = 10 * np.sqrt(rate[0] / shape / problem.num_rows)
    total, _ = dblquad(
        density, 1e-6, top, location[0] - half_width, location[0] + half_width, epsabs=1e-6
    )
    assert total == pytest.approx(1.0, abs=1e-4)


def test_hierarchical_posterior_is_the_gaussian_of_its_precision_matrix(rng):
    problem = PROBLEMS["hierarchical_normal"]
    latents, observations = problem.sample_joint(rng, 5)
    num = problem.num_groups
    precision = np.diag([1 + num / problem.tau**2] + [problem.tau**-2 + problem.noise**-2] * num)
    precision[0, 1:] = precision[1:, 0] = -(problem.tau**-2)
    covariance = np.linalg.inv(precision)
    for row in range(5):
        mean = covariance @ np.r_[0.0, observations["y"][row] / problem.noise**2]
        value = np.r_[latents["mu"][row], latents["theta"][row]]
        assert problem.log_posterior(latents, observations)[row] == pytest.approx(
            multivariate_normal(mean, covariance).logpdf(value)
        )


@each_problem
def test_exact_draws_and_prior_draws_are_told_apart_by_the_gap(name, rng):
    """Exact posterior draws score like the joint draws; draws of other data sets score lower."""
    problem = PROBLEMS[name]
    latents, observations = problem.sample_joint(rng, 4000)
    of_the_joint = problem.log_posterior(latents, observations)

    exact = problem.sample_posterior(rng, observations)
    difference = expected_gap(of_the_joint, problem.log_posterior(exact, observations))
    assert difference.lower < 0 < difference.upper

    permuted = {site: np.roll(value, 1, axis=0) for site, value in observations.items()}
    # A permuted posterior may underflow; it is at most this dense.
    lie = np.maximum(problem.log_posterior(latents, permuted), -1e3)
    assert expected_gap(of_the_joint, lie).lower > 0.05 * problem.num_latents


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "mixture_assignments" else ())
        for name in sorted(PROBLEMS)
    ],
)
def test_exact_draws_have_uniform_ranks(name, rng):
    problem = PROBLEMS[name]
    latents, observations = problem.sample_joint(rng, 1000)
    draws = [problem.sample_posterior(rng, observations) for _ in range(50)]
    for site, value in latents.items():
        ranks = np.mean([draw[site] < value for draw in draws], axis=0)
        ties = np.mean([draw[site] == value for draw in draws], axis=0)
        ranks = ranks + rng.uniform(size=ranks.shape) * ties  # of discrete values
        one_per_row = ranks.reshape(len(ranks), -1)[:, 0]
        jitter = rng.uniform(-0.01, 0.01, size=len(one_per_row))
        assert kstest((one_per_row * 50 + 0.5) / 51 + jitter, "uniform").pvalue > 1e-4, site


def test_linear_map_is_well_conditioned_and_not_orthogonal():
    for dim in (2, 10):
        matrix = PROBLEMS[f"linear_gaussian_{dim}"].matrix
        assert np.linalg.cond(matrix) == pytest.approx(3.0)
        assert np.max(np.abs(matrix @ matrix.T - np.eye(dim))) > 0.1


def test_two_modes_mass_near_zero():
    """By draws, and everything for a wide interval."""
    problem, num = PROBLEMS["two_mode_sign"], 5000
    for x in (-0.2, 0.3, 0.8, 2.5):
        observations = {"x": np.full(num, x)}
        draws = problem.sample_posterior(np.random.default_rng(0), observations)["z"]
        width = np.full(1, 0.4)
        exact = problem.mass_near_zero(width, {"x": np.full(1, x)})[0]
        error = np.sqrt(exact * (1 - exact) / num)
        assert abs(np.mean(np.abs(draws) < 0.4) - exact) < 4 * error + 1e-4
    everything = problem.mass_near_zero(np.full(3, 6.0), {"x": np.array([-0.2, 0.3, 2.5])})
    np.testing.assert_allclose(everything, 1.0, rtol=1e-6)
