"""Variational importance sampling, against the closed form of a Gaussian."""

import warnings
from importlib import import_module

import numpy as np
import pytest

from tests.contract.test_model_parameters import Y
from tests.losses import EXACT, X, evaluate, loss_without_jit, of_rows

pytestmark = pytest.mark.compiles

GRADIENTS = ("score", "path")
WIDE = {"mean": 0.4, "log_sd": 0.2}
DESCENT = (-0.20132, 0.73822)  # of the log second moment at WIDE, in mean and log_sd


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


def at_one_row(host, model, guide, objective, params):
    params = {name: np.full(1, value) for name, value in params.items()}
    return evaluate(host, objective, model, guide, params, host.array(np.array([X])))


def second_moment(mean, sd):
    """Its logarithm less twice that of the evidence; the posterior is Normal(X / 2, 1 / 2)."""
    excess = 2 * sd**2 - 0.5
    return np.log(sd**2 / np.sqrt(0.5 * excess)) + (X / 2 - mean) ** 2 / excess


def test_the_numbers_of_this_file():
    """The closed form at WIDE, and its derivatives by differences."""
    mean, log_sd = WIDE.values()
    assert second_moment(mean, np.exp(log_sd)) == pytest.approx(0.316874, abs=1e-6)
    step = 1e-5
    of_mean = second_moment(mean + step, np.exp(log_sd)) - second_moment(
        mean - step, np.exp(log_sd)
    )
    of_log_sd = second_moment(mean, np.exp(log_sd + step)) - second_moment(
        mean, np.exp(log_sd - step)
    )
    np.testing.assert_allclose(np.array([of_mean, of_log_sd]) / (2 * step), DESCENT, atol=1e-4)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient_for_the_guide(host, written, gradient):
    """Twice as much for the automatic gradient of the score."""
    objective = host.package.VIS(400_000, guide_gradient=gradient)
    found = at_one_row(host, written.rows, written.guide_of_rows, objective, WIDE)
    of_guide = [found["gradient"][name].item() for name in WIDE]
    np.testing.assert_allclose(of_guide, DESCENT, atol=0.02)


def test_at_the_exact_posterior(host, written):
    """A path has no gradient there; scores have no mean, but noise."""
    evidence = -0.5 * np.log(4 * np.pi) - X**2 / 4
    for gradient in GRADIENTS:
        objective = host.package.VIS(8, guide_gradient=gradient)
        bound, found = of_rows(host, written, objective, EXACT, 20_000)
        assert bound == pytest.approx(evidence, abs=1e-5)
        for value in found.values():
            se = value.std() / np.sqrt(len(value))
            assert abs(value.mean()) < 4 * se + 1e-5
            assert (se > 1e-4) == (gradient == "score")


