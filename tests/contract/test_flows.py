"""Coupling and autoregressive flows, of affine steps and of splines.

`tests/parity/test_flow_numbers.py` has the same numbers in both packages, draws included, so that
what compiles much is quick in one of them.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from scipy.stats import chi2, norm

STEPWISE_FLOWS = {
    f"{family.removesuffix('FlowDensity').lower()} {kind}": (family, {"kind": kind})
    for family in ("AffineFlowDensity", "SplineFlowDensity")
    for kind in ("coupling", "autoregressive")
}
FLOWS = STEPWISE_FLOWS | {
    "planar": ("PlanarFlowDensity", {}),
    "radial": ("RadialFlowDensity", {}),
    "gdn": ("GDNFlowDensity", {"num_transforms": 2}),
}
CONTEXT_SIZE = 3
# One test of draws for each of seven flows on two hosts: a false alarm in one of 10,000 or so.
FAILURE_BUDGET = 1e-4 / 14

each_flow = pytest.mark.parametrize("flow", FLOWS)


def specification(host, flow, **options):
    family, own = FLOWS[flow]
    defaults = {"num_transforms": 3, "hidden_dims": (8,)}
    return getattr(host.package, family)(**defaults | own | options)


def random_flow(host, flow, event_size, num_sites=1, scale=0.15, **options):
    """Random weights, so that every layer does something."""
    spec = specification(host, flow, **options)
    density = host.build_density(spec, num_sites, event_size, CONTEXT_SIZE)
    return host.scrambled_density(density, scale)


def to_noise(steps, value):
    log_det = 0.0
    for step in steps:
        value, own = step.to_noise(value)
        log_det = log_det + own
    return value, log_det


def from_noise(steps, noise):
    log_det = 0.0
    for step in reversed(steps):
        noise, own = step.from_noise(noise)
        log_det = log_det + own
    return noise, log_det


def evaluated(host, function, value):
    """The arrays that a function of one array gives, in NumPy."""
    return detached(host.compiled(function)(host.array(value)))


def detached(parts):
    return [
        part.detach().numpy() if hasattr(part, "detach") else np.asarray(part) for part in parts
    ]


@pytest.mark.compiles
@each_flow
@pytest.mark.parametrize("event_size", [1, 2, 5])
def test_log_determinant_is_that_of_the_jacobian(host, flow, event_size):
    rng = np.random.default_rng(event_size)
    with host.double_precision():
        density = random_flow(host, flow, event_size, scale=0.3)
        steps = density(host.array(rng.normal(size=CONTEXT_SIZE)), 0).steps
        value = rng.normal(size=event_size)
        noise, log_det = evaluated(host, lambda u: to_noise(steps, u), value)
        forward = host.jacobian(host.compiled(lambda u: to_noise(steps, u)[0]), value)
        backward = host.jacobian(host.compiled(lambda e: from_noise(steps, e)[0]), noise)
        again = evaluated(host, lambda e: from_noise(steps, e), noise)
    assert forward.dtype == np.float64
    sign, exact = np.linalg.slogdet(forward)
    assert sign == 1
    assert log_det == pytest.approx(exact, rel=1e-10, abs=1e-12)
    assert again[1] == pytest.approx(exact, rel=1e-9, abs=1e-11)
    np.testing.assert_allclose(again[0], value, atol=1e-10)
    # Draws carry the gradient of the inverse.
    np.testing.assert_allclose(backward, np.linalg.inv(forward), rtol=1e-7, atol=1e-9)


@pytest.mark.compiles
@each_flow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_round_trip(host, rng, flow, precision):
    """Relative to `1 + |u|`, as floating point is.

    What slopes below 1 round away no inverse brings back: the error counts in the noise there.
    """
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
    with host.double_precision() if precision == "float64" else nullcontext():
        density = random_flow(host, flow, 4)
        context, value = rng.normal(size=(2000, CONTEXT_SIZE)), 2 * rng.normal(size=(2000, 4))
        steps = density(host.array(context), 0).steps

        def there_and_back(u):
            noise, log_det = to_noise(steps, u)
            back, backward = from_noise(steps, noise)
            return noise, log_det, back, backward, to_noise(steps, back)[0]

        noise, log_det, back, backward, again = evaluated(host, there_and_back, value)
    assert back.dtype == np.dtype(precision)
    error = (np.abs(back - value) / (1 + np.abs(value))).max(1)
    in_noise = (np.abs(again - noise) / (1 + np.abs(noise))).max(1)
    assert np.minimum(error, in_noise).max() < tolerance
    assert np.median(error) < tolerance
    assert np.median(np.abs(log_det - backward)) < tolerance
    if precision == "float64":
        assert error.max() < tolerance
        assert np.abs(log_det - backward).max() < 10 * tolerance


@pytest.mark.compiles
@each_flow
@pytest.mark.parametrize("event_size", [1, 4])
def test_everything_starts_at_the_identity(host, rng, flow, event_size):
    density = host.build_density(specification(host, flow), 1, event_size, CONTEXT_SIZE)
    context, value = rng.normal(size=(20, CONTEXT_SIZE)), 3 * rng.normal(size=(20, event_size))
    log_prob = host.density_log_prob(density, context, value, 0)
    np.testing.assert_allclose(log_prob, norm.logpdf(value).sum(1), atol=2e-5)
    steps = density(host.array(context), 0).steps
    drawn, _ = evaluated(host, lambda e: from_noise(steps, e), value)
    np.testing.assert_allclose(drawn, value, atol=2e-5)


@pytest.mark.compiles
@each_flow
def test_densities_integrate_to_one(host, rng, flow):
    """On a line and in the plane, at random contexts."""
    for event_size, num_points in ((1, 2001), (2, 301)):
        density = random_flow(host, flow, event_size, scale=0.1)  # smooth enough for a grid
        axis = np.linspace(-15, 15, num_points)
        grid = np.stack(np.meshgrid(*[axis] * event_size, indexing="ij"), -1)
        grid = grid.reshape(-1, event_size)
        context = np.broadcast_to(rng.normal(size=CONTEXT_SIZE), (len(grid), CONTEXT_SIZE))
        log_prob = host.density_log_prob(density, context, grid, 0).astype(float)
        total = np.exp(log_prob).sum() * (axis[1] - axis[0]) ** event_size
        assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.compiles
@each_flow
def test_draws_fill_the_plane_as_the_density_says(host, rng, flow):
    assert_draws_follow(host, random_flow(host, flow, 2, scale=0.2), rng.normal(size=CONTEXT_SIZE))


def assert_draws_follow(host, density, context):
    """Counts of 4,000 draws in the cells of a lattice, and the density that came with them."""
    repeated = np.broadcast_to(context, (4000, len(context)))
    drawn, kept = host.density_draw(density, repeated)
    again = host.density_log_prob(density, repeated, drawn, 0)
    np.testing.assert_allclose(kept, again, rtol=1e-3, atol=5e-3)
    assert len(np.unique(drawn, axis=0)) == 4000

    fine, coarse, reach = 240, 12, 6.0
    edges = np.linspace(-reach, reach, fine + 1)
    centre, spread = np.median(drawn, axis=0), drawn.std(axis=0)
    axes = [centre[d] + spread[d] * (edges[1:] + edges[:-1]) / 2 for d in range(2)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    repeated = np.broadcast_to(context, (len(grid), len(context)))
    mass = np.exp(host.density_log_prob(density, repeated, grid, 0).astype(float))
    mass *= np.prod(spread) * (edges[1] - edges[0]) ** 2
    block = fine // coarse
    mass = mass.reshape(coarse, block, coarse, block).sum((1, 3)).ravel()
    bounds = [centre[d] + spread[d] * edges[::block] for d in range(2)]
    counts = np.histogram2d(*drawn.T, bins=bounds)[0].ravel()
    expected = 4000 * mass
    is_own = expected >= 5  # the others are one cell together
    expected = np.append(expected[is_own], 4000 - expected[is_own].sum())
    counts = np.append(counts[is_own], 4000 - counts[is_own].sum())
    if expected[-1] < 5:
        expected, counts = (np.append(x[:-2], x[-2:].sum()) for x in (expected, counts))
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert chi2.sf(statistic, len(counts) - 1) > FAILURE_BUDGET


@pytest.mark.parametrize("widths", [(12, 12), (2,), ()])
def test_masks_are_exact(host, rng, widths):
    """Outputs of a value read every value before it and no other, also where layers are narrow."""
    num_values, num_outputs = 4, 2
    options = {"rng_key": host.key(0)} if host.name == "numpyro" else {}
    masked = host.module("networks").MaskedMLP
    network = masked(1, CONTEXT_SIZE, num_values, widths, num_outputs, **options)
    network = host.scrambled_density(network, 0.5)
    inputs = rng.normal(size=CONTEXT_SIZE + num_values)
    slopes = host.jacobian(host.compiled(lambda x: network(x[None, None])[0, 0]), inputs)
    assert np.all(slopes[:, :CONTEXT_SIZE] != 0)
    slopes = slopes[:, CONTEXT_SIZE:].reshape(num_values, num_outputs, num_values)
    for number in range(num_values):
        assert np.all(slopes[number, :, :number] != 0)
        np.testing.assert_array_equal(slopes[number, :, number:], 0.0)


@pytest.mark.compiles
@pytest.mark.parametrize("family", ["AffineFlowDensity", "SplineFlowDensity"])
def test_autoregressive_steps_are_triangular_in_their_order(host, rng, family):
    flow = f"{family.removesuffix('FlowDensity').lower()} autoregressive"
    density = random_flow(host, flow, 4, scale=0.5, num_transforms=2)
    steps = density(host.array(rng.normal(size=CONTEXT_SIZE)), 0).steps
    for step, order in zip(steps[1:], ([0, 1, 2, 3], [3, 2, 1, 0]), strict=True):
        assert list(step.order) == order
        of_noise = host.compiled(lambda u, step=step: step.to_noise(u)[0])
        slopes = host.jacobian(of_noise, rng.normal(size=4))
        slopes = slopes[np.ix_(order, order)]
        np.testing.assert_array_equal(slopes[np.triu_indices(4, 1)], 0.0)
        assert np.all(slopes[np.tril_indices(4)] != 0)


@pytest.mark.compiles
@each_flow
def test_stacked_flows_are_their_members(host, rng, flow):
    density = random_flow(host, flow, 3, num_sites=2)
    context, value = rng.normal(size=(2, 6, CONTEXT_SIZE)), rng.normal(size=(2, 6, 3))
    together = host.density_log_prob(density, context, value)
    alone = [host.density_log_prob(density, context[site], value[site], site) for site in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    one = host.density_log_prob(density, context[1, 2], value[1, 2], 1)
    np.testing.assert_allclose(one, together[1, 2], rtol=1e-4, atol=1e-4)
    moved = host.density_log_prob(density, context + 0.1, value)
    assert np.all(np.abs(moved - together) > 1e-5)
    noise = rng.normal(size=(2, 6, 3))
    inputs = host.array(context)
    drawn, _ = evaluated(host, lambda e: from_noise(density(inputs).steps, e), noise)
    for site in range(2):
        of_site, _ = evaluated(
            host,
            lambda e, site=site: from_noise(density(inputs[site], site).steps, e),
            noise[site],
        )
        np.testing.assert_allclose(drawn[site], of_site, rtol=1e-4, atol=1e-4)


def test_log_scales_are_bounded(host, rng):
    """However large the weights: a step scales by `exp(max_log_scale)` at most."""
    density = random_flow(host, "affine coupling", 2, scale=100.0, max_log_scale=0.5)
    steps = density(host.array(rng.normal(size=(50, CONTEXT_SIZE))), 0).steps
    _, found = evaluated(host, steps[1].to_noise, rng.normal(size=(50, 2)))
    assert 0.4 < np.abs(found).max() <= 0.5 + 1e-6


def test_one_coordinate_of_an_affine_flow_is_a_normal(host, rng):
    density = random_flow(host, "affine autoregressive", 1)
    value = np.linspace(-3, 3, 7)
    context = np.broadcast_to(rng.normal(size=CONTEXT_SIZE), (7, CONTEXT_SIZE))
    log_prob = host.density_log_prob(density, context, value[:, None], 0)
    curvature = np.diff(log_prob, 2)
    np.testing.assert_allclose(curvature, curvature[0], rtol=1e-3)
    assert curvature[0] < 0


@pytest.mark.parametrize("flow", ["planar", "radial"])
def test_no_maps_are_a_normal(host, rng, flow):
    """And a map that is strong either way keeps its density: it folds nowhere."""
    density = random_flow(host, flow, 2, scale=0.5, num_transforms=0)
    context = np.broadcast_to(rng.normal(size=CONTEXT_SIZE), (9, CONTEXT_SIZE))
    value = np.stack([np.linspace(-3, 3, 9), np.zeros(9)], -1)
    log_prob = host.density_log_prob(density, context, value, 0)
    np.testing.assert_allclose(np.diff(log_prob, 3), 0.0, atol=1e-4)
    for scale in (3.0, 10.0):
        density = random_flow(host, flow, 2, scale=scale, num_transforms=2)
        noise, steps = rng.normal(size=(200, 2)), density(host.array(context[0]), 0).steps

        def determinants(e, steps=steps[:2]):
            value, log_det = from_noise(steps, e)
            return log_det, to_noise(steps, value)[1]

        there, back = evaluated(host, determinants, noise)
        assert np.all(np.isfinite(there))
        assert np.quantile(np.abs(there - back), 0.9) < 0.05


def test_bad_number_of_maps(host):
    for family in ("PlanarFlowDensity", "RadialFlowDensity"):
        with pytest.raises(ValueError, match="num_transforms: expected at least 0, got -1"):
            getattr(host.package, family)(num_transforms=-1)


@each_flow
def test_contexts_of_another_width_are_refused(host, flow):
    density = host.build_density(specification(host, flow), 1, 2, CONTEXT_SIZE)
    with pytest.raises(ValueError, match="context: expected 3 features in the last axis.* got 4"):
        density(host.array(np.zeros((1, 5, 4))))


@pytest.mark.parametrize("family", ["AffineFlowDensity", "SplineFlowDensity"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_transforms": 0}, "num_transforms: expected at least 1, got 0"),
        ({"kind": "planar"}, "kind: expected 'coupling' or 'autoregressive', got 'planar'"),
    ],
)
def test_steps_out_of_range(host, family, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(host.package, family)(**options)


def test_scales_out_of_range(host):
    with pytest.raises(ValueError, match="max_log_scale: expected a positive number, got 0.0"):
        host.package.AffineFlowDensity(max_log_scale=0.0)


@pytest.mark.compiles
@each_flow
def test_a_guide_is_trained_both_ways_and_saved(host, tmp_path, flow):
    """By simulations, which score given latents, and by a bound, which scores its own draws."""
    model, package = host.models.parabola, host.package
    spec = specification(host, flow, num_transforms=2)
    guide = host.guide(model, observed="x", densities=spec)
    amortized = host.fit(model, guide, package.NPE(16), num_steps=5)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    x = host.array(np.array(0.7))
    before, after = (host.sample(one.at(x=x), 50, seed=3)["z"] for one in (amortized, loaded))
    np.testing.assert_array_equal(after, before)
    assert loaded.guide.specifications(loaded.guide.structure)[1] == {"z": spec}
    bound = package.IWAE(4)
    guide = host.guide(model, observed="x", densities=spec)
    trained = host.fit(model, guide, bound, args=(x,), num_steps=5)
    assert np.all(np.isfinite(trained.history.losses))
    draws = host.sample(trained.at(x=x), 20)
    assert np.all(np.isfinite(host.log_prob(trained.at(x=x), draws)))


SITES = {
    "wide_supports": ("simplex", "ordered", "corr", "box"),
    "headings": ("angle", "axis", "mean"),
}


@pytest.mark.compiles
@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("family", ["AffineFlowDensity", "SplineFlowDensity"])
def test_any_site_can_have_an_autoregressive_flow(host, rng, family, name):
    """Constrained events, in plates and outside: draws are scored as given values are."""
    model = getattr(host.models, name)
    spec = getattr(host.package, family)(kind="autoregressive", hidden_dims=(8,))
    guide = host.guide(model, observed="y", densities=spec)
    amortized = host.scrambled(model, guide, scale=0.05)
    y = host.array(rng.normal(size={"wide_supports": 3, "headings": 4}[name]))
    values, densities = host.trace_of(amortized, SITES[name], {"y": y})
    latents = {site: value[None] for site, value in values.items()}
    scored = host.log_prob(amortized.at(y=y), latents)[0]
    assert sum(density.sum() for density in densities.values()) == pytest.approx(scored, abs=5e-3)
