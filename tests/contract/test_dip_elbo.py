"""DIPELBO: the penalty by hand, from moments and from draws, its scale, bad input."""

from importlib import import_module

import numpy as np
import pytest

from tests.contract.test_iwae import MOVED, Y
from tests.contract.test_weighted_elbo import mean_field
from tests.losses import evaluate, loss_without_jit, standard_error

pytestmark = pytest.mark.compiles

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(8, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]])
SPREADS = np.exp(0.3 * RNG.normal(size=(8, 2)) - 0.5)
X = RNG.normal(size=(8, 2))


@pytest.fixture
def bounds(host):
    return import_module(f"tests.bounds_{host.name}")


def evaluated(host, objective, models, *batch, means=MEANS, spreads=SPREADS, x=X, num=1):
    with np.errstate(divide="ignore"):
        params = {"mean": means, "log_sd": np.log(spreads)}
    return evaluate(host, objective, *models, params, host.array(x), *batch, num=num)


def penalty_of(host, models, variant, weights=(1.0, 1.0), *batch, num=1, particles=1, **arrays):
    """N R: what it adds to the loss, at the same draws."""
    objectives = (
        host.package.DIPELBO(*pair, variant=variant, num_particles=particles)
        for pair in (weights, (0.0, 0.0))
    )
    full, none = (evaluated(host, each, models, *batch, num=num, **arrays) for each in objectives)
    return full["loss"] - none["loss"]


def by_hand(variant, weights=(1.0, 1.0), means=MEANS, spreads=SPREADS):
    """R, in NumPy."""
    covariance = np.cov(means.T, bias=True)
    if variant == "ii":
        covariance = covariance + np.diag((spreads**2).mean(0))
    diagonal = np.diag(covariance)
    off = (covariance**2).sum() - (diagonal**2).sum()
    return weights[0] * off + weights[1] * ((diagonal - 1) ** 2).sum()


@pytest.fixture
def vectors(bounds):
    return bounds.vectors, bounds.guide_of_vectors


@pytest.mark.parametrize("variant", ["i", "ii"])
def test_without_weights_it_is_the_bound_of_the_host(host, vectors, variant):
    objective = host.package.DIPELBO(0.0, 0.0, variant=variant)
    found, expected = (evaluated(host, o, vectors, num=2) for o in (objective, mean_field(host)))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    for name, value in expected["gradient"].items():
        np.testing.assert_allclose(found["gradient"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["i", "ii"])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (3.0, 5.0)])
def test_the_penalty_by_hand(host, vectors, variant, weights):
    found = penalty_of(host, vectors, variant, weights)
    assert found[0] == pytest.approx(8 * by_hand(variant, weights), rel=1e-3)


def test_two_elements(host, vectors):
    """C = [[1, 1], [1, 1]]: R = 2 lambda_od, as both (i, j) and (j, i) count."""
    case = {"means": np.array([[1.0, 1.0], [-1.0, -1.0]]), "x": X[:2]}
    case["spreads"] = np.full((2, 2), 1e-3)
    for variant in ("i", "ii"):
        found = penalty_of(host, vectors, variant, (0.7, 0.0), **case)
        assert found[0] / 2 == pytest.approx(2 * 0.7, rel=1e-3)
        assert abs(penalty_of(host, vectors, variant, (0.0, 0.7), **case)[0]) < 1e-3


def test_a_guide_that_says_nothing(host, vectors):
    """mean 0, deviation 1: variant "i" fights it and "ii" does not."""
    case = {"means": np.zeros((8, 2)), "spreads": np.ones((8, 2))}
    assert penalty_of(host, vectors, "i", (3.0, 0.7), **case)[0] / 8 == pytest.approx(2 * 0.7)
    assert abs(penalty_of(host, vectors, "ii", (3.0, 0.7), **case)[0]) < 1e-4


def test_variant_ii_is_the_covariance_of_draws(host, vectors):
    """Of 10^6 draws; deviations in place of variances would be another."""
    draws = MEANS + SPREADS * np.random.default_rng(1).normal(size=(125_000, *MEANS.shape))
    sampled = np.cov(draws.reshape(-1, 2).T, bias=True)
    exact = np.cov(MEANS.T, bias=True) + np.diag((SPREADS**2).mean(0))
    np.testing.assert_allclose(sampled, exact, atol=1e-2)
    found = penalty_of(host, vectors, "ii")[0] / 8
    expected = ((sampled - np.eye(2)) ** 2).sum()
    assert found == pytest.approx(expected, abs=1e-2)
    wrong = np.cov(MEANS.T, bias=True) + np.diag(SPREADS.mean(0))
    assert abs(found - ((wrong - np.eye(2)) ** 2).sum()) > 0.1


