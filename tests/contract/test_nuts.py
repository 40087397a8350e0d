"""NUTS in the noise of a guide: the target is the exact posterior, whatever the guide."""

import numpy as np
import pytest
from scipy.stats import norm

from tests.backends import num_distinct, small_guide
from tests.problems import PROBLEMS

Y = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
X = np.linspace(0.0, 1.0, 20).astype("float32")


def nested(host, density=None, **options):
    """A posterior with a positive site and a plate, of a guide with random weights."""
    model = host.models.nested_groups
    if density:
        options["densities"] = getattr(host.package, density)(hidden_dims=(8,))
    guide = small_guide(host, model, observed="y", **options)
    return host.scrambled(model, guide, scale=0.1).at(y=host.array(Y))


def conjugate(host, **options):
    model = host.models.conjugate_normal
    guide = small_guide(host, model, observed="x", **options)
    return host.untrained(model, guide).at(x=host.array(X))


@pytest.mark.parametrize(
    ("density", "kind"),
    [
        ("NormalDensity", "noise"),
        pytest.param("SplineFlowDensity", "noise", marks=pytest.mark.compiles),
        pytest.param("StudentTDensity", "draws", marks=pytest.mark.compiles),
    ],
)
def test_target_is_the_joint_density_with_the_jacobian_of_the_map(host, density, kind):
    posterior = nested(host, density)
    space = host.space(posterior)
    assert space.kind == kind
    assert space.size == 6
    points = np.random.default_rng(1).normal(size=(3, 6)).astype("float32")
    values, log_dets = host.space_latents(space, points)
    assert values["level"].shape == (3, 4, 1)
    assert values["scale"].min() > 0

    def positions(point):
        found, _ = space.latents(point if host.name == "numpyro" else point[None])
        return host.flat([found[name] for name in ("mu", "scale", "level")])

    _, expected = np.linalg.slogdet(host.jacobian(host.compiled(positions), points[0]))
    assert log_dets[0] == pytest.approx(expected, abs=2e-3)
    np.testing.assert_allclose(
        host.space_target(posterior, space, points),
        host.log_joint(posterior, values) + log_dets,
        rtol=1e-4,
        atol=1e-3,
    )


