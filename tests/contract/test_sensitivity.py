"""How far answers move when the data do: the penalty in training, and the probe of an answer."""

from importlib import import_module

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.backends import small_guide
from tests.conftest import require


def conjugate(host, scale=0.1, **options):
    """A guide with one normal head and random weights."""
    model = host.models.conjugate_normal
    return host.scrambled(model, small_guide(host, model, observed="x", **options), scale=scale)


def moments(host, amortized, x):
    """Mean and sd of the guide's normal at data sets `(num, rows)`: three densities say them."""
    points = np.array([-3.0, 0.0, 3.0])
    data = np.repeat(x, 3, axis=0)
    found = host.site_log_probs(amortized, (), {"z": np.tile(points, len(x))}, {"x": data})["z"]
    low, middle, high = found.reshape(len(x), 3).T
    variance = 9 / (2 * middle - low - high)
    return variance * (high - low) / 6, np.sqrt(variance)


def exact_trace(host, amortized, x, step=1e-3):
    """`tr I` of a normal head by finite differences, in units of the standardisation."""
    scale = data_scale(host, amortized)
    _, sd = moments(host, amortized, x[None])
    moved = np.concatenate([x + sign * step * np.eye(len(x)) for sign in (1, -1)])
    mean, sds = moments(host, amortized, moved)
    plus, minus = np.arange(len(x)), len(x) + np.arange(len(x))
    slope = (mean[plus] - mean[minus]) / (2 * step)
    log_slope = (np.log(sds[plus]) - np.log(sds[minus])) / (2 * step)
    return scale**2 * np.sum((slope / sd) ** 2 + 2 * log_slope**2)


def data_scale(host, amortized):
    constants = host.module("standardisation").Standardisation
    structure = amortized.guide.structure
    vector = host.array(host.standardisation(amortized))
    return float(constants.from_vector(structure, vector).data["x"][1][0])


def penalty(host, objective, amortized, x, seed=0):
    """The penalty of each data set, as training has it, divided by beta."""
    drawn = host.module("objectives.npe").Drawn
    is_used, data = host.array(np.ones(len(x), bool)), {"x": host.array(x)}
    if host.name == "numpyro":
        jax = import_module("jax")

        def traces(key, params):
            own = drawn(((), {}), {}, data, None, is_used, is_used, key)
            return objective._traces(params, amortized.guide, own)

        return np.asarray(jax.jit(traces)(host.key(seed), dict(amortized.params)))
    host.seed(seed)
    own = drawn(((), {}), {}, data, None, is_used, is_used)
    return objective._traces(amortized.guide, own).detach().numpy()


X = np.linspace(-0.5, 1.0, 20)


@pytest.mark.compiles
def test_the_penalty_is_the_trace_of_the_fisher_information(host):
    """Of a normal head: what its mean and its width do along each value, in units of the data.

    A draw that moves with the data would give other values, and so would draws of the prior.
    """
    with host.double_precision():
        amortized = conjugate(host, scale=0.3)
        expected = exact_trace(host, amortized, X)
        assert expected > 0.01
        objective = host.package.FisherRegularized(host.package.NPE(4), 1.0, num_samples=2)
        found = penalty(host, objective, amortized, np.tile(X, (10_000, 1)))
        assert found.shape == (10_000,)
        np.testing.assert_allclose(found.mean(), expected, rtol=0.05)
        posterior = amortized.at(x=host.array(X))
        probe = host.sensitivity(posterior, (0.05,), num_samples=4000, num_steps=0)
        np.testing.assert_allclose(probe.trace, expected, rtol=0.1)


@pytest.mark.compiles
def test_the_probe_finds_the_worst_change(host):
    """Small changes: half the largest eigenvalue times the squared radius. All: the divergence."""
    with host.double_precision():
        amortized = conjugate(host, scale=0.3)
        found = host.sensitivity(amortized.at(x=host.array(X)), (0.01, 1.0), num_samples=4000)
        assert found.divergence.shape == found.se.shape == (2, 1)
        assert found.changes["x"].shape == (2, 1, 20)
        scale = data_scale(host, amortized)
        lengths = np.linalg.norm(found.changes["x"] / scale, axis=-1)
        assert np.all(lengths <= np.array([[0.01], [1.0]]) * (1 + 1e-6))
        quadratic = 0.5 * found.largest * 0.01**2
        assert abs(found.divergence[0] - quadratic) < 0.1 * quadratic
        (mean, *means), (sd, *sds) = moments(
            host, amortized, np.concatenate([X[None], X + found.changes["x"][:, 0]])
        )
        means, sds = np.array(means), np.array(sds)
        exact = np.log(sds / sd) + (sd**2 + (means - mean) ** 2) / (2 * sds**2) - 0.5
        assert np.all(np.abs(found.divergence[:, 0] - exact) < 4 * found.se[:, 0] + 1e-6)
        rng = np.random.default_rng(0)  # no random change of that length does more
        others = rng.normal(size=(200, 20))
        others *= scale / np.linalg.norm(others, axis=1, keepdims=True)
        means, sds = moments(host, amortized, X + others)
        exact_others = np.log(sds / sd) + (sd**2 + (means - mean) ** 2) / (2 * sds**2) - 0.5
        assert exact_others.max() < exact[1]


