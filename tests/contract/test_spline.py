"""The monotone rational-quadratic spline and the flow built of it."""

import numpy as np
import pytest

pytestmark = pytest.mark.compiles

NUM_BINS, BOUND = 8, 5.0
SIZE = 3 * NUM_BINS - 1


def knots_of(raw):
    """Knots of the spline from its raw widths, in NumPy."""
    exp = np.exp(raw - raw.max(-1, keepdims=True))
    sizes = 1e-3 + (1 - raw.shape[-1] * 1e-3) * exp / exp.sum(-1, keepdims=True)
    ends = 2 * BOUND * np.cumsum(sizes, -1) - BOUND
    return np.concatenate([np.full((*raw.shape[:-1], 1), -BOUND), ends], -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-10)])
def test_round_trip(host, rng, dtype, tolerance):
    parameters = rng.normal(size=(10000, SIZE))
    knots = knots_of(parameters[:, :NUM_BINS])
    value = rng.uniform(-1.3 * BOUND, 1.3 * BOUND, size=10000)
    value[:1000] = knots[:1000, 3]
    value[1000:1010], value[1010:1020] = -BOUND, BOUND
    image, forward = host.rational_quadratic(value, parameters, NUM_BINS, BOUND, dtype=dtype)
    back, backward = host.rational_quadratic(
        image, parameters, NUM_BINS, BOUND, dtype=dtype, inverse=True
    )
    assert image.dtype == back.dtype == np.dtype(dtype)
    # float32 loses what the slope amplifies: compare in the image where the slope is small.
    error = np.abs(back - value) * np.minimum(np.exp(forward), 1.0)
    assert error.max() < tolerance
    np.testing.assert_allclose(backward, forward, atol=2e3 * tolerance)


