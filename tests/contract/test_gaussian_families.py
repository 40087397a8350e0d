"""Normal and Student-t densities against closed forms, and every family of them in guides.

Tests of draws compare with the exact distribution at fixed seeds, and each p-value has to exceed
1e-4: about thirty of them in this file and in `test_mixture.py`, one failure in 300 changes of
the seeds.
"""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal
from scipy.stats import t as student

from tests.backends import numpy_tree

pytestmark = pytest.mark.compiles

LEAST_P_VALUE = 1e-4
CONTEXT = np.array([0.3, -1.0, 0.5])
# Options of every family beyond the independent normal.
FAMILIES = {
    "LowRankNormalDensity": {"rank": 1},
    "MixtureDensity": {"num_components": 3},
    "MultivariateNormalDensity": {},
    "StudentTDensity": {},
}


def score(host, density):
    """The log density as a function of values; in NumPyro one piece of code."""

    def log_prob(value):
        return density(host.array(CONTEXT), 0).log_prob(value)

    return import_module("jax").jit(log_prob) if host.name == "numpyro" else log_prob


def positive(raw, floor):
    """What maps outputs of networks to scales: above the floor, zero to one."""
    return floor + np.log1p(np.exp(raw + np.log(np.expm1(1 - floor))))


def build(host, family, event_size, num_sites=1, scale=0.3, **options):
    """A density with random weights."""
    spec = getattr(host.package, family)(hidden_dims=(8,), **(FAMILIES[family] | options))
    return host.scrambled_density(host.build_density(spec, num_sites, event_size, 3), scale)


def outputs_of(host, density):
    return numpy_tree(density.network(host.array(CONTEXT), 0)).astype(float)


def drawn(host, density, num=4000):
    return host.density_draw(density, np.tile(CONTEXT, (num, 1)))[0].astype(float)


def exact(host, density, family, size, *, floor=1e-6):
    """The distribution that the networks' outputs stand for, by SciPy."""
    outputs = outputs_of(host, density)
    loc, raw, rest = outputs[:size], outputs[size : 2 * size], outputs[2 * size :]
    if family == "StudentTDensity":
        softplus = np.log1p(np.exp(np.stack([raw, rest]) + np.log(np.expm1(1))))
        return student(2 + 8 * softplus[1], loc, softplus[0])
    scale = np.diag(positive(raw, floor))
    if family == "MultivariateNormalDensity":
        scale[np.tril_indices(size, -1)] = rest
        scale = np.tril(scale, -1) * np.diag(scale)[:, None] + np.diag(np.diag(scale))
        return multivariate_normal(loc, scale @ scale.T)
    rank = len(rest) // size
    start = np.array(host.module("densities.gaussian").spread_out(2 * rank, size)[:rank]).T
    directions = rest.reshape(size, rank) + 0.1 * start
    covariance = scale @ (np.eye(size) + directions @ directions.T) @ scale
    return multivariate_normal(loc, covariance)


CLOSED_FORMS = [
    ("MultivariateNormalDensity", 1, {}),
    ("MultivariateNormalDensity", 4, {"floor": 0.2}),
    ("LowRankNormalDensity", 4, {"floor": 0.2}),
    ("LowRankNormalDensity", 3, {"rank": 3}),
    ("StudentTDensity", 3, {}),
]


@pytest.mark.parametrize(("family", "size", "options"), CLOSED_FORMS)
def test_densities_and_gradients_are_the_closed_forms(host, rng, family, size, options):
    with host.double_precision():
        density = build(host, family, size, **options)
        floor = {"floor": options["floor"]} if "floor" in options else {}
        truth = exact(host, density, family, size, **floor)
        values = 2 * rng.normal(size=(20, size))
        found = host.density_log_prob(density, np.tile(CONTEXT, (20, 1)), values, 0)
        expected = truth.logpdf(values)
        expected = expected.sum(-1) if family == "StudentTDensity" else expected
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        if family == "StudentTDensity":
            return
        gradient = host.gradient(score(host, density), values[0])
        slope = -np.linalg.solve(truth.cov_object.covariance, values[0] - truth.mean)
        np.testing.assert_allclose(gradient, slope, rtol=1e-8)


@pytest.mark.parametrize(("family", "size", "options"), CLOSED_FORMS[::2])
def test_draws_follow_the_closed_forms(host, family, size, options):
    density = build(host, family, size, **options)
    truth = exact(host, density, family, size, **options)
    assert density(host.array(CONTEXT), 0).has_rsample
    draws = drawn(host, density)
    assert draws.shape == (4000, size)
    if family == "StudentTDensity":
        shares = truth.cdf(draws)
    else:
        whiten = np.linalg.cholesky(truth.cov_object.covariance)
        noise = np.linalg.solve(whiten, (draws - truth.mean).T).T
        # A direction that mixes all coordinates sees correlations, too.
        noise = np.c_[noise, noise.sum(-1) / np.sqrt(size)]
        shares = multivariate_normal(0, 1).cdf(noise[..., None])
    for column in shares.T:
        assert kstest(column, "uniform").pvalue > LEAST_P_VALUE


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_start_close_to_the_standard_normal(host, family):
    spec = getattr(host.package, family)(hidden_dims=(8,), **FAMILIES[family])
    density = host.build_density(spec, 1, 3, 3)
    draws = drawn(host, density)
    assert np.all(np.abs(draws.mean(0)) < 0.5)
    assert np.all(np.abs(np.log(draws.std(0))) < np.log(1.6))


