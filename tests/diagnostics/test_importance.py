"""Importance weights against closed forms, and against guides that must not be certified."""

import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.special import logsumexp
from scipy.stats import norm

from amortize_diagnostics import (
    choose_local_draws,
    importance_summary,
    marginalise_local_weights,
    psis,
    resample,
)


def weights_of_scaled_normal(rng, width, num_draws):
    """Log weights of draws from N(0, width) for the target N(0, 1)."""
    draws = width * rng.normal(size=num_draws)
    return norm.logpdf(draws) - norm.logpdf(draws, scale=width)


def exact_ess_fraction(width):
    return np.sqrt(2 * width**2 - 1) / width**2


# --- the guide's own draws -------------------------------------------------------------------


def test_ess_fraction_of_a_guide_twice_too_wide_is_the_analytic_one(rng):
    summary = importance_summary(weights_of_scaled_normal(rng, 2.0, 200_000))
    assert exact_ess_fraction(2.0) == pytest.approx(0.661, abs=1e-3)
    assert summary.ess_fraction == pytest.approx(exact_ess_fraction(2.0), abs=0.005)


def test_exact_posterior_gives_the_evidence_exactly():
    summary = importance_summary(np.full(1000, -12.5))
    assert summary.log_evidence == pytest.approx(-12.5, abs=1e-12)
    assert summary.log_evidence_se == pytest.approx(0.0, abs=1e-7)
    assert summary.ess_fraction == pytest.approx(1.0)
    assert summary.khat == 0.0


def test_rounding_of_float32_densities_does_not_spoil_an_exact_posterior(rng):
    noise = rng.integers(-3, 4, size=4000) * np.float32(1e-6)
    smoothed, khat = psis(np.float32(-3.2) + noise)
    assert khat == 0.0
    assert np.exp(smoothed).sum() == pytest.approx(1.0)


def test_draws_added_to_the_guides_own_do_not_improve_its_verdict(rng):
    own = weights_of_scaled_normal(rng, 0.2, 4000)
    draws = np.concatenate([0.2 * rng.normal(size=4000), 2 * rng.normal(size=4000)])
    mixture = np.logaddexp(norm.logpdf(draws, scale=0.2), norm.logpdf(draws, scale=2)) - np.log(2)
    summary = importance_summary(norm.logpdf(draws) - mixture, own)
    assert summary.ess_fraction > 0.3
    assert summary.guide_ess_fraction == importance_summary(own).ess_fraction
    assert summary.num_guide_draws == 4000
    assert "poor (ESS fraction" in str(summary)
    assert "of 4000 draws" in str(summary)


def test_log_evidence_is_within_its_standard_error(rng):
    weights = np.stack([weights_of_scaled_normal(rng, 1.5, 4000) - 7.0 for _ in range(200)], 1)
    summary = importance_summary(weights)
    standardised = (summary.log_evidence + 7.0) / summary.log_evidence_se
    assert np.mean(standardised**2) == pytest.approx(1.0, abs=0.3)


def test_a_guide_three_times_too_wide_passes_khat_and_is_not_certified(rng):
    one_dim = importance_summary(weights_of_scaled_normal(rng, 3.0, 4000))
    assert one_dim.khat < one_dim.khat_threshold
    assert one_dim.ess_fraction < 0.5
    assert "own draws: usable only after weighting" in str(one_dim)
    assert "Weighted draws: reliable" in str(one_dim)

    four_dims = importance_summary(
        sum(weights_of_scaled_normal(rng, 3.0, 20_000) for _ in range(4))
    )
    assert four_dims.khat < four_dims.khat_threshold
    assert "own draws: poor" in str(four_dims)


def test_ess_fraction_does_not_depend_on_the_normalisation(rng):
    weights = weights_of_scaled_normal(rng, 2.0, 1000)
    shifted = importance_summary(weights + 2000.0)
    assert shifted.ess_fraction == pytest.approx(importance_summary(weights).ess_fraction)


# --- Pareto smoothing ------------------------------------------------------------------------


def test_khat_of_a_guide_far_too_narrow_exceeds_the_threshold(rng):
    # The true shape is 1 - 0.2^2 = 0.96, and about 96 % of seeds give more than 0.7.
    weights = np.stack([weights_of_scaled_normal(rng, 0.2, 10_000) for _ in range(50)], 1)
    summary = importance_summary(weights)
    assert summary.khat_threshold == pytest.approx(0.7)
    assert np.mean(summary.khat > summary.khat_threshold) > 0.8


