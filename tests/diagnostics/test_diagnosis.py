"""One verdict at a data set: liars must not pass, the exact posterior must."""

import numpy as np
import pytest
from scipy.stats import norm

from amortize_diagnostics import (
    diagnosis,
    importance_summary,
    predictive_checks,
    typicality,
)

NUM = 4000


def weights(rng, loc=0.0, scale=1.0, size=None):
    """Log weights of draws of a normal guide for a standard normal posterior."""
    draws = loc + scale * rng.normal(size=(NUM,) if size is None else (NUM, size))
    return norm.logpdf(draws) - norm.logpdf(draws, loc, scale)


def test_the_exact_posterior_passes(rng):
    found = diagnosis(importance_summary(weights(rng)))
    assert found.use.tolist() == ["guide"]
    assert str(found).endswith("Verdict: Use the guide's draws.")


@pytest.mark.parametrize(
    ("name", "loc", "scale", "use"),
    [
        ("42 times too wide", 0.0, 42.0, "weighted"),  # k-hat alone passes it; 135 draws count
        ("12 times too wide", 0.0, 12.0, "weighted"),
        ("3 times too wide", 0.0, 3.0, "weighted"),
        ("5 times too narrow", 0.0, 0.2, "neither"),
        ("shifted by 1 sd", 1.0, 1.0, "weighted"),
        ("shifted by 6 sd", 6.0, 1.0, "neither"),
        ("a little too wide", 0.0, 1.2, "guide"),
    ],
)
def test_liars(rng, name, loc, scale, use):
    summary = importance_summary(weights(rng, loc, scale))
    found = diagnosis(summary)
    assert found.use.tolist() == [use]
    if scale > 1:
        assert summary.khat < summary.khat_threshold
    if use != "guide":
        assert "Guide's own draws: good" not in str(found)
        assert "Use the guide's draws" not in str(found)


def test_a_guide_far_too_wide_is_told_how_many_draws_would_do(rng):
    few = importance_summary(weights(rng, scale=20.0)[:1000])
    ess_fraction = np.sqrt(2 * 20.0**2 - 1) / 20.0**2
    assert few.ess_fraction == pytest.approx(ess_fraction, rel=0.4)
    assert few.khat < few.khat_threshold
    found = diagnosis(few)
    assert found.use.tolist() == ["neither"]
    assert "Few of the draws count: importance_sample(" in found.advice()
    assert "Guide's own draws: poor" in str(found)
    assert (
        "refine(...) at these data, or nuts()"
        in diagnosis(importance_summary(weights(rng, scale=0.2))).advice()
    )


def test_many_data_sets_are_sorted_by_trouble(rng):
    scales = np.array([1.0, 3.0, 0.2, 1.1])
    summary = importance_summary(weights(rng, 0.0, scales, size=4))
    simulated = rng.normal(size=(1000, 2))
    data = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [9.0, 0.0]])
    found = diagnosis(summary, typicality=typicality(data, simulated))
    assert found.use.tolist() == ["guide", "weighted", "neither", "guide"]
    assert found.is_model_doubtful.tolist() == [False, False, False, True]
    assert found.order.tolist() == [2, 1, 3, 0]
    lines = str(found).splitlines()
    assert lines[0] == (
        "4 data sets. Use: guide's draws for 2, weighted draws for 1, neither for 1. "
        "Model doubtful: 1."
    )
    assert [line.split()[0] for line in lines[2:6]] == ["2", "1", "3", "0"]
    assert "model doubtful" in lines[4]
    assert lines[-1].startswith("Verdict: refine(...) at those marked neither")
    assert "The data are unlike the model's simulations" in found.advice(3)


def test_tables_are_cut_and_a_poor_guide_is_to_be_trained(rng):
    found = diagnosis(importance_summary(weights(rng, 0.0, 30.0, size=25)))
    assert "...  15 with less trouble" in str(found)
    assert "poor at most of them: train longer" in str(found)
    good = diagnosis(importance_summary(weights(rng, size=3)))
    assert str(good).endswith("Verdict: the guide's draws are good everywhere.")
    wide = diagnosis(importance_summary(weights(rng, 0.0, 3.0, size=3)))
    assert "weighted draws wherever" in str(wide)


