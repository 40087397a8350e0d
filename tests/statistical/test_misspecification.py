"""Data unlike those that a trained guide has learned of, told by its own contexts."""

import numpy as np
import pytest

from amortize_diagnostics import typicality
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

PROBLEM, NUM_DESIGNS, NUM_EACH = PROBLEMS["line"], 50, 4


def design(rng):
    return (rng.normal(size=PROBLEM.num_rows),)


def contaminated(y, rng):
    """Three of the ten rows are 10 off, either way: so many that it could be seen every time."""
    chosen = rng.permuted(np.tile(np.arange(y.shape[1]) < 3, (len(y), 1)), axis=1)
    return y + chosen * rng.choice([-10.0, 10.0], size=y.shape)


CASES = {  # covariates, and data, that become others
    "as in training": (lambda x: x, lambda y, _: y),
    "contaminated": (lambda x: x, contaminated),
    "shifted": (lambda x: x, lambda y, _: y + 6),
    "shifted design": (lambda x: x + 3, lambda y, _: y),
    "narrow design": (lambda x: 0.1 * x, lambda y, _: y),
}


def test_contaminated_and_shifted_data_and_another_design_are_flagged(host):
    """In at least 95 % of 200 cases, at 5 % false alarms. Intercept and slope are N(0, 1)."""
    model = host.models.line_through
    guide = host.guide(model, observed="y", inputs={"x": "rows"})
    objective = host.package.NPE(64, model_args=host.model_args(design))
    amortized = host.fit(model, guide, objective, num_steps=1000, learning_rate=2e-3)
    simulated = host.simulated_contexts(amortized, 4000, model_args=host.model_args(design))
    rng, rates = np.random.default_rng(0), {}
    for name, (change_design, change_data) in CASES.items():
        p_values = []
        for _ in range(NUM_DESIGNS):
            x = change_design(design(rng)[0])
            y = change_data(PROBLEM.sample_joint(rng, NUM_EACH, x)[1]["y"], rng)
            posterior = amortized.at_each(host.array(x), observations={"y": host.array(y)})
            p_values.append(typicality(posterior.contexts(), simulated).p_value)
        rates[name] = np.mean(np.concatenate(p_values) < 0.05)
        print(f"{name}: {100 * rates[name]:.1f} % flagged")
    assert rates.pop("as in training") < 0.1
    for name, rate in rates.items():
        assert rate >= 0.95, name
