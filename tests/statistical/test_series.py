"""Series against the algebra of one Gaussian: steps of a loop, and padded ones of any length."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from amortize_diagnostics import expected_gap
from tests.catalogue import GAUSSIAN
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

LEVEL = PROBLEMS["local_level"]
NUM_DRAWS = 4000


def test_expected_gap_of_an_unrolled_walk(host):
    model = host.models.local_level
    guide = host.guide(model, observed=[f"y_{step}" for step in range(LEVEL.num_steps)])
    objective = host.package.NPE(128)
    amortized = host.fit(model, guide, objective, num_steps=2500, learning_rate=2e-3)
    latents, observations = LEVEL.sample_joint(np.random.default_rng(1), NUM_DRAWS)
    found = host.site_log_probs(amortized, (), latents, observations)
    log_q = sum(part.reshape(NUM_DRAWS) for part in found.values())
    gap = expected_gap(LEVEL.log_posterior(latents, observations), log_q)
    assert gap.upper / LEVEL.num_latents < GAUSSIAN, gap
    assert gap.mean > -3 * gap.se, gap


def panels(rng, there, num):
    """Joint draws of `padded_panels`, and their exact log posterior given what is there."""
    t = np.arange(5) / 5
    design = np.zeros((3, 5, 4))  # slope, then the level of each row
    design[..., 0] = t
    design[np.arange(3), :, 1 + np.arange(3)] = 1
    z = rng.normal(size=(num, 4))
    y = np.einsum("rti,ni->nrt", design, z) + 0.5 * rng.normal(size=(num, 3, 5))
    seen = design[there]
    precision = np.eye(4) + seen.T @ seen / 0.25
    mean = np.linalg.solve(precision, seen.T @ y[:, there].T / 0.25).T
    exact = multivariate_normal(cov=np.linalg.inv(precision)).logpdf(z - mean)
    return {"slope": z[:, 0], "level": z[:, 1:]}, {"y": y}, exact


@pytest.mark.parametrize("kind", ["convolution", "recurrent"])
def test_expected_gap_of_padded_series(host, kind):
    """One guide for series of 1 to 5 steps each, at lengths drawn anew."""

    def lengths(rng):
        return np.arange(5) < rng.integers(1, 6, size=(3, 1))

    model, package = host.models.padded_panels, host.package
    guide = host.guide(
        model,
        observed="y",
        missing={"is_there": "y"},
        embedding=package.SequenceEmbedding(kind),
        densities=package.NormalDensity(),
    )
    sampler = host.model_args(lambda rng: (lengths(rng),))
    objective = package.NPE(64, model_args=sampler)
    amortized = host.fit(model, guide, objective, num_steps=5000, learning_rate=2e-3)
    rng, scores, exact = np.random.default_rng(1), [], []
    for _ in range(20):
        there = lengths(rng)
        latents, data, log_p = panels(rng, there, NUM_DRAWS // 20)
        hidden = {"y": np.where(there, data["y"], np.nan)}
        found = host.site_log_probs(amortized, (host.array(there),), latents, hidden)
        scores.append(sum(part.reshape(len(log_p), -1).sum(1) for part in found.values()))
        exact.append(log_p)
    gap = expected_gap(np.concatenate(exact), np.concatenate(scores))
    assert gap.upper / 4 < GAUSSIAN, gap
    assert gap.mean > -3 * gap.se, gap
