"""Discrete latent sites: normalised heads, draws that the model takes, gradients, refusals."""

from functools import cache

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from tests import backends
from tests.conftest import require
from tests.problems import PROBLEMS

pytestmark = pytest.mark.compiles

BOOLEAN, LABEL, RANGE, WIDE, COUNT = (
    ("boolean", 0, 1),
    ("categorical", 0, 2),
    ("integer_interval", 2, 6),
    ("integer_interval", 0, 400),
    ("nonnegative_integer", 0),
)
HEADS = [
    ("CategoricalDensity", BOOLEAN),
    ("CategoricalDensity", LABEL),
    ("CategoricalDensity", RANGE),
    ("CountDensity", RANGE),
    ("CountDensity", WIDE),
    ("CountDensity", COUNT),
]


@pytest.fixture
def pyro_host():
    require("pyro")
    return backends.host("pyro")


@pytest.fixture
def numpyro_host():
    require("numpyro")
    return backends.host("numpyro")


def built(host, family, support, event_size=1, scale=0.5):
    spec = getattr(host.package, family)(hidden_dims=(8,))
    support = host.module("supports").Support(*support)
    density = host.build_density(spec, 2, event_size, 3, support=(support,))
    return host.scrambled_density(density, scale)


@pytest.mark.parametrize(("family", "support"), HEADS)
def test_probabilities_of_a_head_sum_to_one(host, rng, family, support):
    """For one site and for all at once, which must agree; outside of the range there is nothing."""
    density = built(host, family, support)
    num = 200_000 if len(support) == 2 else support[2] - support[1] + 1
    numbers = np.arange(-1.0, num)[:, None]
    context = rng.normal(size=(2, 3))
    spread = np.broadcast_to(context[:, None], (2, len(numbers), 3))
    stacked = np.broadcast_to(numbers, (2, len(numbers), 1))
    found = host.density_log_prob(density, spread, stacked)
    assert found.shape == (2, num + 1)
    assert np.all(np.isneginf(found[:, 0]))
    assert np.all(np.isfinite(found[:, 1:]))
    np.testing.assert_allclose(np.exp(found.astype(float)).sum(1), 1.0, atol=2e-4)
    assert np.abs(np.diff(found[:, 1:4], axis=0)).max() > 1e-3  # the sites differ
    if len(support) == 3:
        over = host.density_log_prob(density, context[:, None], np.full((2, 1, 1), float(num)))
        assert np.all(np.isneginf(over))
    for index in (0, 1):
        one = host.density_log_prob(density, spread[index], numbers, index)
        np.testing.assert_allclose(one, found[index], rtol=1e-4, atol=1e-4)


def test_probabilities_of_halves_are_zero(host):
    density = built(host, "CountDensity", COUNT)
    found = host.density_log_prob(density, np.zeros((2, 1, 3)), np.full((2, 1, 1), 1.5))
    assert np.all(np.isneginf(found))


def test_tails_of_counts_fall_like_a_power(host):
    """Slower than those of any Poisson, and never to minus infinity."""
    density = built(host, "CountDensity", COUNT)
    counts = np.array([1e4, 1e5, 1e6, 1e7])[:, None]
    found = host.density_log_prob(density, np.zeros((4, 3)), counts, 0)
    assert np.all(np.isfinite(found))
    slopes = np.diff(found) / np.log(10)
    assert np.all(slopes < -1)
    assert slopes[-1] == pytest.approx(slopes[-2], rel=0.05)


