"""Missing values: hidden from the guide, left out of the likelihood, right in every answer."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests.backends import small_guide

X = np.array([0.4, -1.0, 2.0, 0.3, 1.5, -0.2])
HOLES = np.where([True, False, True, True, False, True], X, np.nan)


def any_number(host, **options):
    model = host.models.rows_of_any_number
    guide = small_guide(
        host, model, observed="y", missing="y", sizes={"num_rows": "rows"}, **options
    )
    return model, guide


def scrambled(host, **options):
    model, guide = any_number(host, **options)
    return host.scrambled(model, guide, scale=0.1)


def log_prob(host, amortized, y, *args):
    latents = {"z": np.linspace(-1, 1, 5)}
    return host.log_prob(amortized.at(*args, y=host.array(y)), latents)


def test_what_is_missing_changes_nothing(host):
    """The posterior is that of the values which are there, wherever they stand."""
    amortized = scrambled(host)
    expected = log_prob(host, amortized, HOLES[~np.isnan(HOLES)], 4)
    for padded in (HOLES, np.append(HOLES, [np.nan] * 3), HOLES[::-1].copy()):
        found = log_prob(host, amortized, padded, len(padded))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(log_prob(host, amortized, X, 6) - expected).max() > 1e-3


def test_rows_without_a_value_change_nothing_in_their_group(host):
    model = host.models.grouped_normal
    guide = small_guide(
        host,
        model,
        observed="y",
        groups={"group": ("groups", "rows")},
        sizes={"num_groups": "groups"},
        missing="y",
    )
    group = np.array([0, 0, 1, 2, 2, 2])
    amortized = host.scrambled(model, guide, host.array(group), 4, scale=0.1)
    theta = np.random.default_rng(0).normal(size=(3, 4))
    latents = {"mu": np.linspace(-1, 1, 3), "tau": np.linspace(0.5, 1, 3), "theta": theta}

    def found(group, y):
        posterior = amortized.at(host.array(group), 4, y=host.array(y))
        return host.log_prob(posterior, latents)

    padded = np.append(group, [0, 2, 3]), np.append(X, [np.nan] * 3)
    np.testing.assert_allclose(found(*padded), found(group, X), rtol=1e-4, atol=1e-5)
    assert np.abs(found(group, HOLES) - found(group, X)).max() > 1e-3


def test_a_mask_argument_says_the_same_as_nan(host):
    by_nan = scrambled(host)
    model = host.models.rows_behind_a_mask
    guide = small_guide(host, model, observed="y", missing={"is_there": "y"})
    is_there = host.array(~np.isnan(HOLES))
    by_mask = host.scrambled(model, guide, is_there, scale=0.1)
    found = log_prob(host, by_mask, X, is_there)  # hidden values are not looked at
    np.testing.assert_allclose(found, log_prob(host, by_nan, HOLES, 6), rtol=1e-4, atol=1e-5)


def test_evidence_is_that_of_the_values_that_are_there(host):
    there = ~np.isnan(HOLES)
    exact = multivariate_normal(cov=np.eye(there.sum()) + 1).logpdf(HOLES[there])
    posterior = scrambled(host).at(y=host.array(HOLES))
    summary = host.importance_sample(posterior, 4000).summary
    assert abs(summary.log_evidence - exact) < 5 * summary.log_evidence_se + 1e-3
    tree = host.to_datatree(posterior, 50)
    assert np.isnan(tree["observed_data"]["y"].values).sum() == 2
    assert np.isfinite(tree["sample_stats"]["lp"].values).all()
    assert np.isfinite(tree["posterior_predictive"]["y"].values).all()


@pytest.mark.compiles
def test_local_posterior_of_a_missing_row_knows_the_others_only(host):
    model = host.models.counts_of_groups
    guide = small_guide(host, model, observed="y", missing="y", sizes={"num_groups": "groups"})
    amortized = host.scrambled(model, guide, scale=0.1)
    y = np.array([3.0, 0.0, np.nan, 1.0, 7.0])
    rate = np.exp(np.random.default_rng(0).normal(size=(4, 5)))
    latents = {"mu": np.linspace(-1, 1, 4), "rate": rate}

    def parts(data):
        return host.site_log_probs(amortized, (), latents, {"y": np.tile(data, (4, 1))})

    whole = parts(y)
    moved = parts(y[[0, 1, 3, 2, 4]])  # the hole goes to the fourth row
    np.testing.assert_allclose(moved["mu"].ravel(), whole["mu"].ravel(), rtol=1e-4, atol=1e-5)
    first, second = whole["rate"].reshape(4, 5), moved["rate"].reshape(4, 5)
    np.testing.assert_allclose(second[:, [0, 1, 4]], first[:, [0, 1, 4]], rtol=1e-4, atol=1e-4)
    assert np.abs(second[:, 3] - first[:, 3]).max() > 1e-3
    found = host.importance_sample(amortized.at(y=host.array(y)), 500)
    assert np.isfinite(found.log_weights).all()
    assert found.samples["rate"].shape == (500, 5)


def test_each_data_set_has_its_own_holes(host):
    amortized = scrambled(host)
    many = np.stack([X, HOLES, HOLES[::-1]])
    latents = {"z": np.tile(np.linspace(-1, 1, 5)[:, None], (1, 3))}
    posterior = amortized.at_each(observations={"y": host.array(many)})
    found = host.log_prob(posterior, latents)
    for column, y in enumerate(many):
        expected = log_prob(host, amortized, y, 6)
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-4, atol=1e-5)


def test_an_event_is_missing_as_a_whole(host):
    model = host.models.linear_gaussian_2
    guide = small_guide(host, model, observed="x", missing="x")
    amortized = host.scrambled(model, guide, scale=0.1)
    x = np.random.default_rng(0).normal(size=(20, 2))
    part, whole = x.copy(), x.copy()
    part[3, 1], whole[3] = np.nan, np.nan
    latents = {"z": np.random.default_rng(1).normal(size=(4, 2))}
    first, second = (
        host.log_prob(amortized.at(x=host.array(data)), latents) for data in (part, whole)
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.compiles
def test_npe_hides_values_and_a_function_can_say_which(host):
    model, guide = any_number(host, densities=host.package.NormalDensity())
    asked = []

    def every_other(*arguments):
        *_, site, shape = arguments
        asked.append((site, tuple(shape)))
        return host.array(np.tile(np.arange(shape[1]) % 2 == 0, (shape[0], 1)))

    objective = host.package.NPE(8, missing=every_other)
    history = host.fit(model, guide, objective, num_steps=3).history
    assert set(asked) == {("y", (8, 6))}
    assert np.isfinite(history.losses).all()
    objective = host.package.NPE(8, missing=0.9)
    assert np.isfinite(host.fit(model, guide, objective, num_steps=3).history.losses).all()


def test_gradients_of_the_hosts_bound_are_finite_with_nan_in_the_data(host):
    model, guide = any_number(host, densities=host.package.NormalDensity())
    guide.setup()
    before = host.weights(host.untrained(model, guide))
    objective = host.trace_elbo()
    amortized = host.fit(model, guide, objective, args=(6, host.array(HOLES)), num_steps=3)
    after = host.weights(amortized)
    assert all(np.isfinite(value).all() for value in after.values())
    assert any(np.abs(after[name] - before[name]).max() > 1e-4 for name in after)


def test_the_handler_leaves_nan_out_of_the_likelihood(host):
    model = host.package.fill_missing(host.models.rows_of_any_number)
    if host.name == "pyro":
        import pyro

        trace = pyro.poutine.trace(pyro.poutine.condition(model, {"z": host.array(0.5)}))
        trace = trace.get_trace(6, host.array(HOLES))
        trace.compute_log_prob()
        log_prob = trace.nodes["y"]["log_prob"].numpy()
        value = trace.nodes["y"]["value"].numpy()
    else:
        from numpyro import handlers

        seeded = handlers.seed(handlers.condition(model, {"z": host.array(0.5)}), host.key(0))
        site = handlers.trace(seeded).get_trace(6, host.array(HOLES))["y"]
        log_prob, value = np.asarray(site["fn"].log_prob(site["value"])), np.asarray(site["value"])
    there = ~np.isnan(HOLES)
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value[there], HOLES[there], rtol=1e-6)
    assert (log_prob[~there] == 0).all()
    expected = -0.5 * (HOLES[there] - 0.5) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob[there], expected, rtol=1e-5)


def test_saved_with_what_may_be_missing(host, tmp_path):
    amortized = scrambled(host)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(
        tmp_path / "guide.safetensors", host.models.rows_of_any_number
    )
    np.testing.assert_allclose(
        log_prob(host, loaded, HOLES, 6), log_prob(host, amortized, HOLES, 6), rtol=1e-5
    )


def test_structure_says_what_may_be_missing(host):
    _, guide = any_number(host)
    assert "y ['rows'] (values may be missing)" in str(guide.setup().structure)


@pytest.mark.parametrize(
    ("name", "missing", "expected"),
    [
        ("rows_of_any_number", "x", "missing 'x': expected one of the observed sites"),
        ("rows_behind_a_mask", {"there": "y"}, "missing 'there': the model has no such argument"),
        ("rows_behind_a_mask", "y", "site 'y': is masked, and the guide would not see by what"),
        ("rows_beside_a_mask", {"is_there": "y"}, "the density of site 'y' stays where the mask"),
    ],
)
def test_declarations_that_do_not_fit_the_model(host, name, missing, expected):
    guide = host.guide(getattr(host.models, name), observed="y", missing=missing)
    args = (host.array(np.array([True, False, True])),) if "mask" in name else ()
    with pytest.raises(ValueError, match="cannot be built for this model") as caught:
        guide.setup(*args)
    assert expected in str(caught.value)


def test_a_mask_that_is_not_boolean(host):
    guide = host.guide(host.models.rows_behind_a_mask, observed="y", missing={"is_there": "y"})
    with pytest.raises(ValueError, match="missing 'is_there': expected a boolean array, True"):
        guide.setup(host.array(np.array([1.0, 0.0])))


def test_hiding_values_from_a_guide_that_takes_none(host):
    model = host.models.rows_of_any_number
    guide = host.guide(model, observed="y", sizes={"num_rows": "rows"})
    with pytest.raises(ValueError, match="missing: this guide takes complete data only"):
        host.fit(model, guide, host.package.NPE(8, missing=0.3), num_steps=1)
    with pytest.raises(ValueError, match="missing: expected a fraction from 0 to below 1, got 1.5"):
        host.package.NPE(8, missing=1.5)


def test_infinite_data_are_refused_even_where_values_may_be_missing(host):
    amortized = scrambled(host)
    with pytest.raises(ValueError, match="observed site 'y': 1 of 6 values are NaN or infinite"):
        amortized.at(y=host.array(np.where(X > 1.9, np.inf, HOLES)))


def test_inputs_must_be_finite(host):
    model = host.models.eight_schools_noncentered
    sigma = np.linspace(9, 18, 8)
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"})
    amortized = host.untrained(model, guide, host.array(sigma))
    with pytest.raises(ValueError, match="input 'sigma': expected finite values, got NaN"):
        amortized.at(host.array(np.where(sigma > 17, np.nan, sigma)), y=host.array(sigma))
