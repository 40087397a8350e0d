"""The hosts' `obs_mask=`: what is unobserved is drawn from the model, and changes no posterior."""

import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal

from tests.backends import numpy_tree, small

pytestmark = pytest.mark.compiles

X = np.array([0.4, -1.0, 2.0, 0.3, 1.5, -0.2])
THERE = np.array([True, False, True, True, False, True])
HOLES = np.where(THERE, X, np.nan)
LATENTS = {"z": np.linspace(-1, 1, 5)}


def scrambled(host, name, missing, *args):
    """Guides of equal weights; in Pyro the constants depend on what else a model draws."""
    model = getattr(host.models, name)
    guide = host.guide(model, observed="y", missing=missing, **small(host))
    amortized = host.scrambled(model, guide, *args, scale=0.1)
    if host.name == "pyro":
        amortized.guide.standardisation.copy_(host.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.4]))
    return amortized


def behind_an_obs_mask(host):
    return scrambled(host, "rows_with_an_obs_mask", {"is_there": "y"}, host.array(THERE))


def guide_trace(host, amortized, *args, data=None):
    """One run of the guide in the host, and of the model at its values."""
    if host.name == "pyro":
        from pyro import poutine

        guide = poutine.trace(amortized.guide).get_trace(*args)
        model = poutine.trace(poutine.replay(data, trace=guide)).get_trace(*args)
        for trace in (guide, model):
            trace.compute_log_prob()
        return guide.nodes, model.nodes
    from numpyro import handlers

    guide = handlers.substitute(handlers.seed(amortized.guide, host.key(0)), amortized.params)
    guide = handlers.trace(guide).get_trace(*args)
    model = handlers.replay(handlers.seed(data, host.key(1)), guide)
    traces = guide, handlers.trace(model).get_trace(*args)
    for trace in traces:
        for site in trace.values():
            if site["type"] == "sample":
                site["log_prob"] = site["fn"].log_prob(site["value"])
    return traces


def test_one_site_of_the_guide(host):
    structure = behind_an_obs_mask(host).guide.structure
    assert [site.name for site in structure.latents] == ["z"]
    assert [site.name for site in structure.observed] == ["y"]
    assert structure.deterministic == ()
    assert "y ['rows'] (values may be missing)" in str(structure)


