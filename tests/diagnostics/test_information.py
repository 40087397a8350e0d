"""Rates and mutual information: closed forms of normals, and guides that ignore the data."""

import numpy as np
import pytest
from scipy.stats import norm

from amortize_diagnostics import mutual_information, site_rates


def pairs(rng, means, sd, num_draws=8):
    """`log q(z_i | x_j)` of normal guides at their own draws, `[draw, i, j]`."""
    z = means + sd * rng.normal(size=(num_draws, len(means)))
    return norm.logpdf(z[..., None], means, sd)


def posterior_means(rng, num, noise):
    """Means and standard deviation of the exact posterior of `x = z + noise`, `z ~ Normal(0, 1)`.

    The information is `log(1 + 1 / noise^2) / 2`.
    """
    x = rng.normal(size=num) + noise * rng.normal(size=num)
    return x / (1 + noise**2), noise / np.sqrt(1 + noise**2)


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])
def test_information_of_an_exact_posterior(rng, noise):
    found = mutual_information({"z": pairs(rng, *posterior_means(rng, 1000, noise))})
    exact = 0.5 * np.log1p(noise**-2)
    assert abs(found.mean - exact) < 4 * found.se
    assert found.se < 0.05
    assert found.num_data == 1000
    assert found.by_site == {"z": pytest.approx(found.mean)}


def test_a_guide_that_ignores_the_data_has_none_whatever_its_rate(rng):
    z = 2.0 + 0.5 * rng.normal(size=(400, 100))
    log_q = norm.logpdf(z, 2.0, 0.5)
    rates = site_rates({"z": log_q}, {"z": norm.logpdf(z)})
    divergence = 0.5 * (4 + 0.25 - 1 - np.log(0.25))
    assert abs(rates.mean["z"] - divergence) < 4 * rates.se["z"]
    found = mutual_information({"z": pairs(rng, np.full(100, 2.0), 0.5)})
    assert found.mean == pytest.approx(0.0, abs=1e-12)


def test_rate_is_information_and_distance_of_the_aggregate(rng):
    """At the exact posterior the aggregate is the prior, and the rate all information."""
    means, sd = posterior_means(rng, 2000, 0.5)
    z = means + sd * rng.normal(size=(8, 2000))
    rate = site_rates({"z": norm.logpdf(z, means, sd)}, {"z": norm.logpdf(z)})
    information = mutual_information({"z": norm.logpdf(z[..., None], means, sd)})
    assert rate.mean["z"] == pytest.approx(information.mean, abs=0.03)


def test_information_is_told_to_be_at_its_limit(rng):
    found = mutual_information({"z": pairs(rng, np.arange(50.0), 1e-3)})
    assert found.mean == pytest.approx(np.log(50))
    assert found.limit == np.log(50)
    assert "can show at most 3.912: take more data" in str(found)
    free = mutual_information({"z": pairs(rng, *posterior_means(rng, 200, 1.0))})
    assert "take more data" not in str(free)


def test_a_later_site_adds_what_it_knows_beyond_the_earlier(rng):
    means, sd = posterior_means(rng, 500, 1.0)
    log_q = pairs(rng, means, sd)
    # A copy of the first site adds nothing: given the first it does not depend on the data.
    copied = mutual_information({"z": log_q, "copy": np.zeros_like(log_q)})
    assert copied.by_site["copy"] == pytest.approx(0.0, abs=1e-12)
    other = pairs(rng, rng.permutation(means), sd)
    both = mutual_information({"z": log_q, "w": other})
    assert both.by_site["w"] > 0.2
    assert both.mean == pytest.approx(sum(both.by_site.values()))


def test_rates_by_element_and_site(rng):
    log_q = {"a": rng.normal(size=(50, 3)), "b": rng.normal(size=(50,))}
    rates = site_rates(log_q, {"a": np.zeros((50, 3)), "b": np.full(50, -1.0)})
    np.testing.assert_allclose(rates.elements["a"], log_q["a"].mean(0))
    assert rates.elements["b"].shape == ()
    assert rates.mean["b"] == pytest.approx(log_q["b"].mean() + 1.0)
    assert rates.se["b"] == pytest.approx(log_q["b"].std(ddof=1) / 50**0.5)
    assert str(rates).splitlines()[1].startswith("b: rate ")
    assert np.isnan(site_rates({"b": [1.0]}, {"b": [0.0]}).se["b"])


@pytest.mark.parametrize(
    ("guide", "prior", "message"),
    [
        ({"a": [0.0]}, {"b": [0.0]}, r"expected the same sites, got \['a'\] and \['b'\]"),
        ({}, {}, "expected the same sites"),
        ({"a": [0.0]}, {"a": [0.0, 0.0]}, "site 'a': expected two arrays of one shape"),
        ({"a": 0.0}, {"a": 0.0}, "site 'a': expected two arrays of one shape"),
        ({"a": [0.0]}, {"a": [-np.inf]}, "site 'a': expected finite log densities, got 1 of 1"),
    ],
)
def test_rates_of_densities_that_do_not_fit_raise(guide, prior, message):
    with pytest.raises(ValueError, match=message):
        site_rates(guide, prior)


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        ({}, "log_prob: expected one site or more"),
        ({"z": np.zeros((2, 1, 1))}, "with num_data >= 2"),
        ({"z": np.zeros((3, 3))}, r"expected shape \(num_draws, num_data, num_data\)"),
        (
            {"z": np.zeros((1, 2, 2)), "w": np.zeros((2, 2, 2))},
            r"site 'w': expected shape \(1, 2, 2\)",
        ),
        ({"z": np.full((1, 2, 2), np.nan)}, "site 'z': expected numbers or -inf"),
        ({"z": np.full((1, 2, 2), -np.inf)}, "site 'z': densities of draws at their own data"),
    ],
)
def test_densities_that_do_not_fit_raise(log_prob, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(log_prob)