def test_khat_of_a_guide_that_is_too_wide_is_negative(rng):
    _, khat = psis(weights_of_scaled_normal(rng, 2.0, 10_000))
    assert khat < 0.1


def test_flipped_sign_hides_the_heavy_tail(rng):
    """Trap: weights of leave-one-out are negative log likelihoods, and ArviZ takes these."""
    weights = weights_of_scaled_normal(rng, 0.2, 10_000)
    assert psis(weights)[1] > 0.6
    assert psis(-weights)[1] < 0.3


def test_smoothing_keeps_the_order_and_normalises(rng):
    weights = weights_of_scaled_normal(rng, 0.3, 2000)
    smoothed, _ = psis(weights)
    assert logsumexp(smoothed) == pytest.approx(0.0, abs=1e-12)
    ordered = smoothed[np.argsort(weights)]
    assert np.all(np.diff(ordered) >= -1e-12)
    # The smallest weight is never smoothed, and the largest never exceeds the raw one.
    assert np.ptp(smoothed) <= np.ptp(weights) + 1e-12


def test_threshold_of_few_draws_is_stricter(rng):
    summary = importance_summary(weights_of_scaled_normal(rng, 1.5, 100))
    assert summary.khat_threshold == pytest.approx(0.5)


@pytest.mark.parametrize("num_draws", [30, 225, 300, 4000])
def test_many_data_sets_are_smoothed_as_arviz_smooths_each(rng, num_draws):
    widths = (0.3, 0.7, 0.9, 1.5, 3.0) * 20
    weights = np.stack([weights_of_scaled_normal(rng, width, num_draws) for width in widths])
    smoothed, khat = psis(weights, axis=1)
    # ArviZ takes log likelihoods, whose negatives are the log weights of leave-one-out.
    expected = [array_stats.psislw(-row) for row in weights]
    fitted = khat != 0  # zero where the largest weights are equal up to rounding
    assert fitted.mean() > 0.9
    theirs = np.stack([row for row, _ in expected]), np.array([float(one) for _, one in expected])
    np.testing.assert_allclose(smoothed[fitted], theirs[0][fitted], rtol=1e-8)
    np.testing.assert_allclose(khat[fitted], theirs[1][fitted], rtol=1e-8, atol=1e-10)


def test_fewer_than_25_draws_have_no_khat(rng):
    weights = rng.normal(size=24)
    smoothed, khat = psis(weights)
    assert np.isnan(khat)
    np.testing.assert_allclose(smoothed, weights - logsumexp(weights))
    summary = importance_summary(weights)
    assert np.isnan(summary.khat_threshold)
    assert "Weighted draws: not judged (k-hat needs 25 draws" in str(summary)
    assert np.isfinite(psis(rng.normal(size=25))[1])


def test_weights_that_take_few_values_have_no_khat():
    """A discrete latent: the tail is tied at its lower quartile, so nothing can be fitted."""
    weights = np.zeros(1000)
    weights[:10] = np.linspace(1.0, 2.0, 10)
    assert np.isnan(psis(weights)[1])


def test_one_weight_beyond_floating_point_has_infinite_khat(rng):
    smoothed, khat = psis(1e4 * rng.normal(size=1000))
    assert khat == np.inf
    assert np.exp(smoothed).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e-2, 1.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("num_draws", [25, 30, 226, 1000])
