"""Rates and mutual information of guides: against closed forms of what the guide itself says."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from tests.backends import small_guide
from tests.problems import PROBLEMS

pytestmark = pytest.mark.compiles

NUM_ROWS = 40


def rows_guide(host):
    sizes = {"num_rows": "data", "batch_size": "data"}
    return small_guide(host, host.models.factor_analysis, observed="x", sizes=sizes)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=NUM_ROWS)


def rows_amortized(host, num, **options):
    return host.scrambled(host.models.factor_analysis, rows_guide(host), None, num, num, **options)


def rows_posterior(host, x, **options):
    return rows_amortized(host, len(x), **options).at(host.array(x), len(x), len(x))


def row_normals(host, amortized, x):
    """Mean and standard deviation of `q(z_i | x_i)` of the one normal latent, from its density."""
    args, data = (None, len(x), len(x)), {"x": x[None]}
    densities = [
        host.site_log_probs(amortized, args, {"z": np.full((1, len(x)), at)}, data)["z"]
        for at in (-1.0, 0.0, 1.0)
    ]
    low, mid, high = (density.astype(float).reshape(len(x)) for density in densities)
    precision = 2 * mid - low - high
    return (high - low) / (2 * precision), precision**-0.5


def divergence(mean, sd):
    return 0.5 * (mean**2 + sd**2 - 1 - 2 * np.log(sd))


def test_rates_and_information_of_rows(host, x):
    """A guide with random weights: its rate is that of a normal, its information an integral."""
    amortized = rows_amortized(host, NUM_ROWS, scale=0.4)
    mean, sd = row_normals(host, amortized, x)
    posterior = amortized.at(host.array(x), NUM_ROWS, NUM_ROWS)
    assert np.std(mean) > 0.05  # the rows differ, so that agreement means something
    rates = host.rates(posterior, 4000)
    assert rates.elements["z"].shape == (NUM_ROWS,)
    assert abs(rates.mean["z"] - divergence(mean, sd).mean()) < 5 * rates.se["z"]
    np.testing.assert_allclose(rates.elements["z"], divergence(mean, sd), rtol=0.15, atol=0.1)

    found = host.mutual_information(posterior, 500)
    z = np.linspace(-15, 15, 6001)
    log_q = norm.logpdf(z, mean[:, None], sd[:, None])
    log_mixture = logsumexp(log_q, axis=0) - np.log(NUM_ROWS)
    exact = np.sum(np.exp(log_q) * (log_q - log_mixture)) * (z[1] - z[0]) / NUM_ROWS
    assert found.num_data == NUM_ROWS
    assert found.mean == pytest.approx(exact, rel=0.05, abs=0.005)
    assert list(found.by_site) == ["z"]


def test_draws_of_vectors_meet_the_data_of_every_row(host):
    """Three rows of a latent with an event: each draw under each row, one pair at a time."""
    model, num = host.models.linear_auto_encoder, 3
    sizes = {"num_rows": "data", "batch_size": "data"}
    guide = small_guide(host, model, observed="x", sizes=sizes)
    amortized = host.scrambled(model, guide, None, num, num, scale=0.4)
    x = np.random.default_rng(2).normal(size=(num, 3))
    posterior = amortized.at(host.array(x), num, num)
    found, draws = (host.mutual_information(posterior, 5, seed=4), host.sample(posterior, 5, 4))
    crossed = np.empty((5, num, num))
    for i in range(num):
        everywhere = np.repeat(draws["z"][:, i : i + 1], num, axis=1)
        data = {"x": np.repeat(x[None], 5, axis=0)}
        density = host.site_log_probs(amortized, (None, num, num), {"z": everywhere}, data)["z"]
        crossed[:, i] = density.reshape(5, num)
    ratio = np.diagonal(crossed, axis1=1, axis2=2) - logsumexp(crossed, axis=2) + np.log(num)
    assert found.mean == pytest.approx(ratio.mean(), abs=1e-4)


def test_an_untrained_guide_has_no_information(host, x):
    """Its draws are the prior's, in whatever row."""
    found = host.mutual_information(rows_posterior(host, x, scale=1e-9), 20)
    assert abs(found.mean) < 1e-3


