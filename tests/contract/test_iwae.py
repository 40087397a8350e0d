"""Importance-weighted bounds: values, gradients and weights of plates, against closed forms."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import norm

from tests.losses import EXACT, OFF, X, evaluate, loss_without_jit, of_rows
from tests.problems import HierarchicalNormal

pytestmark = pytest.mark.compiles

EVIDENCE = norm.logpdf(X, 0.0, np.sqrt(2.0))  # of a row of `rows`
MOVED = {"mu_shift": 0.3, "mu_stretch": 0.2, "theta_shift": 0.2, "theta_stretch": -0.3}
Y = np.array([1.2, -0.4, 0.3, 2.0])


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


def test_bounds_of_rows_have_the_known_means_and_rise_to_the_evidence(host, written):
    """Weights over all rows at once, in place of one by one, would be far below."""
    known = {1: -2.165, 4: -1.750, 16: -1.702, 64: -1.691}
    found = {num: of_rows(host, written, host.package.IWAE(num), OFF)[0] for num in known}
    for num, expected in known.items():
        assert found[num] == pytest.approx(expected, abs=0.01), num
    assert list(found.values()) == sorted(found.values())
    assert found[64] < EVIDENCE


def test_gradients_of_rows(host, written):
    """Doubly reparameterised is the gradient of the bound, one path with one weight is not."""
    for gradient, expected, tolerance in (
        ("plain", (0.0212, -0.0222), 0.012),
        ("dreg", (0.0212, -0.0222), 0.0005),
        ("stl", (0.382, -0.443), 0.006),
    ):
        objective = host.package.IWAE(16, gradient=gradient)
        _, found = of_rows(host, written, objective, OFF)
        means = found["mean"].mean(), found["log_sd"].mean()
        np.testing.assert_allclose(means, expected, atol=tolerance, err_msg=gradient)


def test_the_signal_of_dreg_grows_with_the_particles(host, written):
    def signal(num, gradient):
        _, found = of_rows(host, written, host.package.IWAE(num, gradient=gradient), OFF)
        return abs(found["mean"].mean()) / found["mean"].std()

    assert signal(4, "dreg") == pytest.approx(0.60, abs=0.05)
    assert signal(64, "dreg") == pytest.approx(2.66, abs=0.15)
    assert signal(4, "plain") < 0.2
    assert signal(64, "plain") < 0.1


def test_at_the_exact_posterior_there_is_nothing_to_learn(host, written):
    for gradient, spread in (("dreg", 0.0), ("stl", 0.0), ("plain", 0.5)):
        objective = host.package.IWAE(8, gradient=gradient)
        bound, found = of_rows(host, written, objective, EXACT, num_rows=2000)
        assert bound == pytest.approx(EVIDENCE, abs=1e-5)
        for value in found.values():
            assert value.std() == pytest.approx(spread, abs=0.05 * spread + 1e-5)


def test_one_particle_is_the_elbo(host, written):
    """Closed form: value, x - 2 mean, 1 - 2 sd^2."""
    mean, sd = OFF["mean"], np.exp(OFF["log_sd"])
    elbo = norm.logpdf(mean) + norm.logpdf(X, mean) - sd**2 + norm.entropy(scale=sd)
    for gradient in ("plain", "dreg", "stl"):
        bound, found = of_rows(host, written, host.package.IWAE(1, gradient=gradient), OFF)
        assert bound == pytest.approx(elbo, abs=0.04)
        assert found["mean"].mean() == pytest.approx(X - 2 * mean, abs=0.05)
        assert found["log_sd"].mean() == pytest.approx(1 - 2 * sd**2, abs=0.05)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("gradient", ["dreg", "stl"])
def test_global_and_local_latents_at_the_exact_posterior(host, written, gradient, nested):
    """Every draw gives the evidence, and no gradient."""
    objective = host.package.IWAE(4, gradient=gradient, nested=nested)
    params = dict.fromkeys([*MOVED, "base"], np.zeros(()))
    models = written.hierarchy, written.guide_of_hierarchy
    found = evaluate(host, objective, *models, params, host.array(Y), num=5)
    np.testing.assert_allclose(-found["loss"], evidence(Y), atol=1e-4)
    for name in MOVED:
        np.testing.assert_allclose(found["gradient"][name], 0.0, atol=1e-4)


def evidence(y):
    return HierarchicalNormal(num_groups=len(y)).log_evidence({"y": y[None]})[0]


@pytest.mark.parametrize("nested", [False, True])
def test_gradients_with_global_latents_agree_on_average(host, written, nested):
    """Doubly reparameterised and plain, of the guide; of the model they are the same draws."""
    params = {**MOVED, "base": 0.4}
    params = {name: np.array(value) for name, value in params.items()}
    found = {
        gradient: evaluate(
            host,
            host.package.IWAE(4, gradient=gradient, nested=nested),
            written.hierarchy,
            written.guide_of_hierarchy,
            params,
            host.array(Y),
            num=500 if host.name == "pyro" else 20_000,
        )
        for gradient in ("plain", "dreg")
    }
    plain, dreg = (found[name]["gradient"] for name in ("plain", "dreg"))
    np.testing.assert_allclose(found["plain"]["loss"], found["dreg"]["loss"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain["base"], dreg["base"], rtol=1e-3, atol=1e-3)
    for name in MOVED:
        difference = plain[name] - dreg[name]
        se = difference.std() / np.sqrt(len(difference))
        assert abs(difference.mean()) < 4 * se, name
        assert abs(dreg[name].mean()) > 4 * dreg[name].std() / np.sqrt(len(difference)), name


def test_joint_and_nested_bounds_are_between_the_elbo_and_the_evidence(host, written):
    params = {name: np.array(value) for name, value in MOVED.items()}
    models = written.hierarchy, written.guide_of_hierarchy
    elbo, nested, joint = (
        -evaluate(host, objective, *models, params, host.array(Y), num=300)["loss"]
        for objective in (
            host.package.IWAE(1, nested=False),
            host.package.IWAE(8, nested=True),
            host.package.IWAE(8, nested=False),
        )
    )
    assert elbo.mean() + 0.1 < nested.mean()
    assert elbo.mean() + 0.1 < joint.mean()
    for bound in (nested, joint):
        assert bound.mean() < evidence(Y) + 3 * bound.std() / np.sqrt(len(bound))


def test_batches_of_rows_give_the_bound_of_all(host, written):
    """With the scale inside of the weights the mean would move by a fifth (Pyro's own does)."""
    x = host.array(1.4 * np.random.default_rng(0).normal(size=100))
    objective = host.package.IWAE(16)
    models = written.rows, written.guide_of_slope
    whole = evaluate(host, objective, *models, {}, x, num=100)["loss"]
    batches = evaluate(host, objective, *models, {}, x, 10, num=1000)["loss"]
    se = batches.std() / np.sqrt(len(batches))
    assert abs(batches.mean() - whole.mean()) < 4 * se
    assert se < 0.01 * whole.mean()
    if host.name == "pyro":
        stock = host.infer.RenyiELBO(alpha=0, num_particles=16, vectorize_particles=True)
        stock = evaluate(host, stock, *models, {}, x, 10, num=200)["loss"]
        assert abs(stock.mean() - whole.mean()) > 0.1 * whole.mean()


def test_a_scale_of_all_sites_multiplies_the_bound_and_one_of_some_tempers_the_weights(
    host, written
):
    handlers = import_module("pyro.poutine" if host.name == "pyro" else "numpyro.handlers")
    x = host.array(np.array([1.3, -0.4, 0.5]))
    params = {name: np.full(3, value) for name, value in OFF.items()}

    def scaled(fn):
        return handlers.scale(fn, scale=0.1)

    models = written.rows, written.guide_of_rows
    plain, both, one = (
        evaluate(host, host.package.IWAE(8), model, guide, params, x)
        for model, guide in (models, map(scaled, models), (scaled(models[0]), models[1]))
    )
    np.testing.assert_allclose(both["loss"], 0.1 * plain["loss"], rtol=1e-5)
    for name in OFF:
        np.testing.assert_allclose(
            both["gradient"][name], 0.1 * plain["gradient"][name], rtol=1e-4, atol=1e-6
        )
    assert abs(one["loss"] - 0.1 * plain["loss"]) > 0.1


def test_batches_beside_a_global_latent_are_nested(host, written):
    params = {name: np.array(value) for name, value in MOVED.items()}
    models, y = (written.hierarchy, written.guide_of_hierarchy), host.array(Y)
    num = 500 if host.name == "pyro" else 5000
    whole = evaluate(host, host.package.IWAE(8, nested=True), *models, params, y, num=num)
    batches = evaluate(host, host.package.IWAE(8), *models, params, y, 2, num=num)
    for first, second in [
        (whole["loss"], batches["loss"]),
        *((whole["gradient"][name], batches["gradient"][name]) for name in MOVED),
    ]:
        se = np.hypot(first.std(), second.std()) / np.sqrt(num)
        assert abs(first.mean() - second.mean()) < 4 * se
    with pytest.raises(ValueError, match=r"plate 'groups': is subsampled, and sites \['mu'\] are"):
        evaluate(host, host.package.IWAE(8, nested=False), *models, params, y, 2)


def test_unknown_options(host):
    for num in (0, 2.5):
        with pytest.raises(
            ValueError, match=f"num_particles: expected a whole number .* got {num}"
        ):
            host.package.IWAE(num)
    with pytest.raises(
        ValueError, match="gradient: expected 'dreg', 'stl' or 'plain', got 'vimco'"
    ):
        host.package.IWAE(gradient="vimco")


def test_a_draw_without_a_gradient_is_named(host, written):
    models, y = (written.label, written.guide_of_label), host.array(np.array(0.3))
    for gradient in ("dreg", "stl", "plain"):
        objective = host.package.IWAE(4, gradient=gradient)
        with pytest.raises(ValueError, match="site 'z': is not reparameterised, and the gradient"):
            evaluate(host, objective, *models, {}, y)


def test_nothing_to_nest(host, written):
    x = host.array(np.full(3, X))
    with pytest.raises(ValueError, match="nested: needs latent sites in the plates of observed"):
        evaluate(
            host, host.package.IWAE(4, nested=True), written.rows, written.guide_of_slope, {}, x
        )


def test_an_element_without_a_particle_is_named(host, written):
    x = host.array(np.array([0.1, 0.2, 0.7]))
    with pytest.raises(ValueError, match="element 2 of plate 'rows': all particles have density"):
        loss_without_jit(
            host, host.package.IWAE(4), written.narrow_rows, written.guide_of_narrow_rows, x
        )
