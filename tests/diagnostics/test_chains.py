"""Convergence of chains: what ArviZ computes, and the verdict in words."""

import numpy as np
import pytest

from amortize_diagnostics import chain_summary


def test_independent_draws_are_worth_their_number(rng):
    draws = {"a": rng.normal(size=(4, 1000)), "b": rng.normal(size=(4, 1000, 2, 3))}
    found = chain_summary(draws, num_gradients=8000)
    assert found.ess["b"].shape == found.rhat["b"].shape == (2, 3)
    assert np.max(found.rhat["b"]) < 1.01
    assert 3000 < found.lowest_ess < 5000
    assert found.gradients_per_ess == 8000 / found.lowest_ess
    assert str(found).endswith("Verdict: the chains agree.")
    assert "4 chains of 1,000 draws, 8,000 gradient evaluations." in str(found)


def test_autocorrelated_draws_are_worth_less(rng):
    noise, value = rng.normal(size=(4, 1000)), np.zeros((4, 1000))
    for step in range(1, 1000):
        value[:, step] = 0.95 * value[:, step - 1] + noise[:, step]
    found = chain_summary({"z": value})
    assert 50 < found.lowest_ess < 300  # 4000 (1 - 0.95) / (1 + 0.95) = 103
    assert np.isnan(found.gradients_per_ess)


def test_chains_at_different_modes_do_not_agree(rng):
    draws = rng.normal(size=(4, 500)) + np.array([[0.0], [0.0], [3.0], [3.0]])
    assert "do not agree" in str(chain_summary({"z": draws}))


def test_divergences_and_few_draws_are_said(rng):
    many = {"z": rng.normal(size=(4, 500))}
    assert "some transitions diverged" in str(chain_summary(many, num_divergent=3))
    # The same draws thrice: chains that agree and are worth a third of what they hold.
    few = np.repeat(rng.normal(size=(4, 200)), 3, axis=1)
    found = chain_summary({"z": few})
    assert found.lowest_ess < 1000


def test_constants_are_left_out(rng):
    found = chain_summary({"z": rng.normal(size=(2, 100)), "one": np.ones((2, 100))})
    assert np.isnan(found.rhat["one"])
    assert found.lowest_ess == found.ess["z"]
    assert "(none moves)" in str(chain_summary({"one": np.ones((2, 100))}))


@pytest.mark.parametrize(
    "shapes", [{}, {"z": (5,)}, {"z": (2, 3)}, {"z": (2, 9), "a": (1, 9)}], ids=str
)
def test_shapes_that_do_not_belong_together(shapes):
    with pytest.raises(ValueError, match="draws: expected arrays of one common shape"):
        chain_summary({name: np.zeros(shape) for name, shape in shapes.items()})


def test_draws_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="draws of 'z': expected finite numbers, got 1 that are"):
        chain_summary({"z": np.array([[0.0, 1.0, np.nan, 2.0]])})
