"""Weights of any guide, good or bad, are those of the model's joint density."""

import numpy as np
import pytest

from amortize_diagnostics import importance_summary


def cases(host):
    sigma = host.array(np.linspace(9, 18, 8))
    schools = {"observed": "y", "inputs": {"sigma": "schools"}}
    y = np.linspace(-5, 25, 8)
    return {
        "conjugate_normal": ((), {"observed": "x"}, np.linspace(0, 1, 20)),
        "eight_schools_centered": ((sigma,), schools, y),
        "eight_schools_noncentered": ((sigma,), schools, y),
        "hierarchical_normal": ((), {"observed": "y"}, np.linspace(-1, 1, 8)),
        "nested_groups": ((), {"observed": "y"}, np.random.default_rng(0).normal(size=(4, 5))),
    }


@pytest.mark.parametrize("family", ["NormalDensity", "SplineFlowDensity"])
@pytest.mark.parametrize(
    "name",
    [
        "conjugate_normal",
        "eight_schools_centered",
        "eight_schools_noncentered",
        "hierarchical_normal",
        "nested_groups",
    ],
)
def test_weights_for_one_and_for_many_data_sets(host, name, family):
    args, options, data = cases(host)[name]
    model = getattr(host.models, name)
    density = getattr(host.package, family)(hidden_dims=(8,))
    guide = host.guide(model, densities=density, **options)
    amortized = host.scrambled(model, guide, *args, scale=0.02)
    site = options["observed"]
    posterior = amortized.at(*args, **{site: host.array(data)})
    weighted = host.importance_sample(posterior, 600, num_local_samples=8)
    draws = weighted.samples
    latents = [latent.name for latent in guide.structure.latents]
    assert weighted.log_weights.shape == (600,)
    assert all(draws[latent].shape[0] == 600 for latent in latents)
    assert np.all(np.isfinite(host.log_joint(posterior, draws)))
    for latent in latents:
        plain = host.sample(posterior, 3)[latent]
        assert draws[latent].shape[1:] == plain.shape[1:]
    if not guide.structure.local_plates():
        expected = host.log_joint(posterior, draws) - host.log_prob(posterior, draws)
        np.testing.assert_allclose(weighted.log_weights, expected, rtol=1e-4, atol=5e-3)
    many = amortized.at_each(*args, observations={site: host.array(np.stack([data, data]))})
    both = host.importance_sample(many, 600, num_local_samples=8)
    assert both.log_weights.shape == (600, 2)
    assert both.summary.ess_fraction.shape == (2,)
    error = np.hypot(weighted.summary.log_evidence_se, both.summary.log_evidence_se)
    gap = np.abs(both.summary.log_evidence - weighted.summary.log_evidence)
    assert np.all(gap < 5 * error + 0.05)
    resampled = both.resample(50)
    assert all(resampled[latent].shape[:2] == (50, 2) for latent in latents)


def test_local_latents_marginalised_are_no_worse_than_joint(host):
    """Evidence is the same; the marginalised weights vary less."""
    model = host.models.hierarchical_normal
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.02)
    posterior = amortized.at(y=host.array(np.linspace(-1, 1, 8)))
    draws = host.sample(posterior, 4000)
    joint = importance_summary(host.log_joint(posterior, draws) - host.log_prob(posterior, draws))
    marginal = host.importance_sample(posterior, 2000).summary
    error = np.hypot(joint.log_evidence_se, marginal.log_evidence_se)
    assert abs(joint.log_evidence - marginal.log_evidence) < 5 * error
    assert marginal.ess_fraction > joint.ess_fraction
