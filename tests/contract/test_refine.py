"""A few steps more at given data: better answers there, and nothing else moves."""

import numpy as np
import pytest

from tests.contract.test_model_parameters import Y, scale_of, small_guide
from tests.problems import PROBLEMS

OUTLIER = 5.0


def barely_trained(host, **options):
    """A guide of the conjugate model after a few steps, which is far off at outliers."""
    package = host.package
    guide = host.guide(
        host.models.conjugate_normal, observed="x", densities=package.NormalDensity(), **options
    )
    return host.fit(guide.model, guide, package.NPE(32), num_steps=100, learning_rate=3e-3)


def data_at(*means):
    rng, problem = np.random.default_rng(0), PROBLEMS["conjugate_normal"]
    return np.array(means)[:, None] + rng.normal(size=(len(means), problem.num_rows))


def errors(host, posterior, x):
    """Of mean and log sd, in posterior sds, one for each data set."""
    mean, sd = PROBLEMS["conjugate_normal"].posterior({"x": x})
    draws = host.sample(posterior, 4000)["z"].reshape(4000, -1)
    return np.abs(draws.mean(0) - mean) / sd, np.abs(np.log(draws.std(0) / sd))


OBJECTIVES = {
    "STL": lambda host: host.package.IWAE(1, gradient="stl"),
    "IWAE": lambda host: host.package.IWAE(8),
    "wake": lambda host: host.package.RWS(32, insomnia=1.0),
    "SelfConsistency": lambda host: host.package.SelfConsistency(16),
    "TrajectoryBalance": lambda host: host.package.TrajectoryBalance(16, noise=1.0),
}


@pytest.mark.compiles
@pytest.mark.parametrize(
    "name",
    ["STL", *(pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES if name != "STL")],
)
def test_the_answer_gets_better_and_the_guide_stays(host, name):
    amortized, x = barely_trained(host), data_at(OUTLIER)
    before = amortized.at(x=host.array(x[0]))
    first, draws = errors(host, before, x), host.sample(before, 10)["z"]
    refined = host.package.refine(
        amortized,
        OBJECTIVES[name](host),
        kwargs={"x": host.array(x[0])},
        num_steps=600 if name == "STL" else 1500,
        learning_rate=3e-3,
    )
    second = errors(host, refined, x)
    assert first[0] > 0.3
    assert second[0] < 0.15
    assert second[1] < 0.15
    np.testing.assert_array_equal(host.sample(amortized.at(x=host.array(x[0])), 10)["z"], draws)


@pytest.mark.slow
def test_many_data_sets_at_once(host):
    amortized, x = barely_trained(host), data_at(OUTLIER, -4.0)
    data = {"x": host.array(x)}
    refined = host.package.refine(
        amortized,
        host.package.IWAE(1, gradient="stl"),
        observations=data,
        num_steps=600,
        learning_rate=3e-3,
    )
    assert errors(host, amortized.at_each(observations=data), x)[0].max() > 0.3
    assert errors(host, refined, x)[0].max() < 0.15


@pytest.mark.slow
def test_many_data_sets_with_values_missing(host):
    """Half of the rows, and the exact posterior of the others."""
    amortized, x = barely_trained(host, missing="x"), data_at(OUTLIER, -4.0)
    x[:, ::2] = np.nan
    refined = host.package.refine(
        amortized,
        host.package.IWAE(1, gradient="stl"),
        observations={"x": host.array(x)},
        num_steps=600,
        learning_rate=3e-3,
    )
    draws = host.sample(refined, 4000)["z"].reshape(4000, -1)
    precision = 1.0 + 10
    mean, sd = np.nansum(x, axis=1) / precision, precision**-0.5
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.15 * sd)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.15)


@pytest.mark.compiles
def test_parameters_of_the_model_stay_and_training_goes_on(host):
    """In Pyro their gradients do not wait for the next step either."""
    package, model, y = host.package, host.models.local_parameter, host.array(Y)
    options = {"args": (y,), "num_steps": 3, "progress_bar": False}
    amortized = host.fit(model, small_guide(host, model), host.trace_elbo(), args=(y,), num_steps=3)
    before = scale_of(host, amortized)
    for _ in range(2):
        package.refine(amortized, package.IWAE(2), args=(y,), num_steps=3)
    assert scale_of(host, amortized) == before
    if host.name == "pyro":
        import pyro

        store = pyro.get_param_store()
        assert {name.split("$$$")[0] for name in store} == {"scale", "amortized"}
        assert pyro.param("scale").unconstrained().requires_grad
        options_of_host = {}
    else:
        options_of_host = {"params": amortized.params}
    again = package.fit(model, amortized.guide, host.trace_elbo(), **options, **options_of_host)
    assert scale_of(host, again) != before


@pytest.mark.compiles
def test_the_host_takes_the_refined_guide(host):
    """Beside that of the original."""
    amortized, x = barely_trained(host), host.array(data_at(1.0)[0])
    refined = host.package.refine(amortized, host.trace_elbo(), kwargs={"x": x}, num_steps=3)
    for posterior in (amortized.at(x=x), refined):
        summary = host.importance_sample(posterior, 500).summary
        assert 0 < summary.ess_fraction <= 1
        if host.name == "pyro":
            assert posterior.guide()["z"].shape == ()


def test_bad_input(host):
    package = host.package
    guide = host.guide(host.models.conjugate_normal, observed="x")
    amortized = host.untrained(host.models.conjugate_normal, guide)
    x = {"x": host.array(data_at(1.0)[0])}
    for objective in (package.NPE(), package.RWS()):
        with pytest.raises(ValueError, match="objective: it simulates, and simulations do not"):
            package.refine(amortized, objective, kwargs=x)
    with pytest.raises(ValueError, match="num_steps: expected at least 1, got 0"):
        package.refine(amortized, package.IWAE(), kwargs=x, num_steps=0)
    with pytest.raises(ValueError, match="site 'x'"):
        package.refine(amortized, package.IWAE())
    if host.name == "pyro":
        with pytest.raises(TypeError, match="the loss of TraceGraph_ELBO cannot be averaged"):
            package.refine(
                amortized,
                host.infer.TraceGraph_ELBO(),
                observations={"x": host.array(data_at(1.0, 2.0))},
            )
