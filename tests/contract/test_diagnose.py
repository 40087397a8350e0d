"""One call for each data set: what to use of an answer, and whether the data fit the model."""

import numpy as np
import pytest

from amortize_diagnostics import misspecification_test, typicality
from tests.backends import host as host_of
from tests.backends import small_guide
from tests.conftest import require
from tests.problems import PROBLEMS

X = np.linspace(-0.5, 1.0, 20).astype("float32")
NUM = 200


def conjugate(host):
    """The prior for every data set: as it is initialised, and with networks that see the data."""
    model = host.models.conjugate_normal
    return host.untrained(model, small_guide(host, model, observed="x"))


def test_a_guide_that_ignores_the_data_does_not_pass(host):
    """Its draws are the prior's, five times too wide: k-hat passes them, the ESS does not."""
    posterior = conjugate(host).at(x=host.array(X))
    found = host.diagnose(posterior, 1000)
    assert found.is_one
    assert found.use.tolist() == ["weighted"]
    assert found.importance.guide_ess_fraction < 0.5
    assert found.importance.khat < found.importance.khat_threshold
    exact = PROBLEMS["conjugate_normal"].log_evidence({"x": X[None].astype(float)})[0]
    error = found.importance.log_evidence_se
    assert abs(found.importance.log_evidence - exact) < 3 * error + 1e-3
    assert found.typicality.p_value.shape == (1,)
    assert set(found.predictive.p_values) == {"x: mean", "x: sd", "x: min", "x: max"}
    assert "Verdict: Use the weighted draws" in str(found)


@pytest.mark.compiles
def test_data_unlike_the_simulations_are_flagged(host):
    """False alarms at 5 %; shifted, contaminated and wide data in at least 95 % of 200 cases."""
    amortized, rng = conjugate(host), np.random.default_rng(1)
    _, data = PROBLEMS["conjugate_normal"].sample_joint(rng, NUM)
    good = data["x"]
    outliers = np.where(rng.uniform(size=good.shape) < 0.3, 8 * rng.normal(size=good.shape), good)
    cases = {"good": good, "shifted": good + 6, "contaminated": outliers, "wide": 3 * good}
    stacked = np.concatenate(list(cases.values())).astype("float32")
    posterior = amortized.at_each(observations={"x": host.array(stacked)})
    found = host.diagnose(posterior, 30, num_simulations=2000)
    flagged = dict(zip(cases, found.typicality.p_value.reshape(4, NUM) < 0.05, strict=True))
    assert found.num_datasets == 4 * NUM
    assert 0.01 < flagged["good"].mean() < 0.1
    for name in ("shifted", "contaminated", "wide"):
        assert flagged[name].mean() >= 0.95, name
    assert np.mean(found.is_model_doubtful.reshape(4, NUM)[0]) < 0.05
    assert str(found).startswith(f"{4 * NUM} data sets. Use: ")


@pytest.mark.compiles
def test_another_design_is_flagged(host):
    """Covariates unlike those of training: 200 data sets of the model itself, five at each design.

    Beside the model's simulations at their own design, nothing is wrong with them.
    """
    problem, model = PROBLEMS["line"], host.models.line_through

    def design(rng):
        return (rng.normal(size=problem.num_rows),)

    guide = small_guide(host, model, observed="y", inputs={"x": "rows"})
    amortized = host.untrained(model, guide, host.array(np.linspace(-1, 1, problem.num_rows)))
    simulated = host.simulated_contexts(amortized, 2000, model_args=host.model_args(design))
    assert simulated.shape[0] == 2000

    def contexts(x, rng):
        y = problem.sample_joint(rng, 5, x)[1]["y"]
        posterior = amortized.at_each(host.array(x), observations={"y": host.array(y)})
        return posterior, posterior.contexts()

    rng = np.random.default_rng(2)
    cases = {"as in training": (0, 1), "shifted": (3, 1), "narrow": (0, 0.1)}
    for name, (shift, scale) in cases.items():
        designs = [shift + scale * design(rng)[0] for _ in range(NUM // 5)]
        found = [contexts(x, rng) for x in designs]
        observed = np.concatenate([part for _, part in found])
        flagged = typicality(observed, simulated).p_value < 0.05
        if name == "as in training":
            assert 0.01 < flagged.mean() < 0.1
            assert misspecification_test(observed[::5], simulated[::5], rng).p_value > 0.05
            continue
        assert flagged.mean() >= 0.95, name
        posterior, own = found[0]
        told = host.diagnose(posterior, 30, simulated=simulated).typicality
        np.testing.assert_allclose(told.distance, typicality(own, simulated).distance)
        assert host.diagnose(posterior, 30).typicality.p_value.max() > 0.05, name


@pytest.mark.compiles
def test_another_number_of_rows_is_flagged(host):
    model = host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, 6, scale=0.05)
    sizes = host.model_args(lambda rng: (int(rng.integers(4, 9)),))
    simulated = host.simulated_contexts(amortized, 1000, model_args=sizes)
    own, other = (
        typicality(
            amortized.at_each(
                num, observations={"y": host.simulate(model, NUM, args=(num,))["y"]}
            ).contexts(),
            simulated,
        ).p_value
        < 0.05
        for num in (6, 40)
    )
    assert own.mean() < 0.1
    assert other.mean() >= 0.95


def test_numpyro_padding_changes_no_contexts():
    """In Pyro nothing is compiled, and nothing padded."""
    require("numpyro")
    host = host_of("numpyro")
    module, model = host.module("contexts"), host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, 6, scale=0.1)
    pad = module._padding(guide, [((4,), {}), ((6,), {})])
    padded = pad(((6,), {}))
    data = {"y": host.simulate(model, 3, args=(16,))["y"]}
    assert padded.call == ((16,), {})
    extended = module._contexts(guide, amortized.params, padded.call, data, padded.true_sizes)
    posterior = amortized.at_each(6, observations={"y": data["y"][:, :6]})
    np.testing.assert_allclose(extended, posterior.contexts(), rtol=1e-4, atol=1e-5)