@pytest.mark.parametrize(
    ("family", "support"), [HEADS[0], HEADS[1], ("CountDensity", RANGE)], ids=str
)
def test_vectors_are_normalised_and_their_coordinates_depend_on_each_other(
    host, rng, family, support
):
    density = built(host, family, support, event_size=3)
    num = support[2] - support[1] + 1
    grid = np.stack(np.meshgrid(*[np.arange(float(num))] * 3, indexing="ij"), -1).reshape(-1, 3)
    context = np.broadcast_to(rng.normal(size=(2, 1, 3)), (2, len(grid), 3))
    found = host.density_log_prob(density, context, np.broadcast_to(grid, (2, *grid.shape)))
    np.testing.assert_allclose(np.exp(found.astype(float)).sum(1), 1.0, atol=1e-4)
    one = host.density_log_prob(density, context[1], grid, 1)
    np.testing.assert_allclose(one, found[1], rtol=1e-4, atol=1e-4)
    joint = np.exp(found.astype(float)).reshape(2, num, num, num)
    third = joint / joint.sum(3, keepdims=True)  # given the first and the second
    for axis in (1, 2):
        assert np.ptp(third, axis=axis).max() > 0.01


@pytest.mark.parametrize("event_size", [1, 2])
@pytest.mark.parametrize(("family", "support"), HEADS, ids=str)
def test_draws_have_the_probabilities_that_score_them(host, family, support, event_size):
    density = built(host, family, support, event_size)
    value, log_prob = host.density_draw(density, np.zeros((20_000, 3)))
    assert value.shape == (20_000, event_size)
    again = host.density_log_prob(density, np.zeros((20_000, 3)), value, 0)
    np.testing.assert_allclose(log_prob, again, rtol=1e-4, atol=1e-4)
    points, counts = np.unique(value, axis=0, return_counts=True)
    points, counts = points[counts > 200], counts[counts > 200]
    assert len(points)
    exact = host.density_log_prob(density, np.zeros((len(points), 3)), points, 0)
    expected = np.exp(exact.astype(float)) * 20_000
    assert np.all(np.abs(counts - expected) < 4.5 * np.sqrt(expected))


DEFAULTS = {
    "flag": ("boolean", (0, 1), "CategoricalDensity"),
    "label": ("categorical", (0, 2), "CategoricalDensity"),
    "few": ("integer_interval", (0, 5), "CategoricalDensity"),
    "many": ("integer_interval", (0, 1000), "CountDensity"),
    "count": ("nonnegative_integer", (0, None), "CountDensity"),
    "waits": ("nonnegative_integer", (0, None), "CountDensity"),
    "pair": ("nonnegative_integer", (0, None), "CountDensity"),
    "own": ("nonnegative_integer", (0, None), "CountDensity"),
}
Y = np.array([12.0, 15.0, 13.0, 19.0])


@cache
def scrambled(backend):
    host = backends.host(backend)
    model = host.models.every_discrete_support
    return host.scrambled(model, host.guide(model, observed="y"), scale=0.05)


@pytest.fixture
def amortized(host):
    return scrambled(host.name)


def test_supports_and_default_densities(host, amortized):
    guide = amortized.guide
    _, densities = guide.specifications(guide.structure)
    for name, (kind, bounds, density) in DEFAULTS.items():
        support = guide.structure.site(name).support
        assert (support.kind, (support.lower, support.upper)) == (kind, bounds)
        assert support.is_discrete
        assert type(support).from_dict(support.to_dict()) == support
        assert type(densities[name]).__name__ == density
    structure = guide.structure
    sizes = [structure.feature_size(structure.site(name)) for name in DEFAULTS]
    assert sizes == [2, 3, 6, 1, 1, 1, 2, 1]


def test_draws_have_the_type_and_range_of_the_host_and_replay_into_the_model(host, amortized):
    model, posterior = amortized.model, amortized.at(y=host.array(Y))
    draws = host.sample(posterior, 200)
    prior = backends.numpy_tree(dict(host.simulate(model, 3).sites))
    for name, (_, (lower, upper), _) in DEFAULTS.items():
        value = draws[name]
        assert value.shape[1:] == prior[name].shape[1:]
        if (host.name, name) != ("numpyro", "waits"):  # whose host draws a count as a float
            assert value.dtype == prior[name].dtype, name
        assert np.all(value == np.round(value))
        assert value.min() >= lower
        assert value.max() <= (np.inf if upper is None else upper)
        assert len(np.unique(value)) > 1
    assert np.all(np.isfinite(host.log_prob(posterior, draws)))
    assert np.all(np.isfinite(host.log_joint(posterior, draws)))
    weighted = host.importance_sample(posterior, 100)
    assert {name: value.shape for name, value in weighted.samples.items()} == {
        name: value[:100].shape for name, value in draws.items()
    }
    assert np.all(np.isfinite(weighted.log_weights))