def test_both_gradients_have_one_mean_for_few_particles(host, written):
    """The derivative of the estimated logarithm has the other sign there."""
    score, path = (
        of_rows(host, written, host.package.VIS(2, guide_gradient=gradient), WIDE)[1]
        for gradient in GRADIENTS
    )
    for name in WIDE:
        se = np.hypot(score[name].std(), path[name].std()) / np.sqrt(len(score[name]))
        assert abs(score[name].mean() - path[name].mean()) < 4 * se
        assert abs(score[name].mean()) > 10 * se


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_value_and_the_gradient_for_the_model_are_those_of_iwae(host, written, gradient):
    """At the same draws."""
    params = dict.fromkeys(("mu_stretch", "theta_shift", "theta_stretch"), np.zeros(()))
    params |= {"base": np.array(0.4), "mu_shift": np.array(0.3)}
    models, y = (written.hierarchy, written.guide_of_hierarchy), host.array(Y)
    found, expected = (
        evaluate(host, objective, *models, params, y, num=3)
        for objective in (
            host.package.VIS(8, guide_gradient=gradient),
            host.package.IWAE(8, gradient="plain", nested=False),
        )
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    base, expected_base = found["gradient"]["base"], expected["gradient"]["base"]
    np.testing.assert_allclose(base, expected_base, rtol=1e-3, atol=1e-4)
    assert np.abs(base).max() > 0.01


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_constant_factor_of_the_model_does_not_reach_the_guide(host, written, gradient):
    plain, shifted = (
        at_one_row(
            host,
            model,
            written.guide_of_rows,
            host.package.VIS(16, guide_gradient=gradient),
            WIDE,
        )
        for model in (written.rows, written.rows_and_constant)
    )
    np.testing.assert_allclose(plain["loss"] - 3.0, shifted["loss"], rtol=1e-4)
    for name in WIDE:
        np.testing.assert_allclose(
            plain["gradient"][name], shifted["gradient"][name], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("is_narrow", [True, False])
def test_a_second_moment_that_looks_infinite_is_warned_of(host, written, is_narrow):
    """Below half the posterior's variance it is."""
    log_sd = 0.5 * np.log(0.5 * 0.2) if is_narrow else 0.0
    params = host.arrays({"mean": np.full(1, 0.4), "log_sd": np.full(1, log_sd)})
    objective, x = host.package.VIS(16), host.array(np.array([X]))
    models = written.rows, written.guide_of_rows
    if host.name == "numpyro":
        args = (host.key(0), params, *models, x)
    else:
        pyro, args = import_module("pyro"), (*models, x)
        host.seed(0)
        pyro.clear_param_store()
        for name, value in params.items():
            pyro.param(name, value.clone())
    if is_narrow:
        with pytest.warns(UserWarning, match="k-hat of the squared weights is .* for 1 of 1 sets"):
            objective.warn_of_tails(*args)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            objective.warn_of_tails(*args)


def test_fit_warns_of_it(host):
    """At the guide's start here, far from the posterior."""
    package = host.package
    guide = host.guide(
        host.models.conjugate_normal, observed="x", densities=package.NormalDensity()
    )
    x = host.array(np.full(20, 30.0))
    with pytest.warns(UserWarning, match="VIS: the Pareto k-hat of the squared weights"):
        host.fit(guide.model, guide, package.VIS(4), args=(x,), num_steps=1, learning_rate=1e-6)


def test_unknown_options(host):
    with pytest.raises(ValueError, match="num_particles: expected .* at least 2, got 1"):
        host.package.VIS(1)
    with pytest.raises(ValueError, match="guide_gradient: expected 'score' or 'path', got 'dreg'"):
        host.package.VIS(guide_gradient="dreg")


def test_a_draw_without_a_gradient_is_named(host, written):
    """For paths only."""
    models, y = (written.label, written.guide_of_label), host.array(np.array(0.3))
    assert np.isfinite(evaluate(host, host.package.VIS(4), *models, {}, y)["loss"]).all()
    with pytest.raises(ValueError, match="site 'z': is not reparameterised, and VIS"):
        evaluate(host, host.package.VIS(4, guide_gradient="path"), *models, {}, y)


def test_an_element_without_a_particle_is_named(host, written):
    x = host.array(np.array([0.1, 0.2, 0.7]))
    with pytest.raises(ValueError, match="element 2 of plate 'rows': all particles have density"):
        loss_without_jit(
            host, host.package.VIS(4), written.narrow_rows, written.guide_of_narrow_rows, x
        )


def test_a_subsampled_plate_beside_a_global_latent_is_refused(host, written):
    names = ("base", "mu_shift", "mu_stretch", "theta_shift", "theta_stretch")
    params = dict.fromkeys(names, np.zeros(()))
    models = written.hierarchy, written.guide_of_hierarchy
    with pytest.raises(ValueError, match=r"plate 'groups': is subsampled, and sites \['mu'\] are"):
        evaluate(host, host.package.VIS(8), *models, params, host.array(Y), 2)
