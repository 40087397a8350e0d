"""The inverse-Lipschitz decoder keeps points apart by its constant, and by no more than it must."""

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require

pytestmark = pytest.mark.compiles

NUM_PAIRS = 10_000


def ratios(host, decoder, in_dim, num=NUM_PAIRS):
    """`|f(z) - f(z')| / |z - z'|` over pairs far apart and close together."""
    rng = np.random.default_rng(0)
    first = 3 * rng.normal(size=(num, in_dim))
    second = 3 * rng.normal(size=(num, in_dim))
    second[num // 2 :] = first[num // 2 :] + 0.1 * rng.normal(size=(num - num // 2, in_dim))
    moved = host.apply(decoder, first) - host.apply(decoder, second)
    return np.linalg.norm(moved, axis=1) / np.linalg.norm(first - second, axis=1)


def scrambled(host, decoder, scale):
    rng = np.random.default_rng(1)
    values = host.parameters(decoder)
    return host.with_parameters(
        decoder, {name: each + scale * rng.normal(size=each.shape) for name, each in values.items()}
    )


def without_network(host, decoder):
    """The same with both convex networks at zero."""
    values = host.parameters(decoder)
    zero = {"log_weights": -np.inf, "slope": 0.0}
    kind = {name: name.split(".")[1] if "." in name else name for name in values}
    return host.with_parameters(
        decoder,
        {
            name: np.full_like(each, zero[kind[name]]) if kind[name] in zero else each
            for name, each in values.items()
        },
    )


@pytest.mark.parametrize("constant", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(("in_dim", "out_dim"), [(2, 2), (1, 4), (3, 8)])
def test_points_stay_apart(host, constant, in_dim, out_dim):
    with host.double_precision():  # the bound itself, not its rounding at close pairs
        decoder = host.decoder(in_dim, out_dim, inverse_lipschitz=constant, hidden_dims=(16, 16))
        for scale in (0.0, 1.0):
            found = ratios(host, scrambled(host, decoder, scale), in_dim)
            assert found.min() >= constant * (1 - 1e-9)
            assert found.max() > constant + 0.05  # the network does something


def test_without_its_network_the_map_has_the_constant_exactly(host):
    decoder = host.decoder(2, 5, inverse_lipschitz=0.7)
    found = ratios(host, without_network(host, decoder), 2)
    np.testing.assert_allclose(found, 0.7, rtol=1e-3)


def test_a_bowl_that_is_twice_as_steep_is_found(host, monkeypatch):
    """The usual mistake: `L |z|^2` in place of `L / 2 |z|^2` before the gradient is taken."""
    potential = host.module("decoders").ConvexPotential
    call = "forward" if host.name == "pyro" else "__call__"
    right = getattr(potential, call)
    monkeypatch.setattr(
        potential,
        call,
        lambda self, inputs: right(self, inputs) + 0.5 * self.curvature * (inputs**2).sum(-1),
    )
    wrong = without_network(host, host.decoder(2, 5, inverse_lipschitz=0.7))
    # Each of the two gradients is twice as steep.
    np.testing.assert_allclose(ratios(host, wrong, 2), 4 * 0.7, rtol=1e-3)


def test_a_constant_of_zero_bounds_nothing(host):
    decoder = without_network(host, host.decoder(2, 5, inverse_lipschitz=0.0))
    assert np.all(host.apply(decoder, np.ones((3, 2))) == 0.0)


def test_each_potential_is_convex_and_its_gradient_is_one(host):
    decoder = scrambled(host, host.decoder(2, 3, inverse_lipschitz=1.0, hidden_dims=(8, 8)), 0.5)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 500, 3)) * 3
    value = {
        name: host.apply(decoder.outer, at)
        for name, at in {"first": first, "second": second, "middle": (first + second) / 2}.items()
    }
    above = (value["first"] + value["second"]) / 2 - value["middle"]
    # Strongly convex by one: above the middle by |difference|^2 / 8.
    assert np.all(above > ((first - second) ** 2).sum(1) / 8 - 1e-3)
    step = 1e-2 * np.eye(3)
    numeric = [
        (host.apply(decoder.outer, first + each) - host.apply(decoder.outer, first - each)) / 2e-2
        for each in step
    ]
    gradient = host.gradient(lambda points: decoder.outer(points).sum(), first)
    np.testing.assert_allclose(np.stack(numeric, axis=1), gradient, rtol=2e-2, atol=2e-2)


def test_every_parameter_is_trained_and_any_batch_goes_through(host):
    decoder = scrambled(host, host.decoder(2, 4, inverse_lipschitz=0.5, hidden_dims=(8, 8)), 0.3)
    inputs = np.random.default_rng(0).normal(size=(5, 3, 2))
    outputs = host.apply(decoder, inputs)
    assert outputs.shape == (5, 3, 4)
    np.testing.assert_allclose(host.apply(decoder, inputs[2, 1]), outputs[2, 1], rtol=1e-4)
    gradients = host.network_gradients(decoder, inputs)
    assert list(gradients) == list(host.parameters(decoder))
    assert all(np.abs(each).max() > 0 for each in gradients.values())


@pytest.mark.parametrize("kind", ["softplus", "relu", "elu", "leaky_relu"])
def test_convex_activations_are_taken(host, kind):
    decoder = host.decoder(
        2, 3, inverse_lipschitz=0.5, hidden_dims=(8,), activation=activation(host, kind)
    )
    assert ratios(host, decoder, 2, 1000).min() >= 0.5 * (1 - 1e-3)


@pytest.mark.parametrize("kind", ["tanh", "gelu", "silu", "sigmoid", "selu"])
def test_activations_that_are_not_convex_raise(host, kind):
    with pytest.raises(ValueError, match="activation: expected a convex function that falls"):
        host.decoder(2, 3, inverse_lipschitz=0.5, activation=activation(host, kind))


def activation(host, kind):
    if host.name == "numpyro":
        import jax

        return getattr(jax.nn, kind)
    import torch

    return getattr(torch.nn.functional, kind)


@pytest.mark.parametrize(
    ("in_dim", "out_dim", "options", "message"),
    [
        (3, 2, {}, "out_dim: expected at least in_dim"),
        (0, 2, {}, "out_dim: expected at least in_dim, and in_dim at least 1"),
        (2, 3, {"inverse_lipschitz": -0.1}, "inverse_lipschitz: expected a number of at least 0"),
        (2, 3, {"inverse_lipschitz": np.nan}, "inverse_lipschitz: expected a number"),
        (2, 3, {"hidden_dims": ()}, "hidden_dims: expected one positive width or more"),
        (2, 3, {"hidden_dims": (8, 0)}, "hidden_dims: expected one positive width or more"),
    ],
)
def test_decoders_that_cannot_be_raise(host, in_dim, out_dim, options, message):
    with pytest.raises(ValueError, match=message):
        host.decoder(in_dim, out_dim, **{"inverse_lipschitz": 0.5, **options})


def test_same_weights_same_numbers():
    z = np.random.default_rng(0).normal(size=(20, 2))
    values, outputs = None, []
    for name in ("numpyro", "pyro"):
        require(name)
        host = host_of(name)
        with host.double_precision():
            decoder = host.decoder(2, 5, inverse_lipschitz=0.5, hidden_dims=(8, 6))
            if values is None:
                values = host.parameters(scrambled(host, decoder, 0.3))
            assert set(host.parameters(decoder)) == set(values)
            outputs.append(host.apply(host.with_parameters(decoder, values), z))
    assert outputs[0].dtype == np.float64
    np.testing.assert_allclose(*outputs, rtol=1e-10)
