"""The information bottleneck: its Gaussian optimum, its rate, and guides that see the labels."""

from importlib import import_module

import numpy as np
import pytest
from scipy.stats import norm

from tests.backends import small_guide
from tests.losses import evaluate, loss_without_jit, trained

pytestmark = pytest.mark.compiles

START = {"log_m": 0.0, "log_sd": 0.0, "c": 0.1, "a": 0.1}
START = {name: np.array(value) for name, value in START.items()}
GIVEN = {"log_m": 0.3, "log_sd": -0.2, "c": 0.8, "a": 0.5, "b": 0.3, "log_spread": -0.1}
GIVEN = {name: np.array(value) for name, value in GIVEN.items()}


@pytest.fixture
def bounds(host):
    return import_module(f"tests.bounds_{host.name}")


def correlated(num_rows, correlation):
    """Inputs `(rows,)` and labels `(1, rows)` with these moments exactly."""
    noise = np.random.default_rng(0).normal(size=(2, num_rows))
    noise -= noise.mean(1, keepdims=True)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(noise, bias=True)), noise)
    return white[0], (correlation * white[0] + np.sqrt(1 - correlation**2) * white[1])[None]


def of_labels(host, bounds, objective, guide="encoder", params=GIVEN, num_labels=1, num=1):
    x, y = correlated(6, 0.7)
    data = host.array(x), host.array(np.repeat(y, num_labels, 0))
    return evaluate(host, objective, bounds.labels, getattr(bounds, guide), params, *data, num=num)


def rates(params=GIVEN):
    """Divergence of each row."""
    x, _ = correlated(6, 0.7)
    ratio = np.exp(2 * (params["log_spread"] - params["log_m"]))
    square = (params["a"] * x) ** 2 * np.exp(-2 * params["log_m"])
    return 0.5 * (ratio + square - 1 - np.log(ratio))


def test_beta_of_one_is_the_elbo_and_beta_weighs_the_divergence(host, bounds):
    package = host.package
    elbo = of_labels(host, bounds, package.WeightedELBO())
    one, zero, third = (of_labels(host, bounds, package.VIBLoss(beta)) for beta in (1, 0, 0.3))
    np.testing.assert_allclose(one["loss"], elbo["loss"], rtol=1e-6)
    for name in GIVEN:
        np.testing.assert_allclose(one["gradient"][name], elbo["gradient"][name], rtol=1e-5)
    assert one["loss"][0] - zero["loss"][0] == pytest.approx(rates().sum(), rel=1e-4)
    assert third["loss"][0] - zero["loss"][0] == pytest.approx(0.3 * rates().sum(), rel=1e-4)


def test_it_bounds_the_evidence_of_labels_given_inputs(host, bounds):
    """`log E_m d(y | z)`, here in closed form, row by row and so in the sum."""
    found = of_labels(host, bounds, host.package.VIBLoss(1.0, num_particles=2000))["loss"][0]
    _, y = correlated(6, 0.7)
    sd = np.hypot(GIVEN["c"] * np.exp(GIVEN["log_m"]), np.exp(GIVEN["log_sd"]))
    assert -found < norm.logpdf(y, 0, sd).sum() - 0.1


def test_labels_of_one_input_share_its_divergence(host, bounds):
    package = host.package
    for num_labels in (1, 5):
        one, zero = (
            of_labels(host, bounds, package.VIBLoss(beta), num_labels=num_labels)["loss"][0]
            for beta in (1.0, 0.0)
        )
        assert one - zero == pytest.approx(rates().sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.1, 8.0), pytest.param(0.6, 0.0, marks=pytest.mark.slow)]
)
def test_the_gaussian_bottleneck(host, bounds, beta, expected):
    """Squared slope `(r - beta) / (beta (1 - r))` with r = 1/2, none for beta above r."""
    x, y = correlated(4000, np.sqrt(0.5))
    data = host.array(x), host.array(y)
    objective = host.package.VIBLoss(beta)
    models = bounds.labels, bounds.unit_encoder
    found = trained(host, objective, *models, START, *data, num_steps=2000, rate=0.03)
    if expected:
        assert found["a"] ** 2 == pytest.approx(expected, rel=0.03)
        rate = 0.5 * np.log(1 + found["a"] ** 2)
        assert rate == pytest.approx(1.0986, rel=0.03)
        assert np.exp(2 * found["log_m"]) == pytest.approx(1 + expected, rel=0.03)
    else:
        assert abs(found["a"]) < 0.05


