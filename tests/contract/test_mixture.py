"""Gaussian mixtures: closed forms, and draws that move with the weights."""

from importlib import import_module

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import chisquare, kstest, multivariate_normal, norm

from tests.backends import host as adapter
from tests.backends import numpy_tree
from tests.conftest import require

LEAST_P_VALUE = 1e-4  # see test_gaussian_families.py for the budget
KINDS = ("full", "diag")
ONE_COMPILED = ("full", pytest.param("diag", marks=pytest.mark.compiles))


def compiled(host, function):
    """In NumPyro one piece of code, where each operation would be one."""
    return import_module("jax").jit(function) if host.name == "numpyro" else function


def score(host, logits, loc, scale):
    """The log density as a function of values."""

    def log_prob(value):
        return mixture(host, logits, loc, scale).log_prob(value)

    return compiled(host, log_prob)


def mixture(host, logits, loc, scale):
    return host.module("densities.mixture").GaussianMixture(
        *(host.array(part) for part in (logits, loc, scale))
    )


def parameters(kind, num, size, seed=0):
    """Random logits, locations, and Cholesky factors or standard deviations."""
    rng = np.random.default_rng(seed)
    logits, loc = rng.normal(size=num), 1.5 * rng.normal(size=(num, size))
    widths = np.exp(0.3 * rng.normal(size=(num, size)))
    if kind == "diag":
        return logits, loc, widths
    factor = 0.7 * np.tril(rng.normal(size=(num, size, size)), -1)
    return logits, loc, factor + widths[..., None] * np.eye(size)


def factors(scale):
    """Cholesky factors of either kind."""
    return scale if scale.ndim == 3 else scale[..., None] * np.eye(scale.shape[-1])


def components(logits, loc, scale):
    pairs = zip(loc, factors(scale), strict=True)
    return softmax(logits), [multivariate_normal(mean, root @ root.T) for mean, root in pairs]


def conditional_shares(value, logits, loc, scale):
    """Distribution functions of each coordinate given those before it, `(num, size)`.

    By marginal and conditional normals of each component, with matrices.
    """
    covariances = factors(scale) @ np.swapaxes(factors(scale), -1, -2)
    shares = np.empty(value.shape)
    for axis in range(value.shape[-1]):
        log_weights, parts = [], []
        for logit, mean, full in zip(logits, loc, covariances, strict=True):
            known, own = full[:axis, :axis], full[axis, axis]
            before = value[:, :axis] - mean[:axis]
            centre, spread = np.full(len(value), mean[axis]), own
            log_weight = np.full(len(value), logit)
            if axis:
                slope = np.linalg.solve(known, full[:axis, axis])
                centre, spread = mean[axis] + before @ slope, own - full[:axis, axis] @ slope
                log_weight = log_weight + multivariate_normal(cov=known).logpdf(before)
            log_weights.append(log_weight)
            parts.append(norm.cdf(value[:, axis], centre, np.sqrt(spread)))
        weights = softmax(np.array(log_weights), axis=0)
        shares[:, axis] = (weights * np.array(parts)).sum(0)
    return shares