def test_order_and_rotation(host, vectors):
    """Equal weights give |C - I|^2, which no rotation of the means changes."""
    order = np.random.default_rng(2).permutation(8)
    plain = penalty_of(host, vectors, "ii")[0]
    mixed = penalty_of(host, vectors, "ii", means=MEANS[order], spreads=SPREADS[order], x=X[order])
    assert mixed[0] == pytest.approx(plain, rel=1e-3)
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    turned = {"means": MEANS @ turn}
    same, other = (
        [penalty_of(host, vectors, "i", weights, **case)[0] for case in ({}, turned)]
        for weights in ((1.0, 1.0), (2.0, 1.0))
    )
    assert same[0] == pytest.approx(same[1], rel=1e-3)
    assert abs(other[0] - other[1]) > 0.05


def test_the_gradient_is_that_of_the_penalty_by_hand(host, vectors):
    weights, step = (3.0, 5.0), 1e-5
    for variant in ("i", "ii"):
        full, none = (
            evaluated(host, host.package.DIPELBO(*pair, variant=variant), vectors)["gradient"]
            for pair in (weights, (0.0, 0.0))
        )
        for name, place in (("mean", (3, 1)), ("log_sd", (5, 0))):
            moved = {"means": MEANS.copy(), "spreads": SPREADS.copy()}
            if name == "mean":
                moved["means"][place] += step
            else:
                moved["spreads"][place] *= np.exp(step)
            slope = (by_hand(variant, weights, **moved) - by_hand(variant, weights)) / step
            found = (full[name] - none[name])[0][place]
            assert found == pytest.approx(8 * slope, rel=1e-2, abs=1e-3)


def test_the_penalty_stands_for_the_whole_plate(host, vectors):
    """With all rows in the batch twice, and N twice as large, it doubles."""
    twice = {
        "means": np.repeat(MEANS, 2, 0),
        "spreads": np.repeat(SPREADS, 2, 0),
        "x": np.repeat(X, 2, 0),
    }
    found = penalty_of(host, vectors, "i", **twice)[0]
    assert found == pytest.approx(2 * penalty_of(host, vectors, "i")[0], rel=1e-3)
    equal = {"means": np.tile([[1.0, 0.5]], (16, 1)), "spreads": np.ones((16, 2))}
    batch = penalty_of(host, vectors, "i", (0.0, 1.0), 4, **equal, x=twice["x"])[0]
    assert batch == pytest.approx(16 * 2.0, rel=1e-4)


def test_masked_elements_do_not_count(host, bounds, vectors):
    exists = np.arange(8) < 5
    models = [bounds.hidden(each, host.array(exists)) for each in vectors]
    found = penalty_of(host, models, "ii", (3.0, 5.0))[0]
    expected = by_hand("ii", (3.0, 5.0), MEANS[exists], SPREADS[exists])
    assert found == pytest.approx(5 * expected, rel=1e-3)


@pytest.mark.parametrize("variant", ["i", "ii"])
def test_several_sites_are_joined(host, bounds, variant):
    models = bounds.two_sites, bounds.guide_of_two
    found = penalty_of(host, models, variant, (3.0, 5.0))[0]
    assert found == pytest.approx(8 * by_hand(variant, (3.0, 5.0)), rel=1e-3)


