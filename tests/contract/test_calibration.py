"""One call that judges a guide as a whole, on every kind of model."""

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.backends import numpy_tree, small_guide
from tests.conftest import require
from tests.contract.test_ensemble import QUICK, Y, mixture_of
from tests.shapes import SHAPES


def judged(host, name, num_datasets=60, num_draws=40, **options):
    """The check of a guide with random weights for a model of the tests."""
    shape, model = SHAPES[name], getattr(host.models, name)
    guide = small_guide(host, model, observed=shape.observed, **shape.options)
    arguments = {
        key: host.array(value) if isinstance(value, np.ndarray) else value
        for key, value in shape.arguments.items()
    }
    amortized = host.scrambled(model, guide, scale=shape.scale, **arguments)
    return host.check_calibration(amortized, num_datasets, num_draws, **options)


@pytest.fixture
def conjugate(host):
    """A guide that is close to exact: one density of the right family, trained."""
    model = host.models.conjugate_normal
    guide = host.guide(model, observed="x", densities=host.package.NormalDensity())
    objective = host.package.NPE(256)
    return host.fit(model, guide, objective, num_steps=500, learning_rate=5e-3)


@pytest.mark.compiles
def test_a_trained_guide_is_accepted_and_a_shifted_one_is_not(host, conjugate):
    found = host.check_calibration(conjugate, 300, 299)
    assert found.is_accepted
    assert set(found.pit) >= {"z", "log_likelihood", "log_joint", "density_region", "tarp_data"}
    contraction = float(found.recoveries["z"].mean_contraction)
    assert abs(contraction - float(found.recoveries["z"].correlation) ** 2) < 0.1
    wrong = host.check_calibration(host.shifted(conjugate, 0.12), 300, 299)
    assert wrong.verdict.startswith("not calibrated: z too high")


@pytest.mark.compiles
def test_blocks_that_memory_sets_hold_all_draws_and_no_more(host, monkeypatch):
    monkeypatch.setattr(host.module("conditioned"), "ROWS_AT_ONCE", 7 * 60 * 2)
    found = judged(host, "conjugate_normal", 60, 40)
    assert found.num_draws == 40
    assert np.all(found.pit["z"] < 1)


@pytest.mark.compiles
def test_a_classifier_judges_the_guide_given_the_data(host):
    """A guide with random weights is wrong everywhere; local latents and data with gaps too."""
    found = judged(host, "nested_groups", 60, 40, num_local=300)
    row = next(row for row in found.rows if row.check == "local (L-C2ST)")
    assert row.is_rejected
    assert found.local_errors.shape == (60,)
    assert found.to_datatree()["prior_sbc"]["local"].sizes == {"chain": 1, "draw": 60}


@pytest.mark.slow
def test_a_classifier_accepts_a_trained_guide(host, conjugate):
    found = host.check_calibration(conjugate, 300, 99, num_local=1000)
    assert found.is_accepted
    wrong = host.check_calibration(host.shifted(conjugate, 0.12), 300, 99, num_local=1000)
    assert "wrong given the data" in str(wrong)


@pytest.mark.compiles
def test_local_latents_are_ranked_one_by_one_and_pooled(host):
    found = judged(host, "eight_schools_noncentered")
    checks = [(row.site, row.check) for row in found.rows]
    assert ("mu", "ranks") in checks
    assert ("z", "ranks, each of 5") in checks
    assert ("z", "ranks, 5 pooled") in checks
    assert found.pit["z"].shape == (60, 5)
    assert "site 'tau': its prior has heavy tails" in str(found)
    group = found.to_datatree()["prior_sbc"]
    assert group["z"].dims == ("chain", "draw", "schools")
    assert group["mu"].dims == ("chain", "draw")


@pytest.mark.compiles
@pytest.mark.parametrize(
    "name", ["grouped_normal", "crossed_effects", "mixture_priors", "wide_supports", "two_locals"]
)
def test_models_of_every_shape_are_judged(host, name):
    found = judged(host, name, 50, 20)
    assert all(np.all((ranks > 0) & (ranks < 1)) for ranks in found.pit.values())
    assert found.to_datatree()["prior_sbc"].sizes["draw"] == 50


@pytest.mark.compiles
def test_discrete_latents_are_ranked_with_ties_broken(host):
    """The exact posterior of a count has ties in most draws."""
    model = host.models.poisson_count
    guide = host.guide(model, observed="y")
    amortized = host.fit(model, guide, host.package.NPE(256), num_steps=400, learning_rate=5e-3)
    found = host.check_calibration(amortized, 200, 99)
    assert next(row for row in found.rows if row.site == "k").p_value > 0.05
    assert len(np.unique(found.pit["k"])) == 200


