"""A random walk seen with noise, against the algebra of one Gaussian: a site for each step."""

import numpy as np
import pytest

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