@pytest.mark.parametrize("kind", KINDS)
def test_density_is_that_of_its_components(host, rng, kind):
    with host.double_precision():
        parts = parameters(kind, 4, 3)
        values = 3 * rng.normal(size=(50, 3))
        weights, normals = components(*parts)
        logs = np.stack([each.logpdf(values) for each in normals])
        found = numpy_tree(score(host, *parts)(host.array(values)))
        expected = logsumexp(logs + np.log(weights)[:, None], axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.compiles
@pytest.mark.parametrize("kind", KINDS)
def test_one_component_is_a_normal_in_value_gradient_and_draws(host, rng, kind):
    with host.double_precision():
        logits, loc, scale = parameters(kind, 1, 3)
        root, value = factors(scale)[0], rng.normal(size=3)
        log_prob = score(host, logits, loc, scale)
        expected = multivariate_normal(loc[0], root @ root.T).logpdf(value)
        np.testing.assert_allclose(numpy_tree(log_prob(host.array(value))), expected, rtol=1e-10)
        slope = -np.linalg.solve(root @ root.T, value - loc[0])
        np.testing.assert_allclose(host.gradient(log_prob, value), slope, rtol=1e-9)
        with_path = host.module("densities.mixture").with_path
        logits, held = host.array(logits), (host.array(value), host.array(loc), host.array(scale))

        def draw_at(loc):
            return with_path(held[0], logits, loc, held[2])

        def draw_with(scale):
            return with_path(held[0], logits, held[1], scale)

        moved = host.jacobian(compiled(host, draw_at), loc)[:, 0]
        np.testing.assert_allclose(moved, np.eye(3), atol=1e-9)
        # z = loc + L e: the entry L_ij moves z_i by e_j.
        noise = np.linalg.solve(root, value - loc[0])
        turned = host.jacobian(compiled(host, draw_with), scale)[:, 0]
        expected = np.einsum("ij,k->ijk", np.eye(3), noise) if kind == "full" else np.diag(noise)
        expected = expected * (np.tri(3) if kind == "full" else 1.0)
        turned = np.where(np.tri(3), turned, 0.0) if kind == "full" else turned
        np.testing.assert_allclose(turned, expected, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_components_are_one_normal_whatever_the_weights(host, rng, kind):
    with host.double_precision():
        _, loc, scale = parameters(kind, 1, 2)
        loc, scale = np.repeat(loc, 5, 0), np.repeat(scale, 5, 0)
        root, values = factors(scale)[0], rng.normal(size=(20, 2))
        expected = multivariate_normal(loc[0], root @ root.T).logpdf(values)
        for logits in (np.zeros(5), 3 * rng.normal(size=5)):
            found = score(host, logits, loc, scale)(host.array(values))
            np.testing.assert_allclose(numpy_tree(found), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one(host, kind):
    axis = np.linspace(-15, 15, 301)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    found = score(host, *parameters(kind, 5, 2, seed=3))(host.array(grid))
    total = np.exp(numpy_tree(found).astype(float)).sum() * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ONE_COMPILED)
def test_draws_follow_the_density(host, kind):
    """Each coordinate given those before it, and both together, in 4,000 draws."""
    parts = parameters(kind, 3, 2, seed=1)
    draws = host.draws(mixture(host, *parts), 4000).astype(float)
    shares = conditional_shares(draws, *parts)
    for column in shares.T:
        assert kstest(column, "uniform").pvalue > LEAST_P_VALUE
    counts = np.histogram2d(*shares.T, bins=5, range=[(0, 1), (0, 1)])[0]
    assert chisquare(counts.ravel()).pvalue > LEAST_P_VALUE


@pytest.mark.parametrize("kind", ONE_COMPILED)
def test_draws_move_so_that_their_shares_stay(host, kind):
    """A small step of each parameter, and of the draw by its gradient, changes no share."""
    with host.double_precision():
        parts = parameters(kind, 3, 3, seed=2)
        value = np.array([0.4, -0.8, 0.3])
        with_path = host.module("densities.mixture").with_path
        ends = np.cumsum([part.size for part in parts])

        def split(flat):
            pieces = (flat[: ends[0]], flat[ends[0] : ends[1]], flat[ends[1] :])
            return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]

        def shares(flat, value):
            return conditional_shares(value[None], *split(flat))[0]

        flat = np.concatenate([part.ravel() for part in parts])

        def draw(flat):
            return with_path(host.array(value), *split(flat))

        jacobian = host.jacobian(compiled(host, draw), flat)
        step = 1e-5
        has_moved = np.zeros(3)
        is_upper = np.zeros(len(flat), bool)
        if kind == "full":  # entries that a Cholesky factor does not have
            is_upper[ends[1] :] = np.broadcast_to(np.tri(3) == 0, (3, 3, 3)).ravel()
        for number in np.flatnonzero(~is_upper):
            shift, move = step * (np.arange(len(flat)) == number), step * jacobian[:, number]
            after, before = shares(flat + shift, value + move), shares(flat - shift, value - move)
            assert np.all(np.abs(after - before) / (2 * step) < 1e-8)
            resting = (shares(flat + shift, value) - shares(flat - shift, value)) / (2 * step)
            has_moved = np.maximum(has_moved, np.abs(resting))
        assert np.all(has_moved > 1e-2)


def gradients_for_the_weights(host, kind, num=40_000):
    """The gradient of a draw's coordinate for the logits, draw by draw, and the closed form."""
    logits, loc, scale = parameters(kind, 3, 2, seed=4)
    loc = loc / 1.5  # closer together
    weights = softmax(logits)
    mean = weights @ loc
    expected = weights[:, None] * (loc - mean)
    others = [host.array(np.broadcast_to(part, (2 * num, *part.shape))) for part in (loc, scale)]
    made = host.module("densities.mixture").GaussianMixture
    chosen = host.array(np.repeat(np.eye(2), num, 0))  # a coordinate for each half of the draws

    def total(logits):
        distribution = made(logits, *others)
        if host.name == "numpyro":
            draws = distribution.sample(host.key(0))
        else:
            host.seed(0)
            draws = distribution.rsample()
        return (draws * chosen).sum() + 0 * logits.sum()

    start = np.broadcast_to(logits, (2 * num, 3)).copy()
    found = host.gradient(compiled(host, total), start).astype(float)
    return np.stack(np.split(found, 2), -1), expected


def errors_in_standard_errors(gradients, expected):
    return np.abs(gradients.mean(0) - expected) / (
        gradients.std(0) / np.sqrt(len(gradients)) + 1e-12
    )


@pytest.mark.parametrize("kind", ONE_COMPILED)
def test_gradient_of_the_mean_for_the_weights(host, kind):
    """`d E z / d logits_k = pi_k (loc_k - E z)`, within 4 standard errors at 40,000 draws."""
    gradients, expected = gradients_for_the_weights(host, kind)
    assert np.all(np.abs(expected) > 0.01)
    assert np.all(errors_in_standard_errors(gradients, expected) < 4)
    assert np.all(gradients.std(0) / np.sqrt(len(gradients)) < 0.02)


@pytest.mark.compiles
@pytest.mark.parametrize("distance", [4.0, 6.0])
def test_noise_of_the_gradient_for_the_weights_is_its_integral(host, distance):
    """Two equal modes: the numbers in the docstring, within a tenth at 40,000 draws."""
    num, ends = 40_000, np.array([[-0.5], [0.5]]) * distance
    others = [host.array(np.broadcast_to(part, (num, 2, 1))) for part in (ends, np.ones((2, 1)))]
    made = host.module("densities.mixture").GaussianMixture

    def total(logits):
        distribution = made(logits, *others)
        if host.name == "numpyro":
            return distribution.sample(host.key(0)).sum()
        host.seed(0)
        return distribution.rsample().sum()

    found = host.gradient(compiled(host, total), np.zeros((num, 2)))[:, 1].astype(float)
    z = np.linspace(-distance - 8, distance + 8, 20_001)
    density = norm.pdf(z, ends).mean(0)
    moved = 0.25 * (norm.cdf(z, ends[0]) - norm.cdf(z, ends[1]))
    mean = distance / 4
    exact = np.sqrt(np.trapezoid(moved**2 / density, z) - mean**2)
    assert exact / mean == pytest.approx({4.0: 1.0, 6.0: 2.6}[distance], abs=0.05)
    assert found.std() == pytest.approx(exact, rel=0.1)
    assert abs(found.mean() - mean) < 4 * exact / np.sqrt(num)


def test_draws_of_components_alone_have_none(host, monkeypatch):
    """The usual wrong version: the same draws, whose path ends at the choice of a component."""
    module = host.module("densities.mixture")
    monkeypatch.setattr(module, "with_path", lambda value, *parameters: value)
    gradients, expected = gradients_for_the_weights(host, "full", num=100)
    np.testing.assert_array_equal(gradients, 0.0)
    assert np.all(errors_in_standard_errors(gradients, expected) > 4)


@pytest.mark.compiles
@pytest.mark.parametrize("kind", KINDS)
def test_far_components_leave_everything_finite(host, kind):
    """Draws 1e3 widths from the other component, single precision: no overflow, no NaN."""
    logits, loc = np.array([0.0, -3.0]), np.array([[0.0, 0.0], [100.0, -100.0]])
    scale = np.full((2, 2), 0.1)
    scale = scale if kind == "diag" else factors(scale)
    held = host.array(
        np.array([[0.0, 0.0], [0.3, -0.4], [100.0, -100.2], [50.0, 50.0], [1e4, 1e4]])
    )
    with_path = host.module("densities.mixture").with_path

    def draws(flat):
        return with_path(held, flat[:2], flat[2:6].reshape(2, 2), flat[6:].reshape(scale.shape))

    flat = np.concatenate([part.ravel() for part in (logits, loc, scale)])
    assert np.all(np.isfinite(host.jacobian(compiled(host, draws), flat)))
    log_prob = score(host, logits, loc, scale)
    total = host.gradient(lambda values: log_prob(values).sum(), np.asarray(held))
    assert np.all(np.isfinite(total))


def test_second_derivatives_of_draws_are_refused_in_pyro():
    """They would be wrong there; NumPyro has them."""
    require("pyro")
    host = adapter("pyro")
    torch = pytest.importorskip("torch")
    logits = host.array(np.zeros(2)).requires_grad_()
    loc, scale = host.array([[-1.0], [1.0]]), host.array(np.ones((2, 1)))
    value = host.module("densities.mixture").GaussianMixture(logits, loc, scale).rsample()
    with pytest.raises(RuntimeError, match="MixtureDensity: draws have first derivatives only"):
        torch.autograd.grad((value**2).sum(), [logits], create_graph=True)