@pytest.mark.parametrize("family", FAMILIES)
def test_density_integrates_to_one_in_two_dimensions(host, family):
    density = build(host, family, 2, scale=0.2)
    axis = np.linspace(-15, 15, 251)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_prob = host.density_log_prob(density, np.broadcast_to(CONTEXT, (len(grid), 3)), grid, 0)
    assert np.exp(log_prob).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_density_is_its_members_and_uses_its_context(host, rng, family):
    density = build(host, family, 3, num_sites=2)
    context, value = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3))
    together = host.density_log_prob(density, context, value)
    alone = [host.density_log_prob(density, context[site], value[site], site) for site in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    moved = host.density_log_prob(density, context + 0.1, value)
    assert np.all(np.abs(moved - together) > 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_far_values_have_finite_densities_and_gradients(host, family):
    density = build(host, family, 2)
    value = np.array([1e4, -1e4])
    log_prob = score(host, density)
    assert np.isfinite(numpy_tree(log_prob(host.array(value))))
    gradient = host.gradient(log_prob, value)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient != 0)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("MultivariateNormalDensity", {"floor": 0.0}, "floor: expected a positive number below 1"),
        ("MultivariateNormalDensity", {"floor": 1.0}, "floor: expected a positive .* got 1.0"),
        ("LowRankNormalDensity", {"rank": 0}, "rank: expected at least 1, got 0"),
        ("LowRankNormalDensity", {"floor": -1e-3}, "floor: expected a positive .* got -0.001"),
        ("StudentTDensity", {"min_df": 0.0}, "min_df: expected a positive number, got 0.0"),
        ("StudentTDensity", {"min_df": float("nan")}, "min_df: expected a positive number, got"),
        ("MixtureDensity", {"num_components": 0}, "num_components: expected at least 1, got 0"),
        ("MixtureDensity", {"covariance": "tied"}, "covariance: expected 'full' or 'diag', got 't"),
        ("MixtureDensity", {"floor": 0.0}, "floor: expected a positive number below 1, got 0.0"),
    ],
)
def test_options_out_of_range(host, family, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(host.package, family)(**options)


def test_rank_above_the_number_of_coordinates(host):
    spec = host.package.LowRankNormalDensity(rank=3)
    with pytest.raises(ValueError, match="rank: expected at most 2, the number of coordinates"):
        host.build_density(spec, 1, 2, 3)


@pytest.mark.parametrize("family", ["MultivariateNormalDensity", "MixtureDensity"])
def test_many_coordinates_with_a_full_covariance(host, family):
    spec = getattr(host.package, family)(hidden_dims=(1,))
    with pytest.warns(UserWarning, match=f"{family}.*: 51 coordinates take .* outputs"):
        host.build_density(spec, 1, 51, 1)
    host.build_density(spec, 1, 50, 1)  # no warning
    host.build_density(host.package.MixtureDensity(1, "diag", (1,)), 1, 60, 1)


# A vector on the simplex; a positive number, and one for each row.
GUIDES = {"simplex": {"u"}, "mixture_priors": {"u", "v"}}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_guides_train_are_weighed_and_stored(host, family, name, tmp_path):
    """On constrained supports, global and in a plate, by simulations and by a bound."""
    package, models = host.package, host.models
    model = models.with_support(name) if name == "simplex" else getattr(models, name)
    spec = getattr(package, family)(hidden_dims=(8,), **FAMILIES[family])
    embedding = package.PlateEmbedding(8, (16,), num_rounds=1)
    guide = host.guide(model, observed="y", densities=spec, embedding=embedding)
    y = host.array(np.array([0.2, 0.1, 0.4]))
    for objective, call in [(package.NPE(8), {}), (package.IWAE(2), {"y": y})]:
        amortized = host.fit(model, guide, objective, kwargs=call, num_steps=2)
        assert np.all(np.isfinite(amortized.history.losses))
    posterior = amortized.at(y=y)
    draws = host.sample(posterior, 100)
    assert set(draws) >= GUIDES[name]
    log_q = host.log_prob(posterior, draws)
    data = {"y": np.broadcast_to(np.asarray(y), (100, 3))}
    parts = host.site_log_probs(amortized, (), draws, data)
    total = sum(parts[site].reshape(100, -1).sum(1) for site in GUIDES[name])
    np.testing.assert_allclose(log_q, total, rtol=1e-4, atol=2e-3)
    assert np.all(np.isfinite(host.importance_sample(posterior, 50).log_weights))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    again = host.log_prob(loaded.at(y=y), draws)
    np.testing.assert_allclose(again, log_q, rtol=1e-6, atol=1e-6)