def test_smoothed_weights_are_always_weights(rng, scale, num_draws):
    weights = scale * rng.standard_t(2, size=(num_draws, 3))
    weights[: num_draws // 3, 1] = -np.inf
    weights[:, 2] = np.round(weights[:, 2], 1)
    smoothed, khat = psis(weights)
    np.testing.assert_allclose(np.exp(smoothed).sum(axis=0), 1.0)
    np.testing.assert_array_equal(np.isneginf(smoothed), np.isneginf(weights))
    assert khat.shape == (3,)


def test_axis_of_the_draws_can_be_chosen(rng):
    weights = rng.normal(size=(5, 200, 2))
    smoothed, khat = psis(weights, axis=1)
    assert khat.shape == (5, 2)
    alone, alone_khat = psis(weights[3, :, 1])
    np.testing.assert_array_equal(smoothed[3, :, 1], alone)
    assert khat[3, 1] == alone_khat


# --- zero weights and bad input --------------------------------------------------------------


def test_zero_weights_are_counted_and_halve_the_evidence(rng):
    weights = np.full(1000, -2.0)
    weights[rng.permutation(1000)[:500]] = -np.inf
    summary = importance_summary(weights)
    assert summary.num_zero_weight == 500
    assert summary.ess_fraction == pytest.approx(0.5)
    assert summary.log_evidence == pytest.approx(-2.0 - np.log(2.0))
    assert "Zero weights: 500 (outside the model's support)." in str(summary)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("function", [psis, importance_summary])
def test_nan_and_infinite_weights_raise(function, bad):
    with pytest.raises(ValueError, match=r"log_weights: expected numbers or -inf, got 1 of 3"):
        function([0.0, bad, 1.0])


def test_all_zero_weights_raise_and_name_the_data_set():
    weights = np.zeros((30, 4))
    weights[:, 2] = -np.inf
    with pytest.raises(ValueError, match=r"got only zeros or none for data set \(2,\)"):
        importance_summary(weights)
    with pytest.raises(ValueError, match=r"got only zeros or none for data set \(2,\)"):
        psis(weights)


def test_no_weights_raise():
    with pytest.raises(ValueError, match="expected a positive weight"):
        importance_summary(np.zeros((0,)))


def test_summary_refuses_more_than_one_axis_of_data_sets():
    with pytest.raises(ValueError, match=r"expected shape \(num_draws,\) or"):
        importance_summary(np.zeros((30, 2, 2)))


# --- many data sets --------------------------------------------------------------------------


def test_many_data_sets_equal_one_at_a_time(rng):
    weights = rng.normal(size=(500, 3)) * [0.1, 1.0, 3.0]
    many = importance_summary(weights)
    for index in range(3):
        one = importance_summary(weights[:, index])
        for name in ("ess_fraction", "khat", "log_evidence", "log_evidence_se", "num_zero_weight"):
            assert getattr(many, name)[index] == pytest.approx(getattr(one, name)), name


def test_text_for_many_data_sets_counts_both_verdicts(rng):
    weights = np.stack(
        [weights_of_scaled_normal(rng, width, 10_000) for width in (1.0, 2.0, 3.0, 0.1)], 1
    )
    weights[0, 1] = -np.inf
    text = str(importance_summary(weights))
    assert "4 data sets, 10000 draws each." in text
    assert "Guide's own draws: good for 2, poor for 1, usable only after weighting for 1" in text
    assert "at data set 3" in text
    assert "Weighted draws: reliable for 3, unreliable for 1" in text
    assert "Zero weights: in 1 data sets" in text


# --- local latents in plates -----------------------------------------------------------------


def test_marginalised_weights_equal_the_average_over_all_combinations(rng):
    num_local, num_draws, size = 3, 2, 4
    global_ = rng.normal(size=num_draws)
    local = rng.normal(size=(num_local, num_draws, size))
    marginal = marginalise_local_weights(global_, local)
    for s in range(num_draws):
        combinations = [
            global_[s] + sum(local[k, s, element] for element, k in enumerate(choice))
            for choice in np.ndindex(*(num_local,) * size)
        ]
        assert marginal[s] == pytest.approx(logsumexp(combinations) - size * np.log(num_local))


def test_marginalised_weights_take_an_axis_of_data_sets(rng):
    global_ = rng.normal(size=(10, 2))
    local = rng.normal(size=(3, 10, 2, 5))
    many = marginalise_local_weights(global_, local)
    one = marginalise_local_weights(global_[:, 1], local[:, :, 1])
    np.testing.assert_allclose(many[:, 1], one)


def test_marginalising_rescues_many_local_latents(rng):
    """Fifty local guides, each 1.5 times too wide: jointly hopeless, marginalised fine."""
    local = np.reshape(weights_of_scaled_normal(rng, 1.5, 64 * 2000 * 50), (64, 2000, 50))
    joint = importance_summary(local[0].sum(axis=-1))
    marginal = importance_summary(marginalise_local_weights(np.zeros(2000), local))
    assert joint.ess_fraction < 0.01
    assert marginal.ess_fraction > 0.7
    assert abs(marginal.log_evidence) < 4 * marginal.log_evidence_se


def test_local_weights_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"expected shape \(num_local_draws, \*global shape"):
        marginalise_local_weights(np.zeros(10), np.zeros((3, 9, 5)))
    with pytest.raises(ValueError, match=r"expected shape \(num_local_draws, \*global shape"):
        marginalise_local_weights(np.zeros(10), np.zeros((0, 10, 5)))


