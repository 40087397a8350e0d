"""Weights of any guide, good or bad, are those of the model's joint density."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import halfcauchy, kstest, laplace, lognorm, norm
from scipy.stats import t as student

from amortize_diagnostics import importance_summary
from tests.backends import small_guide

NAMES = (
    "conjugate_normal",
    "eight_schools_centered",
    "eight_schools_noncentered",
    "hierarchical_normal",
    "nested_groups",
)
QUICK = {
    ("conjugate_normal", "NormalDensity"),
    ("eight_schools_centered", "SplineFlowDensity"),
    ("hierarchical_normal", "NormalDensity"),
}


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


def marks_of(name, family):
    if (name, family) not in QUICK:
        return [pytest.mark.slow]
    return [pytest.mark.compiles] * (family == "SplineFlowDensity")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=marks_of(name, family))
        for name in NAMES
        for family in ("NormalDensity", "SplineFlowDensity")
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
    weighted = host.importance_sample(posterior, 600, num_local_samples=8, defensive_fraction=0)
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


@pytest.mark.compiles
def test_local_latents_marginalised_are_no_worse_than_joint(host):
    """Evidence is the same; the marginalised weights vary less."""
    model = host.models.hierarchical_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="y"), scale=0.02)
    posterior = amortized.at(y=host.array(np.linspace(-1, 1, 8)))
    draws = host.sample(posterior, 4000)
    joint = importance_summary(host.log_joint(posterior, draws) - host.log_prob(posterior, draws))
    marginal = host.importance_sample(posterior, 2000).summary
    error = np.hypot(joint.log_evidence_se, marginal.log_evidence_se)
    assert abs(joint.log_evidence - marginal.log_evidence) < 5 * error
    assert marginal.ess_fraction > joint.ess_fraction


def assert_evidence(host, posterior, exact):
    for fraction in (0.1, 0.5):
        summary = host.importance_sample(posterior, 4000, defensive_fraction=fraction).summary
        assert summary.log_evidence_se < 0.1
        assert abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se
        assert summary.num_draws == 4000
        assert summary.num_guide_draws == 4000 - 4000 * fraction


def test_constrained_global_and_local_latents_with_a_normal_density(host):
    """Given mu and tau the data are normal, so that the evidence is an integral over these."""
    model, sigma, y = (
        host.models.eight_schools_centered,
        np.linspace(9, 18, 8),
        np.linspace(-5, 25, 8),
    )
    mu, tau = np.linspace(-40, 40, 801)[:, None], np.exp(np.linspace(-12, 12, 2401))
    log_density = norm.logpdf(mu, 0, 5) + halfcauchy.logpdf(tau, 0, 5) + np.log(tau)
    for data, noise in zip(y, sigma, strict=True):
        log_density = log_density + norm.logpdf(data, mu, np.hypot(tau, noise))
    exact = logsumexp(log_density) + np.log(0.1 * 0.01)
    guide = host.guide(
        model,
        observed="y",
        inputs={"sigma": "schools"},
        densities=host.package.NormalDensity(hidden_dims=(8,)),
    )
    amortized = host.scrambled(model, guide, host.array(sigma), scale=0.02)
    assert_evidence(host, amortized.at(host.array(sigma), y=host.array(y)), exact)


@pytest.mark.compiles
def test_mixture_priors_of_a_global_and_a_local_latent(host):
    model, y = host.models.mixture_priors, np.array([1.5, 2.0, 3.5])
    weights, scale = host.models.MIXTURE_WEIGHTS, host.models.MIXTURE_SCALE

    def mixed(first, second):
        return np.logaddexp(np.log(weights[0]) + first, np.log(weights[1]) + second)

    u = np.exp(np.linspace(-3, 4, 7001))
    log_density = np.log(u) + mixed(
        lognorm.logpdf(u, scale), lognorm.logpdf(u, scale, scale=np.exp(1.0))
    )
    for data in y:
        width = np.hypot(scale, 1.0)
        log_density += mixed(norm.logpdf(data, u, width), norm.logpdf(data, u + 1, width))
    exact = logsumexp(log_density) + np.log(0.001)
    guide = small_guide(host, model, observed="y").setup()
    assert [site.support.kind for site in guide.structure.latents] == ["positive", "real"]
    amortized = host.scrambled(model, guide, scale=0.02)
    assert_evidence(host, amortized.at(y=host.array(y)), exact)


def test_factor_sites_are_no_data(host):
    """The model's own call observes the factor too; its data are those of `observed` alone."""
    model = host.models.with_factor
    z = np.linspace(-8, 8, 1601)
    exact = logsumexp(norm.logpdf(z) - z**2 + norm.logpdf(0.7, z)) + np.log(0.01)
    posterior = host.untrained(model, small_guide(host, model, observed="y")).at(
        host.array(np.array(0.7))
    )
    assert list(posterior.observations) == ["y"]
    assert_evidence(host, posterior, exact)


def test_defensive_draws_mend_light_tails(host):
    """The posterior has exponential tails over ten standard deviations, the guide is normal."""
    model = host.models.laplace_location
    guide = host.guide(model, observed="y", densities=host.package.NormalDensity(hidden_dims=(8,)))
    posterior = host.untrained(model, guide).at(y=host.array(np.array(0.3)))
    z = np.linspace(-100, 100, 200_001)
    exact = logsumexp(laplace.logpdf(z) + norm.logpdf(0.3, z, 10)) + np.log(0.001)
    own = host.importance_sample(posterior, 10_000, defensive_fraction=0).summary
    assert own.guide_ess_fraction == own.ess_fraction
    defended = host.importance_sample(posterior, 10_000, defensive_fraction=0.2).summary
    assert defended.khat < min(own.khat - 0.1, 0.5)
    assert abs(defended.log_evidence - exact) < 4 * defended.log_evidence_se
    # The guide's own draws are not judged better than they are.
    assert defended.guide_ess_fraction < defended.ess_fraction


@pytest.mark.parametrize("is_heavy", [True, False])
def test_noise_is_normal_or_student(host, is_heavy):
    loc, scale = 1.0, 2.0
    value, log_prob, log_tail = host.draw_with_tails(loc, scale, 4000, is_heavy)
    noise = (value - loc) / scale
    expected = student(5) if is_heavy else norm
    assert kstest(noise, expected.cdf).pvalue > 1e-3
    np.testing.assert_allclose(log_prob, norm.logpdf(value, loc, scale), rtol=1e-5, atol=1e-5)
    ratio = student.logpdf(noise, 5) - norm.logpdf(noise)
    np.testing.assert_allclose(log_tail, ratio, rtol=1e-4, atol=1e-4)
