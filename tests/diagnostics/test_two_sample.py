"""Classifier two-sample tests: the best accuracy where it is known, and errors in one place."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from amortize_diagnostics import LocalC2ST, c2st


def test_accuracy_of_one_law_is_one_half(rng):
    """Over 20 pairs of samples; the error of the mean is 0.0025."""
    found = [
        c2st(rng.normal(size=(1000, 1)), rng.normal(size=(1000, 1)), rng, num_steps=150)
        for _ in range(20)
    ]
    assert abs(np.mean([each.accuracy for each in found]) - 0.5) < 0.01
    assert np.mean([each.p_value < 0.05 for each in found]) <= 0.2


def test_accuracy_of_shifted_and_scaled_normals_is_that_of_the_best_classifier(rng):
    shifted = c2st(rng.normal(size=(2000, 1)), 1 + rng.normal(size=(2000, 1)), rng)
    assert abs(shifted.accuracy - norm.cdf(0.5)) < 0.02
    assert shifted.p_value < 1e-12
    scaled = c2st(rng.normal(size=(2000, 2)), 1.5 * rng.normal(size=(2000, 2)), rng)
    border = 2 * 2 * np.log(1.5) / (1 - 1 / 1.5**2)  # squared radius of equal density
    best = 0.5 * chi2.cdf(border, 2) + 0.5 * chi2.sf(border / 1.5**2, 2)
    assert abs(scaled.accuracy - best) < 0.03


def test_units_do_not_matter(rng):
    p, q = rng.normal(size=(500, 2)), 0.8 + rng.normal(size=(500, 2))
    scale = np.array([1e4, 1.0])
    plain, scaled = (
        c2st(p * by, q * by, np.random.default_rng(1), num_steps=200) for by in (1.0, scale)
    )
    assert abs(plain.accuracy - scaled.accuracy) < 0.02


def test_copies_of_rows_do_not_leak_between_folds(rng):
    """Resampled draws of one law: with copies in several folds a classifier would remember."""
    p = rng.normal(size=(500, 1))
    q = rng.normal(size=(60, 1))[rng.integers(60, size=500)]
    with pytest.warns(UserWarning, match="rows are copies of others"):
        found = c2st(p, q, rng, num_steps=200)
    assert found.accuracy < 0.6


def test_samples_of_other_sizes_are_thinned_with_a_warning(rng):
    with pytest.warns(UserWarning, match="100 and 130 rows, of which 100 of each are compared"):
        found = c2st(rng.normal(size=(100, 1)), rng.normal(size=(130, 1)), rng, num_steps=20)
    assert found.by_fold.shape == (5,)


def pairs(rng, num, width):
    """Truths, one draw of a guide for each, and data; `width(x)` times the exact width."""
    z = rng.normal(size=(num, 1))
    x = z + rng.normal(size=(num, 1))
    return z, x / 2 + width(x) * np.sqrt(0.5) * rng.normal(size=(num, 1)), x


def local(rng, num, width, **options):
    z, draws, x = pairs(rng, num, width)
    return LocalC2ST(z, draws, x, rng, **options)


def wrong_on_the_right(x):
    return np.where(np.asarray(x) > 0, 0.4, 1.0)


def asked(test, rng, x, width, num=500):
    draws = x / 2 + width(x) * np.sqrt(0.5) * rng.normal(size=(num, 1))
    return test.test(draws, [x])


def test_an_error_at_one_half_of_the_data_is_found_there(rng):
    test = local(rng, 1500, wrong_on_the_right, num_null=39, num_steps=300)
    assert asked(test, rng, 1.0, wrong_on_the_right).p_value < 0.05
    assert asked(test, rng, -1.0, wrong_on_the_right).p_value > 0.05
    # The guide is too narrow there: it puts too much mass at the middle and too little outside.
    middle, outside = test.probability([[0.5], [2.0]], [1.0])[0]
    assert middle > 0.5 > outside


@pytest.mark.slow
def test_false_alarms_of_the_local_test(rng):
    """Exact guides, 60 trainings at two data sets each."""

    def exact(x):
        return np.ones_like(x)

    p_values = []
    for _ in range(60):
        test = local(rng, 300, exact, num_null=19, num_steps=100)
        p_values += [asked(test, rng, x, exact, num=200).p_value for x in (-1.0, 1.0)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    assert abs(np.mean(np.array(p_values) <= 0.5) - 0.5) <= 3 * np.sqrt(0.25 / 60)


def test_bad_input_raises(rng):
    good = rng.normal(size=(100, 2))
    with pytest.raises(ValueError, match="samples_p and samples_q: expected shapes"):
        c2st(good, good[:, :1], rng)
    with pytest.raises(ValueError, match="num_folds: expected 2 or more"):
        c2st(good[:24], 1 + good[:24], rng)
    with pytest.raises(ValueError, match="truths, draws and data: expected shapes"):
        LocalC2ST(good, good[:, :1], good, rng)
    with pytest.raises(ValueError, match="draws: expected finite numbers"):
        LocalC2ST(good, np.full_like(good, np.nan), good, rng)
    with pytest.raises(ValueError, match="num_null: expected at least 19"):
        LocalC2ST(good, good, good, rng, num_null=18)
    test = LocalC2ST(good, good, good, rng, num_null=19, num_steps=1)
    with pytest.raises(ValueError, match="draws and data: expected shapes"):
        test.test(good, good)
    with pytest.raises(ValueError, match="draws and data: expected finite numbers"):
        test.test(good, [0.0, np.nan])
