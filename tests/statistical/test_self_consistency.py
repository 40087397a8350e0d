"""Real data that simulations do not look like: what self-consistency adds to NPE."""

import numpy as np
import pytest

from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

NUM_DATASETS, SHIFT = 200, 6.0


def shifted(problem, rng):
    """Data sets whose latent is some prior standard deviations off."""
    _, data = problem.sample_joint(rng, NUM_DATASETS)
    return {"x": data["x"] + SHIFT}  # the prior sd is 1


def errors(host, objective):
    """Of the means and log standard deviations at fresh shifted data sets."""
    problem = PROBLEMS["conjugate_normal"]
    x = host.array(shifted(problem, np.random.default_rng(0))["x"])
    guide = host.guide(
        host.models.conjugate_normal_many,
        observed="x",
        sizes={"num_datasets": "datasets"},
        densities=host.package.NormalDensity(),
    )
    amortized = host.fit(
        guide.model, guide, objective, args=(x, NUM_DATASETS), num_steps=1500, learning_rate=3e-3
    )
    fresh = shifted(problem, np.random.default_rng(1))
    draws = host.sample(amortized.at(host.array(fresh["x"]), NUM_DATASETS), 2000)["z"]
    draws = draws.reshape(2000, -1)
    mean, sd = problem.posterior(fresh)
    return (
        np.sqrt((((draws.mean(0) - mean) / sd) ** 2).mean()),
        np.abs(np.log(draws.std(0) / sd)).mean(),
    )


def test_data_beyond_the_prior_are_answered_better(host):
    """At 6 prior sds, where the guide has no simulations."""
    package = host.package
    alone = errors(host, package.NPE(2))
    mixed = package.Mixed({package.NPE(2): 1.0, package.SelfConsistency(16): 0.1})
    both = errors(host, mixed)
    print(f"means off by {alone[0]:.3f} sd, with real data {both[0]:.3f}")
    print(f"log sds off by {alone[1]:.3f}, with real data {both[1]:.3f}")
    assert both[0] < 0.5 * alone[0]
    assert both[0] < 0.1
    assert both[1] < 0.05
