"""Every support: the map goes there and back, its log determinant is right, densities integrate."""

import json
from importlib import import_module

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require

# torch 2.13 warns at every draw of a Wishart: it takes regular matrices for singular.
pytestmark = [
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore:Singular sample detected:UserWarning"),
]

KINDS = [
    "real",
    "positive",
    "greater_than",
    "less_than",
    "interval",
    "unit_interval",
    "circular",
    "circular_pair",
    "simplex",
    "ordered",
    "positive_ordered",
    "corr_cholesky",
    "corr_matrix",
    "lower_cholesky",
    "positive_definite",
    "sphere",
    "l1_ball",
    "zero_sum",
]
ONLY_NUMPYRO = ("l1_ball", "zero_sum")
# What the guide calls the support, where the name of the model's is another.
NAMES = {"unit_interval": "interval", "circular_pair": "circular"}

BELOW = lambda value: value[[1, 2, 2], [0, 0, 1]]  # noqa: E731
LOWER = lambda value: value[[0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]]  # noqa: E731
SAME = lambda value: value  # noqa: E731

# Event shape, number of unconstrained coordinates, and the coordinates of the value that the
# density is with respect to. Where these are more than the former it is their surface measure.
EVENTS = {
    "real": ((3,), 3, SAME),
    "positive": ((), 1, SAME),
    "greater_than": ((), 1, SAME),
    "less_than": ((), 1, SAME),
    "interval": ((2,), 2, SAME),
    "circular": ((2,), 2, SAME),
    "simplex": ((4,), 3, lambda value: value[:-1]),
    "ordered": ((3,), 3, SAME),
    "positive_ordered": ((3,), 3, SAME),
    "corr_cholesky": ((3, 3), 3, BELOW),
    "corr_matrix": ((3, 3), 3, BELOW),
    "lower_cholesky": ((3, 3), 6, LOWER),
    "positive_definite": ((3, 3), 6, LOWER),
    "sphere": ((4,), 3, SAME),
    "l1_ball": ((3,), 3, SAME),
    "zero_sum": ((4,), 3, SAME),
}
# Lower and upper bound, centre.
PARTS = {
    "greater_than": (2.0, None),
    "less_than": (None, 3.0),
    "interval": (-1.0, 2.5),
    "circular": (None, None, (2.5, -0.4)),
    "sphere": (None, None, (0.5, -0.1, 0.3, -0.8)),
}


def on_both_hosts(kinds):
    """Each backend with each of these supports that it has."""
    pairs = [
        pytest.param(backend, kind)
        for backend in ("pyro", "numpyro")
        for kind in kinds
        if backend == "numpyro" or kind not in ONLY_NUMPYRO
    ]
    return pytest.mark.parametrize(("backend", "kind"), pairs, indirect=["backend"])


def make(host, kind):
    return host.module("supports").Support(kind, *PARTS.get(kind, ()))


def model_of(host, kind):
    return host.models.with_support(kind)


def points(kind, num=5):
    shape, size, _ = EVENTS[kind]
    return 0.7 * np.random.default_rng(0).normal(size=(num, size))


def digits_lost_by_cholesky(matrices):
    """How far rounding can move a Cholesky factor of each matrix, by its condition number."""
    condition = np.linalg.cond(matrices.astype(float))
    return 2 * np.finfo(matrices.dtype).eps * condition[:, None]


@pytest.mark.parametrize(("precision", "tolerance"), [("single", 1e-5), ("double", 1e-10)])
@on_both_hosts(sorted(EVENTS))
def test_round_trip(host, kind, precision, tolerance):
    def check():
        shape, size, _ = EVENTS[kind]
        support = make(host, kind)
        own = support.unconstrained_shape(shape)
        assert int(np.prod(own)) == size
        bijection = support.bijection(len(shape))
        start = points(kind, 50).reshape(50, *own)
        value = bijection(host.array(start))
        assert tuple(value.shape) == (50, *shape)
        assert np.asarray(value).dtype == {"single": np.float32, "double": np.float64}[precision]
        back = np.asarray(bijection.inv(value))
        scale = tolerance * (1 + np.abs(start))
        if kind == "positive_definite":
            scale = scale + digits_lost_by_cholesky(np.asarray(value))
        assert np.all(np.abs(back - start) < scale)

    if precision == "single":
        check()
    else:
        with host.double_precision():
            check()