def test_information_of_data_sets_adds_up_over_sites(host):
    """Global and local latents at many data sets, against densities at one pair at a time."""
    model = host.models.hierarchical_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="y"), scale=0.3)
    y = np.random.default_rng(2).normal(size=(5, 8))
    many = amortized.at_each(observations={"y": host.array(y)})
    rates = host.rates(many, 50)
    assert rates.elements["mu"].shape == (5,)
    assert rates.elements["theta"].shape == (5, 8)

    num_draws = 6
    found = host.mutual_information(many, num_draws, seed=3)
    assert list(found.by_site) == ["mu", "theta"]
    assert found.mean == pytest.approx(sum(found.by_site.values()))
    draws = host.sample(many, num_draws, seed=3)
    crossed = np.empty((num_draws, 5, 5))
    for j in range(5):
        one = amortized.at(y=host.array(y[j]))
        for i in range(5):
            own = {name: value[:, i] for name, value in draws.items()}
            crossed[:, i, j] = host.log_prob(one, own)
    ratio = np.diagonal(crossed, axis1=1, axis2=2) - logsumexp(crossed, axis=2) + np.log(5)
    assert found.mean == pytest.approx(ratio.mean(), abs=2e-3)


def test_rates_add_up_to_the_divergence_of_the_whole(host):
    """Log joint less log likelihood is the prior: rates are what importance weights are made of."""
    model = host.models.two_locals
    amortized = host.scrambled(model, small_guide(host, model, observed="y"), scale=0.2)
    y = np.linspace(-1, 1, 4)
    posterior = amortized.at(y=host.array(y))
    rates, draws = host.rates(posterior, 200, seed=5), host.sample(posterior, 200, seed=5)
    likelihood = norm.logpdf(y, draws["level"], draws["spread"]).sum(1)
    ratio = host.log_prob(posterior, draws) - host.log_joint(posterior, draws) + likelihood
    total = sum(element.sum() for element in rates.elements.values())
    assert total == pytest.approx(ratio.mean(), rel=1e-3, abs=1e-3)


def test_plates_of_fixed_size_are_one_element(host):
    """A discrete latent whose plate no observed site carries is one event of the guide."""
    model = host.models.switches_in_a_plate
    guide = small_guide(host, model, observed="y", densities=None)
    amortized = host.scrambled(model, guide, scale=0.3)
    y = np.random.default_rng(3).normal(size=(4, 2))
    many = amortized.at_each(observations={"y": host.array(y)})
    rates = host.rates(many, 2000)
    assert rates.elements["b"].shape == (4,)
    # All eight values of the switches, by enumeration.
    values = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), axis=-1).reshape(8, 3)
    every = np.repeat(values[:, None], 4, axis=1)
    log_q = host.log_prob(many, {"b": every})
    probability = PROBLEMS["switches"].probability
    log_p = np.log(np.where(every, probability, 1 - probability)).sum(-1)
    exact = np.sum(np.exp(log_q) * (log_q - log_p), axis=0)
    np.testing.assert_allclose(rates.elements["b"], exact, atol=0.1)


def test_latents_that_rows_share_need_many_data_sets(host):
    model = host.models.hierarchical_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="y"))
    posterior = amortized.at(y=host.array(np.linspace(-1, 1, 8)))
    with pytest.raises(ValueError, match=r"site 'mu': mutual information needs many data"):
        posterior.mutual_information()
    assert set(host.rates(posterior, 10).mean) == {"mu", "theta"}


def test_too_few_of_anything_raise(host, x):
    with pytest.raises(ValueError, match="with num_data >= 2"):
        rows_posterior(host, x[:1]).mutual_information()
    with pytest.raises(ValueError, match="num_samples: expected at least 1"):
        rows_posterior(host, x).rates(0)
