"""Contexts that training has brought nearer to a standard normal, and the answers of that guide."""

import numpy as np
import pytest

from amortize_diagnostics import expected_gap, misspecification_test, squared_mmd, typicality
from tests.catalogue import GAUSSIAN
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

PROBLEM, NUM, NUM_SKIPPED = PROBLEMS["conjugate_normal"], 2000, 3
WIDTHS = np.array([0.5, 1.0, 2.0])
OBJECTIVES = {
    "NPE": lambda package: package.NPE(128),
    "weight 1": lambda package: package.MMDRegularizer(package.NPE(128)),
    "weight 10": lambda package: package.MMDRegularizer(package.NPE(128), 10.0),
}


def test_contexts_become_more_normal_and_answers_stay_right(host):
    """The discrepancy is less than half of what it was, answers are as good as before.

    Data sets of three times the variance are flagged, those of the model are not.
    """
    model, package, found = host.models.conjugate_normal, host.package, {}
    latents, data = PROBLEM.sample_joint(np.random.default_rng(1), NUM)
    noise = data["x"] - latents["z"][:, None]
    for name, objective in OBJECTIVES.items():
        guide = host.guide(model, observed="x", densities=package.NormalDensity())
        amortized = host.fit(model, guide, objective(package), num_steps=1000, learning_rate=2e-3)
        simulated = host.simulated_contexts(amortized, NUM)
        learned = simulated[:, :-NUM_SKIPPED]
        normal = np.random.default_rng(2).normal(size=learned.shape)
        widths = WIDTHS * np.sqrt(learned.shape[1])
        found[name] = squared_mmd(learned, normal, bandwidths=widths)
        parts = host.site_log_probs(amortized, (), latents, data)["z"]
        gap = expected_gap(PROBLEM.log_posterior(latents, data), parts.reshape(NUM))
        print(f"{name}: squared MMD {found[name]:.3f}, {gap}")
        own, wide = (
            amortized.at_each(observations={"x": host.array(x)}).contexts()
            for x in (data["x"], latents["z"][:, None] + np.sqrt(3) * noise)
        )
        flagged = [np.mean(typicality(each, simulated).p_value < 0.05) for each in (own, wide)]
        print(f"  flagged: {100 * flagged[0]:.1f} %, at three times the variance {flagged[1]:.3f}")
        test = misspecification_test(wide[:10], simulated, np.random.default_rng(3))
        assert gap.upper < GAUSSIAN
        assert 0.02 < flagged[0] < 0.09
        assert test.p_value < 0.01
    assert found["weight 1"] < 0.5 * found["NPE"]
    assert found["weight 10"] < found["weight 1"]
