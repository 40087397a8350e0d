"""A mode that the guide does not know, found off its own draws; a latent built in steps."""

from importlib import import_module

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from amortize_diagnostics import expected_gap
from tests.catalogue import GAUSSIAN
from tests.losses import trained
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

# Both components of the guide start at the larger of two modes, 12 sds from the other.
START = {
    "logits": np.zeros(2),
    "means": np.array([-3.5, -2.5]),
    "log_sds": np.log(np.array([0.5, 0.5])),
}


def mass_of_the_other_mode(host, noise):
    written = import_module(f"tests.particles_{host.name}")
    objective = host.package.TrajectoryBalance(32, noise=noise)
    found = trained(
        host,
        objective,
        written.two_modes,
        written.guide_of_two_modes,
        START,
        num_steps=4000,
        rate=0.03,
    )
    weights = np.exp(found["logits"]) / np.exp(found["logits"]).sum()
    mass = (weights * norm.sf(0.0, found["means"], np.exp(found["log_sds"]))).sum()
    print(f"noise {noise}: {mass:.4f} of the mass beyond zero")
    return mass


def test_wider_draws_find_the_mode(host):
    """It has 0.3 of the mass; the tolerance of 0.03 was fixed before the run."""
    assert abs(mass_of_the_other_mode(host, 4.0) - 0.3) < 0.03


def test_own_draws_do_not(host):
    """Less than 0.01 was fixed before the run."""
    assert mass_of_the_other_mode(host, 0.0) < 0.01


def answer_to_nine_modes(host, noise, seed):
    """How many of nine modes a guide that starts between them finds, and minus its divergence.

    The modes are equal and the density is normalised: the mean log weight would be zero.
    """
    written, rng = import_module(f"tests.particles_{host.name}"), np.random.default_rng(seed)
    start = {
        "logits": np.zeros(18),
        "means": rng.normal(size=(18, 2)),
        "log_sds": np.zeros((18, 2)),
    }
    objective = host.package.TrajectoryBalance(64, noise=noise)
    parts = written.nine_modes, written.guide_of_nine_modes
    found = trained(host, objective, *parts, start, num_steps=4000, rate=0.03)
    shares = np.exp(found["logits"] - found["logits"].max())
    shares /= shares.sum()
    sds, grid = np.exp(found["log_sds"]), np.array([-5.0, 0.0, 5.0])
    chosen = rng.choice(18, size=20_000, p=shares)
    draws = rng.normal(found["means"][chosen], sds[chosen])
    log_q = logsumexp(
        norm.logpdf(draws[:, None], found["means"], sds).sum(-1), b=shares[None], axis=1
    )
    centres = np.stack(np.meshgrid(grid, grid), -1).reshape(9, 2)
    log_p = logsumexp(norm.logpdf(draws[:, None], centres, 0.5).sum(-1), axis=1) - np.log(9)
    nearest = np.square(draws[:, None] - centres).sum(-1).argmin(1)
    masses = np.bincount(nearest, minlength=9) / len(draws)
    log_z = (log_p - log_q).mean()
    print(f"noise {noise}, seed {seed}: masses {masses.round(3)}, log Z {log_z:.3f}")
    return int((masses > 0.01).sum()), log_z


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wider_draws_find_nine_modes(host, seed):
    """All of them, and log Z nearer than own draws, which stay with some.

    Near is not exact: the masses are not yet equal after 4,000 steps, log Z is up to 0.6 low.
    """
    num_modes, log_z = answer_to_nine_modes(host, 5.0, seed)
    num_own, own_log_z = answer_to_nine_modes(host, 0.0, seed)
    assert num_modes == 9
    assert num_own < 9
    assert abs(log_z) < abs(own_log_z)


def test_a_path_reaches_the_exact_posterior(host):
    """The joint gap of latent and path at fresh data sets, in nats per dimension."""
    num_steps, num_datasets, rounds = 4, 500, 8
    problem, package = PROBLEMS["conjugate_normal"], host.package
    model = package.add_path(host.models.conjugate_normal_many, "z", num_steps=num_steps)
    _, observations = problem.sample_joint(np.random.default_rng(2), num_datasets)
    args = (host.array(observations["x"]), num_datasets)
    sizes = {"num_datasets": "datasets"}
    guide = host.guide(model, observed="x", sizes=sizes, densities=package.NormalDensity())
    objective = package.TrajectoryBalance(16)
    amortized = host.fit(model, guide, objective, args=args, num_steps=1500, learning_rate=5e-3)
    latents, fresh = problem.sample_joint(np.random.default_rng(3), rounds * num_datasets)
    time = np.arange(1, num_steps) / num_steps
    bridge = multivariate_normal(cov=np.minimum.outer(time, time) - np.outer(time, time))
    bends = bridge.rvs(len(latents["z"]), random_state=4)
    sites = {f"z_path_{t}": bends[:, t - 1] + latents["z"] * t / num_steps for t in (1, 2, 3)}
    log_p = problem.log_posterior(latents, fresh) + bridge.logpdf(bends)
    shape = (rounds, num_datasets)
    parts = host.site_log_probs(
        amortized,
        args,
        {name: value.reshape(*shape, 1) for name, value in (sites | latents).items()},
        {"x": fresh["x"].reshape(*shape, -1)},
    )
    gap = expected_gap(log_p, sum(part.reshape(-1) for part in parts.values()))
    print(gap)
    assert gap.upper / num_steps < GAUSSIAN
    assert gap.mean > -3 * gap.se
