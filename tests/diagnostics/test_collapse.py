"""Active units and the thresholds of linear auto-encoders: closed forms, and wrong rules caught."""

import numpy as np
import pytest
from scipy.optimize import minimize

from amortize_diagnostics import active_units, linear_vae_threshold

COVARIANCE = np.diag([4.0, 1.5, 0.5])


@pytest.mark.parametrize(("beta", "num_active"), [(1.0, 2), (2.0, 1), (4.0, 0)])
def test_units_above_the_threshold_are_active(beta, num_active):
    optimum = linear_vae_threshold(COVARIANCE, beta, noise=1.0)
    assert optimum.num_active == num_active
    np.testing.assert_allclose(optimum.squared_weights, np.maximum(np.diag(COVARIANCE) - beta, 0))
    assert np.all(optimum.encoder_variances[num_active:] == 1.0)
    assert np.all(optimum.encoder_slopes[num_active:] == 0.0)


def test_the_optimum_of_the_first_example():
    optimum = linear_vae_threshold(COVARIANCE, beta=1.0, noise=1.0)
    np.testing.assert_allclose(optimum.squared_weights, [3.0, 0.5, 0.0])
    np.testing.assert_allclose(optimum.encoder_variances, [0.25, 2 / 3, 1.0])
    np.testing.assert_allclose(optimum.encoder_slopes, [3**0.5 / 4, 0.5**0.5 / 1.5, 0.0])


def test_noise_is_a_standard_deviation_and_directions_may_be_rotated(rng):
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    optimum = linear_vae_threshold(rotation @ COVARIANCE @ rotation.T, beta=0.5, noise=2.0)
    assert optimum.threshold == 2.0
    assert optimum.num_active == 1
    np.testing.assert_allclose(optimum.eigenvalues, [4.0, 1.5, 0.5])
    # On the boundary, where rounding decides about an eigenvalue.
    assert linear_vae_threshold(rotation @ COVARIANCE @ rotation.T, 1.0, 2.0).num_active == 0


def test_few_units_take_the_largest_directions():
    optimum = linear_vae_threshold(COVARIANCE, 0.1, num_units=1)
    assert optimum.num_active == 1
    np.testing.assert_allclose(optimum.squared_weights, [3.9, 0.0, 0.0])
    assert linear_vae_threshold(COVARIANCE, 0.1, num_units=0).num_active == 0


