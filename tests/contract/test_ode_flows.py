"""Flows along an ordinary differential equation: closed forms, and what every such density must do.

`tests/parity/test_flow_numbers.py` has the same numbers in both packages.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from scipy.stats import norm

from tests.backends import small_guide
from tests.contract.test_flows import (
    CONTEXT_SIZE,
    assert_draws_follow,
    evaluated,
    from_noise,
    to_noise,
)

pytestmark = pytest.mark.compiles  # `tests/parity/` has the numbers in NumPyro too

# Options of each family with small networks.
FAMILIES = {
    "FlowMatchingDensity": {"hidden_dims": (16,)},
    "ContinuousFlowDensity": {"hidden_dims": (16,)},
    "DiffusionDensity": {"hidden_dims": (16,)},
}
CONTEXT = np.array([0.3, -0.8, 1.1])

each_family = pytest.mark.parametrize("family", FAMILIES)
# At tight tolerances a diffusion, whose field is the steepest, takes ten seconds.
each_family_slowest_apart = pytest.mark.parametrize(
    "family",
    ["FlowMatchingDensity", "ContinuousFlowDensity"]
    + [pytest.param("DiffusionDensity", marks=pytest.mark.slow)],
)


def specification(host, family, **options):
    return getattr(host.package, family)(**FAMILIES[family] | options)


def random_flow(host, family, event_size, num_sites=1, scale=0.3, **options):
    """Random weights, so that every layer does something."""
    if "tolerance" in options:
        options.setdefault("num_steps", None)
    spec = specification(host, family, **options)
    density = host.build_density(spec, num_sites, event_size, CONTEXT_SIZE)
    return host.scrambled_density(density, scale)


class Linear:
    """The field `rate z`, whose solution is known."""

    def __init__(self, rate):
        self.rate = rate

    def velocity(self, time, value):
        return self.rate * value + 0 * time

    def with_divergence(self, time, value, directions):
        return self.velocity(time, value), 0 * value[..., 0] + self.rate * value.shape[-1]


class Straight:
    """The best velocity of flow matching for `N(mean, sd^2)`, independent in each coordinate."""

    def __init__(self, mean, sd, sigma_min):
        self.mean, self.sd, self.slope = mean, sd, 1 - sigma_min

    def rate(self, time):
        left = 1 - self.slope * time
        return (time * self.sd**2 - self.slope * left) / (time**2 * self.sd**2 + left**2)

    def velocity(self, time, value):
        return self.mean + self.rate(time) * (value - time * self.mean)

    def with_divergence(self, time, value, directions):
        return self.velocity(time, value), 0 * value[..., 0] + value.shape[-1] * self.rate(time)


def flow_along(host, field, size, tolerance=1e-9, num_steps=None, noise_time=0.0, data_time=1.0):
    ode = host.module("densities.ode")
    solver = ode.Solver(tolerance, num_steps)
    times = {"noise_time": noise_time, "data_time": data_time}
    step = ode.OdeStep(field, host.array(np.eye(size)), solver, **times)
    return host.module("densities.base").FlowDistribution([step], (), size)


def drawn_and_scored(host, flow, noise):
    """Draws of given noise, their log determinant, and their log density by the way back."""

    def there_and_back(noise):
        drawn, log_det = from_noise(flow.steps, noise)
        return drawn, log_det, flow.log_prob(drawn)

    return evaluated(host, there_and_back, noise)


@pytest.mark.parametrize("num_steps", [pytest.param(None, marks=pytest.mark.compiles), 40])
def test_a_linear_field_is_its_exponential(host, num_steps):
    """`f = -z` from 0 to 1: draws have `N(0, e^-2)`, and `log q(0) = log N(0) + 1` a coordinate."""
    with host.double_precision():
        flow = flow_along(host, Linear(-1.0), 2, num_steps=num_steps)
        noise = np.array([[0.0, 0.0], [0.5, -1.0]])
        drawn, log_det, log_prob = drawn_and_scored(host, flow, noise)
        np.testing.assert_allclose(drawn, np.exp(-1) * noise, atol=1e-8)
        np.testing.assert_allclose(log_det, 2.0, rtol=1e-8)
        assert log_prob[0] == pytest.approx(2 * (norm.logpdf(0.0) + 1), abs=1e-7)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.compiles), 2])
def test_the_best_velocity_of_a_normal_gives_that_normal(host, size):
    """With a divergence of the other sign the density at the mean would be -3.2 a coordinate."""
    mean, sd, sigma_min = 0.4, 0.1, 1e-4
    with host.double_precision():
        flow = flow_along(host, Straight(mean, sd, sigma_min), size)
        noise = np.concatenate(
            [np.zeros((1, size)), np.random.default_rng(0).normal(size=(30, size))]
        )
        drawn, _, log_prob = drawn_and_scored(host, flow, noise)
        np.testing.assert_allclose(drawn, mean + sd * noise, atol=2e-4)  # sigma_min widens
        assert log_prob[0] == pytest.approx(size * 1.3836, abs=2e-4)
        np.testing.assert_allclose(log_prob, norm.logpdf(drawn, mean, sd).sum(1), atol=2e-3)


def test_time_the_other_way_gives_another_normal(host):
    """The usual wrong version: data at 0 and noise at 1."""
    with host.double_precision():
        field = Straight(0.0, 0.1, 1e-4)
        flow = flow_along(host, field, 1, num_steps=200, noise_time=1.0, data_time=0.0)
        drawn, _ = evaluated(host, lambda e: from_noise(flow.steps, e), np.ones((1, 1)))
        assert drawn[0, 0] == pytest.approx(10.0, rel=1e-2)


def test_derivatives_of_networks_are_those_of_the_jacobian(host):
    with host.double_precision():
        options = {"rng_key": host.key(0)} if host.name == "numpyro" else {}
        network = host.module("networks").StackedMLP(2, 6, (7, 5), 4, **options)
        rng = np.random.default_rng(0)
        inputs, directions = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 5, 4))
        values, moved = evaluated(
            host, lambda x: network.with_derivatives(x, host.array(directions)), inputs
        )
        np.testing.assert_allclose(values, host.apply(network, inputs), rtol=1e-12)
        alone = evaluated(
            host, lambda x: network.with_derivatives(x, host.array(directions[1]), 1), inputs[1]
        )
        np.testing.assert_allclose(alone[1], moved[1], rtol=1e-10)
        slopes = host.jacobian(host.compiled(lambda x: network(x, 1)), inputs[1, 2])[:, :4]
        np.testing.assert_allclose(moved[1, 2], directions[1, 2] @ slopes.T, rtol=1e-10)


@each_family_slowest_apart
@pytest.mark.parametrize("event_size", [1, 3])
def test_density_is_that_of_the_jacobian_of_the_draws(host, family, event_size):
    """Change of variables by automatic derivatives of the map from noise; tolerance 1e-11."""
    with host.double_precision():
        density = random_flow(host, family, event_size, tolerance=1e-11)
        distribution = density(host.array(CONTEXT), 0)
        noise = np.random.default_rng(event_size).normal(size=event_size)
        drawn, _ = evaluated(host, lambda e: from_noise(distribution.steps, e), noise)
        slopes = host.jacobian(host.compiled(lambda e: from_noise(distribution.steps, e)[0]), noise)
        exact = norm.logpdf(noise).sum() - np.linalg.slogdet(slopes)[1]
        found = host.density_log_prob(density, CONTEXT, drawn, 0)
    assert found.dtype == np.float64
    assert found == pytest.approx(exact, abs=1e-8)


@each_family_slowest_apart
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_round_trip(host, rng, family, precision):
    """Relative to `1 + |u|`, with the tolerance of the solver at the precision's limit.

    As in `test_flows.py`, the error counts in the noise where slopes are below 1.
    """
    limit, tolerance = {"float32": (1e-5, 1e-6), "float64": (1e-10, 1e-12)}[precision]
    with host.double_precision() if precision == "float64" else nullcontext():
        density = random_flow(host, family, 2, tolerance=tolerance)
        value = 2 * rng.normal(size=(100, 2))
        steps = density(host.array(rng.normal(size=(100, CONTEXT_SIZE))), 0).steps

        def there_and_back(u):
            noise, log_det = to_noise(steps, u)
            back, backward = from_noise(steps, noise)
            return noise, log_det, back, backward, to_noise(steps, back)[0]

        noise, log_det, back, backward, again = evaluated(host, there_and_back, value)
    assert back.dtype == np.dtype(precision)
    error = (np.abs(back - value) / (1 + np.abs(value))).max(1)
    in_noise = (np.abs(again - noise) / (1 + np.abs(noise))).max(1)
    assert np.minimum(error, in_noise).max() < limit
    assert np.median(error) < limit
    assert np.max(np.abs(log_det - backward) / (1 + np.abs(log_det))) < 10 * limit
    assert np.abs(noise - value).max() > 0.1


@each_family
def test_densities_integrate_to_one(host, rng, family):
    """On a line and in the plane, at random contexts, at the default tolerance."""
    for event_size, num_points in ((1, 1001), (2, 151)):
        density = random_flow(host, family, event_size, scale=0.2)
        axis = np.linspace(-9, 9, num_points)
        grid = np.stack(np.meshgrid(*[axis] * event_size, indexing="ij"), -1)
        grid = grid.reshape(-1, event_size)
        context = np.broadcast_to(rng.normal(size=CONTEXT_SIZE), (len(grid), CONTEXT_SIZE))
        log_prob = host.density_log_prob(density, context, grid, 0).astype(float)
        total = np.exp(log_prob).sum() * (axis[1] - axis[0]) ** event_size
        assert total == pytest.approx(1.0, abs=1e-3)


@each_family_slowest_apart
def test_draws_fill_the_plane_as_the_density_says(host, family):
    num_steps = {"DiffusionDensity": 20}.get(family, 6)
    assert_draws_follow(host, random_flow(host, family, 2, num_steps=num_steps), CONTEXT)


@each_family
def test_stacked_flows_are_their_members(host, rng, family):
    density = random_flow(host, family, 3, num_sites=2, num_steps=20)
    context, value = rng.normal(size=(2, 6, CONTEXT_SIZE)), rng.normal(size=(2, 6, 3))
    together = host.density_log_prob(density, context, value)
    alone = [host.density_log_prob(density, context[site], value[site], site) for site in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    moved = host.density_log_prob(density, context + 0.1, value)
    assert np.all(np.abs(moved - together) > 1e-5)


@each_family_slowest_apart
def test_fixed_steps_and_chosen_ones_agree(host, rng, family):
    with host.double_precision():
        context, value = rng.normal(size=(50, CONTEXT_SIZE)), rng.normal(size=(50, 2))
        found = [
            host.density_log_prob(random_flow(host, family, 2, **options), context, value, 0)
            for options in ({"num_steps": 100}, {"tolerance": 1e-10}, {"tolerance": 1e-11})
        ]
    # Far out, log densities are hundreds of nats.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found[1], found[2], rtol=1e-8, atol=1e-8
    )  # ten times as exact, the same


@each_family
def test_flows_start_at_the_standard_normal(host, family):
    density = host.build_density(specification(host, family, num_steps=2), 1, 2, CONTEXT_SIZE)
    value = np.array([[0.5, -2.0], [3.0, 0.0]])
    found = host.density_log_prob(density, np.tile(CONTEXT, (2, 1)), value, 0)
    np.testing.assert_allclose(found, norm.logpdf(value).sum(1), atol=1e-5)


@each_family
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance: expected a positive number of at most 0.01, got 0.0"),
        ({"tolerance": 0.1}, "tolerance: expected a positive .* got 0.1; draws and densities"),
        ({"tolerance": float("nan")}, "tolerance: expected a positive number of at most 0.01"),
        ({"num_steps": 0}, "num_steps: expected at least 1 or None, got 0"),
    ],
)
def test_solvers_out_of_range(host, family, options, message):
    with pytest.raises(ValueError, match=message):
        specification(host, family, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 1.0}, "sigma_min: expected from 0 to below 1, got 1.0"),
        ({"sigma_min": -0.1}, "sigma_min: expected from 0 to below 1, got -0.1"),
        ({"time_exponent": -1.0}, "time_exponent: expected above -1, got -1.0"),
        ({"num_times": 0}, "num_times: expected at least 1, got 0"),
    ],
)
def test_flow_matching_out_of_range(host, options, message):
    with pytest.raises(ValueError, match=message):
        host.package.FlowMatchingDensity(**options)


def test_a_tolerance_out_of_reach(host):
    """A field that is not finite has no steps that are small enough."""
    flow = flow_along(host, Linear(float("nan")), 1, tolerance=1e-6)
    with pytest.raises(RuntimeError, match="tolerance: 1e-06 needs steps that are too small or"):
        evaluated(host, lambda u: to_noise(flow.steps, u), np.zeros(1))


class FieldOfLoss(Straight):
    """A velocity where `MatchedFlow` has its network."""

    def __init__(self, host, *args):
        super().__init__(*args)
        self.context = host.array(np.zeros(1))

    def velocity(self, time, value):
        return super().velocity(time[..., None], value)

    def per_draw(self):
        return self


SDES = ("vp", "sub-vp")
MEAN, SD = 0.4, 0.3


class NoiseOfNormal:
    """What `Diffusion` has its network for, if the values are `N(MEAN, SD^2)`."""

    def __init__(self, host, module, specification, sd=SD):
        self.host, self.context, self.sd = host, host.array(np.zeros(1)), sd
        self.is_vp = specification.sde == "vp"

    def parts(self, noise_sd):
        """The score is that of `N(a MEAN, a^2 SD^2 + noise_sd^2)`; the start is left out."""
        left = 1 - noise_sd**2 if self.is_vp else 1 - noise_sd  # of the variance
        slope = noise_sd / (left * self.sd**2 + noise_sd**2) - noise_sd / (left + noise_sd**2)
        return slope, -noise_sd / (left * self.sd**2 + noise_sd**2) * left**0.5 * MEAN

    def velocity(self, time, value):
        slope, constant = self.parts(time[..., None])
        return slope * value + constant

    def with_divergence(self, time, value, directions):
        slope, _ = self.parts(time)
        return self.velocity(time, value), 0 * value[..., 0] + value.shape[-1] * slope

    def per_draw(self):
        return self


def exact_diffusion(host, sde, batch_shape=(), sd=SD, kind="Diffusion", **options):
    module = host.module("densities.diffusion")
    spec = host.package.DiffusionDensity(sde=sde, **options)
    return getattr(module, kind)(NoiseOfNormal(host, module, spec, sd), batch_shape, 2, spec)


@pytest.mark.parametrize("sde", ["vp", pytest.param("sub-vp", marks=pytest.mark.compiles)])
def test_the_score_of_a_normal_gives_that_normal(host, sde):
    """With the drift of the reverse diffusion in place of half its score, sds would be far off."""
    with host.double_precision():
        flow = exact_diffusion(host, sde, tolerance=1e-9, min_time=1e-6)
        noise = np.random.default_rng(0).normal(size=(30, 2))
        drawn, _, log_prob = drawn_and_scored(host, flow, noise)
        np.testing.assert_allclose(drawn, MEAN + SD * noise, atol=5e-3)  # a little signal at 1
        np.testing.assert_allclose(log_prob, norm.logpdf(drawn, MEAN, SD).sum(1), atol=2e-2)


@pytest.mark.parametrize("sde", ["vp", pytest.param("sub-vp", marks=pytest.mark.compiles)])
def test_the_diffusion_itself_leads_back_to_the_normal(host, sde):
    """Mean and sd of 20,000 draws in 200 steps; half of the score would leave them too wide."""
    num = 20_000
    flow = exact_diffusion(host, sde, (num,), num_sde_steps=200, kind="StochasticDiffusion")
    assert flow.has_rsample
    draws = host.draws(flow, 1)[0].astype(float)
    assert draws.shape == (num, 2)
    np.testing.assert_allclose(draws.mean(0), MEAN, atol=0.01 + 4 * SD / np.sqrt(num))
    np.testing.assert_allclose(draws.std(0), SD, rtol=0.03)
    with pytest.raises(TypeError, match="DiffusionDensity.sampler='sde'. has no log density"):
        flow.log_prob(host.array(draws))


def test_draws_of_the_diffusion_itself_have_no_weights(host):
    model, package = host.models.parabola, host.package
    spec = specification(host, "DiffusionDensity", sampler="sde", num_sde_steps=5)
    guide = small_guide(host, model, observed="x", densities=spec)
    posterior = host.fit(model, guide, package.NPE(16), num_steps=2).at(x=host.array(np.array(0.7)))
    draws = host.sample(posterior, 20)
    assert np.all(np.isfinite(draws["z"]))
    with pytest.raises(TypeError, match="site 'z': its density .DiffusionDensity. has draws and"):
        host.log_prob(posterior, draws)


@pytest.mark.parametrize("sde", SDES)
def test_loss_of_the_best_score_is_what_is_left_to_explain(host, sde):
    """`E_t a SD^2 / (a SD^2 + sd_t^2)` a coordinate, with what is left of the variance `a`."""
    num = 20_000
    flow = exact_diffusion(host, sde, (num,))
    value = np.random.default_rng(0).normal(MEAN, SD, size=(num, 2))
    losses = host.training_loss(flow, value).astype(float)
    time = 1e-3 + (1 - 1e-3) * (np.arange(20_000) + 0.5) / 20_000
    left = np.exp(-(0.1 * time + 0.5 * 19.9 * time**2))
    variance = 1 - left if sde == "vp" else (1 - left) ** 2
    expected = 2 * np.mean(left * SD**2 / (left * SD**2 + variance))
    error = losses.std() / np.sqrt(num)
    assert abs(losses.mean() - expected) < 4 * error
    assert error < 0.02 * expected
    worse = host.training_loss(exact_diffusion(host, sde, (num,), sd=2 * SD), value)
    assert worse.mean() > expected + 4 * error


@pytest.mark.parametrize("sde", SDES)
def test_score_is_that_of_the_noised_normal(host, sde):
    flow = exact_diffusion(host, sde)
    time, value = np.array([0.1, 0.5]), np.array([[0.3, -0.5], [1.0, 0.0]])
    found = evaluated(host, lambda value: (flow.score(host.array(time), value),), value)[0]
    left = np.exp(-(0.1 * time + 0.5 * 19.9 * time**2))[:, None]
    variance = 1 - left if sde == "vp" else (1 - left) ** 2
    expected = -(value - np.sqrt(left) * MEAN) / (left * SD**2 + variance)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": "ve"}, "sde: expected 'vp' or 'sub-vp', got 've'"),
        ({"beta_min": 0.0}, "beta_min, beta_max: expected positive numbers.* got 0.0 and 20.0"),
        ({"beta_min": 3.0, "beta_max": 2.0}, "beta_min, beta_max: .* got 3.0 and 2.0"),
        ({"beta_max": 5.0}, "beta_max: 5.0 leaves 0.078 of the variance .* raise it"),
        ({"min_time": 0.0}, "min_time: expected between 0 and 1, got 0.0"),
        ({"num_times": 0}, "num_times: expected at least 1, got 0"),
        ({"num_sde_steps": 0}, "num_sde_steps: expected at least 1, got 0"),
        ({"sampler": "ddim"}, "sampler: expected 'ode' or 'sde', got 'ddim'"),
    ],
)
def test_diffusions_out_of_range(host, options, message):
    with pytest.raises(ValueError, match=message):
        host.package.DiffusionDensity(**options)


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_loss_of_the_best_velocity_is_what_is_left_to_explain(host, exponent):
    """The conditional variance of the paths' slopes, an integral over times.

    With the noise of the wrong sign in the slope it would be seven times as large.
    """
    mean, sd, sigma_min, num = 0.4, 0.5, 0.05, 20_000
    spec = host.package.FlowMatchingDensity(sigma_min=sigma_min, time_exponent=exponent)
    field = FieldOfLoss(host, mean, sd, sigma_min)
    matched = host.module("densities.flow_matching").MatchedFlow(field, (num,), 1, spec)
    value = np.random.default_rng(0).normal(mean, sd, size=(num, 1))
    losses = host.training_loss(matched, value).astype(float)
    assert losses.shape == (num,)
    time = (np.arange(20_000) + 0.5) / 20_000
    slope, left = 1 - sigma_min, 1 - (1 - sigma_min) * time
    spread = sd**2 * time**2 + left**2
    variance = sd**2 + slope**2 - (sd**2 * time - slope * left) ** 2 / spread
    expected = np.mean(variance * (1 + exponent) * time**exponent)
    error = losses.std() / np.sqrt(num)
    assert abs(losses.mean() - expected) < 4 * error
    assert error < 0.02 * expected
    # A velocity that is wrong is worse.
    worse = host.module("densities.flow_matching").MatchedFlow(
        FieldOfLoss(host, mean, 2 * sd, sigma_min), (num,), 1, spec
    )
    assert host.training_loss(worse, value).mean() > expected + 4 * error


def test_npe_learns_from_the_loss_of_a_density_and_else_from_log_densities(host, monkeypatch):
    """A global site and one for each row: element by element, as log densities."""
    package, model = host.package, host.models.mixture_priors
    densities = {"u": specification(host, "FlowMatchingDensity"), "v": package.NormalDensity()}
    guide = small_guide(host, model, observed="y", densities=densities)
    amortized = host.scrambled(model, guide)
    rng = np.random.default_rng(0)
    latents = {"u": np.exp(rng.normal(size=4)), "v": np.exp(rng.normal(size=(4, 3)))}
    data = {"y": rng.normal(size=(4, 3))}
    module = host.module("densities.flow_matching")

    def sum_of_values(self, value, rng_key=None):
        return value.sum(-1)

    monkeypatch.setattr(module.MatchedFlow, "training_loss", sum_of_values)
    losses = host.site_losses(amortized, latents, data)
    scores = host.site_log_probs(amortized, (), latents, data)
    np.testing.assert_allclose(losses["v"], -scores["v"], rtol=1e-5)
    assert losses["u"].shape == scores["u"].shape
    # Standardised coordinates: an affine map of the logarithm.
    moved = np.diff(losses["u"].ravel()) / np.diff(np.log(latents["u"]))
    np.testing.assert_allclose(moved, moved[0], rtol=1e-3)


def estimated_losses(host, rng, event_size, num):
    """Losses with random directions at one value, and minus its log density."""
    with host.double_precision():
        density = random_flow(
            host, "ContinuousFlowDensity", event_size, trace="hutchinson", num_steps=5
        )
        context, value = np.tile(CONTEXT, (num, 1)), np.tile(rng.normal(size=event_size), (num, 1))
        distribution = density(host.array(context), 0)
        losses = [host.training_loss(distribution, value, seed) for seed in (0, 0, 1)]
        exact = -host.density_log_prob(density, context[0], value[0], 0)
    np.testing.assert_array_equal(losses[0], losses[1])  # the directions of a solve are drawn once
    return losses[0], losses[2], exact


def test_estimates_of_the_trace_are_unbiased(host, rng):
    losses, others, exact = estimated_losses(host, rng, 3, 2000)
    assert np.any(losses != others)
    error = losses.std() / np.sqrt(len(losses))
    assert 1e-5 < error < 0.05
    assert abs(losses.mean() - exact) < 4 * error


def test_random_signs_are_exact_for_one_coordinate(host, rng):
    """Their squares are one; normal directions would not do."""
    losses, _, exact = estimated_losses(host, rng, 1, 10)
    np.testing.assert_allclose(losses, exact, rtol=1e-10)


def test_traces_of_another_kind(host):
    with pytest.raises(ValueError, match="trace: expected 'exact' or 'hutchinson', got 'skilling'"):
        host.package.ContinuousFlowDensity(trace="skilling")


@each_family
def test_a_guide_is_trained_both_ways_weighed_and_saved(host, tmp_path, family):
    """By simulations, and by a bound, which scores its own draws."""
    model, package = host.models.parabola, host.package
    spec = specification(host, family, num_steps=4)
    guide = small_guide(host, model, observed="x", densities=spec)
    amortized = host.fit(model, guide, package.NPE(16), num_steps=5)
    assert np.all(np.isfinite(amortized.history.losses))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    x = host.array(np.array(0.7))
    before, after = (host.sample(one.at(x=x), 50, seed=3)["z"] for one in (amortized, loaded))
    np.testing.assert_array_equal(after, before)
    assert loaded.guide.specifications(loaded.guide.structure)[1] == {"z": spec}
    weighted = host.importance_sample(amortized.at(x=x), 50)
    assert np.all(np.isfinite(weighted.log_weights))
    guide = small_guide(host, model, observed="x", densities=spec)
    trained = host.fit(model, guide, package.IWAE(4), args=(x,), num_steps=5)
    assert np.all(np.isfinite(trained.history.losses))
    draws = host.sample(trained.at(x=x), 20)
    assert np.all(np.isfinite(host.log_prob(trained.at(x=x), draws)))


@each_family
def test_constrained_events_in_plates(host, rng, family):
    """Draws are scored as given values are."""
    spec = specification(host, family, num_steps=10)
    guide = small_guide(host, host.models.headings, observed="y", densities=spec)
    amortized = host.scrambled(host.models.headings, guide, scale=0.05)
    y = host.array(rng.normal(size=4))
    values, densities = host.trace_of(amortized, ("angle", "axis", "mean"), {"y": y})
    latents = {site: value[None] for site, value in values.items()}
    scored = host.log_prob(amortized.at(y=y), latents)[0]
    assert sum(density.sum() for density in densities.values()) == pytest.approx(scored, abs=5e-3)