@on_both_hosts(sorted(EVENTS))
def test_log_determinant_is_that_of_the_automatic_jacobian(host, kind):
    shape, size, free = EVENTS[kind]
    with host.double_precision():
        support = make(host, kind)
        bijection = support.bijection(len(shape))
        own = support.unconstrained_shape(shape)
        # At and next to the centre the maps of directions take a limit.
        for flat in (*points(kind), np.zeros(size), 1e-12 * np.ones(size)):
            start = host.array(flat.reshape(own))
            value = bijection(start)
            matrix = host.jacobian(lambda u, own=own: free(bijection(u.reshape(own))), flat)
            matrix = matrix.reshape(-1, size)
            expected = 0.5 * np.linalg.slogdet(matrix.T @ matrix)[1]
            log_det = bijection.log_abs_det_jacobian(start, value)
            assert tuple(log_det.shape) == ()
            np.testing.assert_allclose(np.asarray(log_det), expected, atol=1e-9)


@pytest.mark.parametrize("kind", sorted(set(EVENTS) - set(ONLY_NUMPYRO)))
def test_both_hosts_have_the_same_numbers(kind):
    """Far from the centre too; the hosts' own maps clip their values at different places."""
    from tests.conftest import require

    found = {}
    shape = EVENTS[kind][0]
    for name in ("pyro", "numpyro"):
        require(name)
        host = host_of(name)
        with host.double_precision():
            support = make(host, kind)
            bijection = support.bijection(len(shape))
            start = host.array(
                3 * points(kind, 50).reshape(50, *support.unconstrained_shape(shape))
            )
            value = bijection(start)
            log_det = bijection.log_abs_det_jacobian(start, value)
            found[name] = np.asarray(value), np.asarray(log_det), np.asarray(bijection.inv(value))
    (value, log_det, back), (their_value, their_log_det, their_back) = found.values()
    scale = 1e-10 * (1 + np.abs(back))
    if kind == "positive_definite":
        scale = scale + digits_lost_by_cholesky(value)
    np.testing.assert_allclose(value, their_value, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_det, their_log_det, rtol=1e-10, atol=1e-10)
    assert np.all(np.abs(back - their_back) < scale)


@pytest.mark.parametrize("kind", ["circular", "sphere"])
def test_far_coordinates_stay_finite(host, kind):
    """Draws of a poor guide reach far: values in the support, gradients without NaN."""
    support = make(host, kind)
    bijection = support.bijection(1)
    flat = np.array([30.0, -200.0, 50.0])[: EVENTS[kind][1]]
    value = np.asarray(bijection(host.array(flat)))
    log_det = bijection.log_abs_det_jacobian(host.array(flat), host.array(value))
    assert np.all(np.isfinite(value))
    assert np.isfinite(np.asarray(log_det))
    assert np.all(np.isfinite(host.jacobian(bijection, flat)))
    gradient = host.gradient(
        lambda u: bijection.log_abs_det_jacobian(u, bijection(u)) + bijection(u)[0], flat
    )
    assert np.all(np.isfinite(gradient))


def test_any_angle_of_a_turn_is_the_same_point(host):
    """Pyro's angles have real support: a value from `[0, 2 pi)` is as good."""
    bijection = make(host, "circular").bijection(1)
    angles = np.array([2.0, -1.0])
    first, second = (bijection.inv(host.array(angles + turn)) for turn in (0.0, 2 * np.pi))
    np.testing.assert_allclose(np.asarray(first), np.asarray(second), atol=1e-5)


@on_both_hosts(KINDS)
def test_support_is_read_from_a_distribution_and_survives_a_file(host, kind):
    model_of(host, kind)
    support = host.module("supports").site_support(host.models.SUPPORTS[kind]())
    assert support.kind == NAMES.get(kind, kind)
    assert type(support).from_dict(json.loads(json.dumps(support.to_dict()))) == support
    expected = {
        "greater_than": (2.0, None),
        "less_than": (None, 3.0),
        "interval": (1.0, 3.0),
        "unit_interval": (0.0, 1.0),
    }
    assert (support.lower, support.upper) == expected.get(kind, (None, None))
    centre = {"circular": 2.5, "circular_pair": (0.5, -2.0), "sphere": (0.7274, -0.3637, 0.5819)}
    assert support.centre == centre.get(kind)


def test_supports_of_older_files_have_no_centre(host):
    kind = host.module("supports").Support
    assert kind.from_dict({"kind": "real", "lower": None, "upper": None}) == kind("real")


def test_cut_of_a_circle_is_opposite_to_a_direction_that_all_elements_share(host):
    read = host.module("reading").read_structure
    structure = read(host.models.headings, (), {}, observed=("y",), inputs={}, sizes={}, groups={})
    centres = {site.name: site.support.centre for site in structure.latents}
    # The mean of the angles is another latent.
    assert centres == {"mean": 0.3, "angle": None, "axis": (0.0, 0.8944, 0.4472)}


