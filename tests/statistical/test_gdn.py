"""Divisive normalisation on what it is for: coordinates that are large together."""

import numpy as np
import pytest

from tests.catalogue import OTHER
from tests.contract.test_flows import evaluated, to_noise
from tests.problems import PROBLEMS
from tests.statistical.test_expected_gap import assert_small, gap_of

pytestmark = pytest.mark.slow

NUM_DRAWS, NUM_BINS = 200_000, 20


@pytest.mark.parametrize(("name", "steps"), [("elliptical", 3000), ("linear_gaussian_2", 1500)])
def test_npe_reaches_the_exact_posterior(host, name, steps):
    model, problem = getattr(host.models, name), PROBLEMS[name]
    guide = host.guide(model, observed="x", densities=host.package.GDNFlowDensity())
    amortized = host.fit(model, guide, host.package.NPE(128), num_steps=steps, learning_rate=2e-3)
    gap = gap_of(host, amortized, problem)
    print(f"{host.name}, {name}: {gap}")
    assert_small(gap, problem, OTHER)


def information(values):
    """Mutual information of the sizes of two coordinates in nats, by their ranks."""
    ranks = np.argsort(np.argsort(np.abs(values), axis=0), axis=0) * NUM_BINS // len(values)
    counts = np.histogram2d(*ranks.T, bins=NUM_BINS)[0]
    share = counts / counts.sum()
    logs = np.log(np.where(share > 0, share, 1) * NUM_BINS**2)
    return np.sum(share * logs) - (NUM_BINS - 1) ** 2 / (2 * len(values))


def maximum_likelihood(host, density, values, num_steps=1500, rate=5e-3, batch=512):
    """The density trained on draws, at one context."""
    rng = np.random.default_rng(0)
    rows = [host.array(values[rng.integers(len(values), size=batch)]) for _ in range(num_steps)]
    context = host.array(np.zeros((batch, 1)))

    def loss(density, batch):
        return -density(context, 0).log_prob(batch).mean()

    if host.name == "pyro":
        import torch

        optimiser = torch.optim.Adam(density.parameters(), lr=rate)
        for own in rows:
            optimiser.zero_grad()
            loss(density, own).backward()
            optimiser.step()
        return density
    import jax
    import optax

    optimiser = optax.adam(rate)

    @jax.jit
    def update(density, state, own):
        updates, state = optimiser.update(jax.grad(loss)(density, own), state)
        return optax.apply_updates(density, updates), state

    state = optimiser.init(density)
    for own in rows:
        density, state = update(density, state, own)
    return density


def test_sizes_become_independent(host):
    """x = s n with a log-normal s: tenfold less information at least, and none of it by scaling."""
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal(size=(NUM_DRAWS, 1))) * rng.normal(size=(NUM_DRAWS, 2))
    spec = host.package.GDNFlowDensity(num_transforms=1, hidden_dims=(8,))
    density = host.build_density(spec, 1, 2, 1)
    density = maximum_likelihood(host, density, values)
    steps = density(host.array(np.zeros(1)), 0).steps
    noise, _ = evaluated(host, lambda u: to_noise(steps, u), values)
    white = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values.T))).T
    before, scaled, after = (information(each) for each in (values, white, noise))
    print(f"{host.name}: {before:.4f} nats, whitened {scaled:.4f}, normalised {after:.4f}")
    assert scaled > 0.9 * before
    assert after < before / 10
