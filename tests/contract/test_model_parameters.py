"""Parameters and networks of the model: trained by bounds with the guide, left alone by NPE."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

Y = np.array([3.4, -1.2, 0.3, 4.9])
X = np.linspace(-1, 1, 8)
LINE = 1.5 * X + 0.5


def small_guide(host, model, **options):
    package = host.package
    return host.guide(
        model,
        observed="y",
        embedding=package.PlateEmbedding(feature_dim=4, hidden_dims=(8,)),
        densities=package.NormalDensity(hidden_dims=(8,)),
        **options,
    )


def scale_of(host, amortized):
    if host.name == "numpyro":
        return float(amortized.params["scale"])
    import pyro

    return float(pyro.param("scale").detach())


def weight_of(host, amortized, model):
    if host.name == "numpyro":
        return float(amortized.params["net$params"].weight[0, 0])
    return float(model.net.weight.detach())


@pytest.mark.compiles
def test_everything_uses_the_trained_parameter(host):
    """The model's density, its simulations, and the guide's own use of the model's scale."""
    model = host.models.local_parameter
    guide = small_guide(host, model)
    assert guide.setup().structure.site("theta").is_conditional
    options = {"args": (host.array(Y),), "num_steps": 60, "learning_rate": 5e-2}
    amortized = host.fit(model, guide, host.trace_elbo(), **options)
    scale = scale_of(host, amortized)
    assert abs(scale - 2.0) > 0.1
    posterior = amortized.at(y=host.array(Y))
    mu, theta = np.array([0.5, -1.0]), np.random.default_rng(0).normal(size=(2, 4))
    found = host.log_joint(posterior, {"mu": mu, "theta": theta})
    expected = (
        norm.logpdf(mu)
        + norm.logpdf(theta, mu[:, None], scale).sum(1)
        + norm.logpdf(Y, theta, 0.5).sum(1)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    summary = host.importance_sample(posterior, 2000).summary
    exact = multivariate_normal(np.zeros(4), 1 + np.eye(4) * (scale**2 + 0.25)).logpdf(Y)
    assert abs(summary.log_evidence - exact) < 5 * summary.log_evidence_se + 1e-2
    np.testing.assert_allclose(
        host.log_prob(posterior, {"mu": mu, "theta": theta}),
        host_log_prob(host, amortized, {"mu": mu, "theta": theta}),
        rtol=1e-3,
    )


def host_log_prob(host, amortized, latents):
    """Log density of the guide as the host scores it, at the parameters in the host's hands."""
    found = []
    for row in range(len(latents["mu"])):
        values = host.arrays({name: value[row] for name, value in latents.items()})
        if host.name == "pyro":
            from pyro import poutine

            guide = poutine.condition(amortized.guide, data=values)
            trace = poutine.trace(guide).get_trace(host.array(Y))
            found.append(float(trace.log_prob_sum().detach()))
            continue
        from numpyro.infer.util import log_density

        params = dict(amortized.params) | values
        total, _ = log_density(amortized.guide, (host.array(Y),), {}, params)
        found.append(float(total))
    return np.array(found)


@pytest.mark.compiles
def test_a_network_in_the_model(host, tmp_path):
    model = host.models.NetworkModel()
    guide = small_guide(host, model, inputs={"x": "rows"})
    npe = host.fit(model, guide, host.package.NPE(8), args=(host.array(X),), num_steps=3)
    assert weight_of(host, npe, model) == 0.0
    args = host.array(X), host.array(LINE)
    amortized = host.fit(
        model, guide, host.trace_elbo(), args=args, num_steps=150, learning_rate=3e-2
    )
    weight = weight_of(host, amortized, model)
    assert weight == pytest.approx(1.5, abs=0.4)
    posterior = amortized.at(*args)
    latents = {"z": np.array([0.5, -1.0])}
    before = host.log_joint(posterior, latents)
    amortized.save(tmp_path / "guide.safetensors")
    if host.name == "pyro":
        import pyro

        pyro.clear_param_store()
    other = host.models.NetworkModel()
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", other)
    again = host.log_joint(loaded.at(*args), latents)
    np.testing.assert_allclose(again, before, rtol=1e-5)
    assert weight_of(host, loaded, other) == pytest.approx(weight)


def test_a_network_in_a_file_that_cannot_be_told_its_shape(host, tmp_path):
    """Arguments that are neither arrays nor plain values are not stored: the model cannot run."""
    model = host.models.NetworkModel()
    guide = small_guide(host, model, inputs={"x": "rows"})
    guide.setup(host.array(X), kind=object())
    if host.name == "pyro":  # whose networks are parameters with names of their own
        host.package.AmortizedPosterior(model, guide).save(tmp_path / "guide.safetensors")
        assert host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
        return
    params = guide.init_params() | {"net$params": model.net}
    amortized = host.package.AmortizedPosterior(model, guide, params=params)
    amortized.save(tmp_path / "guide.safetensors")
    with pytest.raises(ValueError, match=r"parameters \['net\$params'\] of the model are networks"):
        host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