@on_both_hosts(KINDS)
def test_densities_of_the_host_have_the_measure_of_the_log_determinant(host, kind):
    """`E [p(f(t)) |det f'(t)| / r(t)] = 1` for `t` from a wide Student distribution `r`."""
    from scipy.stats import multivariate_t

    model_of(host, kind)
    with host.double_precision():
        prior = host.models.SUPPORTS[kind]()
        support = host.module("supports").site_support(prior)
        bijection = support.bijection(len(prior.event_shape))
        sample = np.asarray(bijection.inv(host.array(host.draws(prior, 4000))))
        coordinates = sample.reshape(4000, -1)
        lower, centre, upper = np.quantile(coordinates, [0.25, 0.5, 0.75], axis=0)
        scale = np.diag(upper - lower)
        shape = scale @ np.corrcoef(coordinates.T).reshape(scale.shape) @ scale
        proposal = multivariate_t(centre, shape, df=4, seed=1)
        trial = np.asarray(proposal.rvs(40000)).reshape(40000, -1)
        # Farther out the priors have no mass to speak of and numbers their limits.
        trial = trial[np.all(np.abs(trial - centre) < 12 * (upper - lower), axis=1)]
        own = support.unconstrained_shape(tuple(prior.event_shape))
        start = host.array(trial.reshape(-1, *own))
        finite = np.isfinite(np.asarray(bijection(start)).reshape(len(trial), -1)).all(1)
        start, trial = start[finite], trial[finite]
        value = bijection(start)
        log_ratio = prior.log_prob(value) + bijection.log_abs_det_jacobian(start, value)
    ratio = np.zeros(40000)
    ratio[: len(trial)] = np.exp(np.asarray(log_ratio).reshape(-1) - proposal.logpdf(trial))
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.02
    assert ratio.mean() == pytest.approx(1.0, abs=4 * error)


def is_inside(kind, value):
    """Whether every draw is in the support, up to single precision."""
    rows = value.reshape(len(value), -1)
    diagonal = np.diagonal(value, axis1=-2, axis2=-1) if value.ndim > 2 else None
    return np.all(
        {
            "real": lambda: np.isfinite(rows),
            "positive": lambda: rows > 0,
            "greater_than": lambda: rows > 2,
            "less_than": lambda: rows < 3,
            "interval": lambda: (rows > 1) & (rows < 3),
            "unit_interval": lambda: (rows > 0) & (rows < 1),
            "circular": lambda: np.abs(rows) <= np.float32(np.pi),
            "circular_pair": lambda: np.abs(rows) <= np.float32(np.pi),
            "simplex": lambda: (rows > 0) & (np.abs(rows.sum(1, keepdims=True) - 1) < 1e-5),
            "ordered": lambda: np.diff(rows) > 0,
            "positive_ordered": lambda: (rows > 0) & (np.diff(rows) > 0),
            "corr_cholesky": lambda: (
                (diagonal > 0) & (np.abs((value**2).sum(-1) - 1) < 1e-5) & (value[:, :1, 1] == 0)
            ),
            "corr_matrix": lambda: (np.abs(diagonal - 1) < 1e-5) & (np.linalg.eigvalsh(value) > 0),
            "lower_cholesky": lambda: (diagonal > 0) & (value[:, :1, 1] == 0),
            "positive_definite": lambda: (
                (np.linalg.eigvalsh(value) > 0) & (value[:, :1, 1] == value[:, :1, 1])
            ),
            "sphere": lambda: np.abs((rows**2).sum(1) - 1) < 1e-5,
            "l1_ball": lambda: np.abs(rows).sum(1) <= 1 + 1e-5,
            "zero_sum": lambda: np.abs(rows.sum(1)) < 1e-5,
        }[kind]()
    )


GUIDES = [("pyro", kind) for kind in KINDS if kind not in ONLY_NUMPYRO] + [
    ("numpyro", kind) for kind in KINDS
]


@pytest.mark.parametrize(("backend", "kind"), GUIDES, indirect=["backend"])
def test_a_guide_on_every_support(host, kind, tmp_path):
    """Built, trained, drawn from, scored, weighted and stored."""
    model = model_of(host, kind)
    options = {"densities": host.package.SplineFlowDensity(num_transforms=1, hidden_dims=(8,))}
    guide = host.guide(model, observed="y", **options)
    amortized = host.fit(model, guide, host.package.NPE(16), num_steps=2)
    assert guide.structure.site("u").support.kind == NAMES.get(kind, kind)
    assert np.all(np.isfinite(amortized.history.losses))
    y = np.array([0.2, 0.1, 0.4])
    posterior = amortized.at(y=host.array(y))
    draws = host.sample(posterior, 200)
    assert is_inside(kind, draws["u"])
    assert len(np.unique(draws["u"].reshape(200, -1), axis=0)) > 190
    log_q = host.log_prob(posterior, draws)
    parts = host.site_log_probs(amortized, (), draws, {"y": np.broadcast_to(y, (200, 3))})
    np.testing.assert_allclose(log_q, parts["u"].reshape(200), rtol=1e-4, atol=1e-4)
    assert np.all(np.isfinite(host.log_joint(posterior, draws)))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.structure == guide.structure
    again = host.log_prob(loaded.at(y=host.array(y)), draws)
    np.testing.assert_allclose(again, log_q, rtol=1e-6, atol=1e-6)