def test_nan_in_local_or_global_weights_names_the_argument():
    with pytest.raises(ValueError, match="local_log_weight: expected numbers or -inf"):
        marginalise_local_weights([0.0], [[[np.nan]]])
    with pytest.raises(ValueError, match="global_log_weight: expected numbers or -inf"):
        marginalise_local_weights([np.nan], [[[0.0]]])
    with pytest.raises(ValueError, match="local_log_weight: expected numbers or -inf"):
        choose_local_draws([np.nan], np.random.default_rng(0))


def test_local_draws_are_chosen_in_proportion_to_their_weights(rng):
    probabilities = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        log_weights = np.log(probabilities)
    chosen = choose_local_draws(np.broadcast_to(log_weights[:, None], (4, 40_000)), rng)
    frequencies = np.bincount(chosen, minlength=4) / 40_000
    np.testing.assert_allclose(frequencies, probabilities, atol=0.01)


def test_element_whose_local_weights_are_all_zero_gets_the_first_draw(rng):
    assert choose_local_draws([[-np.inf], [-np.inf]], rng) == [0]


def test_choosing_among_no_local_draws_raises(rng):
    with pytest.raises(ValueError, match="with at least one draw"):
        choose_local_draws(np.zeros((0, 3)), rng)


# --- resampling ------------------------------------------------------------------------------


def test_systematic_resampling_rounds_the_expected_counts(rng):
    weights = rng.dirichlet(np.ones(20))
    chosen = resample(np.log(weights) - 3.0, 1000, rng)
    counts = np.bincount(chosen, minlength=20)
    assert np.all(np.abs(counts - 1000 * weights) < 1.0)


def test_resampling_never_takes_a_zero_weight(rng):
    log_weights = np.full(100, -np.inf)
    log_weights[[3, 97]] = 0.0
    for _ in range(100):
        assert set(resample(log_weights, 7, rng)) <= {3, 97}


def test_resampled_draws_have_the_moments_of_the_target(rng):
    draws = 2.0 * rng.normal(size=50_000)
    log_weights = norm.logpdf(draws) - norm.logpdf(draws, scale=2.0)
    resampled = draws[resample(psis(log_weights)[0], 50_000, rng)]
    assert np.std(resampled) == pytest.approx(1.0, abs=0.02)


def test_resampling_takes_one_data_set(rng):
    with pytest.raises(ValueError, match=r"expected shape \(num_candidates,\)"):
        resample(np.zeros((10, 2)), 5, rng)


@pytest.mark.parametrize(("width", "loc"), [(1.0, 0.0), (2.0, 0.0), (1.0, 1.0)])
def test_draws_of_local_latents_are_judged_by_themselves(rng, width, loc):
    """Averaged out, weights of many local draws hide that each is bad: here is the worst."""
    draws = rng.normal(size=(640, 200, 3)) * [1.0, 1.0, width] + [0.0, 0.0, loc]
    scale = np.array([1.0, 1.0, width])
    local = norm.logpdf(draws) - norm.logpdf(draws, [0.0, 0.0, loc], scale)
    own = marginalise_local_weights(np.zeros(200), local)
    found = importance_summary(own, own, local)
    exact = np.exp(-(loc**2)) * np.sqrt(2 * width**2 - 1) / width**2
    assert found.local_ess_fraction == pytest.approx(exact, rel=0.06)
    assert found.guide_ess_fraction > 0.95
    assert found.own_ess_fraction == min(found.local_ess_fraction, found.guide_ess_fraction)
    assert f"{found.local_ess_fraction:.2f} for local latents" in str(found)
    assert ("Guide's own draws: good" in str(found)) == (exact > 0.5)
    many = importance_summary(
        *(np.stack([part, part], 1) for part in (own, own)), np.stack([local, local], 2)
    )
    np.testing.assert_allclose(many.local_ess_fraction, found.local_ess_fraction)


def test_local_draws_without_weight_are_left_out():
    local = np.zeros((4, 3, 2))
    local[:, 0] = -np.inf
    assert importance_summary([0.0] * 3, [0.0] * 3, local).local_ess_fraction == 1
    local[2:, 1:, 1] = -np.inf  # two of four count: (4 - 2) / (3 * 2)
    found = importance_summary([0.0] * 3, [0.0] * 3, local)
    assert found.local_ess_fraction == pytest.approx(1 / 3)
    assert importance_summary([0.0] * 3, [0.0] * 3, local[:1]).local_ess_fraction is None


def test_local_weights_of_another_shape_than_the_guides_raise():
    with pytest.raises(ValueError, match="guide_local_log_weights: expected shape"):
        importance_summary([0.0] * 3, [0.0] * 3, np.zeros((4, 2, 2)))
