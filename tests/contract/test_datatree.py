"""Everything about a posterior as an ArviZ DataTree."""

import numpy as np
import pytest
from scipy.special import logsumexp

from amortize_diagnostics import psis
from tests.backends import num_distinct, small_guide
from tests.problems import PROBLEMS

pytest.importorskip("arviz_base")
GROUPS = {
    "posterior",
    "prior",
    "posterior_predictive",
    "prior_predictive",
    "log_likelihood",
    "log_prior",
    "observed_data",
    "constant_data",
    "sample_stats",
}


@pytest.fixture
def posterior(host):
    model = host.models.eight_schools_noncentered
    sigma = host.array(np.linspace(9, 18, 8))
    guide = small_guide(host, model, observed="y", inputs={"sigma": "schools"})
    amortized = host.untrained(model, guide, sigma)
    return amortized.at(sigma, y=host.array(np.linspace(-5, 25, 8)))


def test_groups_dimensions_and_labels(host, posterior):
    names = list("ABCDEFGH")
    tree = host.to_datatree(posterior, 30, coords={"schools": names})
    assert set(tree.children) == GROUPS
    sizes = {"chain": 1, "draw": 30, "schools": 8}
    for group in ("posterior", "prior"):
        assert set(tree[group].data_vars) == {"mu", "tau", "z", "theta"}
        assert dict(tree[group]["theta"].sizes) == sizes
        assert dict(tree[group]["mu"].sizes) == {"chain": 1, "draw": 30}
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert dict(tree[group]["y"].sizes) == sizes
    assert list(tree["posterior"]["theta"].coords["schools"].values) == names
    np.testing.assert_allclose(tree["observed_data"]["y"], np.linspace(-5, 25, 8))
    np.testing.assert_allclose(tree["constant_data"]["sigma"], np.linspace(9, 18, 8))
    assert tree["constant_data"]["sigma"].dims == ("schools",)
    draws = tree["posterior"]
    np.testing.assert_allclose(
        draws["theta"], draws["mu"] + draws["tau"] * draws["z"], rtol=1e-3, atol=1e-4
    )


def test_log_weights_are_joint_minus_guide(host, posterior):
    from scipy.stats import norm

    tree = host.to_datatree(posterior, 30)
    stats = tree["sample_stats"]
    assert set(stats.data_vars) == {"lp", "log_q", "log_weight"}
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], rtol=1e-5)
    draws = {name: np.asarray(tree["posterior"][name])[0] for name in ("mu", "tau", "z")}
    np.testing.assert_allclose(
        np.asarray(stats["lp"])[0], host.log_joint(posterior, draws), rtol=1e-4
    )
    expected = norm.logpdf(
        np.linspace(-5, 25, 8), np.asarray(tree["posterior"]["theta"])[0], np.linspace(9, 18, 8)
    )
    np.testing.assert_allclose(
        np.asarray(tree["log_likelihood"]["y"])[0], expected, rtol=1e-3, atol=1e-3
    )


def test_log_prior_and_likelihood_are_the_joint_density(host, posterior):
    tree = host.to_datatree(posterior, 30)
    assert set(tree["log_prior"].data_vars) == {"mu", "tau", "z"}
    parts = [*tree["log_prior"].data_vars.values(), tree["log_likelihood"]["y"]]
    total = sum(np.asarray(part)[0].reshape(30, -1).sum(1) for part in parts)
    np.testing.assert_allclose(total, tree["sample_stats"]["lp"][0], rtol=1e-4, atol=1e-3)


def test_predictions_are_drawn_and_differ(host, posterior):
    tree = host.to_datatree(posterior, 40)
    for group in ("posterior_predictive", "prior_predictive"):
        values = np.asarray(tree[group]["y"])
        assert num_distinct(values) > 0.99
    assert not np.allclose(tree["posterior_predictive"]["y"], np.linspace(-5, 25, 8))


def test_arviz_summary(host, posterior):
    from arviz_stats import summary

    table = summary(host.to_datatree(posterior, 60), var_names=["mu", "tau", "theta"])
    assert len(table) == 10


@pytest.mark.compiles
def test_weighted_draws(host, posterior):
    tree = host.to_datatree(posterior, 50, is_weighted=True)
    assert dict(tree["posterior"]["theta"].sizes) == {"chain": 1, "draw": 50, "schools": 8}


def test_many_data_sets(host):
    model = host.models.nested_groups
    amortized = host.untrained(model, small_guide(host, model, observed="y"))
    data = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
    tree = host.to_datatree(amortized.at_each(observations={"y": data}), 20)
    lead = {"chain": 1, "draw": 20, "dataset": 3}
    assert dict(tree["posterior"]["mu"].sizes) == lead
    assert dict(tree["posterior"]["level"].sizes) == lead | {"groups": 4}
    assert dict(tree["log_likelihood"]["y"].sizes) == lead | {"groups": 4, "rows": 5}
    assert dict(tree["prior"]["level"].sizes) == {"chain": 1, "draw": 20, "groups": 4}
    assert dict(tree["observed_data"]["y"].sizes) == {"dataset": 3, "groups": 4, "rows": 5}


