"""Divisive normalisation: one to one whatever the weights, determinants exact, gradients finite."""

import numpy as np
import pytest

from tests.contract.test_flows import detached, evaluated


def step(host, outputs, max_exponent=0.4):
    """The step of raw parameters, `(*batch, size (size + 2))`."""
    module, size = host.module("densities.gdn_flow"), int(np.sqrt(outputs.shape[-1] + 1)) - 1
    density = host.build_density(host.package.GDNFlowDensity(max_exponent=max_exponent), 1, size, 1)
    return module.GDNTransform(*density._constrained(host.array(outputs)))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_image_is_that_of_the_formula(host, rng, size):
    """Loop by loop, and the determinant from the full Jacobian of the formula."""
    with host.double_precision():
        own = step(host, rng.normal(size=size * (size + 2)))
        base, exponent, weights = detached((own.base, own.exponent, own.weights))
        z = rng.normal(size=size)
        image, log_det = detached(own.to_noise(host.array(z)))
    pooled = [base[i] + sum(weights[i, j] * z[j] ** 2 for j in range(size)) for i in range(size)]
    np.testing.assert_allclose(image, z * np.power(pooled, -exponent), rtol=1e-12)
    jacobian = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            across = 2 * exponent[i] * weights[i, j] * z[i] * z[j] * pooled[i] ** (-exponent[i] - 1)
            jacobian[i, j] = (i == j) * pooled[i] ** -exponent[i] - across
    sign, exact = np.linalg.slogdet(jacobian)
    assert sign == 1
    assert log_det == pytest.approx(exact, abs=1e-12)
    if size > 1:  # the diagonal alone is another number
        assert abs(np.log(np.abs(np.diag(jacobian))).sum() - exact) > 1e-3


@pytest.mark.parametrize(("scale", "tolerance"), [(0.5, 1e-10), (3.0, 1e-8), (30.0, 1e-8)])
def test_round_trip_whatever_the_weights(host, rng, scale, tolerance):
    """Near zero and far out, exponents of both signs; far weights are where numbers end."""
    with host.double_precision():
        own = step(host, scale * rng.normal(size=(400, 15)))
        z = rng.normal(size=(400, 3)) * 10.0 ** rng.uniform(-4, 3, size=(400, 1))
        z[0] = 0.0

        def there_and_back(z):
            image, log_det = own.to_noise(z)
            back, backward = own.from_noise(image)
            return image, log_det, back, backward, own.to_noise(back)[0]

        image, log_det, back, backward, again = evaluated(host, there_and_back, z)
    assert np.all(np.isfinite(image))
    assert np.all(np.isfinite(log_det))
    error = np.abs(back - z).max(1) / np.abs(z).max(1).clip(1e-30)
    in_image = np.abs(again - image).max(1) / np.abs(image).max(1).clip(1e-30)
    assert np.minimum(error, in_image).max() < tolerance
    np.testing.assert_allclose(backward, log_det, rtol=1e-6, atol=1e-6)


def test_no_weights_no_change(host, rng):
    """Zeros give the identity; so do weights of zero and a base of one, whatever the exponent."""
    z = rng.normal(size=(10, 2))
    own = step(host, np.zeros(8))
    other = type(own)(own.base, own.base / 3, 0 * own.weights)
    for each in (own, other):
        image, log_det = detached(each.to_noise(host.array(z)))
        np.testing.assert_allclose(image, z, rtol=1e-6)
        np.testing.assert_allclose(log_det, 0.0, atol=1e-6)


def test_gradients_at_zero_and_of_draws_are_finite(host):
    own = step(host, np.linspace(-1, 1, 8))
    for noise in (np.zeros(2), np.array([0.0, 1.0]), np.array([300.0, -2.0])):
        for function in (own.to_noise, own.from_noise):

            def total(e, function=function):
                value, log_det = function(e)
                return value.sum() + log_det

            gradient = host.gradient(host.compiled(total), noise)
            assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_exponents_that_bound_the_image_are_refused(host, exponent):
    """At 1/2 nothing is mapped to noise beyond `gamma ** -0.5`."""
    message = f"max_exponent: expected a number between 0 and 0.5, got {exponent}"
    with pytest.raises(ValueError, match=message):
        host.package.GDNFlowDensity(max_exponent=exponent)
    with pytest.raises(ValueError, match="num_transforms: expected at least 1, got 0"):
        host.package.GDNFlowDensity(num_transforms=0)