@pytest.mark.compiles
def test_missing_values_are_hidden_from_the_simulations_too(host):
    model = host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", missing="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, scale=0.05)
    y = np.array([0.4, np.nan, 2.0, 0.3, np.nan, -0.2])
    found = host.diagnose(amortized.at(6, y=host.array(y)), 200)
    assert found.typicality.p_value[0] > 0.02
    assert found.notes == ()
    both = np.stack([y, np.where(np.isnan(y), 0.0, y)])
    many = amortized.at_each(6, observations={"y": host.array(both)})
    some = host.diagnose(many, 200)
    assert some.typicality is None
    assert "the data sets miss different values" in some.notes[0]
    simulated = host.simulated_contexts(amortized, 500, args=(6,), missing=0.8)
    assert host.diagnose(many, 200, simulated=simulated).typicality.p_value.min() > 0.01


@pytest.mark.compiles
def test_plates_and_ensembles(host):
    model, y = host.models.nested_groups, np.random.default_rng(0).normal(size=(3, 4, 5))
    members = [
        host.scrambled(model, small_guide(host, model, observed="y"), scale=0.02, seed=seed)
        for seed in (0, 1)
    ]
    ensemble = host.ensemble(members)
    posterior = ensemble.at_each(observations={"y": host.array(y)})
    found = host.diagnose(posterior, 60)
    assert found.num_datasets == 3
    assert found.typicality.p_value.shape == (3,)
    assert found.importance.local_ess_fraction.shape == (3,)
    assert np.all(found.importance.own_ess_fraction <= found.importance.local_ess_fraction)
    assert sorted(found.order.tolist()) == [0, 1, 2]
    assert posterior.contexts().shape[1] == host.simulated_contexts(ensemble, 100).shape[1]


@pytest.mark.compiles
def test_without_a_density_nothing_is_certified(host, monkeypatch):
    posterior = conjugate(host).at(x=host.array(X))

    def no_density(*args, **kwargs):
        raise NotImplementedError("Simulator.log_prob")

    monkeypatch.setattr(posterior._conditioned, "importance_sample", no_density)
    found = host.diagnose(posterior, 100)
    assert found.importance is None
    assert found.use.tolist() == ["neither"]
    assert "the model has no density (Simulator.log_prob), so that no weights" in str(found)
    assert "Verdict: No weights: nothing is known" in str(found)


@pytest.mark.compiles
def test_a_guide_without_a_density_is_said_so(host):
    model = host.models.conjugate_normal
    densities = host.package.ConsistencyDensity(hidden_dims=(8,))
    guide = small_guide(host, model, observed="x", densities=densities)
    posterior = host.untrained(model, guide).at(x=host.array(X))
    found = host.diagnose(posterior, 100)
    assert found.importance is None
    assert "the guide has no density, so that no weights are possible" in found.notes[0]


def test_numbers_out_of_range(host):
    posterior = conjugate(host).at(x=host.array(X))
    with pytest.raises(ValueError, match="num_simulations: expected at least 100, got 50"):
        posterior.diagnose(num_simulations=50)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        posterior.diagnose(0)
    with pytest.raises(ValueError, match="observed and simulated: expected shapes"):
        host.diagnose(posterior, 30, simulated=np.zeros((100, 1)))
    amortized = conjugate(host)
    with pytest.raises(ValueError, match="num_simulations: expected at least 100, got 99"):
        host.simulated_contexts(amortized, 99)
    with pytest.raises(ValueError, match="args, kwargs: model_args draws the arguments"):
        host.simulated_contexts(amortized, 100, args=(), model_args=host.model_args(lambda _: ()))
    factor = host.models.with_factor
    amortized = host.untrained(factor, small_guide(host, factor, observed="y"))
    with pytest.raises(ValueError, match="factor site 'push': simulations do not see a factor"):
        host.simulated_contexts(amortized, 100)
