"""Spline flows on the circle: no jump anywhere, mass one, draws that agree, several angles."""

from contextlib import nullcontext

import numpy as np
import pytest
from scipy.stats import chisquare

from tests.contract.test_flows import CONTEXT_SIZE, evaluated, from_noise, to_noise

# One test of draws on two hosts.
FAILURE_BUDGET = 1e-4 / 2
NUM_BINS = 6


def random_flow(host, event_size, num_sites=1, scale=0.5, **options):
    """Random weights, so that every step does something."""
    options = {"num_transforms": 3, "hidden_dims": (8,), "num_bins": NUM_BINS} | options
    spec = host.package.CircularSplineDensity(**options)
    density = host.build_density(spec, num_sites, event_size, CONTEXT_SIZE)
    return host.scrambled_density(density, scale)


def on_the_line(angle):
    return np.arcsinh(np.tan(0.5 * np.asarray(angle)))


def on_the_circle(line):
    return 2 * np.arctan(np.sinh(line))


def log_density(host, density, context, angle, loc=0.3, scale=0.7):
    """Log density of angles, `(num, size)`, in nats per radian."""
    loc, scale = (np.full(angle.shape[1], part) for part in (loc, scale))

    def score(coordinates):
        flow = density(host.array(context), 0).scaled(host.array(loc), host.array(scale))
        return (flow.log_prob(coordinates),)

    line = on_the_line(angle)
    (found,) = evaluated(host, score, (line - loc) / scale)
    return found - np.log(scale).sum() - np.log(2 / np.cosh(line)).sum(1)


def spline_parameters(rng, num, scale=1.0):
    return scale * rng.normal(size=(num, 3 * NUM_BINS))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_ends_of_a_circular_spline_meet(host, rng, dtype):
    """With one derivative, learned and no longer 1; and there and back at every knot."""
    parameters, tolerance = spline_parameters(rng, 500), {"float32": 1e-5, "float64": 1e-10}[dtype]

    def spline(value, **options):
        return host.rational_quadratic(
            value, parameters, NUM_BINS, np.pi, dtype=dtype, is_circular=True, **options
        )

    (low, left), (high, right) = spline(np.full(500, -np.pi)), spline(np.full(500, np.pi))
    np.testing.assert_allclose(low, -np.pi, atol=tolerance)
    np.testing.assert_allclose(high, np.pi, atol=tolerance)
    np.testing.assert_allclose(left, right, atol=100 * tolerance)
    assert left.std() > 0.3
    value = rng.uniform(-np.pi, np.pi, size=500)
    image, forward = spline(value)
    back, backward = spline(image, inverse=True)
    error = np.abs(back - value) * np.minimum(np.exp(forward), 1.0)
    assert error.max() < 2 * tolerance
    np.testing.assert_allclose(backward, forward, atol=2e3 * tolerance)


def test_zeros_give_the_identity(host):
    value = np.linspace(-np.pi, np.pi, 50)
    image, log_slope = host.rational_quadratic(
        value, np.zeros((50, 3 * NUM_BINS)), NUM_BINS, np.pi, dtype="float64", is_circular=True
    )
    np.testing.assert_allclose(image, value, atol=1e-12)
    np.testing.assert_allclose(log_slope, 0.0, atol=1e-12)


@pytest.mark.compiles
@pytest.mark.parametrize("event_size", [1, 3])
def test_log_determinant_is_that_of_the_jacobian(host, event_size):
    rng = np.random.default_rng(event_size)
    with host.double_precision():
        density = random_flow(host, event_size, scale=0.3)
        loc, scale = host.array(rng.normal(size=event_size)), host.array(np.full(event_size, 0.7))
        context = host.array(rng.normal(size=CONTEXT_SIZE))
        steps = density(context, 0).scaled(loc, scale).steps
        value = rng.normal(size=event_size)
        noise, log_det = evaluated(host, lambda u: to_noise(steps, u), value)
        forward = host.jacobian(host.compiled(lambda u: to_noise(steps, u)[0]), value)
        backward = host.jacobian(host.compiled(lambda e: from_noise(steps, e)[0]), noise)
        again = evaluated(host, lambda e: from_noise(steps, e), noise)
    sign, exact = np.linalg.slogdet(forward)
    assert sign == 1
    assert log_det == pytest.approx(exact, rel=1e-9, abs=1e-11)
    assert again[1] == pytest.approx(exact, rel=1e-9, abs=1e-11)
    np.testing.assert_allclose(again[0], value, atol=1e-10)
    np.testing.assert_allclose(backward, np.linalg.inv(forward), rtol=1e-7, atol=1e-9)


