"""An ensemble of guides is the mixture of their joint densities, in its draws and its weights."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chi2_contingency, chisquare

from tests.backends import host as host_of
from tests.backends import numpy_tree, small_guide
from tests.conftest import require
from tests.contract.test_host_tools import (
    elbo_loss,
    host_trace,
    predictive,
    train_with_svi,
)
from tests.problems import PROBLEMS

pytestmark = pytest.mark.compiles

WEIGHTS = np.array([0.5, 0.3, 0.2])
_RNG = np.random.default_rng(5)
Y = {
    "hierarchical_normal": _RNG.normal(size=(3, 8)),
    "nested_groups": _RNG.normal(size=(3, 4, 5)),
    "mixture_assignments": _RNG.normal(size=(3, 4)),
}


QUICK = "hierarchical_normal"
each_model = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == QUICK else pytest.mark.compiles) for name in Y],
)


def members_of(host, name, *, scale=0.15, shift=0.0, num=3, **options):
    """Guides of one model with different random weights; the first latents of each apart."""
    model, found = getattr(host.models, name), []
    if name == "mixture_assignments":
        options |= {"densities": None, "sizes": {"num_rows": "rows"}}
    for seed in range(num):
        guide = small_guide(host, model, observed="y", **options)
        args = (4,) if name == "mixture_assignments" else ()
        kwargs = {"num_rows": 4} if args else {}
        amortized = host.scrambled(model, guide, scale=scale, seed=seed, **kwargs)
        found.append(host.shifted(amortized, seed * shift))
    return found


def call_of(name):
    return {"num_rows": 4} if name == "mixture_assignments" else {}


@cache
def mixture_of(host, name):
    """The members and their mixture, with unequal weights."""
    members = members_of(host, name)
    return members, host.ensemble(members, WEIGHTS)


def joint_log_prob(host, members, weights, condition, latents):
    """The mixture of joint densities, by SciPy from the members' own."""
    parts = [host.log_prob(condition(each), latents) for each in members]
    return logsumexp(np.stack(parts), axis=0, b=weights.reshape(-1, *[1] * parts[0].ndim))


@each_model
def test_log_prob_is_the_logsumexp_of_joint_densities(host, name):
    """And not the mean of log densities, nor are the weights ignored."""
    (members, ensemble), kwargs = mixture_of(host, name), call_of(name)
    first, many = host.array(Y[name][0]), {"y": host.array(Y[name])}
    names = [site.name for site in ensemble.guide.structure.latents]
    for condition in (
        lambda each: each.at(y=first, **kwargs),
        lambda each: each.at_each(observations=many, **kwargs),
    ):
        draws = host.sample(condition(ensemble), 20)
        latents = {name: draws[name] for name in names}
        expected = joint_log_prob(host, members, WEIGHTS, condition, latents)
        got = host.log_prob(condition(ensemble), latents)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
        parts = np.stack([host.log_prob(condition(each), latents) for each in members])
        assert np.abs(np.tensordot(WEIGHTS, parts, 1) - expected).max() > 0.1
        equal = joint_log_prob(host, members, np.full(3, 1 / 3), condition, latents)
        assert np.abs(equal - expected).max() > 0.01


def elementwise(host, members, data, latents):
    """The usual wrong version: a mixture of the members at each site and element by itself."""
    num = len(latents["mu"])
    repeated = {"y": np.broadcast_to(data, (num, *data.shape))}
    parts = [host.site_log_probs(each, (), latents, repeated) for each in members]
    sites = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    log_weights = np.log(WEIGHTS)
    return sum(
        logsumexp(value + log_weights.reshape(-1, *[1] * (value.ndim - 1)), axis=0)
        .reshape(num, -1)
        .sum(1)
        for value in sites.values()
    )


