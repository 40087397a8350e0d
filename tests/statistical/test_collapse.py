"""Trained auto-encoders collapse where the theory says so, and not behind a bounded decoder."""

import numpy as np
import pytest

from amortize_diagnostics import active_units, linear_vae_threshold

pytestmark = pytest.mark.slow

NUM_ROWS = 1000
SIZES = {"num_rows": "data", "batch_size": "data"}


def rows_with_covariance(covariance):
    """Normal rows whose own mean is zero and whose own covariance is exactly this."""
    noise = np.random.default_rng(0).normal(size=(NUM_ROWS, len(covariance)))
    noise -= noise.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(noise.T, bias=True)), noise.T).T
    return white @ np.linalg.cholesky(covariance).T


def trained(host, model, x, num_steps):
    guide = host.guide(
        model, observed="x", sizes=SIZES, densities=host.package.NormalDensity(hidden_dims=(32,))
    )
    args = (host.array(x), NUM_ROWS, 200)
    return host.fit(
        model, guide, host.trace_elbo(), args=args, num_steps=num_steps, learning_rate=3e-3
    )


def units_of(host, posterior):
    draws = host.sample(posterior, 1000)["z"]
    return active_units(draws.mean(0), draws.var(0))


def loadings_of(host, amortized):
    if host.name == "numpyro":
        return np.asarray(amortized.params["loadings"], float)
    import pyro

    return pyro.param("loadings").detach().double().numpy()


def test_a_trained_linear_auto_encoder_keeps_the_units_that_it_must(host):
    """Weights, rates and information of l = (4, 1.5, 0.5) at noise 1: two units."""
    covariance = np.diag([4.0, 1.5, 0.5])
    optimum = linear_vae_threshold(covariance)
    x = rows_with_covariance(covariance)
    amortized = trained(host, host.models.linear_auto_encoder, x, 6000)
    loadings = loadings_of(host, amortized)
    weights = np.linalg.eigvalsh(loadings.T @ loadings)[::-1]
    posterior = amortized.at(host.array(x), NUM_ROWS, NUM_ROWS)
    rates, found = host.rates(posterior, 100), host.mutual_information(posterior, 2)
    exact = -0.5 * np.log(optimum.encoder_variances).sum()
    draws = host.sample(posterior, 400)
    bound = (host.log_joint(posterior, draws) - host.log_prob(posterior, draws)).mean() / NUM_ROWS
    # Of probabilistic principal components: l_i in the kept directions, the noise in the others.
    kept, rest = optimum.eigenvalues[:2], optimum.eigenvalues[2:]
    evidence = -0.5 * (3 * np.log(2 * np.pi) + np.log(kept).sum() + len(kept) + rest.sum())
    print(weights, rates, found, exact, bound, evidence, units_of(host, posterior), sep="\n")
    assert bound == pytest.approx(evidence, rel=0.005)
    np.testing.assert_allclose(weights, optimum.squared_weights, rtol=0.02, atol=0.01)
    assert units_of(host, posterior).num_active == optimum.num_active
    assert rates.mean["z"] == pytest.approx(exact, rel=0.05)
    assert found.mean == pytest.approx(exact, rel=0.05)


def test_a_bounded_decoder_keeps_what_a_free_one_drops(host):
    """Rows of variance 0.64 below noise 1: nothing is worth encoding, unless the decoder insists.

    At a linear decoder of slope L the rate of a unit is that of a normal of variance
    `1 / (1 + L^2)` whose mean has variance `0.64 L^2 / (1 + L^2)^2`.
    """
    x = rows_with_covariance(0.64 * np.eye(3))
    rates, active = [], []
    for constant in (0.0, 0.5, 1.0):
        amortized = trained(host, host.models.DecodedRows(constant), x, 3000)
        posterior = amortized.at(host.array(x), NUM_ROWS, NUM_ROWS)
        rates.append(host.rates(posterior, 100).mean["z"])
        active.append(units_of(host, posterior).num_active)
        print(constant, rates[-1], host.mutual_information(posterior, 1), active[-1])
    assert rates[0] < 0.02
    assert rates[0] < rates[1] < rates[2]
    variance = 0.5
    exact = 0.64 * 0.25 + variance - 1 - np.log(variance)  # two units, half each
    assert rates[2] > 0.8 * exact
    assert active == sorted(active)
    assert (active[0], active[2]) == (0, 2)
