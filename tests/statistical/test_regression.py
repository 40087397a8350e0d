"""Regressions against closed forms: covariates fixed, drawn for each simulation, or observed."""

from functools import cache

import numpy as np
import pytest

from amortize_diagnostics import expected_gap
from tests.backends import host as host_of
from tests.catalogue import GAUSSIAN
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

LINE = PROBLEMS["line"]
NUM_DRAWS = 4000
FIXED = np.linspace(-1.5, 2.0, LINE.num_rows)
# Model, observed sites, inputs.
RUNS = {
    "fixed": ("line_through", "y", {"x": "rows"}),
    "drawn": ("line_through", "y", {"x": "rows"}),
    "observed": ("line", ("x", "y"), None),
}


@cache
def trained(backend, run):
    host = host_of(backend)
    name, observed, inputs = RUNS[run]
    model = getattr(host.models, name)
    densities = host.package.NormalDensity()  # intercept, and slope given it, are normal
    guide = host.guide(model, observed=observed, inputs=inputs, densities=densities)
    args, sampler = (host.array(FIXED),) if run == "fixed" else (), None
    if run == "drawn":
        sampler = host.model_args(lambda rng: (rng.normal(size=LINE.num_rows),))
    # One vector of covariates for a step: more steps, each with fewer simulations.
    objective = host.package.NPE(64 if sampler else 128, model_args=sampler)
    steps = {"drawn": 6000, "observed": 5000, "fixed": 2000}[run]
    return host.fit(model, guide, objective, args=args, num_steps=steps, learning_rate=2e-3)


def log_q(host, run, x, latents, data):
    """Scores of many data sets that share their covariates where these are arguments."""
    amortized = trained(host.name, run)
    if run == "observed":
        found = host.site_log_probs(amortized, (), latents, data)
    else:
        found = host.site_log_probs(amortized, (host.array(x),), latents, {"y": data["y"]})
    return sum(part.reshape(-1) for part in found.values())


@pytest.mark.parametrize("run", sorted(RUNS))
def test_expected_gap(host, run):
    """Over fresh covariates too, where they are not fixed."""
    rng = np.random.default_rng(1)
    if run == "observed":
        latents, data = LINE.sample_joint(rng, NUM_DRAWS)
        scores = log_q(host, run, None, latents, data)
        exact = LINE.log_posterior(latents, data)
    else:
        designs = [FIXED] if run == "fixed" else rng.normal(size=(40, LINE.num_rows))
        scores, exact = [], []
        for x in designs:
            latents, data = LINE.sample_joint(rng, NUM_DRAWS // len(designs), x)
            scores.append(log_q(host, run, x, latents, data))
            exact.append(LINE.log_posterior(latents, data))
        scores, exact = np.concatenate(scores), np.concatenate(exact)
    gap = expected_gap(exact, scores)
    assert gap.upper / LINE.num_latents < GAUSSIAN, gap
    assert gap.mean > -3 * gap.se, gap
