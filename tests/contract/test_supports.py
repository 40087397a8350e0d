"""Every support: the map goes there and back, its log determinant is right, densities integrate."""

import numpy as np
import pytest

KINDS = ["real", "positive", "greater_than", "interval", "simplex", "ordered", "corr_cholesky"]

# Event shape, number of unconstrained coordinates, and how the free coordinates of the value
# determine it: the density is with respect to these.
EVENTS = {
    "real": ((3,), 3, lambda value: value),
    "positive": ((), 1, lambda value: value[None]),
    "greater_than": ((), 1, lambda value: value[None]),
    "less_than": ((), 1, lambda value: value[None]),
    "interval": ((2,), 2, lambda value: value),
    "simplex": ((4,), 3, lambda value: value[:-1]),
    "ordered": ((3,), 3, lambda value: value),
    "corr_cholesky": ((3, 3), 3, lambda value: value[[1, 2, 2], [0, 0, 1]]),
}
BOUNDS = {"greater_than": (2.0, None), "less_than": (None, 3.0), "interval": (-1.0, 2.5)}


def make(host, kind):
    return host.module("supports").Support(kind, *BOUNDS.get(kind, ()))


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_round_trip_and_log_determinant(host, rng, kind):
    shape, size, free = EVENTS[kind]
    support = make(host, kind)
    bijection = support.bijection(len(shape))
    own = support.unconstrained_shape(shape)
    assert int(np.prod(own)) == size
    for _ in range(5):
        flat = 0.7 * rng.normal(size=size)
        start = host.array(flat.reshape(own))
        value = bijection(start)
        assert tuple(value.shape) == shape
        np.testing.assert_allclose(
            np.asarray(bijection.inv(value)), flat.reshape(own), atol=2e-4, rtol=2e-4
        )
        matrix = host.jacobian(lambda u, own=own: free(bijection(u.reshape(own))), flat)
        expected = np.linalg.slogdet(matrix)[1]
        log_det = bijection.log_abs_det_jacobian(start, value)
        assert log_det.shape == ()
        np.testing.assert_allclose(np.asarray(log_det), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_support_is_read_from_the_model_and_survives_a_file(host, kind):
    guide = host.guide(host.models.with_support(kind), observed="y").setup()
    support = guide.structure.site("u").support
    assert support.kind == kind
    assert type(support).from_dict(support.to_dict()) == support
    expected = {"greater_than": (2.0, None), "interval": (1.0, 3.0)}.get(kind, (None, None))
    assert (support.lower, support.upper) == expected


def grid_of(kind):
    """Values of `u` on a grid that holds all mass, and the volume of a cell."""
    line = {
        "real": (-60, 60),
        "positive": (1e-6, 150),
        "greater_than": (2 + 1e-6, 2000),
        "interval": (1 + 1e-6, 3 - 1e-6),
        "corr_cholesky": (-1 + 1e-6, 1 - 1e-6),
    }
    if kind in line:
        low, high = line[kind]
        if kind in ("positive", "greater_than"):  # evenly on the logarithm
            base = 0.0 if kind == "positive" else 2.0
            logs = np.linspace(np.log(low - base), np.log(high - base), 40001)
            values = base + np.exp(logs)
            return values, np.exp(logs) * (logs[1] - logs[0])
        values = np.linspace(low, high, 40001)
        cells = np.full(len(values), values[1] - values[0])
        if kind == "corr_cholesky":
            corner = np.zeros((len(values), 2, 2))
            corner[:, 0, 0] = 1
            corner[:, 1, 0], corner[:, 1, 1] = values, np.sqrt(1 - values**2)
            return corner, cells
        return values, cells
    if kind == "simplex":
        axis = (np.arange(400) + 0.5) / 400
        first, second = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
        inside = first + second < 1
        values = np.stack([first, second, 1 - first - second], -1)[inside]
        return values, np.full(inside.sum(), 400.0**-2)
    axis = np.linspace(-25, 25, 501)
    first, second = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    inside = second > first
    return np.stack([first, second], -1)[inside], np.full(inside.sum(), (axis[1] - axis[0]) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_guide_density_integrates_to_one(host, kind):
    model = host.models.with_support(kind)
    options = {"densities": host.package.SplineFlowDensity(num_transforms=2, hidden_dims=(8,))}
    guide = host.guide(model, observed="y", **options)
    amortized = host.scrambled(model, guide, scale=0.05)
    values, cells = grid_of(kind)
    data = np.broadcast_to([0.5, -0.3, 1.0], (len(values), 3))
    found = host.site_log_probs(amortized, (), {"u": values}, {"y": data})["u"]
    total = np.sum(np.exp(found.reshape(-1).astype(float)) * cells)
    assert total == pytest.approx(1.0, abs=5e-3)


def test_draws_of_every_support_are_inside_it_and_distinct(host):
    model = host.models.wide_supports
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.1)
    posterior = amortized.at(y=host.array(np.array([0.2, 0.1, -0.4])))
    draws = host.sample(posterior, 300)
    assert draws["simplex"].shape == (300, 4)
    np.testing.assert_allclose(draws["simplex"].sum(-1), 1.0, atol=1e-5)
    assert np.all(draws["simplex"] > 0)
    assert np.all(np.diff(draws["ordered"], axis=-1) > 0)
    assert np.all(np.abs(draws["box"]) < 1)
    np.testing.assert_allclose(np.sum(draws["corr"] ** 2, -1), 1.0, atol=1e-5)
    for name, value in draws.items():
        assert len(np.unique(value.reshape(300, -1), axis=0)) == 300, name
    log_q = host.log_prob(posterior, draws)
    assert log_q.shape == (300,)
    assert np.all(np.isfinite(log_q))
    assert np.all(np.isfinite(host.log_joint(posterior, draws)))


def test_unknown_supports_are_none(host):
    if host.name == "pyro":
        from pyro.distributions import constraints
    else:
        from numpyro.distributions import constraints
    read = host.module("supports").read_support
    unknown = [
        constraints.positive_integer,
        constraints.positive_definite,
        constraints.lower_cholesky,
    ]
    assert [read(each) for each in unknown] == [None, None, None]