def test_density_of_a_call_and_of_permuted_groups(host):
    """`log_prob` of the guide itself; a mixture for each element is another density."""
    (members, ensemble), data = mixture_of(host, QUICK), Y[QUICK][0]
    latents = host.sample(ensemble.at(y=host.array(data)), 20)
    found = host.guide_log_prob(ensemble, latents, host.array(data))
    parts = [host.guide_log_prob(each, latents, host.array(data)) for each in members]
    expected = logsumexp(np.stack(parts), axis=0, b=WEIGHTS[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    order = np.random.default_rng(1).permutation(8)
    permuted = {"mu": latents["mu"], "theta": latents["theta"][:, order]}
    again = host.guide_log_prob(ensemble, permuted, host.array(data[order]))
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-3)
    assert np.abs(elementwise(host, members, data, latents) - expected).max() > 0.1


def test_the_chain_rule_over_many_elements_adds_up(host):
    """Also where sums are so large that single precision would lose the differences."""
    rng = np.random.default_rng(0)
    log_probs = rng.normal(-3.0, 0.02, size=(3, 2, 4000))
    rule = host.module("guides.mixture").chain_rule
    elements, weights = rule(host.array(np.log(WEIGHTS)), host.array(log_probs), 1)
    exact = np.log(WEIGHTS)[:, None] + log_probs.sum(-1)
    # Summed here in double precision: 4,000 numbers near 3 are not exact in single.
    total = numpy_tree(elements).astype(float).sum(-1)
    np.testing.assert_allclose(total, logsumexp(exact, axis=0), rtol=1e-5)
    posterior = np.exp(exact - logsumexp(exact, axis=0))
    np.testing.assert_allclose(np.exp(numpy_tree(weights)), posterior, atol=1e-3)


def test_values_that_members_exclude(host):
    """Member 0 excludes element 1, member 1 element 2: together nothing is left, and no NaN."""
    log_probs = np.full((2, 1, 4), -1.0)
    log_probs[0, 0, 1] = log_probs[1, 0, 2] = -np.inf
    rule = host.module("guides.mixture").chain_rule
    elements, _ = rule(host.array(np.log([0.5, 0.5])), host.array(log_probs), 1)
    expected = [-1.0, -1.0 + np.log(0.5), -np.inf, -np.inf]
    np.testing.assert_allclose(numpy_tree(elements)[0], expected, rtol=1e-5)


@cache
def far_apart(host):
    """Members around 0, 40 and 80 prior sds of mu: a draw says which one it is from."""
    return host.ensemble(members_of(host, QUICK, scale=0.01, shift=40.0), WEIGHTS)


def nearest(values):
    return np.clip(np.rint(np.asarray(values) / 40.0), 0, 2).astype(int)


def assert_frequencies(members, weights=WEIGHTS):
    counts = np.bincount(np.ravel(members), minlength=len(weights))
    assert chisquare(counts, weights * counts.sum()).pvalue > 1e-3


def test_draws_pick_members_by_their_weights(host):
    """One for each draw and data set, all sites from the same."""
    ensemble, num = far_apart(host), 2000
    draws = host.sample(ensemble.at_each(observations={"y": host.array(Y[QUICK])}), num)
    mu, theta = nearest(draws["mu"]), nearest(draws["theta"])
    assert mu.shape == (num, 3)
    np.testing.assert_array_equal(theta, np.broadcast_to(mu[..., None], theta.shape))
    for column in mu.T:
        assert_frequencies(column)
    # Data sets draw their members independently, and so do draws.
    for first, second in ((mu[:, 0], mu[:, 1]), (mu[:-1, 0], mu[1:, 0])):
        table = np.zeros((3, 3))
        np.add.at(table, (first, second), 1)
        assert chi2_contingency(table).pvalue > 1e-3
    with pytest.raises(AssertionError):
        assert_frequencies(mu, np.full(3, 1 / 3))


def test_draws_know_their_members(host):
    values, members = host.guide_draws(far_apart(host), {"y": Y[QUICK]}, 300, batch_dims=1)
    assert members.shape == (300, 3)
    np.testing.assert_array_equal(nearest(values["mu"]), members)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_of_the_host(host, parallel):
    ensemble, num = far_apart(host), 200
    bound = ensemble.at(y=host.array(Y[QUICK][0])).guide
    draws = predictive(host, ensemble.model, bound, ensemble, num, parallel=parallel)
    y = nearest(draws["y"].reshape(num, 8))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    assert_frequencies(y[:, 0])


@each_model
def test_the_hosts_trace_is_scored_as_the_mixture(host, name):
    (members, ensemble), args = mixture_of(host, name), (host.array(Y[name][0]),)
    args += tuple(call_of(name).values())
    structure = ensemble.guide.structure
    names = [site.name for site in structure.latents]
    values, densities = host_trace(host, ensemble, names, *args)
    for name, value in values.items():
        assert densities[name].ndim == value.ndim - len(structure.site(name).event_shape)
    latents = {name: value[None] for name, value in values.items()}
    expected = joint_log_prob(host, members, WEIGHTS, lambda each: each.at(*args), latents)
    total = sum(density.sum() for density in densities.values())
    assert total == pytest.approx(expected[0], abs=2e-3)
    # The host's own bound, evaluated there, is log p - log q of one draw.
    assert np.isfinite(elbo_loss(host, ensemble.model, ensemble, *args))


def test_sites_given_to_the_host_choose_the_members(host):
    """Given mu around 40, all else comes from member 1, whatever the weights say."""
    ensemble = far_apart(host)
    y, mu = host.array(Y[QUICK][0]), host.array(np.array(40.3))
    draws = host.conditioned_draws(ensemble, {"mu": mu}, 20, y)
    assert np.all(nearest(draws["theta"]) == 1)


def test_several_draws_of_one_site_have_members_of_their_own(host):
    """`fn.sample((n,))` of a site in the host's trace, where plates are absent."""
    draws = host.draws(host.site_fn(far_apart(host), "mu", host.array(Y[QUICK][0])), 500)
    assert_frequencies(nearest(draws))


def test_weights_give_the_evidence(host):
    """Of any members, good or bad, with global and local latents, at several data sets."""
    _, ensemble = mixture_of(host, QUICK)
    exact = PROBLEMS[QUICK].log_evidence({"y": Y[QUICK]})
    posterior = ensemble.at_each(observations={"y": host.array(Y[QUICK])})
    for fraction in (0.0, 0.2):
        weighted = host.importance_sample(posterior, 3000, defensive_fraction=fraction)
        summary = weighted.summary
        assert weighted.samples["theta"].shape == (3000, 3, 8)
        assert np.all(summary.log_evidence_se < 0.15)
        assert np.all(np.abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se)


def test_members_at_wrong_places_cost_draws_and_no_bias(host):
    """Two of three members are 40 and 80 sds away: half of the draws is as good as before."""
    ensemble, data = far_apart(host), Y[QUICK][:1]
    exact = PROBLEMS[QUICK].log_evidence({"y": data})
    posterior = ensemble.at(y=host.array(data[0]))
    summary = host.importance_sample(posterior, 1500).summary
    assert abs(summary.log_evidence - exact[0]) < 4 * summary.log_evidence_se
    assert summary.log_evidence_se < 0.15
    assert summary.ess_fraction < 0.55


def test_importance_of_pyro():
    """Weights of the host are log p - log q of the mixture at its own draws."""
    require("pyro")
    host = host_of("pyro")
    _, ensemble = mixture_of(host, QUICK)
    host.seed(0)
    y = host.array(Y[QUICK][0])
    make = host.infer.Importance(ensemble.model, ensemble.guide, num_samples=20)
    found = make.run(y)
    draws = {
        name: np.stack([numpy_tree(trace.nodes[name]["value"]) for trace in found.exec_traces])
        for name in ("mu", "theta")
    }
    posterior = ensemble.at(y=y)
    expected = host.log_joint(posterior, draws) - host.log_prob(posterior, draws)
    weights = np.array([float(weight) for weight in found.log_weights])
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=2e-3)


