"""Embeddings of series and images learn: against exact posteriors, tolerances fixed before."""

from functools import cache

import numpy as np
import pytest

from amortize_diagnostics import expected_gap
from tests.backends import host as host_of
from tests.catalogue import OTHER
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

NUM_DRAWS = 4000
# Problem, embedding and its options, simulations per step, steps, learning rate.
RUNS = {
    "convolution": ("autoregression", "SequenceEmbedding", {}, 128, 1500, 2e-3),
    "recurrent": ("autoregression", "SequenceEmbedding", {"kind": "recurrent"}, 128, 2500, 5e-3),
    "image": ("blob_image", "ImageEmbedding", {}, 256, 4000, 2e-3),
}


@cache
def trained(backend, run):
    host = host_of(backend)
    problem, embedding, options, batch, steps, rate = RUNS[run]
    model = getattr(host.models, problem)
    guide = host.guide(model, observed="y", embedding=getattr(host.package, embedding)(**options))
    return host.fit(model, guide, host.package.NPE(batch), num_steps=steps, learning_rate=rate)


def gap_of(host, run):
    problem = PROBLEMS[RUNS[run][0]]
    latents, observations = problem.sample_joint(np.random.default_rng(1), NUM_DRAWS)
    found = host.site_log_probs(trained(host.name, run), (), latents, observations)
    log_q = sum(part.reshape(NUM_DRAWS) for part in found.values())
    return expected_gap(problem.log_posterior(latents, observations), log_q)


@pytest.mark.parametrize("run", sorted(RUNS))
def test_expected_gap(host, run):
    problem = PROBLEMS[RUNS[run][0]]
    gap = gap_of(host, run)
    assert gap.upper / problem.num_latents < OTHER, gap
    assert gap.mean > -3 * gap.se, gap


def test_ess_fraction_of_the_guide_of_images(host):
    """Every one of ten data sets, of which the prior makes some with the blob at the edge."""
    problem = PROBLEMS["blob_image"]
    _, observations = problem.sample_joint(np.random.default_rng(2), 10)
    posterior = trained(host.name, "image").at_each(
        observations={"y": host.array(observations["y"])}
    )
    summary = host.importance_sample(posterior, 4000).summary
    assert np.all(summary.ess_fraction > 0.5), summary.ess_fraction
    exact = problem.log_evidence(observations)
    assert np.all(np.abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se + 1e-3)