def test_beta_of_zero_is_the_network_without_noise(host, bounds):
    x, y = correlated(200, 0.7)
    data = host.array(x), host.array(y)
    objective, models = host.package.VIBLoss(0.0), (bounds.labels, bounds.encoder)
    params = {name: GIVEN[name] for name in (*START, "log_spread")}
    found = trained(host, objective, *models, params, *data, num_steps=1500, rate=0.03)
    assert found["c"] ** 2 * np.exp(2 * found["log_spread"]) < 0.01
    loss = evaluate(host, objective, *models, found, *data)["loss"][0] / 200
    assert loss == pytest.approx(-norm.logpdf(y - 0.7 * x, 0, np.sqrt(0.51)).mean(), abs=0.01)


def test_a_guide_that_sees_the_labels_is_refused(host, bounds):
    """It would reach a lower loss in training, as the ELBO of it shows."""
    package = host.package
    honest = of_labels(host, bounds, package.WeightedELBO(500), "unit_encoder")
    params = GIVEN | {"b": np.array(0.5), "a": np.array(0.2)}
    peeking = of_labels(host, bounds, package.WeightedELBO(500), "peeking_encoder", params)
    assert peeking["loss"] < honest["loss"] - 0.2
    message = r"site 'z': the guide reads \['argument 1'\], of which the labels at site 'y'"
    with pytest.raises(ValueError, match=message):
        of_labels(host, bounds, package.VIBLoss(0.1), "peeking_encoder")
    of_labels(host, bounds, package.VIBLoss(0.1), "encoder")
    x, _ = correlated(6, 0.7)
    labels = host.array(np.array([0, 1, 1, 0, 1, 0]))
    params = {"table": np.zeros(2), "a": np.array(0.1)}
    with pytest.raises(ValueError, match=message):
        evaluate(
            host,
            package.VIBLoss(0.1),
            bounds.classes,
            bounds.embedding_of_classes,
            params,
            host.array(x),
            labels,
        )


def test_a_batch_of_inputs_and_labels_is_looked_into(host, bounds):
    x, y = correlated(6, 0.7)

    def model(batch):
        bounds.labels(batch["x"], batch["y"])

    batch = {"x": host.array(x), "y": host.array(y)}

    def honest(batch):
        bounds.encoder(batch["x"], batch["y"])

    def peeking(batch):
        bounds.peeking_encoder(batch["x"], batch["y"])

    loss_without_jit(host, host.package.VIBLoss(0.1), model, honest, batch, params=GIVEN)
    with pytest.raises(ValueError, match=r"the guide reads \[.argument 0"):
        loss_without_jit(host, host.package.VIBLoss(0.1), model, peeking, batch, params=GIVEN)


def test_amortized_guides_read_what_they_call_observed(host):
    model = host.models.conjugate_normal
    guide, x = small_guide(host, model, observed="x"), host.array(np.zeros(20))
    with pytest.raises(ValueError, match="site 'x': the guide reads the labels at it. Write a"):
        host.fit(model, guide, host.package.VIBLoss(0.1), args=(x,), num_steps=1)


def test_labels_in_no_argument(host, bounds):
    x, y = (host.array(value) for value in correlated(6, 0.7))
    with pytest.raises(ValueError, match="site 'y': its labels are in no argument of the model"):
        loss_without_jit(
            host,
            host.package.VIBLoss(0.1),
            lambda x: bounds.labels(x, y),
            lambda x: bounds.encoder(x, y),
            x,
            params=GIVEN,
        )


@pytest.mark.filterwarnings("ignore:Out-of-support")  # NumPyro's own word on the labels
def test_bad_input(host, bounds):
    package = host.package
    for beta in (-0.1, float("nan"), None):
        with pytest.raises(ValueError, match="beta: expected a finite number of at least 0, got"):
            package.VIBLoss(beta)
    x, y = (host.array(value) for value in correlated(6, 0.7))
    params = {"a": np.array(0.0)}
    with pytest.raises(ValueError, match=r"site 'z': is in none of the plates \['rows'\] of the"):
        loss_without_jit(
            host,
            package.VIBLoss(0.1),
            bounds.global_bottleneck,
            bounds.global_encoder,
            x,
            y[0],
            params=params,
        )
    for wrong in (2, -1):
        labels = host.array(np.array([0, 1, wrong, 0, 1, 0]))
        with pytest.raises(ValueError, match="site 'y': has labels outside of its support"):
            loss_without_jit(
                host,
                package.VIBLoss(0.1),
                bounds.classes,
                bounds.encoder_of_classes,
                x,
                labels,
                params=params,
            )
