"""What data cost a hierarchical model whose lower latents do not see them."""

import numpy as np
import pytest
from scipy.stats import norm

from tests.backends import numpy_tree, small_guide

MEANS = np.array([-1.0, 0.0, 2.0, 6.0])


def chain(host, **options):
    """`mu ~ N(0, 1)`, `theta ~ N(mu, 1/2)`, four rows `y ~ N(theta, 1)`; data of these means."""
    model = host.models.location_chain
    guide = small_guide(host, model, observed="y", **options)
    y = MEANS[:, None] + np.array([-1.0, -0.5, 0.5, 1.0])
    amortized = host.scrambled(model, guide, scale=0.1)
    return amortized.at_each(observations={"y": host.array(y)})


def made_exact(host, posterior, monkeypatch):
    """Draws and densities of the exact posterior in place of the guide's own."""
    rng, inner = np.random.default_rng(0), posterior._conditioned
    mean = 2 * MEANS / 3  # of mu given y; its variance is 1/3

    def theta_mean(mu):
        return (mu + MEANS) / 2  # its variance is 1/8

    def sample(num, *_):
        mu = mean + np.sqrt(1 / 3) * rng.normal(size=(num, 4))
        theta = theta_mean(mu) + np.sqrt(1 / 8) * rng.normal(size=(num, 4))
        return host.arrays({"mu": mu, "theta": theta})

    def site_log_probs(latents):
        values = numpy_tree(latents)
        found = {
            "mu": norm.logpdf(values["mu"], mean, np.sqrt(1 / 3)),
            "theta": norm.logpdf(values["theta"], theta_mean(values["mu"]), np.sqrt(1 / 8)),
        }
        return host.arrays(found)

    monkeypatch.setattr(inner, "sample", sample)
    monkeypatch.setattr(inner, "site_log_probs", site_log_probs)


@pytest.mark.compiles
def test_the_score_of_the_exact_posterior_is_its_closed_form(host, monkeypatch):
    """`E_q(mu | y) KL(p(theta | mu) || p(theta | mu, y))`; the bound is the log evidence."""
    posterior = chain(host)
    made_exact(host, posterior, monkeypatch)
    found = host.ood_score(posterior, ["theta"], 4000)
    exact = 0.5 * (1 - np.log(2) + 2 / 3) + MEANS**2 / 9
    assert np.all(np.abs(found.score - exact) < 4 * found.se)
    assert np.all(found.se < 0.1)
    deviations = np.sum(np.square([-1.0, -0.5, 0.5, 1.0]))
    # Of the mean, whose variance is 1 + 1/4 + 1/4, and of the deviations from it.
    exact_bound = norm.logpdf(MEANS, 0, np.sqrt(1.5)) - 0.5 * deviations
    exact_bound += -1.5 * np.log(2 * np.pi) - 0.5 * np.log(4)
    np.testing.assert_allclose(found.bound, exact_bound, atol=1e-3)
    np.testing.assert_allclose(found.skip_bound, found.bound - found.score, atol=1e-4)
    assert np.argmax(found.score) == 3
    assert "4 data, skipping theta: score" in str(found)


@pytest.mark.compiles
def test_nothing_skipped_is_no_score(host):
    found = host.ood_score(chain(host), [], 20)
    np.testing.assert_allclose(found.score, 0.0, atol=1e-4)
    assert "skipping nothing" in str(found)


@pytest.mark.compiles
def test_rows_of_one_data_set_have_scores_of_their_own(host):
    model = host.models.local_level_of_rows
    observed = [f"y_{step}" for step in range(3)]
    guide = small_guide(host, model, observed=observed, sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, scale=0.1)
    y = np.random.default_rng(0).normal(size=(3, 4))
    found = host.ood_score(amortized.at(y=host.array(y)), ["x_2"], 200)
    assert found.score.shape == found.bound.shape == (4,)
    np.testing.assert_allclose(found.score, found.bound - found.skip_bound, atol=1e-4)
    y[:, 1] += 30.0  # no other row sees it
    other = host.ood_score(amortized.at(y=host.array(y)), ["x_2"], 200)
    assert other.bound[1] < found.bound[1] - 100
    np.testing.assert_allclose(other.bound[[0, 2, 3]], found.bound[[0, 2, 3]], atol=0.5)


def test_what_cannot_be_skipped_is_refused(host):
    posterior = chain(host)
    with pytest.raises(ValueError, match="site 'theta': the guide draws it from .'mu'., which are"):
        host.ood_score(posterior, ["mu"], 5)
    for skip in (["phi"], ["mu", "theta"]):
        with pytest.raises(ValueError, match="skip: expected some but not all of the latents"):
            host.ood_score(posterior, skip, 5)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        host.ood_score(posterior, ["theta"], 0)
    model = host.models.location_chain
    amortized = host.scrambled(model, small_guide(host, model, observed="y"))
    one = amortized.at(y=host.array(np.zeros(4)))
    with pytest.raises(ValueError, match="site 'mu': ood_score needs many data"):
        host.ood_score(one, ["theta"], 5)
    ensemble = host.ensemble(
        [amortized, host.scrambled(model, small_guide(host, model, observed="y"))]
    )
    with pytest.raises(TypeError, match="ood_score: needs a guide of one chain of sites"):
        host.ood_score(ensemble.at_each(observations={"y": host.array(np.zeros((2, 4)))}), [], 5)
