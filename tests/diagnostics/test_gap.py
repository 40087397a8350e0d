"""The expected gap: right for a known divergence, and negative input refused."""

import numpy as np
import pytest
from scipy.stats import norm

from amortize_diagnostics import Gap, expected_gap


def test_gap_of_a_shifted_normal_is_its_divergence(rng):
    draws = rng.normal(size=100_000)
    gap = expected_gap(norm.logpdf(draws), norm.logpdf(draws, loc=0.3))
    assert gap.lower < 0.3**2 / 2 < gap.upper
    assert gap.num == 100_000


@pytest.mark.parametrize("width", [0.7, 1.4])
def test_gap_of_a_wrong_width_is_its_divergence(rng, width):
    draws = rng.normal(size=100_000)
    gap = expected_gap(norm.logpdf(draws), norm.logpdf(draws, scale=width))
    assert gap.lower < np.log(width) + (1 / width**2 - 1) / 2 < gap.upper


def test_differences_are_paired(rng):
    density = 100.0 * rng.normal(size=50)
    gap = expected_gap(density, density - 0.1)
    assert gap.mean == pytest.approx(0.1)
    assert gap.se < 1e-12


def test_bounds_are_three_standard_errors_away():
    gap = Gap(mean=1.0, se=0.1, num=10)
    assert (gap.lower, gap.upper) == pytest.approx((0.7, 1.3))
    assert str(gap) == "gap 1.0000 ± 0.1000 nats over 10 joint draws"


@pytest.mark.parametrize(
    ("exact", "guide"), [(np.zeros(3), np.zeros(4)), (np.zeros((3, 2)),) * 2, (np.zeros(1),) * 2]
)
def test_other_shapes_raise(exact, guide):
    with pytest.raises(ValueError, match=r"expected two arrays of one shape \(num,\)"):
        expected_gap(exact, guide)


def test_densities_that_are_not_finite_raise():
    with pytest.raises(ValueError, match="log_guide: expected finite log densities, got 1 of 2"):
        expected_gap([0.0, 0.0], [0.0, -np.inf])
    with pytest.raises(ValueError, match="log_posterior: expected finite log densities"):
        expected_gap([0.0, np.nan], [0.0, 0.0])
