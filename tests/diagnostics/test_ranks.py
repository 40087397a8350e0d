"""Ranks and their test: the exact posterior passes at the declared rate, liars do not."""

import numpy as np
import pytest
from scipy.stats import binom

from amortize_diagnostics import ecdf_test, posterior_ranks
from tests.liars import answers


def first_latent(name, rng, **options):
    found = answers(name, rng, **options)
    return ecdf_test(posterior_ranks(found.draws[..., 0], found.truths[:, 0], rng).pit)


@pytest.mark.parametrize("num", [100, 300])
def test_uniform_numbers_leave_the_band_at_the_declared_rate(rng, num):
    """The card's interval for 5 %, over 500 repetitions."""
    tests = [ecdf_test(rng.uniform(size=num)) for _ in range(500)]
    rejected = np.array([test.p_value < 0.05 for test in tests])
    assert 0.03 <= rejected.mean() <= 0.07
    # The band and the p-value are one test.
    np.testing.assert_array_equal(rejected, [not test.is_inside for test in tests])
    p_values = np.array([test.p_value for test in tests])
    assert abs(np.mean(p_values < 0.5) - 0.5) < 3 * (0.25 / 500) ** 0.5


def test_the_level_of_the_band_is_that_of_simulation_and_above_the_pointwise_one(rng):
    """At N = K = 300 a simultaneous 95 % band is pointwise at 0.0022 (own simulation)."""
    test = ecdf_test(rng.uniform(size=300))
    middle = 149
    below = binom.cdf(np.round((test.lower + test.points) * 300)[middle] - 1, 300, 0.5)
    assert 2 * below <= 0.0022 < 2 * binom.cdf(np.round(300 * (test.lower[middle] + 0.5)), 300, 0.5)
    pointwise = binom.ppf([[0.025], [0.975]], 300, test.points) / 300 - test.points
    uniform = np.sort(rng.uniform(size=(1000, 300)), axis=1)
    ecdf = np.stack([np.searchsorted(row, test.points, side="right") for row in uniform]) / 300
    left = np.any((ecdf - test.points < pointwise[0]) | (ecdf - test.points > pointwise[1]), axis=1)
    assert 0.48 < left.mean() < 0.58  # 53 %: why the band is simultaneous
    inside = np.all((ecdf - test.points >= test.lower) & (ecdf - test.points <= test.upper), axis=1)
    assert 0.94 < inside.mean() < 0.97


def test_exact_p_values_are_those_of_simulation(rng):
    """The chain over points against brute force, for few points and for many values."""
    values = rng.beta(1.0, 1.1, size=100)
    test = ecdf_test(values, num_points=8)
    points = np.arange(1, 8) / 8

    def level(sample):
        counts = np.searchsorted(np.sort(sample), points, side="right")
        tails = binom.cdf(counts, 100, points), binom.sf(counts - 1, 100, points)
        return 2 * min(tails[0].min(), tails[1].min())

    null = np.array([level(sample) for sample in rng.uniform(size=(4000, 100))])
    expected = np.mean(null <= level(values))
    assert abs(test.p_value - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("shift 0.3 sd", "too high"),
        ("width 0.7", "too narrow"),
        ("width 1.4", "too wide"),
        ("width 3", "too wide"),
        ("permuted", "too narrow"),
        ("flipped", "too narrow"),
    ],
)
def test_liars_are_rejected_with_the_right_word(rng, name, word):
    test = first_latent(name, rng)
    assert test.p_value < 1e-3
    assert test.shape == word
    assert str(test).startswith(word)


def test_the_exact_posterior_is_accepted(rng):
    assert str(first_latent("exact", rng)).startswith("uniform")


def test_ranks_of_latents_accept_the_prior_and_ranks_of_the_likelihood_do_not(rng):
    found = answers("prior", rng, num_datasets=1000)
    latent = posterior_ranks(found.draws[..., 0], found.truths[:, 0], rng)
    assert ecdf_test(latent.pit).p_value > 0.05
    fit = posterior_ranks(found.log_likelihood_draws, found.log_likelihood_truths, rng)
    assert ecdf_test(fit.pit).p_value < 1e-9