def negative_bound(parameters, covariance, beta, num_units):
    """`-(E log p(x | z) - beta KL)` of a linear auto-encoder with noise 1, mean over data."""
    dim = len(covariance)
    decoder, encoder, log_variance = np.split(parameters, [dim * num_units, 2 * dim * num_units])
    decoder, encoder = decoder.reshape(dim, num_units), encoder.reshape(num_units, dim)
    variance = np.exp(log_variance)
    residual = np.eye(dim) - decoder @ encoder
    error = np.trace(residual @ covariance @ residual.T) + np.sum(decoder**2 @ variance)
    means = np.trace(encoder @ covariance @ encoder.T)
    divergence = 0.5 * (means + np.sum(variance - 1.0 - log_variance))
    return 0.5 * (dim * np.log(2 * np.pi) + error) + beta * divergence


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.5])
def test_a_trained_linear_auto_encoder_reaches_the_optimum(rng, beta):
    start = np.concatenate([0.3 * rng.normal(size=18), np.zeros(3)])
    found = minimize(
        negative_bound, start, args=(COVARIANCE, beta, 3), options={"maxiter": 5000, "gtol": 1e-7}
    )
    decoder, encoder = found.x[:9].reshape(3, 3), found.x[9:18].reshape(3, 3)
    optimum = linear_vae_threshold(COVARIANCE, beta)
    order = np.argsort(-np.sum(decoder**2, axis=0))
    weights = np.sum(decoder**2, axis=0)[order]
    np.testing.assert_allclose(weights, optimum.squared_weights, rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(
        np.exp(found.x[18:])[order], optimum.encoder_variances, rtol=0.02, atol=1e-3
    )
    slopes = np.linalg.norm(encoder, axis=1)[order]
    np.testing.assert_allclose(slopes, optimum.encoder_slopes, rtol=0.02, atol=1e-2)
    if beta == 1.0:  # the bound is then the likelihood of probabilistic principal components
        marginal = decoder @ decoder.T + np.eye(3)
        likelihood = -0.5 * (
            3 * np.log(2 * np.pi)
            + np.linalg.slogdet(marginal)[1]
            + np.trace(np.linalg.solve(marginal, COVARIANCE))
        )
        assert -found.fun == pytest.approx(likelihood, abs=1e-5)


def test_a_condition_that_predicts_the_data_collapses_the_latents(rng):
    """y = x + noise below s^2: no unit, though Cov(y) is large and would promise three."""
    x = rng.normal(size=(5000, 3)) * [5.0, 3.0, 2.0]
    y = x + 0.5 * rng.normal(size=x.shape)
    joint = np.cov(np.concatenate([y, x], axis=1).T)
    assert linear_vae_threshold(joint, conditioned_on=[3, 4, 5]).num_active == 0
    assert linear_vae_threshold(np.cov(y.T)).num_active == 3  # the wrong covariance
    assert linear_vae_threshold(joint, noise=0.4, conditioned_on=[3, 4, 5]).num_active == 3


def test_a_condition_without_variance_explains_nothing():
    joint = np.diag([4.0, 0.0])
    assert linear_vae_threshold(joint, conditioned_on=[1]).eigenvalues.tolist() == [4.0]


@pytest.mark.parametrize(
    ("covariance", "options", "message"),
    [
        (np.ones((2, 3)), {}, r"covariance: expected shape \(num_dims, num_dims\)"),
        ([[1.0, 2.0], [2.0, 1.0]], {}, "covariance: expected a symmetric positive semi-definite"),
        ([[1.0, 0.5], [0.0, 1.0]], {}, "covariance: expected a symmetric positive semi-definite"),
        ([[np.nan]], {}, "covariance: expected finite numbers, got 1 of 1"),
        (np.eye(2), {"beta": 0.0}, "beta: expected a positive number, got 0.0"),
        (np.eye(2), {"noise": -1.0}, "noise: expected a positive number, got -1.0"),
        (np.eye(2), {"num_units": -1}, "num_units: expected at least 0, got -1"),
        (np.eye(2), {"conditioned_on": [0, 1]}, "conditioned_on: expected some, not all"),
        (np.eye(2), {"conditioned_on": [2]}, "conditioned_on: expected some, not all"),
        (np.eye(2), {"conditioned_on": [1, 1]}, "conditioned_on: expected some, not all"),
    ],
)
def test_linear_models_that_make_no_sense_raise(covariance, options, message):
    with pytest.raises(ValueError, match=message):
        linear_vae_threshold(covariance, **options)


def encoded(rng, num_rows=1000):
    """Means and variances of a precise unit, a collapsed one and one that is precise for half."""
    means = np.stack([rng.normal(size=num_rows), 1e-3 * rng.normal(size=num_rows)], axis=1)
    means = np.concatenate([means, rng.normal(size=(num_rows, 1))], axis=1)
    variances = np.tile([0.05, 0.99, 0.01], (num_rows, 1))
    variances[num_rows // 2 :, 2] = 1.0
    return means, variances


def test_types_flags_and_rates_of_three_units(rng):
    means, variances = encoded(rng)
    units = active_units(means, variances)
    assert units.kinds.tolist() == ["active", "passive", "mixed"]
    assert units.is_active.tolist() == [True, False, True]
    assert units.num_active == 2
    np.testing.assert_allclose(units.variance_of_means, means.var(0))
    # KL of one normal from the standard one, against the integral.
    grid = np.linspace(-12, 12, 4001)
    for row, unit in [(0, 0), (0, 1), (999, 2)]:
        mean, variance = means[row, unit], variances[row, unit]
        log_q = -0.5 * ((grid - mean) ** 2 / variance + np.log(2 * np.pi * variance))
        log_p = -0.5 * (grid**2 + np.log(2 * np.pi))
        integral = np.sum(np.exp(log_q) * (log_q - log_p)) * (grid[1] - grid[0])
        only = active_units(np.full((100, 1), mean), np.full((100, 1), variance))
        assert only.rate[0] == pytest.approx(integral, abs=1e-6)


def test_signs_of_the_units_do_not_matter(rng):
    means, variances = encoded(rng)
    first, second = (active_units(means * sign, variances) for sign in (1.0, [-1.0, 1.0, -1.0]))
    assert first.kinds.tolist() == second.kinds.tolist()
    np.testing.assert_array_equal(first.rate, second.rate)
    np.testing.assert_array_equal(first.is_active, second.is_active)


def test_a_passive_unit_draws_the_prior_around_a_constant_mean(rng):
    means, variances = encoded(rng, num_rows=100_000)
    draws = means + np.sqrt(variances) * rng.normal(size=means.shape)
    passive = active_units(means, variances).kinds == "passive"
    assert draws[:, passive].mean() == pytest.approx(0.0, abs=0.02)
    assert draws[:, passive].var() == pytest.approx(1.0, abs=0.02)
    assert means[:, passive].std() < 0.01


def test_a_wide_unit_that_follows_the_data_is_active_and_mixed():
    """At the optimum of a linear auto-encoder with w^2 = 3 the variance is 0.25, not below 0.1."""
    means = np.linspace(-3, 3, 200)[:, None]
    units = active_units(means, np.full_like(means, 0.25))
    assert (units.kinds[0], units.num_active) == ("mixed", 1)


def test_units_are_told_in_words(rng):
    text = str(active_units(*encoded(rng)))
    assert text.startswith("2 of 3 units active")
    assert "unit 1: rate 0.000 nats" in text
    assert text.endswith("mixed")


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [
        (np.zeros((100, 2)), np.ones((100, 3)), "means and variances: expected two arrays of one"),
        (np.zeros(100), np.ones(100), r"shape \(num_rows, num_units\)"),
        (np.zeros((0, 2)), np.ones((0, 2)), r"shape \(num_rows, num_units\)"),
        (np.zeros((100, 1)), np.full((100, 1), -3.0), r"pass np.exp\(log_variances\)"),
        (np.zeros((100, 1)), np.zeros((100, 1)), "variances: expected positive numbers, got 100"),
        (np.full((100, 1), np.nan), np.ones((100, 1)), "means: expected finite numbers, got 100"),
        (np.zeros((100, 1)), np.full((100, 1), np.inf), "variances: expected finite numbers"),
    ],
)
def test_bad_means_and_variances_raise(means, variances, message):
    with pytest.raises(ValueError, match=message):
        active_units(means, variances)


def test_few_rows_warn():
    with pytest.warns(UserWarning, match="means: 99 rows say little"):
        active_units(np.zeros((99, 1)), np.ones((99, 1)))
