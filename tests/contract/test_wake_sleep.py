"""Reweighted wake-sleep: values, gradients and weights of plates, against closed forms."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import norm

from tests.contract.test_mixed import losses_and_gradients
from tests.contract.test_model_parameters import Y, small_guide
from tests.losses import EXACT, OFF, X, evaluate, of_rows

pytestmark = pytest.mark.compiles

ASCENT = (0.3684, -0.4248)  # of minus KL(p || q) at OFF, in mean and log_sd


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


def wake(host, num_particles, insomnia=1.0):
    """The part of RWS that sees data."""
    return host.package.RWS(num_particles, insomnia=insomnia).parts[0][0]


def means(gradient):
    """Gradients of the mean over rows that are alike, in mean and log_sd."""
    return np.array([gradient[name].mean() * len(gradient[name]) for name in ("mean", "log_sd")])


def test_the_gradient_of_wake_tends_to_that_of_the_inclusive_divergence(host, written):
    """Its error is of order 1 / K."""
    errors = {}
    for num in (10, 100):
        _, gradient = of_rows(host, written, wake(host, num), OFF)
        errors[num] = means(gradient) - ASCENT
    assert np.abs(errors[100]).max() < 0.003
    # Of log_sd the next order shows at 10.
    assert errors[10][0] / errors[100][0] == pytest.approx(10.0, rel=0.35)
    assert np.abs(errors[10][1] / errors[100][1]) > 6


def test_half_of_wake_is_half_its_gradient(host, written):
    whole, half = (of_rows(host, written, wake(host, 8, part), OFF, 50) for part in (1.0, 0.5))
    assert whole[0] == pytest.approx(half[0])
    for name in OFF:
        np.testing.assert_allclose(0.5 * whole[1][name], half[1][name], rtol=1e-4, atol=1e-7)


def test_at_the_exact_posterior_wake_has_no_mean_but_noise(host, written):
    bound, gradient = of_rows(host, written, wake(host, 8), EXACT, 20_000)
    assert bound == pytest.approx(norm.logpdf(X, 0.0, np.sqrt(2.0)), abs=1e-5)
    for value in gradient.values():
        se = value.std() / np.sqrt(len(value))
        assert abs(value.mean()) < 4 * se
        assert se > 0


def test_the_value_and_the_gradient_for_the_model_are_those_of_iwae(host, written):
    """At the same draws."""
    params = dict.fromkeys(("mu_stretch", "theta_shift", "theta_stretch"), np.zeros(()))
    params |= {"base": np.array(0.4), "mu_shift": np.array(0.3)}
    models, y = (written.hierarchy, written.guide_of_hierarchy), host.array(Y)
    found, expected = (
        evaluate(host, objective, *models, params, y, num=3)
        for objective in (wake(host, 8), host.package.IWAE(8, gradient="plain", nested=False))
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    base, expected_base = found["gradient"]["base"], expected["gradient"]["base"]
    np.testing.assert_allclose(base, expected_base, rtol=1e-3, atol=1e-4)
    assert np.abs(base).max() > 0.01


def test_rows_have_weights_of_their_own(host, written):
    """With weights over all rows at once the value would be 10 nats higher (Pyro's own is)."""
    x = host.array(1.4 * np.random.default_rng(0).normal(size=100))
    models = written.rows, written.guide_of_slope
    own = evaluate(host, wake(host, 16), *models, {}, x, num=100)["loss"]
    bound = evaluate(host, host.package.IWAE(16), *models, {}, x, num=100)["loss"]
    assert own.mean() == pytest.approx(bound.mean(), abs=0.5)
    if host.name == "pyro":
        stock = host.infer.ReweightedWakeSleep(num_particles=16, model_has_params=False)
        losses = [stock.loss(*models, x)[0] for _ in range(20)]
        assert np.mean(losses) > own.mean() + 10


def test_batches_of_rows_give_the_same_gradient_for_the_guide(host, written):
    params = {name: np.full(40, value) for name, value in OFF.items()}
    models, x = (written.rows, written.guide_of_rows), host.array(np.full(40, X))
    batches = evaluate(host, wake(host, 100), *models, params, x, 10, num=300)["gradient"]
    found = [-batches[name].sum(1).mean() for name in ("mean", "log_sd")]
    np.testing.assert_allclose(found, ASCENT, atol=0.02)


def test_a_scale_of_all_sites_leaves_the_loss_of_the_guide_as_it_is(host, written):
    """So that it keeps its proportion to that of sleep."""
    handlers = import_module("pyro.poutine" if host.name == "pyro" else "numpyro.handlers")
    params = {name: np.full(3, value) for name, value in OFF.items()}
    models, x = (written.rows, written.guide_of_rows), host.array(np.array([1.3, -0.4, 0.5]))
    scaled = [handlers.scale(fn, scale=0.1) for fn in models]
    plain, small = (evaluate(host, wake(host, 8), *each, params, x) for each in (models, scaled))
    np.testing.assert_allclose(small["loss"], 0.1 * plain["loss"], rtol=1e-5)
    for name in OFF:
        np.testing.assert_allclose(
            small["gradient"][name], plain["gradient"][name], rtol=1e-4, atol=1e-6
        )


def test_sleep_is_npe_and_does_not_reach_the_model(host):
    package, model = host.package, host.models.local_parameter
    y = host.array(Y)
    amortized = host.fit(model, small_guide(host, model), host.trace_elbo(), args=(y,), num_steps=1)
    objective = package.RWS(3, insomnia=0.25, num_simulations=16)
    (first, one), (second, weight) = objective.parts
    assert (one, weight) == (1.0, 0.75)
    losses_and_gradients(host, [first], amortized, model, y)  # Pyro counts plates by a first run
    parts = losses_and_gradients(host, [first, second], amortized, model, y)
    (whole,) = losses_and_gradients(host, [objective], amortized, model, y)
    npe = losses_and_gradients(host, [first, package.NPE(16)], amortized, model, y)[1]
    assert parts[1][0] == npe[0]
    assert parts[1][1] == 0.0
    for own, sleep, total in zip(*parts, whole, strict=True):
        np.testing.assert_allclose(own + 0.75 * sleep, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "objective",
    ["both", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wake", "WakeSleep"))],
)
def test_discrete_latents_reach_the_enumerated_posterior(host, written, objective):
    """Probabilities within 0.03, at rows that the guide was trained on."""
    rng = np.random.default_rng(3)
    y = 2.0 * (rng.uniform(size=100) < 0.3) - 1.0 + rng.normal(size=100)
    package = host.package
    objective = {
        "wake": package.RWS(16, insomnia=1.0),
        "both": package.RWS(8, num_simulations=4),
        "WakeSleep": package.WakeSleep(num_simulations=4),
    }[objective]
    guide = host.guide(written.rows_of_labels, observed="y", densities=package.CategoricalDensity())
    amortized = host.fit(
        guide.model, guide, objective, args=(host.array(y),), num_steps=1500, learning_rate=3e-3
    )
    latents = {"z": np.ones((1, 100))}
    found = host.site_log_probs(amortized, (host.array(y),), latents, {"y": y[None]})["z"]
    odds = 0.3 / 0.7 * np.exp(2 * y)
    np.testing.assert_allclose(np.exp(found).reshape(-1), odds / (1 + odds), atol=0.03)


def test_unknown_options(host):
    package = host.package
    for num in (1, 2.5):
        with pytest.raises(ValueError, match=f"num_particles: expected .* at least 2, got {num}"):
            package.RWS(num)
    with pytest.raises(ValueError, match="num_particles: expected .* at least 1, got 0"):
        package.RWS(0, insomnia=0.0)
    with pytest.raises(ValueError, match=r"insomnia: expected a fraction from 0 to 1, got 1.5"):
        package.RWS(insomnia=1.5)
    with pytest.raises(ValueError, match="num_simulations: expected at least 1, got 0"):
        package.WakeSleep(0)


def test_a_subsampled_plate_beside_a_global_latent_is_refused(host, written):
    params = dict.fromkeys(("base", "mu_shift", "mu_stretch", "theta_shift"), np.zeros(()))
    params["theta_stretch"] = np.zeros(())
    with pytest.raises(ValueError, match=r"plate 'groups': is subsampled, and sites \['mu'\] are"):
        evaluate(
            host,
            wake(host, 8),
            written.hierarchy,
            written.guide_of_hierarchy,
            params,
            host.array(Y),
            2,
        )