@pytest.mark.compiles
def test_missing_values_and_alternatives_are_part_of_the_data(host):
    model = host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", missing="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, scale=0.1)
    assert "nothing is missing in these data" in str(host.check_calibration(amortized, 50, 20))
    found = host.check_calibration(amortized, 50, 20, missing=0.5)
    assert "nothing is missing" not in str(found)
    either = small_guide(
        host,
        host.models.two_sources,
        observed=[("y",), ("y", "w")],
        sizes={"num_rows": "rows"},
    )
    amortized = host.scrambled(host.models.two_sources, either, scale=0.1)
    found = host.check_calibration(amortized, 50, 20)
    assert "one of the alternatives of sites, drawn at random" in str(found)
    with pytest.raises(ValueError, match="missing: this guide takes complete data only"):
        host.check_calibration(amortized, 50, 20, missing=0.5)


@pytest.mark.compiles
def test_an_ensemble_is_judged_by_the_density_of_its_mixture(host):
    _, ensemble = mixture_of(host, QUICK)
    data = {"y": host.array(Y[QUICK])}
    key = [host.key(1)] if host.name == "numpyro" else []
    draws, densities = ensemble._at((), {}, data).draw_with_density(5, *key)
    expected = host.log_prob(ensemble.at_each(observations=data), numpy_tree(draws))
    np.testing.assert_allclose(numpy_tree(densities), expected, rtol=1e-4, atol=1e-4)
    assert host.check_calibration(ensemble, 50, 20).pit["density_region"].shape == (50,)


@pytest.mark.compiles
def test_a_guide_without_density_is_judged_by_its_draws(host):
    model = host.models.conjugate_normal
    density = host.package.ConsistencyDensity(hidden_dims=(8,))
    guide = host.guide(model, observed="x", densities=density)
    found = host.check_calibration(host.scrambled(model, guide), 50, 20)
    assert "density_region" not in found.pit
    assert "density regions are not certified: site 'z'" in str(found)


def test_a_model_without_density_says_what_is_not_certified(host, monkeypatch):
    def none(self, latents):
        raise NotImplementedError("Simulator.log_prob")

    kind = host.module("conditioned").ConditionedGuide
    monkeypatch.setattr(kind, "site_densities", none)
    found = judged(host, "conjugate_normal", 50, 20)
    assert "the model has no density (Simulator.log_prob): its log likelihood is not" in str(found)
    assert "log_likelihood" not in found.pit
    assert "tarp_data" in found.pit


@pytest.mark.compiles
def test_simulations_that_are_not_finite_are_left_out_and_counted(host, monkeypatch):
    model = host.models.sometimes_nan
    guide = small_guide(host, model, observed="y")
    amortized = host.scrambled(model, guide)
    found = host.check_calibration(amortized, 50, 20)
    assert "of 1050 simulations were not finite and were left out" in str(found)
    calibration = host.module("calibration")
    monkeypatch.setattr(calibration, "finite_rows", lambda _: host.array(np.arange(1050) < 80))
    with pytest.raises(ValueError, match="simulations: expected 50 finite data sets or more"):
        host.check_calibration(amortized, 50, 20)


def test_pyro_model_that_cannot_be_vectorised_is_judged_at_fewer_draws():
    """In NumPyro `vmap` takes every model."""
    require("pyro")
    host = host_of("pyro")
    model = host.models.cross_plate_sum
    amortized = host.scrambled(model, small_guide(host, model, observed="y"))
    with pytest.warns(UserWarning, match="cannot be vectorised"):
        found = host.check_calibration(amortized, 50, 30)
    assert "its density was evaluated at 20 draws of each data set" in str(found)
    assert "log_likelihood" in found.pit


def test_bad_input_raises(host):
    model = host.models.conjugate_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="x"))
    with pytest.raises(ValueError, match="num_datasets: expected at least 50 data sets, got 49"):
        host.check_calibration(amortized, 49)
    with pytest.raises(ValueError, match="num_draws: expected at least 20 draws"):
        host.check_calibration(amortized, 50, 19)
    with pytest.raises(ValueError, match="num_local: expected 0 or at least 100, got 99"):
        host.check_calibration(amortized, 50, 20, num_local=99)
    factor = host.models.with_factor
    amortized = host.scrambled(factor, small_guide(host, factor, observed="y"))
    with pytest.raises(ValueError, match="factor site 'push': simulations do not see a factor"):
        host.check_calibration(amortized, 50, 20)
    schools = host.models.eight_schools_noncentered
    guide = host.guide(schools, observed="y", inputs={"sigma": "schools"})
    with pytest.raises(TypeError, match=r"args: expected the model's arguments.*sigma"):
        host.check_calibration(host.package.AmortizedPosterior(schools, guide), 50, 20)