def test_no_gradient_passes(host):
    """Stock SVI would train nothing, or in NumPyro with a wrong gradient."""
    _, ensemble = mixture_of(host, QUICK)
    with pytest.raises(TypeError, match=r"no gradient reaches the others.*fit\(model, ensemble"):
        train_with_svi(
            host,
            ensemble.model,
            ensemble.guide,
            host.trace_elbo(),
            host.array(Y[QUICK][0]),
            num_steps=1,
        )


def test_values_given_without_members(host):
    _, ensemble = mixture_of(host, QUICK)
    data = {"y": Y[QUICK][0]}
    with pytest.raises(ValueError, match=r"given: expected.*ensemble.following\(draws\)"):
        host.guide_draws(ensemble, data, 2, given={"mu": np.array(0.0)})


def test_members_that_do_not_fit_together(host):
    package, model = host.package, host.models.hierarchical_normal
    ensemble = package.EnsembleGuide

    def guide(model=model, **options):
        return small_guide(host, model, **{"observed": "y"} | options)

    plain = guide()
    for members, error, match in (
        ([], ValueError, "guides: expected at least one guide, got none"),
        ([plain, model], TypeError, "an AmortizedGuide, got function as member 1"),
        ([ensemble([plain])], TypeError, r"got EnsembleGuide.*\*ensemble.guides"),
        ([plain, plain], ValueError, "guides: the same guide is there twice"),
        ([guide().bind({"y": Y[QUICK][0]})], ValueError, "member 0 has data bound"),
        (
            [plain, guide(host.models.nested_groups)],
            ValueError,
            "member 1 differs from member 0:\n  - model: expected .*hierarchical_normal.*, got "
            ".*nested_groups",
        ),
        (
            [plain, guide(), guide(observed=["theta", "y"])],
            ValueError,
            r"member 2 differs.*\n  - observed: expected \('y',\), got \('theta', 'y'\)",
        ),
        (
            [plain, guide(sizes={"num_groups": "groups"})],
            ValueError,
            "sizes: expected {}, got {'num_groups': 'groups'}",
        ),
    ):
        with pytest.raises(error, match=match):
            ensemble(members)
    for weights, match in (
        ([1.0], r"weights: expected one for each of 2 members, got shape \(1,\)"),
        ([1.0, 0.0], r"weights: expected positive numbers, got \[1.0, 0.0\]"),
        ([1.0, np.inf], "weights: expected positive numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            ensemble([plain, guide()], weights)


def test_members_that_read_other_sites(host):
    """Parents may differ, and what follows from them; sites, their order and supports may not."""
    check = host.module("guides.members").check_structures
    model = host.models.two_locals
    first = small_guide(host, model, observed="y").setup().structure
    chosen = {"parents": {"level": ["mu"], "spread": ["mu"]}}
    other = small_guide(host, model, observed="y", **chosen).setup().structure
    assert first.latents != other.latents
    check([first, other])
    mu, level, spread = first.latents
    for latents, match in (
        ((mu, spread, level), "latent sites: expected the order ..mu', 'level', 'spread'.*, got"),
        ((mu, level), "member 2 differs from member 0:\n  - latents 'spread': only in the guide"),
        ((mu, replace(level, event_shape=(2,)), spread), "latents 'level': expected .*, got "),
    ):
        with pytest.raises(ValueError, match=match):
            check([first, other, replace(first, latents=latents)])


def test_structure_of_members_that_are_not_set_up(host):
    guides = [small_guide(host, host.models.two_locals, observed="y") for _ in range(2)]
    ensemble = host.package.EnsembleGuide(guides)
    with pytest.raises(RuntimeError, match="not set up"):
        _ = ensemble.structure
    assert ensemble.setup().structure == guides[1].structure


def test_a_part_of_the_rows_does_not_say_which_member(host):
    model = host.models.factor_analysis
    sizes = {"num_rows": "data", "batch_size": "data"}
    guides = [small_guide(host, model, observed="x", sizes=sizes) for _ in range(2)]
    ensemble = host.ensemble([host.untrained(model, guide) for guide in guides])
    x = host.array(np.random.default_rng(0).normal(size=10))
    with pytest.raises(ValueError, match="plate 'data': this call looks at a part of its rows"):
        host_trace(host, ensemble, ("z",), x, 10, 5)
    values, _ = host_trace(host, ensemble, ("z",), x, 10, 10)
    assert values["z"].shape == (10,)


def test_members_start_from_weights_of_their_own(host):
    model = host.models.hierarchical_normal
    guides = [small_guide(host, model, observed="y") for _ in range(2)]
    ensemble = host.package.EnsembleGuide(guides).setup()
    first, second = (host.weights(host.untrained(model, guide)) for guide in ensemble.guides)
    assert any(np.abs(first[name] - second[name]).max() > 0.01 for name in first)
    single = small_guide(host, model, observed="y").setup()
    again = host.weights(host.untrained(model, single))
    for name, value in again.items():  # the first is what it would have been alone
        np.testing.assert_allclose(first[name], value, atol=1e-6)
