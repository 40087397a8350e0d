"""Paths that end at a latent: their density in closed form, and what guides make of them."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from tests.contract.test_handlers import wrapped
from tests.losses import X, evaluate, loss_without_jit

NUM_STEPS, SCALE = 5, 0.7
EVIDENCE = norm.logpdf(X, 0.0, np.sqrt(2.0))


@pytest.fixture
def written(host):
    """Models and guides written by hand."""
    return import_module(f"tests.particles_{host.name}")


def model_of(host, prior):
    """z ~ prior, a vector; y ~ Normal(its sum, 1)."""
    module = import_module(host.name)
    dist = import_module(f"{host.name}.distributions")

    def model(y=None):
        z = module.sample("z", prior(host, dist))
        module.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    return model


def log_normal(host, dist):
    return dist.LogNormal(host.array([0.3, -1.0]), 0.5).to_event(1)


def dirichlet(host, dist):
    return dist.Dirichlet(host.array([1.0, 2.0, 1.5]))


def names_of_path(num_steps=NUM_STEPS):
    return [f"z_path_{step}" for step in range(1, num_steps)]


def log_joint(host, model, y, values):
    """Of a model at values of all its latents, by the host itself."""
    values = host.arrays(values)
    if host.name == "numpyro":
        return float(host.infer.util.log_density(model, (y,), {}, values)[0])
    poutine = import_module("pyro.poutine")
    return float(poutine.trace(poutine.condition(model, values)).get_trace(y).log_prob_sum())


def test_density_of_the_path_is_that_of_a_brownian_bridge(host):
    """From zero to the logarithm of a positive vector; that of the other sites stays."""
    model = model_of(host, log_normal)
    longer = host.package.add_path(model, "z", num_steps=NUM_STEPS, scale=SCALE)
    rng, y = np.random.default_rng(0), host.array(0.4)
    time = np.arange(1, NUM_STEPS) / NUM_STEPS
    covariance = SCALE**2 * (np.minimum.outer(time, time) - np.outer(time, time))
    for _ in range(3):
        z = np.exp(rng.normal(size=2))
        path = {name: rng.normal(size=2) for name in names_of_path()}
        states = np.stack(list(path.values()), -1) - np.log(z)[:, None] * time
        bridge = multivariate_normal.logpdf(states, cov=covariance).sum()
        found = log_joint(host, longer, y, {"z": z} | path)
        assert found == pytest.approx(log_joint(host, model, y, {"z": z}) + bridge, rel=1e-5)


@pytest.mark.parametrize("num_steps", [1, NUM_STEPS])
def test_evidence_and_posterior_stay(host, written, num_steps):
    """Each draw of the exact guide, forward, says the evidence of the model without a path."""
    x = host.array(np.full(3, X))
    longer = host.package.add_path(written.rows, "z", num_steps=num_steps, scale=SCALE)

    def losses(objective):
        guide, args = written.guide_of_path, (x, num_steps, SCALE)
        return evaluate(host, objective, lambda x, *_: longer(x), guide, {}, *args, num=4)["loss"]

    np.testing.assert_allclose(losses(host.package.IWAE(2)), -3 * EVIDENCE, rtol=1e-5)
    balance = host.package.TrajectoryBalance(4, noise=1.0)
    np.testing.assert_allclose(losses(balance), 0.0, atol=1e-8)


def test_the_model_without_data_has_the_same_prior(host):
    """Of z and y; at its own time the path is half way, with the variance of the bridge."""
    model = model_of(host, log_normal)
    longer = host.package.add_path(model, "z", num_steps=2, scale=SCALE)
    sites = {name: np.asarray(value) for name, value in host.simulate(longer, 20_000).sites.items()}
    log_z = np.log(sites["z"])
    np.testing.assert_allclose(log_z.mean(0), [0.3, -1.0], atol=0.02)
    np.testing.assert_allclose(log_z.std(0), 0.5, atol=0.02)
    rest = sites["z_path_1"] - log_z / 2
    np.testing.assert_allclose(rest.std(0), SCALE / 2, atol=0.01)
    assert np.abs(np.corrcoef(rest.T, log_z.T)[:2, 2:]).max() < 0.03


def structure_of(host, model, observed):
    read = host.module("reading").read_structure
    return read(model, (), {}, observed=(observed,), inputs={}, sizes={}, groups={})


def test_guides_go_forward_with_one_parent(host):
    model = host.package.add_path(host.models.conjugate_normal, "z", num_steps=4)
    structure = structure_of(host, model, "x")
    assert [site.name for site in structure.latents] == [*names_of_path(4), "z"]
    parents = [site.parents for site in structure.latents]
    assert parents == [(), ("z_path_1",), ("z_path_2",), ("z_path_3",)]


def test_guides_go_forward_in_plates_and_scopes(host):
    """Sites of a path are not standardised by the model's density, which is backward."""
    structure = structure_of(host, wrapped(host, "scope", host.models.groups_by_steps, "m"), "m/y")
    path = ["m/theta_path_1", "m/theta_path_2"]
    assert [site.name for site in structure.latents] == ["m/mu", *path, "m/theta"]
    assert [site.is_conditional for site in structure.latents] == [False, False, False, True]
    assert len({site.plates for site in structure.latents[1:]}) == 1


def test_states_have_the_size_of_unconstrained_values(host):
    model = host.package.add_path(model_of(host, dirichlet), "z", num_steps=3)
    latents = structure_of(host, model, "y").latents
    assert [site.event_shape for site in latents] == [(2,), (2,), (3,)]


def test_bad_input(host, written):
    add_path, x = host.package.add_path, host.array(np.full(3, X))
    for num_steps in (0, 2.5):
        with pytest.raises(ValueError, match="num_steps: expected a whole number of at least 1"):
            add_path(written.rows, "z", num_steps=num_steps)
    for scale in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="scale: expected a positive standard deviation"):
            add_path(written.rows, "z", scale=scale)

    def run(model, guide, site, *args):
        return loss_without_jit(host, host.trace_elbo(), add_path(model, site), guide, *args)

    with pytest.raises(ValueError, match="site 'w': the model has no such site"):
        run(written.rows, written.guide_of_slope, "w", x)
    with pytest.raises(ValueError, match="site 'x': carries data or a value of its own"):
        run(written.rows, written.guide_of_slope, "x", x)
    with pytest.raises(ValueError, match="site 'z': is discrete, and the path of add_path"):
        run(written.label, written.guide_of_label, "z", x[0])
