"""A classifier that looks for errors given the data: what cancels over all of them."""

import numpy as np
import pytest
from scipy.stats import norm

from amortize_diagnostics import CalibrationRun, LocalErrors
from amortize_diagnostics.calibration_table import CalibrationTable
from amortize_diagnostics.tally import Tally

NOISE = 0.5
MEAN, SD = 1 / (1 + NOISE**2), NOISE / np.sqrt(1 + NOISE**2)


def simulated(rng, num):
    z = rng.normal(size=num)
    return z, z + NOISE * rng.normal(size=num)


def drawn(name, y, num, rng):
    """Draws of the exact posterior; or too narrow at y > 0 and as much too wide at y < 0.

    The truth has the rank `v` with density `1 + s cos(2 pi v)`, `s` of either sign: over both
    halves of the data its ranks are uniform.
    """
    strength = np.where(y > 0, 0.8, -0.8) if name == "liar" else 0.0
    v = rng.uniform(size=(num, *y.shape))
    return MEAN * y + SD * norm.ppf(v + strength / (2 * np.pi) * np.sin(2 * np.pi * v))


def learned(name, rng, num=2000, **options):
    z, y = simulated(rng, num)
    return LocalErrors({"z": z}, {"z": drawn(name, y, 40, rng)}, y[:, None], rng, **options)


def checked(name, rng):
    """All checks of a guide, the local one among them."""
    network = learned(name, rng)
    z, y = simulated(rng, 300)
    past, past_y = simulated(rng, 1000)
    local = network.at({"z": drawn(name, y, 40, rng)}, y[:, None])
    draws = drawn(name, y, 299, rng)

    def densities(z):
        likelihood = norm.logpdf(y, z, NOISE)
        return {"log_likelihood": likelihood, "log_joint": likelihood + norm.logpdf(z)}

    run = CalibrationRun(
        {"z": z},
        rng,
        densities=densities(z),
        past={"z": past},
        data=y[:, None],
        past_data=past_y[:, None],
        local=local,
    )
    for block in np.split(draws, [100]):
        run.add({"z": block}, densities=densities(block))
    return run.result(), y


def test_the_exact_posterior_is_accepted(rng):
    found, _ = checked("exact", rng)
    assert found.is_accepted
    assert found.pit["local"].shape == found.local_errors.shape == (300,)
    assert "local (L-C2ST)" in str(found)
    assert "no draw can be told from a truth" in str(found)


def test_errors_that_cancel_over_the_data_are_seen_by_it_alone(rng):
    """Too narrow at one half of the data, too wide at the other."""
    found, y = checked("liar", rng)
    rejected = [row.check for row in found.rows if row.is_rejected]
    assert rejected == ["local (L-C2ST)"]
    assert found.verdict.startswith("not calibrated: all latents: wrong given the data, most so at")
    exact, _ = checked("exact", np.random.default_rng(1))
    assert found.local_errors.mean() > 3 * exact.local_errors.mean()


def test_log_odds_say_where_there_is_too_much_mass(rng):
    network = learned("liar", rng)
    at = network.at({"z": drawn("liar", np.array([1.5]), 40, rng)}, [[1.5]])
    middle, outside = at({"z": np.array([[1.5 * MEAN], [1.5 * MEAN + 2.2 * SD]])}, batch_dims=2)
    assert middle[0] > 0 > outside[0]


def test_false_alarms_are_at_most_those_declared(rng):
    """200 repetitions with fresh data of one network, whatever it has learned."""
    network = learned("exact", rng, num=500, num_steps=100)
    rejected = []
    for _ in range(200):
        z, y = simulated(rng, 60)
        at = network.at({"z": drawn("exact", y, 20, rng)}, y[:, None])
        tally = Tally("log odds", at({"z": z}))
        tally.add(at({"z": drawn("exact", y, 49, rng)}, batch_dims=2))
        table = CalibrationTable(rng)
        table.add_local(tally.ranks(rng).pit, np.zeros(60))
        rejected.append(table.adjusted()[0].is_rejected)
    assert np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_many_latents_are_thinned_and_constant_ones_left_out(rng):
    z = rng.normal(size=(100, 30))
    z[:, 0] = 1.0
    draws = rng.normal(size=(20, 100, 30))
    draws[..., 0] = 1.0
    network = LocalErrors({"z": z}, {"z": draws}, z[:, :2], rng, num_steps=5)
    assert network.num_left_out == 13
    run = CalibrationRun(
        {"z": z}, rng, local=network.at({"z": rng.normal(size=(20, 100, 30))}, z[:, :2])
    )
    run.add({"z": draws})
    assert "the local check leaves out 13 numbers" in str(run.result())


def test_bad_input_raises(rng):
    z, draws, data = rng.normal(size=100), rng.normal(size=(20, 100)), rng.normal(size=(100, 2))
    with pytest.raises(ValueError, match=r"draws: expected the sites \['z'\] of the truths"):
        LocalErrors({"z": z}, {"w": draws}, data, rng)
    with pytest.raises(ValueError, match="truths, draws and summaries: expected .* 20 draws"):
        LocalErrors({"z": z}, {"z": draws[:19]}, data, rng)
    with pytest.raises(ValueError, match="summaries: expected finite numbers"):
        LocalErrors({"z": z}, {"z": draws}, np.full_like(data, np.nan), rng)
    with pytest.raises(ValueError, match="truths: expected latents that vary"):
        LocalErrors({"z": np.ones(100)}, {"z": draws}, data, rng)
