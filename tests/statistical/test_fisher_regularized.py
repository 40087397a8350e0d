"""The penalty on the Fisher information, where its minimum is known in closed form.

`z ~ N(0, 1)`, 20 rows `x_i ~ N(z, 1)`: the posterior mean is `m(x) = sum(x) / 21`, its variance
`1 / 21`. Of answers `N(a m(x), v)` the penalised loss is

    log(v) / 2 + (1 / 21 + (1 - a)^2 20 / 21) / (2 v) + beta a^2 t / v,    t = 20 (scale / 21)^2.
"""

import numpy as np
import pytest

from amortize_diagnostics import expected_gap
from tests.catalogue import GAUSSIAN
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

PROBLEM, NUM_ROWS, RADIUS = PROBLEMS["conjugate_normal"], 20, 0.3
PRIOR_OF_MEANS, VARIANCE = 20 / 21, 1 / 21


def optimum(beta, scale):
    """`a`, `v` and `t` at the minimum."""
    t = NUM_ROWS * (scale / 21) ** 2
    a = PRIOR_OF_MEANS / (PRIOR_OF_MEANS + 2 * beta * t)
    return a, VARIANCE + (1 - a) ** 2 * PRIOR_OF_MEANS + 2 * beta * a**2 * t, t


def trained(host, beta):
    model, package = host.models.conjugate_normal, host.package
    guide = host.guide(model, observed="x", densities=package.NormalDensity())
    objective = package.FisherRegularized(package.NPE(128), beta)
    return host.fit(model, guide, objective, num_steps=1000, learning_rate=2e-3)


def scale_of(host, amortized):
    constants = host.module("standardisation").Standardisation
    vector = host.array(host.standardisation(amortized))
    return float(constants.from_vector(amortized.guide.structure, vector).data["x"][1][0])


@pytest.mark.parametrize("beta", [0.001, 1.0, 1000.0])
def test_training_reaches_the_minimum_of_the_penalised_loss(host, beta):
    amortized = trained(host, beta)
    a, v, t = optimum(beta, scale_of(host, amortized))
    latents, data = PROBLEM.sample_joint(np.random.default_rng(1), 1000)
    posterior = amortized.at_each(observations={"x": host.array(data["x"])})
    draws = host.sample(posterior, 400)["z"]
    exact = np.ravel(PROBLEM.posterior(data)[0])
    slope = draws.mean(0) @ exact / (exact @ exact)
    sd = np.sqrt(draws.var(0).mean())
    few = amortized.at_each(observations={"x": host.array(data["x"][:50])})
    found = host.sensitivity(few, (RADIUS,), num_samples=1000)
    print(f"beta {beta}: slope {slope:.3f} of {a:.3f}, sd {sd:.3f} of {v**0.5:.3f}")
    divergence = a**2 * t * RADIUS**2 / (2 * v)
    print(f"divergence {np.mean(found.divergence):.5f} of {divergence:.5f} nats")
    assert abs(slope - a) < 0.05
    assert abs(sd / v**0.5 - 1) < 0.05
    if beta == 0.001:  # as good as the posterior
        parts = host.site_log_probs(amortized, (), latents, data)["z"]
        gap = expected_gap(PROBLEM.log_posterior(latents, data), parts.reshape(1000))
        assert gap.upper < GAUSSIAN
    if beta < 1000:
        assert 0.8 < np.mean(found.divergence) / divergence < 1.3
    else:  # the prior, wherever the data are
        assert np.mean(found.divergence) < 0.002
