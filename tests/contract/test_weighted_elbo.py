"""The weighted ELBO against the bounds of the hosts and closed forms: values, gradients, scales."""

from importlib import import_module

import numpy as np
import pytest

from tests.backends import small_guide
from tests.contract.test_iwae import MOVED, Y, evidence
from tests.losses import OFF, X, evaluate

pytestmark = pytest.mark.compiles

ROWS = np.array([1.3, -0.4, 0.5, 2.0])
SD = np.exp(OFF["log_sd"])
KL = 0.5 * (SD**2 + OFF["mean"] ** 2 - 1.0) - OFF["log_sd"]  # of a row of `rows`, 0.0311


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


@pytest.fixture
def bounds(host):
    return import_module(f"tests.bounds_{host.name}")


def mean_field(host, num_particles=1):
    if host.name == "numpyro":
        return host.infer.TraceMeanField_ELBO(num_particles)
    return host.infer.TraceMeanField_ELBO(
        num_particles=num_particles, vectorize_particles=num_particles > 1
    )


def of_rows(host, written, objective, *args, num=1, wrap=lambda fn, index: fn):
    params = {name: np.full(len(ROWS), value) for name, value in OFF.items()}
    models = (wrap(fn, index) for index, fn in enumerate((written.rows, written.guide_of_rows)))
    return evaluate(host, objective, *models, params, host.array(ROWS), *args, num=num)