def test_full_covariances_of_the_guide(host, bounds):
    models = bounds.vectors, bounds.correlated_guide
    objectives = (host.package.DIPELBO(w, w, variant="ii") for w in (1.0, 0.0))
    full, none = (
        evaluate(host, each, *models, {"mean": MEANS}, host.array(X))["loss"][0]
        for each in objectives
    )
    factor = np.array([[0.6, 0.0], [0.3, 0.5]])
    covariance = np.cov(MEANS.T, bias=True) + factor @ factor.T
    assert full - none == pytest.approx(8 * ((covariance - np.eye(2)) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("variant", ["i", "ii"])
@pytest.mark.parametrize("name", ["affine_guide", "dependent_guide"])
def test_moments_from_draws(host, bounds, name, variant):
    """Of a distribution without a mean, and of latents that read each other."""
    is_affine = name == "affine_guide"
    models = (bounds.vectors if is_affine else bounds.two_sites), getattr(bounds, name)
    found = penalty_of(host, models, variant, (3.0, 5.0), num=5, particles=2000)
    mix = np.eye(2) if is_affine else np.array([[1.0, 0.0], [0.5, 1.0]])
    covariance = mix @ np.cov(MEANS.T, bias=True) @ mix.T
    if variant == "ii":
        covariance = covariance + mix @ np.diag((SPREADS**2).mean(0)) @ mix.T
    diagonal = np.diag(covariance)
    off = (covariance**2).sum() - (diagonal**2).sum()
    expected = 3 * off + 5 * ((diagonal - 1) ** 2).sum()
    error = 4 * standard_error(found / 8) + 0.01
    assert abs((found / 8).mean() - expected) < error < 0.2 * expected


def test_few_particles_are_unbiased_for_the_covariance(host, bounds):
    """Two, on average over 1000 runs; one alone is refused."""
    models = bounds.vectors, bounds.affine_guide
    module = host.module("objectives.dip_elbo")
    rng = np.random.default_rng(3)
    draws = MEANS + SPREADS * rng.normal(size=(1000, 2, *MEANS.shape))
    exists = host.array(np.ones(8))
    found = [
        [np.asarray(part) for part in module.covariances_of_draws(host.array(run), exists)]
        for run in draws
    ]
    for part, expected in zip(
        zip(*found, strict=True),
        (np.cov(MEANS.T, bias=True), np.diag((SPREADS**2).mean(0))),
        strict=True,
    ):
        assert np.all(np.abs(np.mean(part, 0) - expected) < 4.5 * standard_error(np.stack(part)))
    with pytest.raises(ValueError, match=r"sites \['z'\]: their distributions in the guide"):
        evaluated(host, host.package.DIPELBO(1.0, 1.0, variant="i"), models)


def test_latents_outside_of_the_plate_are_left_out(host):
    """`mu` of a hierarchy, which `theta` reads in the guide: draws."""
    written = import_module(f"tests.particles_{host.name}")
    params = dict.fromkeys([*MOVED, "base"], np.zeros(()))
    models = written.hierarchy, written.guide_of_hierarchy
    objective = host.package.DIPELBO(1.0, 1.0, variant="ii", num_particles=2)
    assert np.isfinite(evaluate(host, objective, *models, params, host.array(Y))["loss"]).all()
    with pytest.raises(ValueError, match=r"sites \['theta'\]: their distributions in the guide"):
        evaluate(host, host.package.DIPELBO(1.0, 1.0, variant="i"), *models, params, host.array(Y))


def test_bad_input(host, bounds, vectors):
    package, x = host.package, host.array(X)
    for name in ("lambda_od", "lambda_d"):
        weights = {"lambda_od": 1.0, "lambda_d": 1.0} | {name: -1.0}
        with pytest.raises(ValueError, match=f"{name}: expected a finite number of at least 0"):
            package.DIPELBO(**weights, variant="i")
    with pytest.raises(ValueError, match="variant: expected 'i' or 'ii', got 'iii'"):
        package.DIPELBO(1.0, 1.0, variant="iii")
    objective = package.DIPELBO(1.0, 1.0, variant="i")
    one = {"mean": np.zeros((1, 2)), "log_sd": np.zeros((1, 2))}
    with pytest.raises(ValueError, match=r"plate \['rows'\]: has one element, and DIPELBO"):
        loss_without_jit(host, objective, *vectors, x[:1], params=one)
    no_plate, shift = r"sites \['a', 'b'\]: are in no plate, and DIPELBO", {"shift": np.zeros(())}
    with pytest.raises(ValueError, match=no_plate):
        loss_without_jit(host, objective, bounds.chain, bounds.reversed_guide, params=shift)
    written = import_module(f"tests.particles_{host.name}")
    with pytest.raises(ValueError, match="site 'z': is not reparameterised, and the gradient of D"):
        loss_without_jit(
            host, objective, written.label, written.guide_of_label, host.array(np.array(0.3))
        )
