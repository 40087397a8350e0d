"""TARP: the exact posterior under three kinds of references, liars, and its blind spot."""

import numpy as np
import pytest
from scipy.stats import kstest

from amortize_diagnostics import reference_points, tarp
from tests.liars import answers

CRITICAL = 1.628  # of sqrt(N) times the Kolmogorov-Smirnov distance, at 1 %


def distance(found):
    """Kolmogorov-Smirnov distance of the credibilities from uniform."""
    return kstest(found.credibility, "uniform").statistic


@pytest.mark.parametrize("kind", ["uniform", "data", "constant"])
def test_the_exact_posterior_passes_under_any_reference(rng, kind):
    found = answers("exact", rng, num_datasets=1000, num_draws=499, dim=3)
    references = {
        "uniform": rng.uniform(-3, 3, size=found.truths.shape),
        "data": found.data,
        "constant": np.ones_like(found.truths),
    }
    result = tarp(found.draws, found.truths, rng, references=references[kind])
    assert distance(result) < CRITICAL / 1000**0.5
    assert result.test.p_value > 0.01


@pytest.mark.parametrize(
    ("name", "expected", "verdict"),
    [
        ("width 0.7", [0.24, 0.46, 0.69], "too narrow or biased"),
        ("width 1.4", [0.15, 0.55, 0.89], "too wide"),
    ],
)
def test_expected_coverage_of_wrong_widths(rng, name, expected, verdict):
    """The card's numbers: three latents, noise 0.5, references uniform on [-3, 3]."""
    found = answers(name, rng, num_datasets=4000, num_draws=199, dim=3)
    references = rng.uniform(-3, 3, size=found.truths.shape)
    result = tarp(found.draws, found.truths, rng, references=references)
    at = np.searchsorted(result.alpha, np.array([0.2, 0.5, 0.8]) - 1e-9)
    assert np.all(np.abs(result.coverage[at] - expected) < 0.02)
    with pytest.warns(UserWarning, match="none of them follow the data"):
        own = tarp(found.draws[:, :1000], found.truths[:1000], rng)
    assert own.verdict == verdict
    assert np.sign(own.area) == (1 if verdict == "too wide" else -1)


def test_the_prior_is_seen_only_from_points_that_follow_the_data(rng):
    found = answers("prior", rng, num_datasets=3000, num_draws=199, dim=3)
    with pytest.warns(UserWarning, match="a guide that returns the prior passes"):
        blind = tarp(found.draws, found.truths, rng)
    assert distance(blind) < CRITICAL / 3000**0.5
    assert blind.is_independent
    assert "points that ignore the data" in str(blind)
    seeing = tarp(found.draws, found.truths, rng, references=found.data)
    assert distance(seeing) > 0.6
    assert seeing.test.p_value < 1e-12
    assert not seeing.is_independent


@pytest.mark.parametrize("name", ["width 0.7", "width 3", "prior", "permuted", "flipped"])
def test_learned_references_see_the_liars(rng, name):
    past = answers("exact", rng, num_draws=20)
    found = answers(name, rng)
    points = reference_points(found.data, past.data, past.truths)
    assert tarp(found.draws, found.truths, rng, references=points).test.p_value < 1e-4


def test_learned_references_pass_the_exact_posterior(rng):
    past = answers("exact", rng, num_draws=20)
    p_values = []
    for _ in range(40):
        found = answers("exact", rng, num_draws=99)
        points = reference_points(found.data, past.data, past.truths)
        p_values.append(tarp(found.draws, found.truths, rng, references=points).test.p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.15


def test_learned_references_follow_a_scale(rng):
    """The regression sees squares, so that points follow a latent that is a spread."""
    log_sd = rng.normal(size=(600, 1))
    data = np.exp(log_sd) * rng.normal(size=(600, 20))
    points = reference_points(data[300:], data[:300], log_sd[:300])
    assert np.corrcoef(points[:, 0], log_sd[300:, 0])[0, 1] > 0.6


def test_a_constant_credibility_is_no_diagonal(rng):
    """A histogram over the observed range would show a diagonal here."""
    draws = np.concatenate([np.full((500, 300, 1), 0.1), np.full((499, 300, 1), 10.0)])
    truths = np.linspace(0.9, 1.1, 300)[:, None]
    result = tarp(draws, truths, rng, references=np.zeros((300, 1)))
    assert np.all(result.coverage[result.alpha < 0.49] == 0)
    assert np.all(result.coverage[result.alpha > 0.51] == 1)


def test_invariances(rng):
    found = answers("exact", rng, num_datasets=60, num_draws=50)
    points = rng.normal(size=found.truths.shape)

    def credibility(draws, truths, references):
        own = np.random.default_rng(1)
        return tarp(draws, truths, own, references=references).credibility

    plain = credibility(found.draws, found.truths, points)
    permuted = credibility(found.draws[::-1], found.truths, points)
    moved = credibility(found.draws + 8.0, found.truths + 8.0, points + 8.0)
    np.testing.assert_array_equal(plain, permuted)
    np.testing.assert_allclose(plain, moved)


def test_bad_input_raises(rng):
    draws, truths = np.zeros((20, 50, 2)), rng.normal(size=(50, 2))
    with pytest.raises(ValueError, match="draws and truths: expected shapes"):
        tarp(draws, truths[:, :1], rng)
    with pytest.raises(ValueError, match=r"truths: expected shape \(num_datasets, num_latents\)"):
        tarp(np.zeros((20, 50)), np.zeros(50), rng)
    with pytest.raises(ValueError, match="truths: expected latents that vary, got a constant one"):
        tarp(draws, np.zeros((50, 2)), rng)
    with pytest.raises(ValueError, match="references: expected a point for each data set"):
        tarp(draws, truths, rng, references=np.zeros(2))
    with pytest.raises(ValueError, match="references: expected numbers, got NaN"):
        tarp(draws, truths, rng, references=np.full((50, 2), np.nan))
    with pytest.raises(ValueError, match="num_alpha: expected at least 3"):
        tarp(draws, truths, rng, references=truths + 1, num_alpha=2)
    with pytest.raises(ValueError, match="data, past_data and past_truths: expected shapes"):
        reference_points(np.zeros((5, 2)), np.zeros((6, 3)), np.zeros((6, 1)))
    with pytest.raises(ValueError, match="past_truths: expected finite numbers"):
        reference_points(np.zeros((5, 2)), np.zeros((6, 2)), np.full((6, 1), np.nan))