def host_trace(host, amortized, y):
    """The host's own trace of the guide, and the model replayed at it: values and densities."""
    if host.name == "pyro":
        import pyro
        from pyro import poutine

        pyro.clear_param_store()
        host.seed(0)
        trace = poutine.trace(amortized.guide).get_trace(y)
        model = poutine.trace(poutine.replay(amortized.model, trace=trace)).get_trace(y)
        for each in (trace, model):
            each.compute_log_prob()
        nodes = (trace.nodes, model.nodes)
        sites = [{name: each[name] for name in DEFAULTS} for each in nodes]
        densities = [{n: s["log_prob"] for n, s in each.items()} for each in sites]
    else:
        from numpyro import handlers

        seeded = handlers.seed(amortized.guide, host.key(0))
        seeded = handlers.substitute(seeded, data=dict(amortized.params))
        trace = handlers.trace(seeded).get_trace(y)
        replayed = handlers.replay(handlers.seed(amortized.model, host.key(1)), trace)
        model = handlers.trace(replayed).get_trace(y)
        sites = [{name: each[name] for name in DEFAULTS} for each in (trace, model)]
        densities = [{n: s["fn"].log_prob(s["value"]) for n, s in each.items()} for each in sites]
    values = [{name: site["value"] for name, site in each.items()} for each in sites]
    return [backends.numpy_tree(each) for each in (*values, *densities)]


def test_log_prob_is_that_of_the_hosts_trace_and_the_model_takes_the_values(host, amortized):
    y = host.array(Y)
    values, replayed, own, joint = host_trace(host, amortized, y)
    for name, value in values.items():
        np.testing.assert_array_equal(replayed[name], value)
        assert own[name].shape == joint[name].shape, name
        assert np.all(np.isfinite(joint[name]))
    latents = {name: value[None] for name, value in values.items()}
    ours = host.log_prob(amortized.at(y), latents)[0]
    assert sum(density.sum() for density in own.values()) == pytest.approx(ours, abs=2e-3)
    parts = host.site_log_probs(amortized, (), latents, {"y": Y[None]})
    for name, part in parts.items():
        np.testing.assert_allclose(part.ravel(), own[name].ravel(), atol=1e-3, err_msg=name)


def test_switches_in_a_plate_that_no_observed_site_carries(host):
    """One vector in the guide; its joint probability is spread over the plate in the host."""
    model = host.models.switches_in_a_plate
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.1)
    site = amortized.guide.structure.site("b")
    assert (site.plates, site.event_plates) == ((), ("switches",))
    posterior = amortized.at(y=host.array(np.array([1.0, 2.0])))
    grid = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    draws = host.sample(posterior, 5000)["b"]
    found = host.log_prob(posterior, {"b": grid.astype(draws.dtype)})
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, atol=1e-5)
    shares = np.array([np.mean(np.all(draws == row, axis=1)) for row in grid])
    assert np.all(np.abs(shares - np.exp(found)) < 4.5 * np.sqrt(np.exp(found) / 5000) + 1e-3)


def test_file_at_each_and_export(host, amortized, tmp_path):
    path = tmp_path / "guide.safetensors"
    amortized.save(path)
    loaded = host.package.AmortizedPosterior.load(path, amortized.model)
    assert loaded.guide.structure == amortized.guide.structure
    many = np.stack([Y, Y + 3.0])
    posterior = loaded.at_each(observations={"y": host.array(many)})
    before = host.sample(amortized.at_each(observations={"y": host.array(many)}), 20, seed=2)
    draws = host.sample(posterior, 20, seed=2)
    for name, value in draws.items():
        np.testing.assert_array_equal(value, before[name])
    assert draws["own"].shape == (20, 2, 4)
    assert draws["pair"].shape == (20, 2, 2)
    rows = host.log_prob(posterior, draws)
    for row in range(2):
        one = {name: value[:, row] for name, value in draws.items()}
        alone = host.log_prob(loaded.at(y=host.array(many[row])), one)
        np.testing.assert_allclose(rows[:, row], alone, rtol=1e-4, atol=1e-3)
    tree = host.to_datatree(loaded.at(y=host.array(Y)), 30)
    assert tree["posterior"]["own"].dims[-1] == "rows"
    assert tree["posterior"]["pair"].shape[-1] == 2