def test_the_posterior_is_that_of_the_same_mask_as_a_handler(host):
    expected = scrambled(host, "rows_behind_a_mask", {"is_there": "y"}, host.array(THERE))
    expected = host.log_prob(expected.at(host.array(THERE), y=host.array(X)), LATENTS)
    amortized = behind_an_obs_mask(host)
    found = host.log_prob(amortized.at(host.array(THERE), y=host.array(X)), LATENTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = np.where(THERE, X, 100.0)
    found = host.log_prob(amortized.at(host.array(THERE), y=host.array(other)), LATENTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Without a mask in the call the host makes one site, and the guide takes that too.
    whole = host.log_prob(amortized.at(y=host.array(X)), LATENTS)
    everything = host.array(np.ones(6, bool))
    same = host.log_prob(amortized.at(everything, y=host.array(X)), LATENTS)
    np.testing.assert_allclose(whole, same, rtol=1e-5)
    assert np.abs(whole - expected).max() > 1e-3


def test_evidence_and_predictions(host):
    exact = multivariate_normal(cov=np.eye(THERE.sum()) + 1).logpdf(X[THERE])
    posterior = behind_an_obs_mask(host).at(host.array(THERE), y=host.array(X))
    summary = host.importance_sample(posterior, 4000).summary
    assert abs(summary.log_evidence - exact) < 5 * summary.log_evidence_se + 1e-3
    tree = host.to_datatree(posterior, 50)
    predicted = tree["posterior_predictive"]["y"].values
    assert np.isfinite(predicted).all()
    assert predicted.reshape(50, 6).std(0).min() > 0.3  # all rows are predicted anew


def test_the_guide_in_the_host_draws_what_is_unobserved_from_the_model(host):
    amortized, model = behind_an_obs_mask(host), host.models.rows_with_an_obs_mask
    args = (host.array(THERE), host.array(X))
    guide, joint = guide_trace(host, amortized, *args, data=model)
    own, theirs = guide["y_unobserved"], joint["y_unobserved"]
    np.testing.assert_array_equal(numpy_tree(own["value"]), numpy_tree(theirs["value"]))
    log_q, log_p = (numpy_tree(site["log_prob"]) for site in (own, theirs))
    np.testing.assert_allclose(log_q, log_p, rtol=1e-5)
    assert (log_q[THERE] == 0).all()
    assert (log_q[~THERE] != 0).all()


def host_loss(host, amortized, model, args, num_particles, seed=0):
    objective = host.trace_elbo(num_particles)
    if host.name == "pyro":
        import pyro

        pyro.clear_param_store()
        objective.max_plate_nesting = 1 + (num_particles > 1)  # a guess would draw
        host.seed(seed)
        return objective.loss(model, amortized.guide, *args)
    return float(objective.loss(host.key(seed), amortized.params, model, amortized.guide, *args))


def test_the_hosts_bound_is_that_of_what_is_observed(host):
    """Draw by draw: the part of the unobserved rows cancels."""
    by_handler = scrambled(host, "rows_behind_a_mask", {"is_there": "y"}, host.array(THERE))
    amortized, args = behind_an_obs_mask(host), (host.array(THERE), host.array(X))
    for num in (1, 3):
        found = host_loss(host, amortized, host.models.rows_with_an_obs_mask, args, num)
        expected = host_loss(host, by_handler, host.models.rows_behind_a_mask, args, num)
        assert found == pytest.approx(expected, rel=1e-5)


def test_training_by_simulations_and_by_the_hosts_bound(host):
    model = host.models.rows_with_an_obs_mask
    args = (host.array(THERE), host.array(X))
    for objective in (host.package.NPE(8), host.package.NPE(8, missing=0.5), host.trace_elbo(4)):
        guide = host.guide(model, observed="y", missing={"is_there": "y"}, **small(host))
        guide.setup(*args)
        before = host.weights(host.untrained(model, guide, *args))
        amortized = host.fit(model, guide, objective, args=args, num_steps=3)
        assert np.isfinite(amortized.history.losses).all()
        after = host.weights(amortized)
        assert any(np.abs(after[name] - before[name]).max() > 1e-4 for name in after)


def test_the_hosts_predictive_keeps_what_is_observed(host):
    amortized, model = behind_an_obs_mask(host), host.models.rows_with_an_obs_mask
    args, num = (host.array(THERE), host.array(X)), 400
    options = {"params": amortized.params} if host.name == "numpyro" else {}
    predictive = host.infer.Predictive(
        model,
        guide=amortized.guide,
        num_samples=num,
        return_sites=["y", "y_unobserved", "z"],
        **options,
    )
    draws = predictive(*((host.key(0),) if host.name == "numpyro" else ()), *args)
    y, z = (np.asarray(draws[name]).reshape(num, -1) for name in ("y", "z"))
    np.testing.assert_allclose(y[:, THERE], np.tile(X[THERE], (num, 1)), rtol=1e-6)
    noise = (y - z)[:, ~THERE]
    assert kstest(noise.ravel(), "norm").pvalue > 1e-4


def test_locals_and_observed_covariates_enter_the_conditional(host):
    model = host.models.groups_with_an_obs_mask
    is_there, x, y = THERE[:5], X[:5] + 10, X[:5] + 10
    args = tuple(map(host.array, (x, is_there, y)))
    options = {"observed": ("x", "y"), "missing": {"is_there": "y"}, **small(host)}
    amortized = host.scrambled(model, host.guide(model, **options), *args, scale=0.1)
    guide, joint = guide_trace(host, amortized, *args, data=model)
    theta, found = (numpy_tree(guide[name]["value"]) for name in ("theta", "y_unobserved"))
    assert np.abs(found - theta - x).max() < 0.5 * 5
    log_q, log_p = (numpy_tree(trace["y_unobserved"]["log_prob"]) for trace in (guide, joint))
    np.testing.assert_allclose(log_q, log_p, rtol=1e-5)


def test_a_mask_that_the_model_makes_of_nan(host):
    by_nan = scrambled(host, "rows_of_any_number", "y")
    expected = host.log_prob(by_nan.at(y=host.array(HOLES)), LATENTS)
    model = host.models.rows_with_a_mask_of_nan
    for args in ((), (host.array(HOLES),)):  # set up with or without data
        amortized = scrambled(host, "rows_with_a_mask_of_nan", "y", *args)
        found = host.log_prob(amortized.at(host.array(HOLES)), LATENTS)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    guide = host.guide(model, observed="y", missing="y", **small(host))
    history = host.fit(model, guide, host.trace_elbo(), args=(host.array(HOLES),), num_steps=3)
    assert np.isfinite(history.history.losses).all()


def test_saved_with_an_obs_mask(host, tmp_path):
    path = tmp_path / "guide.safetensors"
    amortized = behind_an_obs_mask(host)
    amortized.save(path)
    loaded = host.package.AmortizedPosterior.load(path, host.models.rows_with_an_obs_mask)
    first, second = (
        host.log_prob(each.at(host.array(THERE), y=host.array(X)), LATENTS)
        for each in (amortized, loaded)
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_an_obs_mask_that_is_not_declared(host):
    guide = host.guide(host.models.rows_with_an_obs_mask, observed="y")
    with pytest.raises(ValueError, match="observed site 'y': the model gives it an obs_mask, and"):
        guide.setup(host.array(THERE))


@pytest.mark.parametrize("is_given", [True, False])
def test_sites_that_read_what_may_be_missing(host, is_given):
    guide = host.guide(
        host.models.covariates_with_an_obs_mask, observed=("x", "y"), missing={"is_there": "x"}
    )
    args = (host.array(THERE[:4]),) if is_given else ()
    with pytest.raises(
        ValueError, match=r"site 'x': may have no data, but sites \['y'\] depend on it"
    ):
        guide.setup(*args)


def test_what_is_unobserved_beside_a_constant_of_the_model(host):
    """A model with a conditioned site is wrapped twice; the host still finds `y_unobserved`."""
    data = {"x": host.array(np.zeros(5))}
    if host.name == "pyro":
        from pyro import poutine

        model = poutine.condition(host.models.groups_with_an_obs_mask, data=data)
    else:
        from numpyro import handlers

        model = handlers.condition(host.models.groups_with_an_obs_mask, data=data)
    args = (None, host.array(THERE[:5]), host.array(X[:5]))
    guide = host.guide(model, observed="y", missing={"is_there": "y"}, **small(host))
    amortized = host.scrambled(model, guide, *args, scale=0.1)
    assert [site.name for site in guide.structure.fixed] == ["x"]
    of_guide, of_model = guide_trace(host, amortized, *args, data=model)
    values = [trace["y_unobserved"]["value"] for trace in (of_guide, of_model)]
    np.testing.assert_array_equal(*map(numpy_tree, values))