@pytest.mark.slow  # half a minute in NumPyro
def test_angles_and_directions_inside_a_plate(host):
    model = host.models.headings
    guide = host.guide(model, observed="y")
    amortized = host.fit(model, guide, host.package.NPE(16), num_steps=2)
    posterior = amortized.at(y=host.array(np.array([0.2, -0.5, 1.0, 0.1])))
    draws = host.sample(posterior, 100)
    assert draws["angle"].shape == (100, 4)
    assert draws["axis"].shape == (100, 4, 3)
    assert is_inside("circular", draws["angle"])
    np.testing.assert_allclose(np.sum(draws["axis"] ** 2, -1), 1.0, atol=1e-5)
    log_q = host.log_prob(posterior, draws)
    assert np.all(np.isfinite(log_q))
    # A whole turn changes nothing.
    turned = draws | {"angle": draws["angle"] - 2 * np.pi * np.sign(draws["angle"])}
    np.testing.assert_allclose(host.log_prob(posterior, turned), log_q, rtol=1e-3, atol=1e-3)


INTEGRATED = [
    "real",
    "positive",
    "greater_than",
    "interval",
    "simplex",
    "ordered",
    "corr_cholesky",
    "corr_matrix",
    "circular",
    "sphere",
]


def grid_of(kind):
    """Values of `u` on a grid that holds all mass, and the volume of a cell."""
    line = {
        "real": (-60, 60),
        "positive": (1e-6, 150),
        "greater_than": (2 + 1e-6, 2000),
        "interval": (1 + 1e-6, 3 - 1e-6),
        "corr_cholesky": (-1 + 1e-6, 1 - 1e-6),
        "corr_matrix": (-1 + 1e-6, 1 - 1e-6),
        "circular": (-np.pi + 1e-6, np.pi - 1e-6),
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
        if kind in ("corr_cholesky", "corr_matrix"):
            corner = np.zeros((len(values), 2, 2))
            corner[:, 0, 0] = corner[:, 1, 1] = 1
            corner[:, 1, 0] = values
            if kind == "corr_cholesky":
                corner[:, 1, 1] = np.sqrt(1 - values**2)
            else:
                corner[:, 0, 1] = values
            return corner, cells
        return values, cells
    if kind == "sphere":  # cells of equal area: evenly in the height and the longitude
        height = (np.arange(400) + 0.5) / 200 - 1
        longitude = 2 * np.pi * (np.arange(400) + 0.5) / 400
        height, longitude = (part.ravel() for part in np.meshgrid(height, longitude, indexing="ij"))
        across = np.sqrt(1 - height**2)
        values = np.stack([across * np.cos(longitude), across * np.sin(longitude), height], -1)
        return values, np.full(len(values), 4 * np.pi / len(values))
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


@pytest.mark.parametrize("kind", INTEGRATED)
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


def constraints_of(host):
    if host.name == "pyro":
        from pyro.distributions import constraints
    else:
        from numpyro.distributions import constraints
    return constraints


def test_constraints_on_one_set_have_one_support(host):
    constraints = constraints_of(host)
    read = host.module("supports").read_support
    names = {
        "softplus_positive": "positive",
        "nonnegative": "positive",
        "softplus_lower_cholesky": "lower_cholesky",
        "positive_semidefinite": "positive_definite",
    }
    if host.name == "numpyro":
        names["scaled_unit_lower_cholesky"] = "lower_cholesky"
    for name, kind in names.items():
        assert read(getattr(constraints, name)).kind == kind, name


def test_unknown_supports_are_none(host):
    constraints = constraints_of(host)
    joined = constraints.cat([constraints.positive, constraints.real], dim=-1, lengths=[1, 1])
    unknown = [constraints.positive_integer, joined]
    if host.name == "pyro":
        unknown += [
            constraints.stack([constraints.positive, constraints.real]),
            constraints.unit_lower_cholesky,
            constraints.lower_triangular,
        ]
    else:
        unknown += [constraints.complex, constraints.zero_sum(2)]
    read = host.module("supports").read_support
    assert [read(each) for each in unknown] == [None] * len(unknown)


def test_bounds_that_the_model_computes():
    """NumPyro reads dependencies in a traced run, where such bounds have no values."""
    require("numpyro")
    host = host_of("numpyro")
    numpyro, dist = import_module("numpyro"), import_module("numpyro.distributions")
    jnp = import_module("jax.numpy")

    def model(x=None):
        theta = numpyro.sample("theta", dist.Uniform(-jnp.ones(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    guide = host.guide(model, observed="x").setup()
    assert guide.structure.site("theta").support.lower == -1.0