def test_log_derivative_is_that_of_autodiff(host, rng):
    parameters = rng.normal(size=(2000, SIZE))
    value = rng.uniform(-1.2 * BOUND, 1.2 * BOUND, size=2000)
    _, log_slope = host.rational_quadratic(value, parameters, NUM_BINS, BOUND, dtype="float64")
    gradient = host.spline_gradient(value, parameters, NUM_BINS, BOUND)
    np.testing.assert_allclose(log_slope, np.log(gradient), atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_monotone_for_wild_parameters(host, rng, dtype):
    parameters = np.broadcast_to(10 * rng.normal(size=(50, 1, SIZE)), (50, 400, SIZE))
    value = np.broadcast_to(np.linspace(-6, 6, 400), (50, 400))
    image, log_slope = host.rational_quadratic(value, parameters, NUM_BINS, BOUND, dtype=dtype)
    assert np.all(np.isfinite(log_slope))
    assert np.all(np.diff(image, axis=1) >= 0)


def test_knots_are_met_and_the_derivative_is_continuous(host, rng):
    parameters = rng.normal(size=(200, SIZE))
    x = knots_of(parameters[:, :NUM_BINS])
    y = knots_of(parameters[:, NUM_BINS : 2 * NUM_BINS])
    wide = np.repeat(parameters[:, None], NUM_BINS + 1, axis=1)
    image, _ = host.rational_quadratic(x, wide, NUM_BINS, BOUND, dtype="float64")
    np.testing.assert_allclose(image, y, atol=1e-9)
    sides = [
        host.rational_quadratic(x + shift, wide, NUM_BINS, BOUND, dtype="float64")[1]
        for shift in (-1e-9, 1e-9)
    ]
    np.testing.assert_allclose(*sides, atol=1e-5)
    raw = parameters[:, 2 * NUM_BINS :] + np.log(np.expm1(1 - 1e-3))
    np.testing.assert_allclose(np.exp(sides[1][:, 1:-1]), 1e-3 + np.log1p(np.exp(raw)), rtol=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_the_identity(host, rng, inverse):
    parameters = 3 * rng.normal(size=(2, 100, SIZE))
    value = np.stack([np.full(100, 10 * BOUND), np.full(100, -10 * BOUND)])
    image, log_slope = host.rational_quadratic(
        value, parameters, NUM_BINS, BOUND, dtype="float32", inverse=inverse
    )
    np.testing.assert_array_equal(image, value.astype("float32"))
    np.testing.assert_array_equal(log_slope, 0.0)


def test_zero_parameters_are_the_identity(host):
    value = np.linspace(-7, 7, 500)
    image, log_slope = host.rational_quadratic(
        value, np.zeros((500, SIZE)), NUM_BINS, BOUND, dtype="float64"
    )
    np.testing.assert_allclose(image, value, atol=1e-12)
    np.testing.assert_allclose(log_slope, 0.0, atol=1e-12)


def scrambled_density(host, spec, num_sites, event_size, context_size, scale=0.15):
    """A density with random weights, so that every layer does something."""
    density = host.build_density(spec, num_sites, event_size, context_size)
    rng = np.random.default_rng(5)
    if host.name == "pyro":
        for parameter in density.parameters():
            noise = host.array(scale * rng.normal(size=tuple(parameter.shape)))
            parameter.data.add_(noise)
        return density
    import equinox as eqx
    import jax

    def noisy(leaf):
        return (
            leaf + host.array(scale * rng.normal(size=leaf.shape)) if eqx.is_array(leaf) else leaf
        )

    return jax.tree.map(noisy, density)


@pytest.mark.parametrize(
    "family", [pytest.param("SplineFlowDensity", marks=pytest.mark.slow), "NormalDensity"]
)
def test_density_integrates_to_one_in_two_dimensions(host, family):
    spec = getattr(host.package, family)(hidden_dims=(8,))
    density = scrambled_density(host, spec, 1, 2, 3, scale=0.1)  # smooth enough for a grid
    axis = np.linspace(-20, 20, 1001)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    context = np.broadcast_to([0.3, -1.0, 0.5], (len(grid), 3))
    log_prob = host.density_log_prob(density, context, grid, 0)
    assert np.exp(log_prob).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("family", ["SplineFlowDensity", "NormalDensity"])
@pytest.mark.parametrize("event_size", [1, 2, 5])
def test_stacked_density_is_its_members_and_uses_its_context(host, rng, family, event_size):
    spec = getattr(host.package, family)(hidden_dims=(8,))
    density = scrambled_density(host, spec, 3, event_size, 4)
    context, value = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 6, event_size))
    together = host.density_log_prob(density, context, value)
    alone = [host.density_log_prob(density, context[site], value[site], site) for site in range(3)]
    single = host.density_log_prob(density, context[1, 2], value[1, 2], 1)
    np.testing.assert_allclose(single, together[1, 2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    moved = host.density_log_prob(density, context + 0.1, value)
    assert np.all(np.abs(moved - together) > 1e-5)


@pytest.mark.parametrize("event_size", [1, 2, 5])
def test_draws_carry_the_density_that_scores_them(host, event_size):
    """The density kept from the draw is that of an independent evaluation."""
    spec = host.package.SplineFlowDensity(hidden_dims=(8,))
    density = scrambled_density(host, spec, 1, event_size, 3)
    context = np.random.default_rng(0).normal(size=(400, 3))
    drawn, kept = host.density_draw(density, context)
    again = host.density_log_prob(density, context, drawn, 0)
    np.testing.assert_allclose(kept, again, rtol=1e-3, atol=5e-3)
    assert len(np.unique(drawn[:, 0])) == 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_transforms": 0}, "num_transforms: expected at least 1, got 0"),
        ({"num_bins": 1}, "num_bins: expected 2 to 1000, got 1"),
        ({"num_bins": 1000}, "num_bins: expected 2 to 1000, got 1000"),
        ({"bound": 0.0}, "bound: expected a positive number, got 0.0"),
    ],
)
def test_options_out_of_range(host, options, message):
    with pytest.raises(ValueError, match=message):
        host.package.SplineFlowDensity(**options)


def test_every_pair_of_coordinates_is_separated(host):
    masks = host.module("densities.flow_steps").coupling_masks
    for size in range(2, 11):
        steps = np.array(masks(size, 2 * int(np.ceil(np.log2(size)))))
        assert np.all(steps.any(axis=1))
        assert not np.any(steps.all(axis=1))
        assert np.all(steps.any(axis=0)), "some coordinate never moves"
        for i in range(size):
            for j in range(i):
                assert np.any(steps[:, i] != steps[:, j])
