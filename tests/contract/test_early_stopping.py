"""Early stopping on a fixed bank: what is held out, when training ends and what is kept."""

import math

import numpy as np
import pytest

from tests.backends import small_guide

pytestmark = pytest.mark.compiles

NUM_BANK, NUM_HELD_OUT = 40, 4


def bank_of(host, num=NUM_BANK):
    return host.simulate(host.models.conjugate_normal, num)


def fitted(host, bank, num_steps=200, **options):
    """A guide that can learn a bank of 40 simulations by heart."""
    model = host.models.conjugate_normal
    guide = host.guide(
        model,
        observed="x",
        embedding=host.package.PlateEmbedding(8, (32,), num_rounds=1),
        densities=host.package.NormalDensity(hidden_dims=(64,)),
    )
    objective = host.package.NPE(32, simulations=bank)
    return host.fit(model, guide, objective, num_steps=num_steps, learning_rate=1e-2, **options)


def held_out_loss(host, amortized, bank):
    """Minus the mean log density at rows 9, 19, ... by hand; both sites have no plate or one."""
    rows = np.arange(len(bank)) % 10 == 9
    assert rows.sum() == NUM_HELD_OUT
    latents = {"z": np.asarray(bank["z"])[rows]}
    observations = {"x": np.asarray(bank["x"])[rows]}
    log_probs = host.site_log_probs(amortized, (), latents, observations)
    return -sum(part.reshape(NUM_HELD_OUT, -1).mean() for part in log_probs.values())


def test_the_best_parameters_are_kept(host):
    """40 simulations: training on goes the wrong way, which early stopping sees in time."""
    bank = bank_of(host)
    plain = fitted(host, bank)
    stopped = fitted(host, bank, patience=60)
    history = stopped.history
    assert plain.history.best_step is None
    assert len(plain.history.losses) == 200
    best = int(np.argmin(history.held_out_losses))
    assert history.best_step == history.held_out_steps[best]
    loss = held_out_loss(host, stopped, bank)
    assert loss == pytest.approx(history.held_out_losses[best], abs=1e-4)
    assert loss < held_out_loss(host, plain, bank) - 0.1
    # It ends where patience does, and looks more often than that.
    assert len(history.losses) == history.best_step + 60 < 200
    assert history.num_simulations == 32 * len(history.losses)
    assert np.diff(history.held_out_steps).max() <= 60 // 5
    assert f"at step {history.best_step}, which is kept" in str(history)
    assert type(history).from_dict(history.to_dict()).best_step == history.best_step


def test_rows_held_out_are_never_trained_on(host):
    """Every tenth row is another one: every step stays the same, what is measured does not."""
    bank = bank_of(host)
    is_held_out = np.arange(NUM_BANK) % 10 == 9
    poisoned = {
        name: host.array(np.where(is_held_out.reshape(-1, *[1] * (np.ndim(value) - 1)), 50, value))
        for name, value in bank.sites.items()
    }
    other = host.package.Simulations(poisoned, NUM_BANK, {})
    first, second = (fitted(host, each, 10, patience=10).history for each in (bank, other))
    np.testing.assert_array_equal(first.losses, second.losses)
    assert (second.held_out_losses > first.held_out_losses + 1).all()


def test_every_row_is_for_training_or_held_out(host):
    module, num = host.module("objectives.bank"), 101
    held_out = set(np.asarray(module.held_out_rows(num)).tolist())
    key = () if host.name == "pyro" else (host.key(0),)
    drawn = set(np.asarray(module.draw_rows(num, 5000, *key)).tolist())
    asked = set(np.asarray(module.draw_rows(num, 500, *key, is_held_out=True)).tolist())
    assert held_out == asked == set(range(9, 101, 10))
    assert drawn == set(range(num)) - held_out


@pytest.mark.parametrize("num_rows", [3, 64])
def test_all_rows_held_out_are_scored_once(host, num_rows):
    """In batches that do not fit their number, with rows that are not finite left out."""
    bank = bank_of(host)
    model = host.models.conjugate_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="x"))
    expected = held_out_loss(host, amortized, bank)
    objective = host.package.NPE(num_rows, simulations=bank)
    assert host.bank_loss(objective, model, amortized) == pytest.approx(expected, rel=1e-4)
    z = np.asarray(bank["z"]).copy()
    z[29] = math.nan
    lost = host.package.Simulations(bank.sites | {"z": host.array(z)}, NUM_BANK, {"z": 1})
    rows = [9, 19, 39]
    log_probs = host.site_log_probs(
        amortized, (), {"z": z[rows]}, {"x": np.asarray(bank["x"])[rows]}
    )
    expected = -sum(part.mean() for part in log_probs.values())
    objective = host.package.NPE(num_rows, simulations=lost, nonfinite="drop")
    assert host.bank_loss(objective, model, amortized) == pytest.approx(expected, rel=1e-4)


def test_a_held_out_loss_that_is_not_finite_is_not_better(host):
    stopping = host.module("early_stopping").EarlyStopping(patience=10)
    seen = []
    for step, loss in enumerate([math.nan, 2.0, math.inf, 1.0, math.nan, 1.0], 1):
        stopping.see(step, loss, f"state {step}")
        seen.append(stopping.best_step)
    assert seen == [1, 2, 2, 4, 4, 4]
    assert stopping.best_state == "state 4"
    stopping.see(13, 3.0, "state 13")
    assert not stopping.is_over
    stopping.see(14, 3.0, "state 14")
    assert stopping.is_over


def test_bad_input(host):
    model, package = host.models.conjugate_normal, host.package
    bank = bank_of(host)

    def fit(objective, **options):
        guide = small_guide(host, model, observed="x")
        return host.fit(model, guide, objective, num_steps=2, **options)

    with pytest.raises(ValueError, match="patience: expected at least 1 step, got 0"):
        fit(package.NPE(8, simulations=bank), patience=0)
    with pytest.raises(ValueError, match="patience: NPE has no fixed bank of simulations"):
        fit(package.NPE(8), patience=10)
    with pytest.raises(ValueError, match="patience: Trace_ELBO has no fixed bank"):
        fit(host.trace_elbo(), patience=10, args=(host.array(np.zeros(20)),))
    mixed = package.Mixed({package.NPE(8, simulations=bank): 1.0, host.trace_elbo(): 1.0})
    with pytest.raises(ValueError, match="patience: Mixed has no fixed bank"):
        fit(mixed, patience=10, args=(host.array(np.zeros(20)),))
    amortized = host.untrained(model, small_guide(host, model, observed="x"))
    with pytest.raises(ValueError, match="simulations: there is no bank"):
        host.bank_loss(package.NPE(8), model, amortized)