def test_event_plates_are_dimensions(host, rng):
    model = host.models.linear_regression
    features = host.array(rng.normal(size=(7, 3)))
    guide = small_guide(host, model, observed="y", inputs={"features": "rows"})
    amortized = host.untrained(model, guide, features)
    posterior = amortized.at(features, y=host.array(rng.normal(size=7)))
    tree = host.to_datatree(posterior, 25)
    assert dict(tree["posterior"]["slope"].sizes) == {"chain": 1, "draw": 25, "coefficients": 3}
    assert dict(tree["constant_data"]["features"].sizes) == {"rows": 7, "features_dim_0": 3}


def test_event_axes_have_names_and_labels_of_the_user(host, rng):
    model = host.models.linear_gaussian_2
    amortized = host.untrained(model, small_guide(host, model, observed="x"))
    num_rows = PROBLEMS["linear_gaussian_2"].num_rows
    posterior = amortized.at(x=host.array(rng.normal(size=(num_rows, 2))))
    options = {"dims": {"z": ["axis"]}, "coords": {"axis": ["east", "north"]}}
    tree = host.to_datatree(posterior, 25, **options)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "axis")
    assert list(tree["posterior"]["axis"].values) == ["east", "north"]
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "rows", "x_dim_0")
    with pytest.raises(ValueError, match="dims of 'z': expected a name for each of the 1 axes"):
        host.to_datatree(posterior, 25, dims={"z": ["axis", "other"]})
    with pytest.raises(ValueError, match="dims: expected sites of the model, z, x, got w"):
        host.to_datatree(posterior, 25, dims={"w": []})


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # a verdict on these few draws
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # inside of compare
def test_functions_of_arviz(host):
    """All that a user reaches for: tables, cross-validation, comparison, sensitivity, plots."""
    import arviz_plots as plots
    import arviz_stats as stats
    import matplotlib as mpl

    mpl.use("Agg")
    model = host.models.eight_schools_noncentered
    sigma = host.array(np.linspace(9, 18, 8))
    guide = small_guide(host, model, observed="y", inputs={"sigma": "schools"})
    amortized = host.untrained(model, guide, sigma)
    posterior = amortized.at(sigma, y=host.array(np.linspace(-3, 12, 8)))
    tree = host.to_datatree(posterior, 500, is_weighted=True, coords={"schools": list("ABCDEFGH")})
    assert "theta[H]" in stats.summary(tree).index
    validation = stats.loo(tree, pointwise=True)
    assert validation.n_data_points == 8
    assert validation.pareto_k.dims == ("schools",)
    table = stats.compare({"own": validation, "again": stats.loo(tree, pointwise=True)})
    assert set(table.index) == {"own", "again"}
    sensitivity = stats.psense(tree, var_names=["mu"], group="prior")
    assert np.isfinite(float(sensitivity["mu"]))
    assert np.isfinite(float(stats.psense(tree, var_names=["mu"], group="likelihood")["mu"]))
    for draw, options in (
        (plots.plot_forest, {"var_names": ["mu", "theta"]}),
        (plots.plot_ppc_dist, {}),
        (plots.plot_pair, {"var_names": ["mu", "tau"]}),
        (plots.plot_prior_posterior, {"var_names": ["mu"]}),
    ):
        assert draw(tree, backend="matplotlib", **options) is not None
    assert plots.plot_khat(validation, backend="matplotlib") is not None
    mpl.pyplot.close("all")


@pytest.mark.compiles
def test_leave_one_out_of_draws_of_a_guide_is_corrected_by_its_weights(host, posterior):
    """ArviZ takes `lp` and `log_q` as they are; weights of ours alone give the same answer."""
    from arviz_stats import loo_approximate_posterior

    tree = host.to_datatree(posterior, 500)
    found = loo_approximate_posterior(
        tree, tree["sample_stats"]["lp"], tree["sample_stats"]["log_q"], pointwise=True
    )
    assert found.approx_posterior
    log_weights = np.asarray(tree["sample_stats"]["log_weight"])[0]
    densities = np.asarray(tree["log_likelihood"]["y"])[0]
    pointwise = [
        logsumexp(psis(log_weights - row)[0] + row) for row in densities.T
    ]  # E[p(y_i | z)] over the posterior without y_i
    np.testing.assert_allclose(found.elpd_i, pointwise, rtol=1e-3, atol=0.05)