@pytest.mark.compiles
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_round_trip_around_the_circle(host, rng, precision):
    """In radians; where slopes below 1 round it away, in radians of the image."""
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
    angle = rng.uniform(-np.pi, np.pi, size=(2000, 2))
    angle[:4] = [[np.pi, 0.0], [-np.pi, 0.0], [0.0, 0.0], [np.pi - 1e-6, 1e-6 - np.pi]]
    with host.double_precision() if precision == "float64" else nullcontext():
        density = random_flow(host, 2, scale=0.15)
        steps = density(host.array(rng.normal(size=(2000, CONTEXT_SIZE))), 0).steps

        def there_and_back(u):
            image, log_det = to_noise(steps[:-1], u)
            back, backward = from_noise(steps[:-1], image)
            return image, back, log_det - backward, to_noise(steps[:-1], back)[0]

        image, back, difference, again = evaluated(host, there_and_back, on_the_line(angle))
        noise, _ = evaluated(host, steps[-1].to_noise, image)
        same, _ = evaluated(host, steps[-1].from_noise, noise)
    assert back.dtype == np.dtype(precision)
    error = np.abs(np.sin(0.5 * (on_the_circle(back) - angle))).max(1)
    in_image = np.abs(np.sin(0.5 * (again - image))).max(1)
    assert np.minimum(error, in_image).max() < tolerance
    assert np.median(np.abs(difference)) < tolerance
    assert np.abs(np.sin(0.5 * (same - image))).max() < tolerance
    assert np.all(np.isfinite(noise))


@pytest.mark.compiles
def test_no_jump_anywhere(host, rng):
    """Across the cut as elsewhere: steps of a continuous function shrink with those of the grid."""
    density = random_flow(host, 1)
    for context in rng.normal(size=(3, CONTEXT_SIZE)):
        ends = np.array([[np.pi - 1e-5], [1e-5 - np.pi]])
        assert np.abs(np.diff(log_density(host, density, context, ends))) < 5e-3
        coarse, fine = (
            np.abs(np.diff(log_density(host, density, context, grid[:, None]))).max()
            for grid in (np.linspace(-3.14, 3.14, num + 1) for num in (2000, 16_000))
        )
        assert fine < coarse / 4


def test_the_line_has_a_jump_at_the_cut(host, rng):
    """What the circle is for: a flow on the line has one there."""
    spec = host.package.SplineFlowDensity(hidden_dims=(8,), num_transforms=1)
    density = host.scrambled_density(host.build_density(spec, 1, 1, CONTEXT_SIZE), 0.5)
    angle = np.array([[np.pi - 1e-3], [-np.pi + 1e-3]])
    line = on_the_line(angle)
    context = np.broadcast_to(rng.normal(size=CONTEXT_SIZE), (2, CONTEXT_SIZE))
    found = host.density_log_prob(density, context, line, 0) - np.log(2 / np.cosh(line[:, 0]))
    assert np.abs(np.diff(found)) > 0.5


@pytest.mark.compiles
@pytest.mark.parametrize("event_size", [1, 2])
def test_densities_integrate_to_one(host, rng, event_size):
    density = random_flow(host, event_size, scale=0.15)
    num = {1: 4000, 2: 300}[event_size]
    axis = -np.pi + 2 * np.pi * (np.arange(num) + 0.5) / num
    grid = np.stack(np.meshgrid(*[axis] * event_size, indexing="ij"), -1).reshape(-1, event_size)
    context = rng.normal(size=CONTEXT_SIZE)
    found = log_density(host, density, context, grid).astype(float)
    assert found.std() > 0.3
    total = np.exp(found).sum() * (axis[1] - axis[0]) ** event_size
    assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.compiles
def test_draws_follow_the_density(host, rng):
    density, context = random_flow(host, 1), rng.normal(size=CONTEXT_SIZE)
    drawn, kept = host.density_draw(density, np.broadcast_to(context, (4000, CONTEXT_SIZE)))
    angle = on_the_circle(drawn.astype(float))
    log_prob = log_density(host, density, context, angle, 0.0, 1.0)
    kept = kept - np.log(2 / np.cosh(drawn[:, 0].astype(float)))
    assert np.quantile(np.abs(kept - log_prob), 0.99) < 1e-2
    edges = np.linspace(-np.pi, np.pi, 2401)
    middle = (0.5 * (edges[1:] + edges[:-1]))[:, None]
    mass = np.exp(log_density(host, density, context, middle, 0.0, 1.0).astype(float))
    mass = mass.reshape(24, 100).sum(1)
    counts = np.histogram(angle, bins=edges[::100])[0]
    is_own = 4000 * mass / mass.sum() >= 5
    assert is_own.sum() > 5
    expected = np.append(mass[is_own], mass[~is_own].sum()) / mass.sum() * 4000
    counts = np.append(counts[is_own], counts[~is_own].sum())
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > FAILURE_BUDGET