def assert_same(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=rtol)
    for name, value in expected["gradient"].items():
        np.testing.assert_allclose(found["gradient"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("num", [1, 3])
def test_weight_one_without_free_bits_is_the_bound_of_the_host(host, written, num, batch):
    if num > 1:  # Pyro counts plates by a first run, NumPyro draws rows for each particle
        batch = ()
    expected = of_rows(host, written, mean_field(host, num), *batch, num=3)
    found = of_rows(host, written, host.package.WeightedELBO(num), *batch, num=3)
    assert_same(found, expected)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_global_and_local_latents_as_in_the_bound_of_the_host(host, written, batch):
    params = {name: np.array(value) for name, value in {**MOVED, "base": 0.4}.items()}
    found, expected = (
        evaluate(
            host,
            objective,
            written.hierarchy,
            written.guide_of_hierarchy,
            params,
            host.array(Y),
            *batch,
            num=3,
        )
        for objective in (host.package.WeightedELBO(), mean_field(host))
    )
    assert_same(found, expected)


def test_densities_without_a_closed_form_are_weighed_at_the_draws(host):
    """A spline, and its gradient, as in the host's Trace_ELBO."""
    model = host.models.local_parameter
    y = host.array(Y)
    spec = host.package.SplineFlowDensity(num_transforms=1, num_bins=4, hidden_dims=(8,))
    losses = []
    for objective in (host.trace_elbo(), host.package.WeightedELBO()):
        guide = small_guide(host, model, observed="y", densities=spec)
        fitted = host.fit(model, guide, objective, args=(y,), num_steps=4)
        losses.append(fitted.history.losses)
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_divergences_have_their_weight(host, written):
    def loss(weight):
        objective = host.package.WeightedELBO(kl_weight=weight)
        return of_rows(host, written, objective, num=2)

    none, one, four = (loss(weight) for weight in (0.0, 1.0, 4.0))
    np.testing.assert_allclose(one["loss"] - none["loss"], len(ROWS) * KL, rtol=1e-4)
    np.testing.assert_allclose(four["loss"] - none["loss"], 4 * len(ROWS) * KL, rtol=1e-4)
    steps = four["gradient"]["mean"] - none["gradient"]["mean"]
    np.testing.assert_allclose(steps, 4 * OFF["mean"], rtol=1e-4)  # and d KL / d log_sd
    steps = four["gradient"]["log_sd"] - none["gradient"]["log_sd"]
    np.testing.assert_allclose(steps, 4 * (SD**2 - 1), rtol=1e-4)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_free_bits(host, written, batch):
    """Below them the divergence costs them, without a gradient; above they change nothing."""
    num_rows = len(ROWS)
    objectives = [host.package.WeightedELBO(kl_weight=2.0, free_bits=f) for f in (0, 0.01, 0.5)]
    none, small, large = (of_rows(host, written, each, *batch, num=3) for each in objectives)
    likelihood = of_rows(host, written, host.package.WeightedELBO(kl_weight=0), *batch, num=3)
    assert_same(small, none)
    np.testing.assert_allclose(large["loss"] - likelihood["loss"], 2 * 0.5 * num_rows, rtol=1e-5)
    for name in OFF:
        np.testing.assert_allclose(
            large["gradient"][name], likelihood["gradient"][name], rtol=1e-4, atol=1e-5
        )


def test_free_bits_are_for_the_mean_over_elements_and_each_site_alone(host, written):
    """One row says much and the others nothing: the mean is above the floor."""
    params = {"mean": np.array([2.0, 0.0, 0.0, 0.0]), "log_sd": np.zeros(4)}
    models, x = (written.rows, written.guide_of_rows), host.array(ROWS)
    found = [
        evaluate(host, host.package.WeightedELBO(free_bits=f), *models, params, x)["loss"]
        for f in (0.0, 0.4, 0.6)
    ]
    np.testing.assert_allclose(np.diff(found, axis=0)[:, 0], [0.0, 4 * 0.6 - 2.0], atol=1e-5)
    params = {name: np.zeros(()) for name in (*MOVED, "base")}
    models, y = (written.hierarchy, written.guide_of_hierarchy), host.array(Y)
    none, some = (
        evaluate(host, host.package.WeightedELBO(free_bits=f), *models, params, y)["loss"]
        for f in (0.0, 50.0)
    )
    likelihood = evaluate(host, host.package.WeightedELBO(kl_weight=0), *models, params, y)["loss"]
    np.testing.assert_allclose(some - likelihood, 50.0 * (1 + len(Y)), rtol=1e-4)
    assert none < some


def test_a_scale_of_all_sites_multiplies_all(host, written, bounds):
    for options in ({}, {"free_bits": 0.5}):
        objective = host.package.WeightedELBO(kl_weight=3.0, **options)
        plain = of_rows(host, written, objective)
        found = of_rows(host, written, objective, wrap=lambda fn, _: bounds.scaled(fn, 0.1))
        np.testing.assert_allclose(found["loss"], 0.1 * plain["loss"], rtol=1e-5)
        for name in OFF:
            np.testing.assert_allclose(
                found["gradient"][name], 0.1 * plain["gradient"][name], rtol=1e-4, atol=1e-6
            )


def test_a_scale_of_the_model_alone_is_not_that_of_a_closed_form(host, written, bounds):
    """As in the host's Trace_ELBO; its mean-field bound takes the guide's scale."""

    def tempered(fn, index):
        return fn if index else bounds.scaled(fn, 0.5)

    found, expected, wrong = (
        of_rows(host, written, objective, num=3, wrap=tempered)
        for objective in (host.package.WeightedELBO(), host.trace_elbo(), mean_field(host))
    )
    assert_same(found, expected)
    assert np.all(np.abs(found["loss"] - wrong["loss"]) > 0.1)


def test_masks(host, written, bounds):
    """Of model and guide: the rows are not there. Of the model alone: log q remains."""
    exists = host.array(np.array([True, True, False, True]))
    both = of_rows(
        host, written, mean_field(host), num=3, wrap=lambda fn, _: bounds.hidden(fn, exists)
    )
    objective = host.package.WeightedELBO()
    found = of_rows(host, written, objective, num=3, wrap=lambda fn, _: bounds.hidden(fn, exists))
    assert_same(found, both)
    free = host.package.WeightedELBO(free_bits=0.5)
    none = host.package.WeightedELBO(kl_weight=0)
    floors = [
        of_rows(host, written, each, wrap=lambda fn, _: bounds.hidden(fn, exists))["loss"]
        for each in (free, none)
    ]
    np.testing.assert_allclose(floors[0] - floors[1], 3 * 0.5, rtol=1e-5)

    def half(fn, index):
        return fn if index else bounds.hidden(fn, exists)

    def without(fn, index):
        return bounds.hidden(fn, exists)

    # Row 2 alone has log q at its draw, the rest the closed form.
    found, rest = (
        of_rows(host, written, objective, num=400, wrap=wrap)["loss"] for wrap in (half, without)
    )
    entropy = 0.5 * np.log(2 * np.pi * np.e) + OFF["log_sd"]
    difference = found - rest
    assert difference.std() > 0.5
    assert difference.mean() == pytest.approx(-entropy, abs=float(difference.std()) / 5)


def test_closed_forms_are_left_where_the_guide_draws_a_parent_later(host, bounds):
    """KL(q(b) || p(b | a)) given an `a` that is drawn given b is not a part of this bound."""
    shift, sd_b, sd_a = 0.5, 0.7, 0.6
    square_b = shift**2 + sd_b**2
    cross = 0.8 * square_b
    square_a = 0.64 * square_b + sd_a**2
    log_p = -0.5 * (square_a + square_a - 2 * cross + square_b + square_b - 2 * shift + 1)
    elbo = log_p - 1.5 * np.log(2 * np.pi) + np.log(2 * np.pi * np.e) + np.log(sd_a * sd_b)
    models, params = (bounds.chain, bounds.reversed_guide), {"shift": np.array(shift)}
    found = evaluate(host, host.package.WeightedELBO(20_000), *models, params)
    assert -found["loss"][0] == pytest.approx(elbo, abs=0.03)


def test_at_the_exact_posterior_every_weight_of_one_gives_the_evidence(host, written):
    params = dict.fromkeys([*MOVED, "base"], np.zeros(()))
    models = written.hierarchy, written.guide_of_hierarchy
    objective = host.package.WeightedELBO(500)
    found = evaluate(host, objective, *models, params, host.array(Y), num=5)["loss"]
    assert -found.mean() == pytest.approx(evidence(Y), abs=0.1)


@pytest.mark.parametrize("name", ["AutoNormal", "AutoDiagonalNormal"])
def test_automatic_guides_of_the_host(host, written, name):
    """`AutoDiagonalNormal` draws a site that the model does not have."""
    model = written.hierarchy
    auto = import_module(f"{host.name}.infer.autoguide")
    guide, y = getattr(auto, name)(model), host.array(Y)
    stock = mean_field(host) if name == "AutoNormal" else host.trace_elbo()
    objectives = stock, host.package.WeightedELBO()
    losses = [svi_losses(host, model, guide, each, y) for each in objectives]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    free = host.package.WeightedELBO(free_bits=0.1)
    if name == "AutoDiagonalNormal":
        with pytest.raises(ValueError, match="site '_.*_latent': is in the guide and not in"):
            svi_losses(host, model, guide, free, y)


def svi_losses(host, model, guide, objective, *args, num_steps=4):
    """Losses of the host's own SVI, with a rate of zero."""
    if host.name == "numpyro":
        optax = import_module("optax")
        svi = host.infer.SVI(model, guide, optax.sgd(0.0), objective)
        return np.asarray(svi.run(host.key(0), num_steps, *args, progress_bar=False).losses)
    pyro = import_module("pyro")
    svi = host.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), objective)
    svi.evaluate_loss(*args)
    host.seed(0)
    return np.array([svi.step(*args) for _ in range(num_steps)])


