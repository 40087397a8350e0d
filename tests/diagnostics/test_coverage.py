"""Coverage, z-scores and contraction against normals, whose values are known."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from amortize_diagnostics import central_coverage, hpd_coverage, recovery
from tests.liars import answers


def hpd(name, rng, **options):
    found = answers(name, rng, **options)
    return hpd_coverage(found.log_guide_draws, found.log_guide_truths, rng)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_coverage_of_normals_of_a_wrong_width(rng, factor):
    """Regions of probability a hold P(chi2_2 < F^-1(a) factor^2) of the truths."""
    name = "exact" if factor == 1 else f"width {factor}"
    found = hpd(name, rng, num_datasets=2000, num_draws=299)
    expected = chi2.cdf(chi2.ppf(found.levels, 2) * factor**2, 2)
    assert np.all(np.abs(found.coverage - expected) < 4 * np.maximum(found.se, 1e-3) + 0.003)


def test_central_intervals_of_normals_of_a_wrong_width(rng):
    draws, truths = 0.7 * rng.normal(size=(999, 4000)), rng.normal(size=4000)
    found = central_coverage(draws, truths, rng)
    expected = 1 - 2 * norm.cdf(0.7 * norm.ppf((1 - found.levels) / 2))
    assert np.all(np.abs(found.coverage - expected) < 4 * found.se)
    assert found.verdict == "overconfident"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("exact", "covers what it promises"),
        ("prior", "covers what it promises"),  # why coverage alone is not enough
        ("width 0.7", "overconfident"),
        ("width 1.4", "conservative"),
        ("width 3", "conservative"),
        ("permuted", "overconfident"),
        ("flipped", "overconfident"),
    ],
)
def test_verdicts(rng, name, verdict):
    found = hpd(name, rng)
    assert found.verdict == verdict
    assert str(found).startswith(verdict)
    assert "in regions of 90 %" in str(found)


def test_a_wrong_middle_is_said_to_be_neither(rng):
    credibility = 0.5 + 0.25 * rng.uniform(-1, 1, size=300)
    draws = np.linspace(0, 1, 999)[:, None] * np.ones(300)
    assert hpd_coverage(-draws, -credibility, rng).verdict == "covers other than promised"


def test_credibility_is_uniform_at_the_declared_rate(rng):
    rejected = [
        hpd("exact", rng, num_datasets=100, num_draws=99).test.p_value < 0.05 for _ in range(300)
    ]
    assert 0.02 <= np.mean(rejected) <= 0.08


def test_recovery_of_the_exact_posterior(rng):
    """Contraction 1 / (1 + noise^2), z-scores of mean 0 and variance 1."""
    found = answers("exact", rng, num_datasets=2000, num_draws=200)
    result = recovery(found.draws, found.truths, prior_variance=[1.0, 1.0])
    assert np.all(np.abs(result.mean_contraction - 0.8) < 0.005)
    assert np.all(np.abs(result.mean_zscore) < 4 * result.mean_zscore_se)
    assert np.all(np.abs(result.mean_square - 1) < 4 * result.mean_square_se)
    assert np.all(np.abs(result.correlation**2 - 0.8) < 0.04)
    assert result.zscore.shape == result.contraction.shape == (2000, 2)


@pytest.mark.parametrize(
    ("name", "contraction", "correlation", "square"),
    [("prior", 0.0, 0.0, 1.0), ("permuted", 0.8, 0.0, 9.0), ("flipped", 0.8, -0.894, 17.0)],
)
def test_recovery_tells_the_prior_from_answers_to_other_data(
    rng, name, contraction, correlation, square
):
    found = answers(name, rng, num_datasets=4000, num_draws=99)
    result = recovery(found.draws, found.truths, prior_variance=[1.0, 1.0])
    assert np.all(np.abs(result.mean_contraction - contraction) < 0.02)
    assert np.all(np.abs(result.correlation - correlation) < 0.06)
    assert np.all(np.abs(result.mean_square - square) < 5 * result.mean_square_se + 0.02 * square)


def test_draws_that_all_agree_have_no_z_score(rng):
    result = recovery(np.zeros((20, 50)), rng.normal(size=50))
    assert result.correlation == 0
    assert np.all(result.contraction == 1)
    assert np.all(np.isfinite(result.zscore))


def test_bad_input_raises(rng):
    with pytest.raises(ValueError, match="log_prob_truths: expected at least 50 data sets"):
        hpd_coverage(np.zeros((20, 10)), np.zeros(10), rng)
    with pytest.raises(ValueError, match=r"log_prob_truths: expected shape \(num_datasets,\)"):
        hpd_coverage(np.zeros((20, 50, 2)), np.zeros((50, 2)), rng)
    with pytest.raises(ValueError, match=r"truths: expected shape \(num_datasets,\)"):
        central_coverage(np.zeros((20, 50, 2)), np.zeros((50, 2)), rng)
    with pytest.raises(ValueError, match="prior_variance: expected positive numbers"):
        recovery(np.zeros((20, 50)), np.zeros(50))