def test_options_of_discrete_densities_survive_a_file(host, tmp_path):
    package, model = host.package, host.models.regimes
    densities = {
        "c": package.CategoricalDensity(hidden_dims=(5,)),
        "t": package.NormalDensity(hidden_dims=(6,)),
    }
    amortized = host.scrambled(model, host.guide(model, observed="y", densities=densities))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.specifications(loaded.guide.structure)[1] == densities


def test_predictive_of_the_host(host, amortized):
    guide = amortized.at(y=host.array(Y)).guide
    if host.name == "pyro":
        host.seed(0)
        make = host.infer.Predictive(amortized.model, guide=guide, num_samples=40)
        draws = backends.numpy_tree(dict(make()))
    else:
        make = host.infer.Predictive(
            amortized.model, guide=guide, params=dict(amortized.params), num_samples=40
        )
        draws = backends.numpy_tree(dict(make(host.key(0))))
    assert len(np.unique(draws["y"])) == 160


def test_one_density_for_all_goes_to_the_sites_that_it_can_describe(host):
    package, model = host.package, host.models.regimes
    guide = host.guide(model, observed="y", densities=package.NormalDensity()).setup()
    assert guide.specifications(guide.structure)[1] == {
        "c": package.CategoricalDensity(),
        "t": package.NormalDensity(),
    }


@pytest.mark.parametrize(
    ("model", "densities", "message"),
    [
        ("regimes", {"c": "NormalDensity"}, "site 'c': is discrete, but NormalDensity is a cont"),
        ("regimes", {"t": "CategoricalDensity"}, "site 't': is continuous, but CategoricalDensity"),
        ("regimes", {"c": "CountDensity"}, "site 'c': its values are no counts, and CountDensity"),
        ("poisson_count", {"k": "CategoricalDensity"}, "site 'k': its range has no upper bound"),
        ("poisson_count", "SplineFlowDensity", "site 'k': is discrete, but SplineFlowDensity"),
        ("conjugate_normal", "CountDensity", "site 'z': is continuous, but CountDensity is a disc"),
    ],
)
def test_density_of_the_other_kind(host, model, densities, message):
    package = host.package
    if isinstance(densities, str):
        densities = getattr(package, densities)()
    else:
        densities = {name: getattr(package, family)() for name, family in densities.items()}
    observed = "x" if model == "conjugate_normal" else "y"
    guide = host.guide(getattr(host.models, model), observed=observed, densities=densities)
    with pytest.raises(ValueError, match=f"densities: {message}"):
        guide.setup()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("poisson_thinned", "site 'k': its range changes with other latents. Give it the largest"),
        ("binomial_pair", "site 'k': its range differs between its elements. Give all of them"),
        ("crossed_switches", "site 'd': is discrete, and its elements depend on each other"),
    ],
)
def test_discrete_sites_that_are_refused(host, model, message):
    with pytest.raises(ValueError, match=message):
        host.guide(getattr(host.models, model), observed="y").setup()


def refused_bounds(host):
    infer = host.infer
    both = [infer.TraceMeanField_ELBO(), infer.RenyiELBO(alpha=0.5, num_particles=2)]
    return both if host.name == "pyro" else [*both, infer.Trace_ELBO()]


def test_objectives_with_a_wrong_gradient_are_refused(host):
    model, y = host.models.regimes, host.array(np.zeros(3))
    for bound in refused_bounds(host):
        guide = host.guide(model, observed="y")
        name = type(bound).__name__
        message = f"site 'c': is discrete, and the gradient of {name} is right for reparam"
        with pytest.raises(ValueError, match=message):
            host.fit(model, guide, bound, args=(y,), num_steps=1)


