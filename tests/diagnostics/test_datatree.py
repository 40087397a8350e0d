"""The ArviZ export: every ArviZ function that a user reaches for runs on it."""

import sys

import numpy as np
import pytest

from amortize_diagnostics import to_datatree

DIMS = {"theta": ["school"], "y": ["school"], "sigma": ["school"]}


@pytest.fixture
def eight_schools(rng):
    theta = rng.normal(size=(200, 8))
    groups = {
        "posterior": {"mu": rng.normal(size=200), "theta": theta, "tau": rng.gamma(2, size=200)},
        "prior": {"mu": rng.normal(size=50), "theta": rng.normal(size=(50, 8))},
        "posterior_predictive": {"y": theta + rng.normal(size=(200, 8))},
        "prior_predictive": {"y": rng.normal(size=(50, 8))},
        "log_likelihood": {"y": -0.05 * theta**2},
        "log_prior": {"mu": rng.normal(size=200), "theta": rng.normal(size=(200, 8))},
        "sample_stats": {
            "log_weight": rng.normal(size=200),
            "lp": 0.1 * rng.normal(size=200),
            "log_q": 0.1 * rng.normal(size=200),
        },
        "observed_data": {"y": np.linspace(-1.0, 1.0, 8)},
        "constant_data": {"sigma": np.ones(8)},
    }
    schools = {"school": list("ABCDEFGH")}
    return to_datatree(groups, dims=DIMS, coords=schools, attrs={"inference_library": "ours"})


def test_groups_dims_and_coords(eight_schools):
    assert dict(eight_schools["posterior"]["theta"].sizes) == {"chain": 1, "draw": 200, "school": 8}
    assert eight_schools["prior"].sizes["draw"] == 50
    assert eight_schools["observed_data"]["y"].dims == ("school",)
    assert eight_schools["constant_data"]["sigma"].dims == ("school",)
    assert eight_schools["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert eight_schools["sample_stats"]["log_weight"].dims == ("chain", "draw")
    assert list(eight_schools["posterior"]["school"].values) == list("ABCDEFGH")
    assert eight_schools.attrs["inference_library"] == "ours"


def test_arviz_summary_runs(eight_schools):
    from arviz_stats import summary

    assert list(summary(eight_schools).index)[:2] == ["mu", "theta[A]"]


def test_arviz_loo_runs(eight_schools):
    from arviz_stats import loo

    assert loo(eight_schools).n_data_points == 8


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # inside of compare
def test_arviz_compares(eight_schools):
    from arviz_stats import compare, loo

    table = compare({"first": loo(eight_schools), "second": loo(eight_schools)})
    assert set(table.index) == {"first", "second"}


def test_arviz_corrects_draws_of_a_guide_by_their_densities(eight_schools):
    from arviz_stats import loo_approximate_posterior

    stats = eight_schools["sample_stats"]
    assert loo_approximate_posterior(eight_schools, stats["lp"], stats["log_q"]).n_samples == 200


def test_arviz_sensitivity_to_the_prior_runs(eight_schools):
    from arviz_stats import psense

    for group in ("prior", "likelihood"):
        found = psense(eight_schools, var_names=["mu"], group=group)
        assert np.isfinite(float(found["mu"]))


@pytest.mark.parametrize(
    ("plot", "options"),
    [
        ("plot_forest", {"var_names": ["theta"]}),
        ("plot_ppc_dist", {}),
        ("plot_pair", {"var_names": ["mu", "tau"]}),
    ],
)
def test_arviz_plots_run(eight_schools, plot, options):
    import arviz_plots
    import matplotlib as mpl

    mpl.use("Agg")
    assert getattr(arviz_plots, plot)(eight_schools, backend="matplotlib", **options) is not None
    mpl.pyplot.close("all")


def test_arviz_khat_plot_runs(eight_schools):
    import matplotlib as mpl

    mpl.use("Agg")
    from arviz_plots import plot_khat
    from arviz_stats import loo

    validation = loo(eight_schools, pointwise=True)
    assert plot_khat(validation, backend="matplotlib") is not None
    mpl.pyplot.close("all")


def test_many_data_sets_have_an_axis_of_their_own(rng):
    tree = to_datatree(
        {
            "posterior": {"mu": rng.normal(size=(20, 3)), "theta": rng.normal(size=(20, 3, 8))},
            "prior": {"mu": rng.normal(size=5), "theta": rng.normal(size=(5, 8))},
            "log_likelihood": {"y": rng.normal(size=(20, 3, 8))},
            "sample_stats": {"log_weight": rng.normal(size=(20, 3))},
            "observed_data": {"y": np.zeros((3, 8))},
            "constant_data": {"sigma": np.ones(8)},
        },
        dims=DIMS,
        has_datasets=True,
    )
    draws = {"chain": 1, "draw": 20, "dataset": 3}
    assert dict(tree["posterior"].sizes) == draws | {"school": 8}
    assert dict(tree["posterior"]["mu"].sizes) == draws
    assert dict(tree["log_likelihood"].sizes) == draws | {"school": 8}
    assert dict(tree["sample_stats"].sizes) == draws
    assert dict(tree["observed_data"].sizes) == {"dataset": 3, "school": 8}
    assert dict(tree["prior"].sizes) == {"chain": 1, "draw": 5, "school": 8}
    assert dict(tree["constant_data"].sizes) == {"school": 8}


def test_values_are_in_place(rng):
    draws = rng.normal(size=(5, 2))
    tree = to_datatree({"posterior": {"z": draws}})
    np.testing.assert_array_equal(tree["posterior"]["z"].values[0], draws)


def test_chains_are_told_apart(rng):
    draws = rng.normal(size=(18, 2))
    groups = {"posterior": {"z": draws}, "prior": {"z": draws[:5]}}
    tree = to_datatree(groups, num_chains=3)
    np.testing.assert_array_equal(tree["posterior"]["z"].values, draws.reshape(3, 6, 2))
    assert tree["prior"].sizes["chain"] == 1
    with pytest.raises(ValueError, match="expected a divisor of the 18 draws in posterior, got 4"):
        to_datatree(groups, num_chains=4)


def test_unknown_group_raises():
    with pytest.raises(ValueError, match="groups: expected only posterior, prior.*got weights"):
        to_datatree({"weights": {"w": np.zeros(3)}})


@pytest.mark.parametrize("wrong", [np.zeros(4), np.float64(0.0)])
def test_draw_axes_of_different_length_raise(wrong):
    with pytest.raises(ValueError, match="posterior: expected arrays with one common leading draw"):
        to_datatree({"posterior": {"a": np.zeros(3), "b": wrong}})


def test_missing_arviz_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-amortize\[arviz\]'"):
        to_datatree({"posterior": {"a": np.zeros(3)}})
