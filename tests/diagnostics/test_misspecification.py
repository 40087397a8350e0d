"""Data that the model does not simulate: false alarms at the declared rate, and what is seen."""

import numpy as np
import pytest

from amortize_diagnostics import misspecification_test, typicality


def embedded(rng, num, *, shift=0.0, scale=1.0, contaminated=0.0, size=20):
    """Mean and log standard deviation of normal data sets, in place of a learned embedding."""
    data = shift + scale * rng.normal(size=(num, size))
    wild = rng.uniform(size=data.shape) < contaminated
    data = np.where(wild, 5.0 * rng.normal(size=data.shape), data)
    return np.stack([data.mean(1), np.log(data.std(1))], axis=1)


def test_p_values_of_the_models_own_data_are_uniform(rng):
    found = typicality(embedded(rng, 2000), embedded(rng, 4000))
    for level in (0.01, 0.05, 0.5):
        # Both the data and the simulations vary.
        error = np.sqrt(level * (1 - level) * (1 / 2000 + 1 / 2000))
        assert abs(np.mean(found.p_value <= level) - level) < 3.5 * error


@pytest.mark.parametrize(
    "wrong", [{"shift": 1.2}, {"scale": 2.2}, {"scale": 0.4}, {"contaminated": 0.3}]
)
def test_wrong_data_are_flagged_in_nearly_all_cases(rng, wrong):
    """At least 95 % of 200 data sets, at 5 % false alarms."""
    simulated = embedded(rng, 2000)
    found = typicality(embedded(rng, 200, **wrong), simulated)
    assert np.mean(found.p_value < 0.05) >= 0.95
    own = typicality(embedded(rng, 200), simulated)
    assert np.mean(own.p_value < 0.05) < 0.1


def test_what_the_embedding_cannot_see_is_not_found(rng):
    """An embedding of the mean alone is blind to an outer variance that leaves it as it is."""
    simulated = embedded(rng, 2000)[:, :1]
    same_means = embedded(rng, 200)[:, :1]  # of data whose variance nobody reads
    assert np.mean(typicality(same_means, simulated).p_value < 0.05) < 0.1


def test_several_data_sets_together_say_more_than_one(rng):
    simulated, observed = embedded(rng, 500), embedded(rng, 20, shift=0.25)
    alone = typicality(observed, simulated)
    assert np.mean(alone.p_value < 0.05) < 0.5
    assert misspecification_test(observed, simulated, rng).p_value < 0.05
    assert misspecification_test(embedded(rng, 20), simulated, rng).p_value > 0.05
    tripled = embedded(rng, 20, scale=3**0.5)
    assert misspecification_test(tripled, simulated, rng).p_value < 0.01


def test_features_that_never_move_flag_data_that_move_them(rng):
    simulated = np.concatenate([rng.normal(size=(400, 2)), np.zeros((400, 1))], axis=1)
    found = typicality([[0.0, 0.0, 0.0], [0.0, 0.0, 0.1]], simulated)
    assert found.p_value[0] > 0.5
    assert found.p_value[1] < 0.01
    assert abs(found.shifts[1, 2]) > 10
    assert misspecification_test(simulated[:5], simulated, rng).p_value > 0.05


def test_the_text_names_the_worst(rng):
    text = str(typicality([[0.0], [9.0], [5.0]], rng.normal(size=(1000, 1))))
    assert text.startswith("2 of 3 data sets are further from the simulations than 95 % of them")
    assert "data set 1: distance" in text.splitlines()[1]


def test_bad_input_raises(rng):
    good = rng.normal(size=(100, 2))
    with pytest.raises(ValueError, match="observed and simulated: expected shapes"):
        typicality(np.zeros((0, 2)), good)
    with pytest.raises(ValueError, match="observed and simulated: expected shapes"):
        typicality(np.zeros((1, 2, 2)), good)
    with pytest.raises(ValueError, match="simulated: expected at least 100 simulations, got 99"):
        typicality(good[:1], good[:99])
    with pytest.raises(ValueError, match="observed: expected finite features.*first of which is 1"):
        misspecification_test([[0.0, 0.0], [np.nan, 0.0]], good, rng)