def test_objectives_without_discrete_sites_are_not_refused(host):
    check = host.module("objectives.gradients").check_gradients
    structure = host.guide(host.models.conjugate_normal, observed="x").setup().structure
    for bound in refused_bounds(host):
        check(structure, bound)


def test_stock_svi_of_numpyro_warns_where_the_gradient_is_wrong(numpyro_host):
    """The guide cannot see its objective; the host looks at the sites and speaks."""
    import optax

    host = numpyro_host
    model, y = host.models.poisson_count, host.array(np.array(4.0))
    guide = host.guide(model, observed="y").setup()
    svi = host.infer.SVI(model, guide, optax.adam(1e-3), host.infer.Trace_ELBO())
    with pytest.warns(UserWarning, match="does not support models with discrete latent"):
        svi.init(host.key(0), y)
    host.infer.SVI(model, guide, optax.adam(1e-3), host.package.NPE(8)).init(host.key(0), y)


def test_stock_svi_of_pyro_refuses_the_mean_field_bound(pyro_host):
    import pyro

    host = pyro_host
    model, y = host.models.poisson_count, host.array(np.array(4.0))
    guide = host.guide(model, observed="y").setup()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = host.infer.SVI(model, guide, optimizer, host.infer.TraceMeanField_ELBO())
    with pytest.raises(NotImplementedError, match="must be fully reparameterized"):
        svi.step(y)


@pytest.mark.slow
def test_score_functions_reach_the_exact_posterior_at_one_data_set(host):
    """`TraceGraph_ELBO` on one count, whose posterior and evidence are sums."""
    problem, model = PROBLEMS["poisson_count"], host.models.poisson_count
    data, counts = np.full(60, 4.3), np.arange(60)
    options = {"num_particles": 32}
    if host.name == "pyro":
        options |= {"vectorize_particles": True, "max_plate_nesting": 0}
    amortized = host.fit(
        model,
        host.guide(model, observed="y"),
        host.infer.TraceGraph_ELBO(**options),
        args=(host.array(np.array(4.3)),),
        num_steps=600,
        learning_rate=5e-3,
    )
    found = np.exp(host.site_log_probs(amortized, (), {"k": counts}, {"y": data})["k"].ravel())
    exact = np.exp(problem.log_posterior({"k": counts}, {"y": data}))
    assert 0.5 * np.abs(found - exact).sum() < 0.1
    evidence = problem.log_evidence({"y": data[:1]})[0]
    assert abs(amortized.history.losses[-50:].mean() + evidence) < 0.05


def test_labels_summed_out_by_the_host(pyro_host):
    """Nothing in the guide reads the assignments: hidden, they are left to `TraceEnum_ELBO`."""
    from pyro import poutine

    host, problem = pyro_host, PROBLEMS["mixture_assignments"]
    guide = host.guide(host.models.mixture_assignments, observed="y").setup()
    y = problem.sample_joint(np.random.default_rng(3), 1)[1]["y"][0]
    hidden = poutine.block(guide, hide=["z"])
    model = host.infer.config_enumerate(host.models.mixture_assignments)
    bound = host.infer.TraceEnum_ELBO(max_plate_nesting=1)
    for seed in range(3):
        host.seed(seed)
        loss = bound.loss(model, hidden, host.array(y))
        host.seed(seed)
        trace = poutine.trace(hidden).get_trace(host.array(y))
        trace.compute_log_prob()
        mu = backends.numpy_tree(trace.nodes["mu"]["value"])
        rows = np.log(problem.weights) + norm.logpdf(y[:, None], mu, problem.noise)
        joint = norm.logpdf(mu, problem.centres, problem.spread).sum()
        joint += logsumexp(rows, axis=1).sum()
        assert -loss == pytest.approx(
            joint - float(trace.nodes["mu"]["log_prob"].detach()), abs=1e-3
        )