def test_arguments_out_of_range(host):
    package = host.package
    with pytest.raises(ValueError, match="num_particles: expected a whole number .* got 0"):
        package.WeightedELBO(0)
    for name in ("kl_weight", "free_bits"):
        for value in (-0.1, float("nan"), float("inf"), "1"):
            with pytest.raises(ValueError, match=f"{name}: expected a finite number of at least 0"):
                package.WeightedELBO(**{name: value})


def test_a_draw_without_a_gradient_is_named(host, written):
    models, y = (written.label, written.guide_of_label), host.array(np.array(0.3))
    with pytest.raises(ValueError, match="site 'z': is not reparameterised, and the gradient of W"):
        evaluate(host, host.package.WeightedELBO(), *models, {}, y)


def test_fit_refuses_discrete_sites_by_name(host):
    model = host.models.mixture_assignments
    guide = small_guide(host, model, observed="y")
    y = host.array(np.zeros(host.module("tracing").plate_sizes(model, (), {})["rows"]))
    with pytest.raises(
        ValueError, match="site 'z': is (discrete|not reparameterised), and the gra"
    ):
        host.fit(model, guide, host.package.WeightedELBO(), args=(y,), num_steps=1)


def test_a_latent_that_the_guide_does_not_draw_is_named(host, written):
    x = host.array(np.full(3, X))
    with pytest.raises(
        ValueError, match="site 'theta': is a latent site of the model, and the gui"
    ):
        run_quietly(host, host.package.WeightedELBO(), written.hierarchy, only_mu(host), x)


def only_mu(host):
    backend = import_module(host.name)
    normal = import_module(f"{host.name}.distributions").Normal

    def guide(x):
        backend.sample("mu", normal(0.0, 1.0))

    return guide


def run_quietly(host, objective, model, guide, *args):
    """One evaluation without the host's own warning."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if host.name == "pyro":
            return objective.loss(model, guide, *args)
        return objective.loss(host.key(0), {"base": host.array(np.zeros(()))}, model, guide, *args)


def test_what_an_obs_mask_leaves_unobserved_has_no_divergence(host):
    """Nor free bits: with all rows hidden the loss is the divergence of `z` alone, at its floor."""
    model = host.models.rows_with_an_obs_mask
    args = host.array(np.zeros(6, bool)), host.array(np.zeros(6))
    guide = small_guide(host, model, observed="y", missing={"is_there": "y"})
    objective = host.package.WeightedELBO(free_bits=1000.0)
    losses = svi_losses(host, model, guide, objective, *args, num_steps=2)
    np.testing.assert_allclose(losses, 1000.0, rtol=1e-5)