def test_predictive_checks_see_a_wrong_variance_and_accept_the_model(rng):
    num_datasets = 200
    spread = rng.lognormal(size=(1, num_datasets, 1))  # each data set has its own, known
    data = spread[0] * rng.normal(size=(num_datasets, 20))
    predicted = spread * rng.normal(size=(500, num_datasets, 20))
    found = predictive_checks({"y": data}, {"y": predicted})
    assert set(found.p_values) == {"y: mean", "y: sd", "y: min", "y: max"}
    assert np.mean(found.lowest < 0.05) < 0.09
    assert np.mean(found.lowest < 0.01) < 0.04
    for name in found.p_values:  # parameters are known, so that each is uniform
        assert abs(np.mean(found.p_values[name] < 0.2) - 0.2) < 0.1
    wrong = predictive_checks({"y": 3 * data}, {"y": predicted})
    assert np.mean(wrong.lowest < 0.05) > 0.99
    assert "y: " in str(wrong)


def test_predictive_checks_of_single_and_missing_values(rng):
    single = predictive_checks({"y": np.array([0.0, 9.0])}, {"y": rng.normal(size=(499, 2))})
    assert list(single.p_values) == ["y: value"]
    assert single.p_values["y: value"][1] == pytest.approx(2 / 500)
    assert single.lowest_name == ["y: value", "y: value"]
    data, predicted = rng.normal(size=(2, 6)), rng.normal(size=(400, 2, 6))
    data[0, :3], data[1] = np.nan, np.nan
    found = predictive_checks({"y": data}, {"y": predicted})
    own = np.mean(predicted[:, 0, 3:].mean(1) >= data[0, 3:].mean())
    assert found.p_values["y: mean"][0] == pytest.approx(2 * min(own, 1 - own), abs=0.01)
    assert found.lowest[1] == 1  # nothing there


def test_a_model_that_does_not_predict_the_data_is_named(rng):
    checks = predictive_checks({"y": np.full((1, 5), 8.0)}, {"y": rng.normal(size=(999, 1, 5))})
    found = diagnosis(importance_summary(weights(rng)), checks)
    assert found.is_model_doubtful.tolist() == [True]
    assert "The model does not predict the data (y: " in str(found)
    assert found.use.tolist() == ["guide"]  # the answer is right for this model


def test_without_weights_nothing_is_certified(rng):
    checks = predictive_checks({"y": np.zeros((1, 5))}, {"y": rng.normal(size=(99, 1, 5))})
    found = diagnosis(None, checks, notes=("the model has no density",))
    assert found.use.tolist() == ["neither"]
    assert "Verdict: No weights: nothing is known" in str(found)
    assert "Note: the model has no density." in str(found)
    many = predictive_checks({"y": np.zeros((3, 5))}, {"y": rng.normal(size=(99, 3, 5))})
    assert "Verdict: no weights" in str(diagnosis(None, many))


def test_weights_that_are_tied_do_not_hide_a_good_guide():
    tied = np.concatenate([np.full(500, np.log(1.2)), np.full(500, np.log(0.8))])
    summary = importance_summary(tied)
    found = diagnosis(summary)
    assert found.use.tolist() == ["guide"]


def test_bad_input(rng):
    with pytest.raises(ValueError, match="diagnosis: expected parts of one number of data sets"):
        diagnosis(None)
    checks = predictive_checks({"y": np.zeros((2, 5))}, {"y": np.zeros((9, 2, 5))})
    with pytest.raises(ValueError, match="'importance': 1, 'predictive': 2"):
        diagnosis(importance_summary(weights(rng)), checks)
    with pytest.raises(ValueError, match="observed: expected data of one site at least"):
        predictive_checks({}, {})
    with pytest.raises(ValueError, match="predicted 'y': expected shape"):
        predictive_checks({"y": np.zeros((2, 5))}, {"y": np.zeros((9, 3, 5))})