@pytest.mark.slow
def test_labels_summed_out_by_the_hosts_funsors(numpyro_host):
    """The same in NumPyro, whose `TraceEnum_ELBO` needs the library funsor."""
    pytest.importorskip("funsor")
    import jax
    from numpyro import handlers
    from numpyro.contrib.funsor import config_enumerate

    host, problem = numpyro_host, PROBLEMS["mixture_assignments"]
    model = host.models.mixture_assignments
    guide = host.guide(model, observed="y").setup()
    y = problem.sample_joint(np.random.default_rng(3), 1)[1]["y"][0]
    hidden = handlers.block(guide, hide=["z"])
    bound = host.infer.TraceEnum_ELBO(max_plate_nesting=1)
    params = guide.init_params()
    for seed in range(3):
        key = host.key(seed)
        loss = bound.loss(key, params, config_enumerate(model), hidden, host.array(y))
        of_guide = handlers.seed(handlers.substitute(hidden, params), jax.random.split(key)[1])
        site = handlers.trace(of_guide).get_trace(host.array(y))["mu"]
        mu, log_q = np.asarray(site["value"]), float(site["fn"].log_prob(site["value"]))
        rows = np.log(problem.weights) + norm.logpdf(y[:, None], mu, problem.noise)
        joint = norm.logpdf(mu, problem.centres, problem.spread).sum()
        joint += logsumexp(rows, axis=1).sum()
        assert -loss == pytest.approx(joint - log_q, abs=1e-3)


def test_labels_enumerated_in_the_guide_are_refused_in_numpyro(numpyro_host):
    pytest.importorskip("funsor")
    from numpyro.contrib.funsor import config_enumerate

    host, model = numpyro_host, numpyro_host.models.regimes
    guide = host.guide(model, observed="y").setup()
    bound = host.infer.TraceEnum_ELBO(max_plate_nesting=1)
    y = host.array(np.array([0.3, 1.0, -0.2]))
    with pytest.raises(ValueError, match="site 'c': is enumerated in the guide"):
        bound.loss(host.key(0), guide.init_params(), model, config_enumerate(guide), y)


def test_draws_given_to_a_guide_of_numpyro_are_not_taken_for_enumerated(numpyro_host):
    from numpyro import handlers

    host, y = numpyro_host, numpyro_host.array(np.zeros(20))
    guide = host.guide(host.models.conjugate_normal, observed="x").setup()
    given = {**guide.init_params(), "z": host.array(np.arange(4.0))}
    of_guide = handlers.seed(handlers.substitute(guide, given), host.key(0))
    assert handlers.trace(of_guide).get_trace(y)["z"]["value"].shape == (4,)


def test_labels_enumerated_in_the_guide(pyro_host):
    """The host sums over a label's values; later sites of the guide are drawn for each of them."""
    from pyro import poutine

    host, problem = pyro_host, PROBLEMS["regimes"]
    model, y = host.models.regimes, np.array([0.3, 1.0, -0.2])
    amortized = host.scrambled(model, host.guide(model, observed="y"), scale=0.1)
    guide = host.infer.config_enumerate(amortized.guide)
    bound = host.infer.TraceEnum_ELBO(max_plate_nesting=1)
    for seed in range(3):
        host.seed(seed)
        loss = bound.loss(model, guide, host.array(y))
        host.seed(seed)
        each = poutine.enum(guide, first_available_dim=-2)
        trace = poutine.trace(each).get_trace(host.array(y))
        trace.compute_log_prob()
        c, t = (backends.numpy_tree(trace.nodes[name]["value"]).ravel() for name in "ct")
        log_q = [backends.numpy_tree(trace.nodes[name]["log_prob"]).ravel() for name in "ct"]
        assert c.tolist() == [0, 1, 2]
        assert len(np.unique(t)) == 3
        data = {"y": np.broadcast_to(y, (3, 3))}
        joint = problem.log_posterior({"c": c, "t": t}, data) + problem.log_evidence(data)
        exact = np.sum(np.exp(log_q[0]) * (joint - log_q[0] - log_q[1]))
        assert -loss == pytest.approx(exact, abs=1e-3)
