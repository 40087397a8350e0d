"""An auto-encoder whose evidence is known: principal components of images, in batches."""

import numpy as np
import pytest

from tests.problems import DigitsComponents

pytestmark = pytest.mark.slow

DIGITS = DigitsComponents()
BATCH_SIZE, NUM_DRAWS = 128, 400


def learned_parameters(host, amortized):
    names = ("loadings", "centre", "noise")
    if host.name == "numpyro":
        return [np.asarray(amortized.params[name], "float64") for name in names]
    import pyro

    return [pyro.param(name).detach().double().numpy() for name in names]


def test_elbo_reaches_the_evidence_and_the_guide_the_posterior(host):
    model = host.models.digits_components
    sizes = {"num_rows": "images", "batch_size": "images"}
    guide = host.guide(model, observed="x", sizes=sizes)
    images = host.array(DIGITS.images)
    args = (images, DIGITS.num_rows, BATCH_SIZE)
    amortized = host.fit(
        model, guide, host.trace_elbo(), args=args, num_steps=8000, learning_rate=2e-3
    )
    parameters = learned_parameters(host, amortized)
    evidence = DIGITS.log_evidence(*parameters).sum()
    assert DIGITS.largest_log_evidence() - evidence < 0.005 * abs(evidence)

    posterior = amortized.at(images, DIGITS.num_rows, DIGITS.num_rows)
    draws = host.sample(posterior, NUM_DRAWS)
    log_ratio = host.log_joint(posterior, draws) - host.log_prob(posterior, draws)
    assert 0 < evidence - log_ratio.mean() < 0.005 * abs(evidence)

    mean, covariance = DIGITS.posterior(*parameters)
    scale = np.sqrt(np.diag(covariance))
    error = (draws["z"].mean(0) - mean) / scale
    assert np.sqrt((error**2).mean()) < 0.1
    ratio = draws["z"].std(0) / scale
    assert np.sqrt(((ratio - 1) ** 2).mean()) < 0.1
    deviation = (draws["z"] - draws["z"].mean(0)) / scale
    correlation = np.einsum("nik,nil->kl", deviation, deviation) / NUM_DRAWS / DIGITS.num_rows
    np.testing.assert_allclose(correlation, covariance / np.outer(scale, scale), atol=0.1)
