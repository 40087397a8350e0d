"""Trajectory balance, on and off the guide's own draws, against quadrature and closed forms."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import norm

from tests.contract.test_model_parameters import Y
from tests.losses import EXACT, OFF, X, evaluate, loss_without_jit, of_rows

pytestmark = pytest.mark.compiles

# Of KL(q || p) at OFF in mean and log_sd: half the mean gradient on the guide's own draws.
DIVERGENCE = np.array([2 * OFF["mean"] - X, 2 * np.exp(2 * OFF["log_sd"]) - 1])
EVIDENCE = norm.logpdf(X, 0.0, np.sqrt(2.0))
K, NOISE = 8, 1.5
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)  # exact for these polynomials
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


def log_weight_and_gradients(z):
    """Log p - log q at OFF, and its gradients in mean and log_sd where z is held fixed."""
    mean, sd = OFF["mean"], np.exp(OFF["log_sd"])
    log_weight = norm.logpdf(z) + norm.logpdf(X, z) - norm.logpdf(z, mean, sd)
    return log_weight, -np.stack([(z - mean) / sd**2, ((z - mean) / sd) ** 2 - 1])


def expected(*, leaks=False):
    """Value and gradient of the mean sample variance over K draws, every second with noise."""
    mean, sd = OFF["mean"], np.exp(OFF["log_sd"])
    log_weights, gradients = [], []
    for noise in NOISE * (np.arange(K) % 2):
        own, added = np.meshgrid(NODES, NODES)
        z = mean + sd * own + noise * added
        log_weight, gradient = log_weight_and_gradients(z)
        if leaks:  # through the draws: d z / d mean = 1, d z / d log_sd = sd own
            slope = -z + (X - z) + (z - mean) / sd**2
            gradient = gradient + slope * np.stack([np.ones_like(z), sd * own])
        log_weights.append(log_weight)
        gradients.append(gradient)
    joint = np.outer(WEIGHTS, WEIGHTS)
    log_weights, gradients = np.stack(log_weights), np.stack(gradients, 1)
    level = (joint * log_weights).sum((1, 2))
    slope = (joint * gradients).sum((2, 3))
    variance = (joint * log_weights**2).sum((1, 2)) - level**2
    covariance = (joint * log_weights * gradients).sum((2, 3)) - level * slope
    value = variance.mean() + level.var(ddof=1)
    between = ((level - level.mean()) * (slope - slope.mean(1, keepdims=True))).sum(1) / (K - 1)
    return value, 2 * covariance.mean(1) + 2 * between


def of_each_row(host, written, objective, num_rows=40_000):
    """The loss, and the gradients in mean and log_sd that each row would have by itself."""
    loss, gradient = of_rows(host, written, objective, OFF, num_rows)
    return -loss * num_rows, np.stack([-gradient[name] * num_rows for name in OFF])


def test_value_and_gradient_off_the_guides_own_draws(host, written):
    value, gradient = expected()
    objective = host.package.TrajectoryBalance(K, noise=NOISE)
    loss, found = of_each_row(host, written, objective)
    assert loss == pytest.approx(value, rel=0.03)
    se = found.std(1) / np.sqrt(found.shape[1])
    assert (np.abs(found.mean(1) - gradient) < 4 * se).all()
    # Gradients that leak through the draws would be seen.
    assert (np.abs(found.mean(1) - expected(leaks=True)[1]) > 20 * se).any()


def test_without_noise_it_is_self_consistency(host, written):
    package = host.package
    found, same = (
        of_rows(host, written, objective, OFF, 100)
        for objective in (package.TrajectoryBalance(K), package.SelfConsistency(K))
    )
    assert found[0] == same[0]
    for name in OFF:
        np.testing.assert_array_equal(found[1][name], same[1][name])


def claimed(host, written, objective, params, num_rows):
    """Loss and gradients of rows with a claim of their evidence; `(num_rows,)` or scalars."""
    params = {name: np.broadcast_to(value, num_rows) for name, value in params.items()}
    x = host.array(np.full(num_rows, X))
    models = written.rows, written.guide_of_rows_and_evidence
    found = evaluate(host, objective, *models, params, x)
    return found["loss"][0], {name: value[0] for name, value in found["gradient"].items()}


def test_gradients_with_a_claimed_evidence(host, written):
    """Twice those of the divergence whatever the claim, which is pulled to the bound."""
    num = 100_000
    objective = host.package.TrajectoryBalance(2, log_z="amortized")
    params = OFF | {"claimed": -2.0}
    _, gradient = claimed(host, written, objective, params, num)
    means = {name: value.mean() * num for name, value in gradient.items()}
    se = {name: value.std() * np.sqrt(num) for name, value in gradient.items()}
    assert means["mean"] == pytest.approx(2 * DIVERGENCE[0], abs=4 * se["mean"])
    assert means["log_sd"] == pytest.approx(2 * DIVERGENCE[1], abs=4 * se["log_sd"])
    bound = (
        WEIGHTS * log_weight_and_gradients(OFF["mean"] + np.exp(OFF["log_sd"]) * NODES)[0]
    ).sum()
    assert means["claimed"] == pytest.approx(2 * (-2.0 - bound), abs=4 * se["claimed"])
    assert max(se.values()) < 0.05


def test_the_variance_is_what_the_best_claim_leaves(host, written):
    """At the same draws."""
    num, kind = 50, host.package.TrajectoryBalance

    def at(claim):
        objective = kind(K, log_z="amortized", noise=NOISE)
        return claimed(host, written, objective, OFF | {"claimed": claim}, num)

    best = -at(0.0)[1]["claimed"] * num / 2
    variance = -of_rows(host, written, kind(K, noise=NOISE), OFF, num)[0] * num
    assert at(best)[0] == pytest.approx(variance * (K - 1) / K, rel=1e-3)


@pytest.mark.parametrize("log_z", ["vargrad", "amortized"])
def test_at_the_exact_posterior_every_draw_gives_zero(host, written, log_z):
    objective = host.package.TrajectoryBalance(K, log_z=log_z, noise=NOISE)
    params = EXACT | {"claimed": EVIDENCE}
    loss, gradient = claimed(host, written, objective, params, 1000)
    assert abs(loss) < 1e-9
    for value in gradient.values():
        np.testing.assert_allclose(value * 1000, 0.0, atol=1e-3)


def test_noise_stays_on_the_support(host, written):
    """And off its edges, where log weights of a model against itself would not be zero."""
    objective = host.package.TrajectoryBalance(64, noise=3.0)
    loss = evaluate(host, objective, written.supports, written.supports, {})["loss"]
    assert abs(loss[0]) < 1e-6


def test_batches_of_rows(host, written):
    """Rows of a batch are no draws to be moved; the mean is that of all rows."""
    models, x = (written.rows, written.guide_of_slope), host.array(np.full(40, X))
    objective = host.package.TrajectoryBalance(64, noise=NOISE)
    whole, batches = (
        evaluate(host, objective, *models, {}, x, *args, num=40)["loss"] for args in ((), (10,))
    )
    se = np.hypot(whole.std(), batches.std()) / np.sqrt(40)
    assert abs(whole.mean() - batches.mean()) < 4 * se
    assert se < 0.05 * whole.mean()


def test_discrete_latents(host, written):
    """Of two values of a label; each draw has one of them."""
    y = 0.3
    objective = host.package.TrajectoryBalance(2)
    losses = evaluate(
        host, objective, written.label, written.guide_of_label, {}, host.array(y), num=400
    )["loss"]
    log_odds = norm.logpdf(y, 1.0) - norm.logpdf(y, 0.0) - np.log(0.4 / 0.6)
    se = losses.std() / np.sqrt(len(losses))
    assert losses.mean() == pytest.approx(0.4 * 0.6 * log_odds**2, abs=4 * se)
    assert se < 0.1 * losses.mean()


def test_bad_arguments(host):
    kind = host.package.TrajectoryBalance
    with pytest.raises(ValueError, match="num_particles: expected .* at least 2, got 1"):
        kind(1)
    with pytest.raises(ValueError, match="log_z: expected 'vargrad' or 'amortized', got 'exact'"):
        kind(log_z="exact")
    for noise in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="noise: expected a standard deviation, 0 or more"):
            kind(noise=noise)


def test_bad_input(host, written):
    kind, x = host.package.TrajectoryBalance, host.array(np.full(3, X))

    def loss(objective, model, guide, *args):
        return loss_without_jit(host, objective, model, guide, *args)

    amortized = kind(4, log_z="amortized")
    with pytest.raises(TypeError, match="log_z='amortized': the guide has no deterministic site"):
        loss(amortized, written.rows, written.guide_of_rows, x)

    def of_shape(*shape):
        def guide(x):
            written.guide_of_slope(x)
            import_module(host.name).deterministic("log_z", host.array(np.zeros(shape)))

        return guide

    for shape in ((2,), (1, 2), (1, 1, 1, 1)):
        with pytest.raises(
            ValueError, match=r"site 'log_z': expected a scalar or the shape .*3,\)"
        ):
            loss(amortized, written.rows, of_shape(*shape), x)
    for shape in ((), (1,), (3,)):
        assert np.isfinite(float(loss(amortized, written.rows, of_shape(*shape), x)))
    with pytest.raises(ValueError, match=r"noise: widens continuous draws, and sites \['z'\]"):
        loss(kind(noise=1.0), written.label, written.guide_of_label, x[0])
    with pytest.raises(ValueError, match=r"element . of plate 'rows': draw \d+ of the guide has"):
        loss(kind(64), written.narrow_rows, written.guide_of_narrow_rows, x * 0 + 0.05)
    with pytest.raises(ValueError, match=r"plate 'groups': is subsampled, and sites \['mu'\] are"):
        evaluate(host, kind(4), written.hierarchy, written.guide_of_hierarchy, {}, host.array(Y), 2)