def test_the_shape_of_the_difference(rng):
    """Too narrow: above and then below; too wide: the other way; biased: on one side."""
    narrow, wide = (first_latent(name, rng).difference for name in ("width 0.7", "width 1.4"))
    quarter = len(narrow) // 4
    assert narrow[quarter] > 0 > narrow[-quarter]
    assert wide[quarter] < 0 < wide[-quarter]
    assert np.mean(first_latent("shift 0.3 sd", rng).difference > 0) > 0.95


def test_ties_of_discrete_latents_are_broken_at_random(rng):
    """An exact posterior of a Bernoulli latent; ranks of strictly smaller draws pile up at 0."""
    chance = rng.beta(1, 2, size=1000)
    truths = (rng.uniform(size=1000) < chance).astype(float)
    draws = (rng.uniform(size=(99, 1000)) < chance).astype(float)
    ranks = posterior_ranks(draws, truths, rng)
    assert ecdf_test(ranks.pit).p_value > 0.05
    strict = (np.sum(draws < truths, axis=0) + rng.uniform(size=1000)) / 100
    assert ecdf_test(strict).p_value < 1e-12
    assert ranks.ranks.min() >= 0
    assert ranks.ranks.max() <= 99


def test_ranks_do_not_change_under_increasing_maps(rng):
    found = answers("exact", rng, num_datasets=60, num_draws=30)
    plain = posterior_ranks(found.draws, found.truths, np.random.default_rng(1))
    mapped = posterior_ranks(np.exp(found.draws), np.exp(found.truths), np.random.default_rng(1))
    np.testing.assert_array_equal(plain.ranks, mapped.ranks)
    assert plain.ranks.shape == (60, 2)


def test_draws_of_a_chain_look_too_narrow(rng):
    """An exact chain that is not thinned: what the docstring warns of."""
    draws = np.empty((99, 400))
    draws[0] = rng.normal(size=400)
    for step in range(1, 99):
        draws[step] = 0.97 * draws[step - 1] + np.sqrt(1 - 0.97**2) * rng.normal(size=400)
    test = ecdf_test(posterior_ranks(draws, rng.normal(size=400), rng).pit)
    assert test.p_value < 1e-6
    assert test.shape == "too narrow"


@pytest.mark.parametrize(
    ("draws", "truths", "message"),
    [
        (np.zeros((20, 3)), np.zeros(4), r"draws and truths: expected shapes \(num_draws"),
        (np.zeros(20), 0.0, "draws and truths: expected shapes"),
        (np.zeros((20, 49)), np.zeros(49), "truths: expected at least 50 data sets, got 49"),
        (np.zeros((19, 50)), np.zeros(50), "draws: expected at least 20 draws"),
        (np.full((20, 50), np.nan), np.zeros(50), "draws: expected numbers, got NaN in 1000"),
        (np.zeros((20, 50)), np.full(50, np.nan), "truths: expected numbers, got NaN"),
        (np.ones((20, 50)), np.ones(50), "draws: expected a quantity that varies"),
    ],
)
def test_bad_draws_raise(rng, draws, truths, message):
    with pytest.raises(ValueError, match=message):
        posterior_ranks(draws, truths, rng)


@pytest.mark.parametrize(
    ("pit", "options", "message"),
    [
        (np.zeros((50, 2)), {}, r"pit: expected shape \(num,\)"),
        (np.zeros(49), {}, "pit: expected shape"),
        (np.full(50, np.nan), {}, "pit: expected numbers"),
        (np.arange(50.0), {}, "pit: expected values from 0 to 1, got 0 to 49"),
        (np.full(50, 0.5), {"prob": 1.0}, "prob: expected a probability"),
        (np.full(50, 0.5), {"num_points": 1}, "num_points: expected at least 2"),
    ],
)
def test_bad_values_raise(pit, options, message):
    with pytest.raises(ValueError, match=message):
        ecdf_test(pit, **options)
