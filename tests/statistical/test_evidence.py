"""Evidences of models, each from a guide of its own, and their probabilities: closed forms."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from amortize_diagnostics import compare_models

pytestmark = pytest.mark.slow

NAMES = ("one", "two", "three")  # columns of the design
NUM_ROWS, NUM_EACH, NUM_DRAWS = 20, 3, 4000


def nested_regressions():
    """One design, data sets of regressions on 1, 2 and 3 of its columns, exact log evidences."""
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(NUM_ROWS), 0.5 * rng.normal(size=(NUM_ROWS, 2))])
    y = [
        rng.normal(size=(NUM_EACH, size)) @ design[:, :size].T
        + rng.normal(size=(NUM_EACH, NUM_ROWS))
        for size in (1, 2, 3)
    ]
    data, exact = np.concatenate(y), {}
    for size, name in enumerate(NAMES, start=1):
        used = design[:, :size]
        covariance = np.eye(NUM_ROWS) + used @ used.T
        exact[name] = multivariate_normal(np.zeros(NUM_ROWS), covariance).logpdf(data)
    return design, data, exact


def test_nested_regressions_have_their_exact_probabilities(host):
    """Within 0.03 for nine data sets, log evidences within 3 standard errors."""
    model, package = host.models.regression_on, host.package
    design, data, exact = nested_regressions()
    summaries = {}
    for size, name in enumerate(NAMES, start=1):
        used = host.array(design[:, :size])
        densities = package.MultivariateNormalDensity()
        guide = host.guide(model, observed="y", inputs={"design": "rows"}, densities=densities)
        objective, options = package.NPE(128), {"num_steps": 1500, "learning_rate": 2e-3}
        amortized = host.fit(model, guide, objective, args=(used,), **options)
        posterior = amortized.at_each(used, observations={"y": host.array(data)})
        summaries[name] = host.importance_sample(posterior, NUM_DRAWS).summary
    found, truth = compare_models(summaries), compare_models(exact)
    errors = (found.log_evidence - truth.log_evidence) / found.log_evidence_se
    distances = found.probability - truth.probability
    print(f"{found}\nprobabilities off by up to {abs(distances).max():.4f}")
    print(f"log evidences by up to {abs(errors).max():.2f} of {found.log_evidence_se.max():.4f}")
    best = np.argmax(truth.probability, axis=0)
    assert set(best) == {0, 1, 2}  # no data set decides for all
    assert np.sum((truth.probability > 0.1) & (truth.probability < 0.9)) > 6
    assert np.all(abs(distances) < 0.03)
    assert np.all(abs(errors) < 3)
    assert np.all(found.is_trusted)
    assert found.log_evidence_se.max() < 0.05