@pytest.mark.compiles
def test_everything_starts_at_the_quartiles_of_the_prior(host, rng):
    """Whatever the context; uniform if the prior is."""
    spec = host.package.CircularSplineDensity(hidden_dims=(8,))
    density = host.build_density(spec, 1, 1, CONTEXT_SIZE)
    grid = -np.pi + 2 * np.pi * (np.arange(4000)[:, None] + 0.5) / 4000
    context, uniform = rng.normal(size=CONTEXT_SIZE), np.arcsinh(1.0) / 0.6744897501960817
    flat = log_density(host, density, context, grid, 0.0, uniform)
    np.testing.assert_allclose(flat, -np.log(2 * np.pi), atol=1e-3)
    narrow = np.exp(log_density(host, density, context, grid, 0.0, 0.2).astype(float))
    inside = np.abs(on_the_line(grid[:, 0])) < 0.2 * 0.6744897501960817
    assert narrow[inside].sum() * 2 * np.pi / 4000 == pytest.approx(0.5, abs=0.01)


@pytest.mark.compiles
def test_stacked_flows_are_their_members(host, rng):
    density = random_flow(host, 2, num_sites=2)
    context, value = rng.normal(size=(2, 6, CONTEXT_SIZE)), rng.normal(size=(2, 6, 2))
    together = host.density_log_prob(density, context, value)
    alone = [host.density_log_prob(density, context[site], value[site], site) for site in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)
    moved = host.density_log_prob(density, context + 0.1, value)
    assert np.all(np.abs(moved - together) > 1e-5)


@pytest.mark.compiles
def test_far_noise_and_the_cut_keep_gradients_finite(host, rng):
    density = random_flow(host, 2)
    steps = density(host.array(rng.normal(size=CONTEXT_SIZE)), 0).steps
    for noise in (np.array([40.0, -40.0]), np.array([6.0, -9.0]), np.zeros(2)):
        value, log_det = evaluated(host, lambda e: from_noise(steps, e), noise)
        assert np.all(np.isfinite(value))
        assert np.isfinite(log_det)
    cut = on_the_line(np.array([np.pi, -np.pi], np.float32))
    flow = density(host.array(np.ones(3)), 0)
    gradient = host.gradient(host.compiled(flow.log_prob), cut)
    assert np.all(np.isfinite(gradient))


def test_bad_options_and_supports(host):
    circular = host.package.CircularSplineDensity
    with pytest.raises(ValueError, match="num_transforms: expected at least 1, got 0"):
        circular(num_transforms=0)
    with pytest.raises(ValueError, match="num_bins: expected 2 to 1000, got 1"):
        circular(num_bins=1)
    guide = host.guide(host.models.two_mode_sign, observed="x", densities={"z": circular()})
    message = "site 'z': is real and no circle, and CircularSplineDensity cannot describe it"
    with pytest.raises(ValueError, match=message):
        guide.setup()


@pytest.mark.compiles
def test_angles_get_it_unless_they_are_given_another(host):
    package, model = host.package, host.models.headings
    spline, circular = package.SplineFlowDensity, package.CircularSplineDensity

    def chosen(densities):
        guide = host.guide(model, observed="y", densities=densities).setup()
        return guide.specifications(guide.structure)[1]

    assert chosen(None) == {"angle": circular(), "mean": circular(), "axis": spline()}
    given = spline(2, 4, (8,))
    own = circular(2, 4, (8,))
    assert chosen(given) == {"angle": own, "mean": own, "axis": given}
    by_site = {"angle": spline(), "mean": circular(), "axis": spline()}
    assert chosen({"angle": spline()}) == by_site
    normal = package.NormalDensity()
    assert chosen(normal) == dict.fromkeys(by_site, normal)


@pytest.mark.compiles
def test_files_keep_the_density_that_they_were_saved_with(host, tmp_path, rng):
    """Those from before the circle have a flow on the line at angles, by name."""
    package, model = host.package, host.models.compass
    spec = package.SplineFlowDensity(num_bins=4, hidden_dims=(8,))
    x, z = rng.normal(size=(5, 2)), rng.uniform(-3, 3, size=5)
    for densities in ({"z": spec}, spec):
        guide = host.guide(model, observed="x", densities=densities)
        amortized = host.scrambled(model, guide, scale=0.1)
        amortized.save(tmp_path / "guide.safetensors")
        loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
        kinds = [
            type(each.guide.specifications(each.guide.structure)[1]["z"]).__name__
            for each in (amortized, loaded)
        ]
        expected = "SplineFlowDensity" if isinstance(densities, dict) else "CircularSplineDensity"
        assert kinds == [expected] * 2
        before, after = (
            host.site_log_probs(each, (), {"z": z}, {"x": x})["z"] for each in (amortized, loaded)
        )
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