@pytest.mark.compiles
def test_many_data_sets_local_latents_and_gaps_are_probed(host):
    model, y = host.models.nested_groups, np.random.default_rng(0).normal(size=(3, 4, 5))
    amortized = host.scrambled(model, small_guide(host, model, observed="y"), scale=0.1)
    posterior = amortized.at_each(observations={"y": host.array(y)})
    found = host.sensitivity(posterior, (0.3, 3.0), num_samples=200, num_steps=3)
    assert found.changes["y"].shape == (2, 3, 4, 5)
    assert np.all(found.divergence[1] > found.divergence[0])
    assert "3 data sets" in str(found)
    model = host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", missing="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, scale=0.1)
    y = np.array([0.4, np.nan, 2.0, 0.3, np.nan, -0.2])
    found = host.sensitivity(amortized.at(6, y=host.array(y)), (1.0,), num_samples=50, num_steps=3)
    assert np.all(np.isfinite(found.divergence))
    assert np.all(found.changes["y"][0, 0, [1, 4]] == 0)
    assert np.all(found.changes["y"][0, 0, [0, 2, 3, 5]] != 0)


@pytest.mark.compiles
def test_a_guide_that_ignores_the_data_does_not_move(host):
    amortized = conjugate(host, scale=0.0) if host.name == "numpyro" else conjugate(host, 1e-9)
    found = host.sensitivity(amortized.at(x=host.array(X)), (1.0,), num_samples=50, num_steps=3)
    assert found.divergence[0, 0] < 0.05
    assert found.trace[0] < 0.05


@pytest.mark.compiles
def test_without_weight_it_is_npe(host):
    """The same steps, and held-out losses are those of NPE whatever the weight."""
    model, package = host.models.conjugate_normal, host.package

    def trained(objective):
        guide = small_guide(host, model, observed="x")
        return host.fit(model, guide, objective, num_steps=3)

    plain, none, much = (
        trained(objective)
        for objective in (
            package.NPE(8),
            package.FisherRegularized(package.NPE(8), 0.0),
            package.FisherRegularized(package.NPE(8), 10.0),
        )
    )
    for name, value in host.weights(plain).items():
        np.testing.assert_array_equal(value, host.weights(none)[name])
    assert any(
        np.any(value != host.weights(much)[name]) for name, value in host.weights(plain).items()
    )
    np.testing.assert_array_equal(plain.history.losses, none.history.losses)


@pytest.mark.compiles
def test_banks_gaps_and_arguments_of_the_npe_are_kept(host):
    model, package = host.models.rows_of_any_number, host.package
    guide = small_guide(host, model, observed="y", missing="y", sizes={"num_rows": "rows"})
    sizes = host.model_args(lambda rng: (int(rng.integers(4, 9)),))
    npe = package.NPE(8, model_args=sizes, missing=0.5)
    amortized = host.fit(model, guide, package.FisherRegularized(npe, 0.1), num_steps=4)
    assert np.all(np.isfinite(amortized.history.losses))
    bank = host.simulate(model, 50, args=(6,))
    objective = package.FisherRegularized(package.NPE(8), 0.1).on_bank(bank)
    assert objective.beta == 0.1
    assert len(objective.simulations) == 50


@pytest.mark.slow
def test_numpyro_penalty_looks_at_rows_that_exist():
    """In Pyro nothing is padded."""
    require("numpyro")
    host = host_of("numpyro")
    jax = import_module("jax")
    model = host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, 6, scale=0.1)
    drawn = host.module("objectives.npe").Drawn
    objective = host.package.FisherRegularized(host.package.NPE(3), 1.0)
    y, used = host.array(np.random.default_rng(0).normal(size=(3, 16))), np.ones(3, bool)

    def traces(objective, num, data):
        def of(data):
            own = drawn(((num,), {}), {}, {"y": data}, None, used, used, host.key(0))
            return objective._traces(amortized.params, guide, own)

        return np.asarray(jax.jit(of)(data))

    padded = objective.for_call({"rows": jax.numpy.asarray(6)})
    np.testing.assert_allclose(traces(padded, 16, y), traces(objective, 6, y[:, :6]), rtol=1e-4)


def test_bad_input_raises(host):
    package = host.package
    with pytest.raises(TypeError, match="npe: expected an NPE such as NPE.128., got Mixed"):
        package.FisherRegularized(package.Mixed({package.NPE(2): 1.0}), 0.1)
    with pytest.raises(ValueError, match="beta: expected a number from 0 on, got -1"):
        package.FisherRegularized(package.NPE(2), -1.0)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        package.FisherRegularized(package.NPE(2), 0.1, num_samples=0)
    posterior = conjugate(host).at(x=host.array(X))
    with pytest.raises(ValueError, match="radii: expected positive numbers"):
        posterior.sensitivity((0.1, 0.0))
    with pytest.raises(ValueError, match="num_samples: expected at least 2, got 1"):
        posterior.sensitivity(num_samples=1)
    model = host.models.beta_binomial
    discrete = host.scrambled(model, small_guide(host, model, observed="k"))
    with pytest.raises(ValueError, match="site 'k': data are discrete and cannot move a little"):
        host.sensitivity(discrete.at(k=host.array(np.array(3))), (0.1,))
