"""Which instrument sees which lie: a table of how often each rejects, printed by `pytest -rP`.

Two latents, 300 simulated data sets, 499 draws each, 50 repetitions, each test by itself at 5 %.
"""

import numpy as np
import pytest

from amortize_diagnostics import (
    ecdf_test,
    hpd_coverage,
    importance_summary,
    posterior_ranks,
    reference_points,
    tarp,
)
from tests.liars import LIARS, answers

NUM_REPEATS = 50
NAMES = ("exact", *LIARS)


def uniform(draws, truths, rng):
    return ecdf_test(posterior_ranks(draws, truths, rng).pit).p_value < 0.05


def rejections(name, rng):
    """Which instruments reject what a guide of this name answers."""
    past = answers("exact", rng, num_draws=20)
    found = answers(name, rng, num_draws=499)

    def joint(z, likelihood):
        return likelihood - 0.5 * np.sum(z**2, -1)

    own = joint(found.draws, found.log_likelihood_draws)
    truth = joint(found.truths, found.log_likelihood_truths)
    points = rng.uniform(-3, 3, size=found.truths.shape)
    learned = reference_points(found.data, past.data, past.truths)
    weights = importance_summary((own - found.log_guide_draws)[:, :1])
    region = hpd_coverage(found.log_guide_draws, found.log_guide_truths, rng)
    balls, near = (
        tarp(found.draws, found.truths, rng, references=each).test for each in (points, learned)
    )
    return {
        "ranks of a latent": uniform(found.draws[..., 0], found.truths[:, 0], rng),
        "ranks of the log likelihood": uniform(
            found.log_likelihood_draws, found.log_likelihood_truths, rng
        ),
        "ranks of the log joint": uniform(own, truth, rng),
        "density regions": region.test.p_value < 0.05,
        "TARP, points that ignore the data": balls.p_value < 0.05,
        "TARP, points from the data": near.p_value < 0.05,
        "ESS fraction below 0.5, one data set": weights.ess_fraction[0] < 0.5,
        "k-hat above its threshold, one data set": weights.khat[0] > weights.khat_threshold,
    }


@pytest.mark.slow
def test_table_of_liars():
    rates = {}
    for name in NAMES:
        rng = np.random.default_rng(1)
        found = [rejections(name, rng) for _ in range(NUM_REPEATS)]
        rates[name] = {each: np.mean([one[each] for one in found]) for each in found[0]}
    print("| rejects in % of cases |", " | ".join(NAMES), "|")
    print("| --- |", " | ".join(["---:"] * len(NAMES)), "|")
    for each in rates["exact"]:
        cells = " | ".join(f"{100 * rates[name][each]:.0f}" for name in NAMES)
        print(f"| {each} | {cells} |")
    for each, rate in rates["exact"].items():
        assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / NUM_REPEATS), each
    for name in LIARS:
        assert max(rates[name].values()) >= 0.95, name
    blind = ("ranks of a latent", "density regions", "TARP, points that ignore the data")
    assert max(rates["prior"][each] for each in blind) < 0.2
