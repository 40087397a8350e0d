"""What the hosts' own rejection samplers know of their gradients: the facts behind METHODS.md."""

from importlib import import_module

import numpy as np
import pytest
from scipy.special import polygamma

pytestmark = pytest.mark.compiles

NUM = 50_000


def path_gradients(host, family, concentration):
    """d log z / d concentration of the first coordinate, one number for each draw."""
    arguments = {"Gamma": (1.0,), "Beta": (2.0,), "Dirichlet": ()}[family]
    distribution = getattr(import_module(f"{host.name}.distributions"), family)

    def first(value):
        return value[..., 0] if family == "Dirichlet" else value

    if host.name == "numpyro":
        jax = import_module("jax")

        def log_draw(a, key):
            given = jax.numpy.stack([a, 1.0, 2.0]) if family == "Dirichlet" else a
            return jax.numpy.log(first(distribution(given, *arguments).sample(key)))

        keys = jax.random.split(host.key(0), NUM)
        return np.asarray(jax.vmap(jax.grad(log_draw), (None, 0))(float(concentration), keys))
    import torch

    host.seed(0)
    a = torch.full((NUM,), concentration, requires_grad=True)
    one = torch.ones(NUM)
    given = torch.stack([a, one, 2 * one], -1) if family == "Dirichlet" else a
    log_draws = first(distribution(given, *arguments).rsample()).log()
    return torch.autograd.grad(log_draws.sum(), a)[0].numpy()


def exact(family, a):
    """The derivative of E[log z]."""
    total = {"Gamma": None, "Beta": a + 2.0, "Dirichlet": a + 3.0}[family]
    return polygamma(1, a) - (0.0 if total is None else polygamma(1, total))


@pytest.mark.parametrize("concentration", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("family", ["Gamma", "Beta", "Dirichlet"])
def test_implicit_gradients_are_unbiased(host, family, concentration):
    """Differentiating through the accepted proposal alone would be 16 % off for Gamma(1, 1)."""
    found = path_gradients(host, family, concentration)
    assert abs(found.mean() - exact(family, concentration)) < 4 * found.std() / np.sqrt(NUM)


@pytest.mark.parametrize("family", ["Beta", "Dirichlet"])
def test_small_concentrations_underflow(host, family):
    """Draws below the smallest number are moved, and their gradients come out too small."""
    found = path_gradients(host, family, 0.02)
    assert found.mean() < exact(family, 0.02) - 3 * found.std() / np.sqrt(NUM)


def test_what_has_no_path_gradient(host):
    distributions = import_module(f"{host.name}.distributions")
    one = host.array(np.array(1.0))
    assert not distributions.VonMises(0.0 * one, one).has_rsample
    for family in ("Gamma", "Beta"):
        assert getattr(distributions, family)(one, one).has_rsample
    # The onion method draws Betas, whose gradients Pyro leaves unused.
    assert distributions.LKJCholesky(3, one).has_rsample == (host.name == "numpyro")