def test_noise_of_the_guide_is_standard_normal(host):
    """`log |det| = log N(e) - log q`: the chains would follow a normal if the guide were exact."""
    posterior = nested(host)
    points = np.random.default_rng(2).normal(size=(5, 6)).astype("float32")
    values, log_dets = host.space_latents(host.space(posterior), points)
    expected = norm.logpdf(points).sum(1) - host.log_prob(posterior, values)
    np.testing.assert_allclose(log_dets, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.compiles
def test_draws_follow_the_posterior_of_an_untrained_guide(host):
    chains = host.nuts(conjugate(host), 300, num_warmup=60, num_chains=2)
    mean, sd = (
        float(np.ravel(part)[0]) for part in PROBLEMS["conjugate_normal"].posterior({"x": X[None]})
    )
    draws = chains.samples["z"]
    assert draws.shape == (600,)
    assert num_distinct(draws) > 0.5
    assert chains.by_chain()["z"].shape == (2, 300)
    ess = chains.summary.lowest_ess
    assert ess > 100
    assert abs(draws.mean() - mean) < 4 * sd / np.sqrt(ess)
    assert abs(draws.std() / sd - 1) < 4 / np.sqrt(2 * ess)
    assert chains.summary.rhat["z"] < 1.05
    assert chains.num_steps.shape == chains.diverging.shape == (2, 300)
    assert chains.num_steps.min() >= 1
    total = chains.num_steps.sum() + chains.num_warmup_steps.sum()
    assert chains.summary.num_gradients == total
    assert "gradient evaluations" in str(chains)


@pytest.mark.compiles
def test_deterministic_sites_and_export(host):
    pytest.importorskip("arviz_base")
    from arviz_stats import summary

    model, sigma = host.models.eight_schools_noncentered, host.array(np.linspace(9, 18, 8))
    guide = small_guide(host, model, observed="y", inputs={"sigma": "schools"})
    posterior = host.untrained(model, guide, sigma).at(sigma, y=host.array(np.linspace(-5, 25, 8)))
    chains = host.nuts(posterior, 20, num_warmup=20, num_chains=2)
    draws = chains.samples
    assert draws["theta"].shape == (40, 8)
    theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["z"]
    np.testing.assert_allclose(draws["theta"], theta, rtol=1e-3, atol=1e-3)
    own = host.log_joint(posterior, draws)
    np.testing.assert_allclose(chains.log_joint, own, rtol=1e-4, atol=1e-3)
    tree = chains.to_datatree(coords={"schools": list("ABCDEFGH")})
    assert dict(tree["posterior"]["theta"].sizes) == {"chain": 2, "draw": 20, "schools": 8}
    np.testing.assert_array_equal(tree["posterior"]["mu"], chains.by_chain()["mu"])
    stats = tree["sample_stats"]
    assert set(stats.data_vars) == {"lp", "diverging", "n_steps"}
    np.testing.assert_array_equal(stats["n_steps"], chains.num_steps)
    assert dict(tree["log_likelihood"]["y"].sizes) == {"chain": 2, "draw": 20, "schools": 8}
    assert dict(tree["constant_data"]["sigma"].sizes) == {"schools": 8}
    table = summary(tree, var_names=["mu", "tau"])
    assert {"r_hat", "ess_bulk"} <= set(table.columns)


@pytest.mark.compiles
def test_an_ensemble_is_standardised_by_its_draws(host):
    model = host.models.conjugate_normal
    members = [
        host.scrambled(model, small_guide(host, model, observed="x"), scale=0.02, seed=seed)
        for seed in (0, 1)
    ]
    posterior = host.ensemble(members).at(x=host.array(X))
    chains = host.nuts(posterior, 10, num_warmup=10, num_chains=1)
    assert chains.space == "draws"
    assert chains.samples["z"].shape == (10,)
    with pytest.raises(TypeError, match="expected an AmortizedGuide, got EnsembleGuide"):
        _ = posterior.auto_guide


@pytest.mark.compiles
def test_auto_guide_is_accepted_by_neutra(host):
    posterior = nested(host)
    point = np.random.default_rng(3).normal(size=6).astype("float32")
    target = host.space_target(posterior, host.space(posterior), point[None])[0]
    assert host.neutra_density(posterior, point, y=host.array(Y)) == pytest.approx(target, abs=2e-3)


@pytest.mark.compiles
def test_draws_start_chains_of_the_host(host):
    values = {name: value[0] for name, value in host.sample(conjugate(host), 1).items()}
    found = host.short_chain(host.models.conjugate_normal, values, x=host.array(X))
    assert found["z"].shape == (2,)


def test_densities_without_normal_noise_are_refused_as_auto_guides(host):
    posterior = nested(host, "StudentTDensity")
    with pytest.raises(TypeError, match="site 'mu': its draws .* are no map of normal noise"):
        _ = posterior.auto_guide


def test_several_data_sets_are_refused(host):
    model = host.models.conjugate_normal
    amortized = host.untrained(model, small_guide(host, model, observed="x"))
    many = amortized.at_each(observations={"x": host.array(np.stack([X, X]))})
    with pytest.raises(ValueError, match="nuts: chains are for one data set; use at"):
        many.nuts()
    with pytest.raises(ValueError, match="auto_guide: it has one data set; use at"):
        _ = many.auto_guide


def test_discrete_latents_are_refused(host):
    model = host.models.poisson_count
    amortized = host.untrained(model, host.guide(model, observed="y"))
    with pytest.raises(ValueError, match="nuts: expected continuous latents, got discrete ones: "):
        amortized.at(y=host.array(np.array(1.0))).nuts()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 3}, "num_samples: expected at least 4, got 3"),
        ({"num_warmup": 0}, "num_warmup: expected at least 1, got 0"),
        ({"num_chains": 0}, "num_chains: expected at least 1, got 0"),
        ({"max_tree_depth": 0}, "max_tree_depth: expected at least 1, got 0"),
        ({"target_accept_prob": 1.0}, "target_accept_prob: expected above 0 and below 1, got 1.0"),
    ],
)
def test_numbers_out_of_range(host, options, match):
    with pytest.raises(ValueError, match=match):
        conjugate(host).nuts(**options)


def test_starting_points_without_density_are_refused(host):
    check = host.module("nuts").check_start
    with pytest.raises(ValueError, match="not finite at 1 of 2 starting points"):
        check(host.array(np.array([0.0, np.nan])))


def test_latents_that_the_guide_lacks_are_named(host):
    check = host.module("auto_guide").check_sites
    with pytest.raises(ValueError, match="the model draws y_unobserved, which the guide does not"):
        check(["z", "y_unobserved"], ["z"])
