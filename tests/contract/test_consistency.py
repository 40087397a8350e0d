"""`ConsistencyDensity`: closed forms of its maps and its loss, and what refuses a sampler."""

import numpy as np
import pytest
from scipy.stats import norm

from tests.backends import small_guide
from tests.contract.test_flows import evaluated
from tests.contract.test_ode_flows import CONTEXT

pytestmark = pytest.mark.compiles  # `tests/parity/` has the numbers in NumPyro too

MEAN, SD = 0.4, 0.5


def specification(host, **options):
    return host.package.ConsistencyDensity(**{"hidden_dims": (16,)} | options)


class NetworkOfNormal:
    """`F` for `N(mean, sd^2)`, of scaled values and the share of the logarithm of time.

    The origin is `mean + (z - mean) sqrt((sd^2 + min^2) / (sd^2 + t^2))`.
    """

    def __init__(self, host, spec, mean, sd):
        self.spec, self.mean, self.sd, self.context = spec, mean, sd, host.array(np.zeros(1))

    def velocity(self, share, scaled):
        low, high = self.spec.min_time, self.spec.max_time
        time = (low * (high / low) ** share)[..., None]
        value, since = scaled * (1 + time**2) ** 0.5, time - low
        ratio = ((self.sd**2 + low**2) / (self.sd**2 + time**2)) ** 0.5
        wanted = self.mean + (value - self.mean) * ratio
        # At the lowest time the network does not count.
        return (wanted - value / (since**2 + 1)) * (1 + time**2) ** 0.5 / (since + 1e-12)

    def per_draw(self):
        return self


def exact_sampler(host, batch_shape=(), size=1, mean=MEAN, sd=SD, **options):
    spec = specification(host, **options)
    network = NetworkOfNormal(host, spec, mean, sd)
    return host.module("densities.consistency").ConsistencySampler(network, batch_shape, size, spec)


def test_values_are_their_own_origins_at_the_least_noise(host, rng):
    density = host.build_density(specification(host), 1, 2, 3)
    density = host.scrambled_density(density, 0.5)
    sampler = density(host.array(np.tile(CONTEXT, (20, 1))), 0)
    value = 3 * rng.normal(size=(20, 2))
    time = host.array(np.full(20, sampler.specification.min_time))
    (found,) = evaluated(host, lambda value: (sampler.origin(time, value),), value)
    np.testing.assert_allclose(found, value, atol=1e-6)
    (other,) = evaluated(host, lambda value: (sampler.origin(100 * time, value),), value)
    assert np.abs(other - value).max() > 1e-2


def test_draws_of_the_exact_map_are_the_normal(host):
    """In one step and in several; the start is wider than the noise by `sd` in 50."""
    num = 20_000
    noise = np.random.default_rng(0).normal(size=(4, num, 1))
    for steps in (1, 4):
        sampler = exact_sampler(host, (num,))
        (drawn,) = evaluated(host, lambda e, s=sampler: (s.from_noise(e),), noise[:steps])
        assert drawn.shape == (num, 1)
        assert drawn.mean() == pytest.approx(MEAN, abs=4 * SD / np.sqrt(num) + 0.01)
        assert drawn.std() == pytest.approx(SD, rel=0.03)


def mean_loss(host, num=20_000):
    """Of the exact map of a standard normal on the grid of the public code."""
    options = {"max_time": 200.0, "num_times": 1, "num_levels": 50}
    sampler = exact_sampler(host, (num,), mean=0.0, sd=1.0, **options)
    value = np.random.default_rng(0).normal(size=(num, 1))
    losses = host.training_loss(sampler, value).astype(float)
    assert losses.shape == (num,)
    return losses.mean(), losses.std() / np.sqrt(num)


def expected_loss(num=400_000):
    """The same expectation by a sum over the grid and normal numbers."""
    rng = np.random.default_rng(1)
    low, high, rho = 0.001, 200.0, 7.0
    grid = np.linspace(low ** (1 / rho), high ** (1 / rho), 51) ** rho
    weights = np.diff(norm.cdf(np.log(grid), -1.1, 2.0))
    place = rng.choice(50, size=num, p=weights / weights.sum())
    value, noise = rng.normal(size=(2, num))

    def origin(time, z):
        return z * np.sqrt((1 + low**2) / (1 + time**2))

    near, far = grid[place], grid[place + 1]
    gap = np.abs(origin(far, value + far * noise) - origin(near, value + near * noise))
    return np.mean((np.sqrt(gap**2 + 0.00054**2) - 0.00054) / (far - near))


def test_loss_of_the_exact_map(host):
    """With different noise in the two values, the usual wrong version, it is five times that."""
    found, error = mean_loss(host)
    expected = expected_loss()
    assert expected == pytest.approx(0.531, rel=0.03)
    assert abs(found - expected) < 0.03 * expected
    assert error < 0.01 * expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draw_steps": 0}, "num_draw_steps: expected at least 1, got 0"),
        ({"num_levels": 0}, "num_levels: expected at least 1, got 0"),
        ({"num_times": 0}, "num_times: expected at least 1, got 0"),
        ({"min_time": 0.0}, "min_time, max_time: expected positive numbers.* got 0.0 and 50.0"),
        ({"max_time": 1e-3}, "min_time, max_time: expected .* got 0.001 and 0.001"),
    ],
)
def test_options_out_of_range(host, options, message):
    with pytest.raises(ValueError, match=message):
        specification(host, **options)


def test_a_sampler_has_no_log_density(host):
    with pytest.raises(TypeError, match="ConsistencyDensity has draws and no log density"):
        exact_sampler(host).log_prob(host.array(np.zeros(1)))


REFUSED = "site 'z': its density .ConsistencyDensity. has draws and no log density.* FlowMatching"


def test_a_guide_is_trained_drawn_from_and_saved_and_refuses_weights(host, tmp_path):
    model, package = host.models.parabola, host.package
    spec = specification(host, num_draw_steps=3)
    x = host.array(np.array(0.7))

    def new_guide():
        return small_guide(host, model, observed="x", densities=spec)

    amortized = host.fit(model, new_guide(), package.NPE(16), num_steps=5)
    assert np.all(np.isfinite(amortized.history.losses))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    before, after = (host.sample(one.at(x=x), 50, seed=3)["z"] for one in (amortized, loaded))
    np.testing.assert_array_equal(after, before)
    assert len(np.unique(before[:, 0])) == 50
    posterior = amortized.at(x=x)
    with pytest.raises(TypeError, match=REFUSED):
        host.log_prob(posterior, {"z": before})
    with pytest.raises(TypeError, match=REFUSED):
        host.guide_log_prob(amortized, {"z": before}, x)
    with pytest.raises(TypeError, match=REFUSED):
        host.importance_sample(posterior, 10)
    with pytest.raises(TypeError, match=REFUSED):
        host.importance_sample(posterior, 10, defensive_fraction=0.0)


BOUNDS = {
    "Trace_ELBO": lambda host: host.trace_elbo(),
    "IWAE": lambda host: host.package.IWAE(2),
    "RWS": lambda host: host.package.RWS(2),
    "TrajectoryBalance": lambda host: host.package.TrajectoryBalance(2),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_objectives_that_need_a_density_refuse_a_sampler(host, name):
    model = host.models.parabola
    guide = small_guide(host, model, observed="x", densities=specification(host))
    x = host.array(np.array(0.7))
    with pytest.raises(TypeError, match=REFUSED):
        host.fit(model, guide, BOUNDS[name](host), args=(x,), num_steps=2)
