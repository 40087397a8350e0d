"""Discrepancies of samples against closed forms of normals."""

import numpy as np
import pytest

from amortize_diagnostics import mmd_test, sliced_wasserstein, squared_mmd


def test_mmd_of_shifted_normals_is_the_closed_form(rng):
    shift, width = 0.7, 1.3
    values = [
        squared_mmd(rng.normal(size=(200, 1)), shift + rng.normal(size=(200, 1)), bandwidths=width)
        for _ in range(100)
    ]
    exact = (
        2 * np.sqrt(width**2 / (width**2 + 2)) * (1 - np.exp(-(shift**2) / (2 * (width**2 + 2))))
    )
    assert abs(np.mean(values) - exact) < 3 * np.std(values) / 10


def test_the_unbiased_form_is_zero_in_the_mean_and_the_biased_one_is_not(rng):
    """Leaving the diagonal in the unbiased sums would move the mean by 2 / 19."""
    pairs = [(rng.normal(size=(20, 2)), rng.normal(size=(20, 2))) for _ in range(500)]
    plain = [squared_mmd(a, b, bandwidths=1.0) for a, b in pairs]
    assert abs(np.mean(plain)) < 3 * np.std(plain) / 500**0.5
    biased = [squared_mmd(a, b, bandwidths=1.0, is_unbiased=False) for a, b in pairs]
    expected = (1 / 20 + 1 / 20) * (1 - 1 / 3)  # E k = l^2 / (l^2 + 2) in two dimensions
    assert abs(np.mean(biased) - expected) < 3 * np.std(biased) / 500**0.5


def test_several_bandwidths_are_averaged(rng):
    a, b = rng.normal(size=(30, 2)), rng.normal(size=(40, 2))
    single = [squared_mmd(a, b, bandwidths=width) for width in (0.5, 2.0)]
    assert squared_mmd(a, b, bandwidths=[0.5, 2.0]) == pytest.approx(np.mean(single))


@pytest.mark.parametrize("num_p", [1, 15])
def test_p_values_of_one_law_are_uniform_for_any_sizes(rng, num_p):
    p_values = np.array(
        [
            mmd_test(
                rng.normal(size=(num_p, 2)), rng.normal(size=(100, 2)), rng, num_null=99
            ).p_value
            for _ in range(300)
        ]
    )
    for level in (0.05, 0.25, 0.5):
        assert abs(np.mean(p_values <= level) - level) < 3 * np.sqrt(level * (1 - level) / 300)


def test_other_laws_are_told_apart(rng):
    wider = mmd_test(rng.normal(size=(200, 1)), 1.5 * rng.normal(size=(200, 1)), rng)
    assert wider.p_value < 0.01
    assert len(wider.null) == 999
    assert mmd_test([[5.0, 5.0]], rng.normal(size=(200, 2)), rng).p_value < 0.02


def test_equal_rows_are_not_apart():
    found = mmd_test(np.ones((5, 1)), np.ones((5, 1)), np.random.default_rng(0), num_null=19)
    assert found.p_value == 1


def test_sliced_wasserstein_of_shifted_normals(rng):
    a = rng.normal(size=(2000, 3))
    found = sliced_wasserstein(a, a + [2.0, 0.0, 1.0], rng, num_projections=2000)
    assert abs(found.distance - np.sqrt(5 / 3)) < 4 * found.se
    scaled = sliced_wasserstein(a[:, :1], 3 * a[:, :1], rng)
    assert scaled.distance == pytest.approx(2 * np.sqrt(np.mean(a[:, 0] ** 2)), rel=1e-6)
    assert sliced_wasserstein(a, a, rng).distance == 0


def test_sliced_wasserstein_of_samples_of_other_sizes(rng):
    a, b = rng.normal(size=(4000, 1)), 1 + rng.normal(size=(1500, 1))
    assert abs(sliced_wasserstein(a, b, rng).distance - 1) < 0.1


def test_bad_input_raises(rng):
    good = np.zeros((3, 2))
    with pytest.raises(ValueError, match="samples_p and samples_q: expected shapes"):
        squared_mmd(good, np.zeros((3, 1)))
    with pytest.raises(
        ValueError, match="samples_q: expected finite numbers, got others in 1 of 3"
    ):
        squared_mmd(good, [[0, 0], [0, np.nan], [0, 0]])
    with pytest.raises(ValueError, match="the unbiased form needs two rows"):
        squared_mmd(good, good[:1])
    with pytest.raises(ValueError, match="bandwidths: expected positive numbers"):
        squared_mmd(good, good, bandwidths=0.0)
    with pytest.raises(ValueError, match="num_null: expected at least 19"):
        mmd_test(good, good, rng, num_null=10)
    with pytest.raises(ValueError, match="num_projections: expected at least 2"):
        sliced_wasserstein(good, good, rng, num_projections=1)
