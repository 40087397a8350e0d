"""Order-agnostic NADE: sums over all states, its loss over all orders, and what it may not see."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chisquare, norm

LEAST_P_VALUE = 1e-4  # six tests of draws: one failure in 1,600 changes of the seeds
CONTEXT = np.array([0.3, -1.0, 0.5])
KINDS = {"boolean": ("boolean", 0, 1), "labels": ("integer_interval", 0, 2)}
SUPPORTS = KINDS | {"real": ("real",)}


def built(host, kind, size, num_sites=1, scale=0.5, **options):
    support = host.module("supports").Support(*SUPPORTS[kind])
    spec = host.package.NADEDensity(hidden_dims=(8,), **options)
    density = host.build_density(spec, num_sites, size, 3, support=(support,))
    return host.scrambled_density(density, scale)


def states(kind, size):
    return np.array(list(product(range(KINDS[kind][2] + 1), repeat=size)), float)


def log_probs(host, density, value):
    return host.density_log_prob(density, np.tile(CONTEXT, (len(value), 1)), value, 0).astype(float)


def in_orders(host, density, value, orders):
    """Log probability of each value in each order."""

    def score(value):
        return density(host.array(CONTEXT), 0).log_prob_in(value, orders)

    return np.array(host.compiled(score)(host.array(value)).tolist())


@pytest.mark.parametrize(("kind", "size"), [("boolean", 10), ("labels", 4), ("boolean", 1)])
def test_probabilities_sum_to_one(host, kind, size):
    """Together and, one by one, in each order."""
    density, every = built(host, kind, size), states(kind, size)
    found = log_probs(host, density, every)
    assert logsumexp(found) == pytest.approx(0.0, abs=1e-5)
    assert found.std() > (0.1 if size > 1 else 0.01)
    orders = np.array([np.arange(size), np.arange(size)[::-1]])
    np.testing.assert_allclose(
        logsumexp(in_orders(host, density, every, orders), 0), 0.0, atol=1e-5
    )


def test_orders_are_turns_and_all_different(host):
    orders = host.module("densities.nade").orders_of(5, 4)
    np.testing.assert_array_equal(orders[:2], [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    assert len(np.unique(orders, axis=0)) == 4
    assert len(host.module("densities.nade").orders_of(2, 8)) == 2
    assert np.all(np.sort(host.module("densities.nade").orders_of(6, 12)) == np.arange(6))


def test_mean_over_orders_is_that_of_their_probabilities(host):
    density, every = built(host, "boolean", 3, num_orders=6), states("boolean", 3)
    orders = host.module("densities.nade").orders_of(3, 6)
    parts = in_orders(host, density, every, orders)
    np.testing.assert_allclose(
        log_probs(host, density, every), logsumexp(parts, 1) - np.log(6), atol=1e-5
    )
    assert np.ptp(parts, axis=1).max() > 0.05


@pytest.mark.parametrize(("kind", "value"), [("boolean", [1, 0, 1]), ("real", [2.1, -1.2, 0.4])])
def test_loss_is_the_mean_over_all_orders(host, kind, value):
    """Within four standard errors, which are far less than what the factor of `d` changes."""
    density, value, size = built(host, kind, 3), np.array(value, float), 3
    exact = -in_orders(host, density, value[None], np.array(list(permutations(range(size)))))
    context, many = np.tile(CONTEXT, (20_000, 1)), np.tile(value, (20_000, 1))

    def loss(value):
        key = [host.key(0)] if host.name == "numpyro" else []
        return density(host.array(context), 0).training_loss(value, *key)

    losses = np.array(host.compiled(loss)(host.array(many)).tolist())
    error = 4 * losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - exact.mean()) < error
    # Without D / (D - d + 1) it would be some (D + 1) / 2 D of it.
    assert exact.mean() * (1 - (size + 1) / (2 * size)) > 5 * error


@pytest.mark.parametrize("kind", ["boolean", "real"])
def test_nothing_leaks_from_the_unknown(host, kind):
    """And a known zero is not an unknown value."""
    density, size = built(host, kind, 4), 4
    value, known = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])

    def given(value, known):
        parts = (host.array(CONTEXT), 0, host.array(value), host.array(known))
        return np.array(density.outputs(*parts).tolist())

    before = given(value, known)
    for place in range(size):
        moved = np.array(value)
        moved[place] = 1 - moved[place]
        if known[place]:
            assert np.abs(given(moved, known) - before).max() > 1e-4
        else:
            np.testing.assert_array_equal(given(moved, known), before)
    assert np.abs(given(value, np.array([1.0, 0.0, 0.0, 0.0])) - before).max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_probabilities(host, kind):
    density, every = built(host, kind, 3), states(kind, 3)
    drawn, log_prob = host.density_draw(density, np.tile(CONTEXT, (4000, 1)))
    np.testing.assert_allclose(log_prob, log_probs(host, density, drawn), atol=1e-4)
    base = KINDS[kind][2] + 1
    number = (drawn @ base ** np.arange(3)[::-1]).round().astype(int)
    expected = 4000 * np.exp(log_probs(host, density, every))
    counts = np.bincount(number, minlength=len(every))
    assert chisquare(counts, expected * 4000 / expected.sum()).pvalue > LEAST_P_VALUE


@pytest.mark.compiles
@pytest.mark.parametrize("num_components", [1, 4])
def test_densities_of_real_vectors_integrate_to_one(host, num_components):
    """Together and in each order; one coordinate too."""
    axis = np.linspace(-9, 9, 181)
    plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    options = {"scale": 0.2, "num_components": num_components}
    density, orders = built(host, "real", 2, **options), np.array([[0, 1], [1, 0]])
    for found in (log_probs(host, density, plane), *in_orders(host, density, plane, orders).T):
        assert np.exp(found).sum() * 0.1**2 == pytest.approx(1.0, abs=1e-3)
    line = log_probs(host, built(host, "real", 1, **options), axis[:, None])
    assert np.exp(line).sum() * 0.1 == pytest.approx(1.0, abs=1e-3)


def test_mixtures_start_about_at_a_standard_normal(host, rng):
    spec, support = host.package.NADEDensity(), host.module("supports").Support("real")
    density = host.build_density(spec, 1, 2, 3, support=(support,))
    value = np.clip(1.5 * rng.normal(size=(50, 2)), -2, 2)
    np.testing.assert_allclose(
        log_probs(host, density, value), norm.logpdf(value).sum(1), atol=0.25
    )
    first, width = host.module("densities.nade").first_components(1)
    assert (first.tolist(), width) == ([0.0], 1.0)


@pytest.mark.compiles
def test_draws_of_real_vectors_follow_the_density(host):
    """Counts in a lattice whose cells have as much mass as a finer sum says."""
    density = built(host, "real", 2, num_components=3)
    drawn, kept = host.density_draw(density, np.tile(CONTEXT, (4000, 1)))
    np.testing.assert_allclose(kept, log_probs(host, density, drawn), atol=1e-3)
    edges = np.linspace(-4, 4, 321)
    middle = 0.5 * (edges[1:] + edges[:-1])
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(log_probs(host, density, grid)) * (edges[1] - edges[0]) ** 2
    mass = mass.reshape(16, 20, 16, 20).sum((1, 3)).ravel()
    counts = np.histogram2d(*drawn.T, bins=[edges[::20]] * 2)[0].ravel()
    is_own = 4000 * mass >= 5
    assert is_own.sum() > 10
    expected = np.append(mass[is_own], 1 - mass[is_own].sum()) * 4000
    counts = np.append(counts[is_own], 4000 - counts[is_own].sum())
    assert chisquare(counts, expected).pvalue > LEAST_P_VALUE


def test_values_off_the_support_have_no_probability(host):
    density = built(host, "boolean", 2)
    assert log_probs(host, density, np.array([[2.0, 0.0]]))[0] == -np.inf
    assert log_probs(host, density, np.array([[0.5, 0.0]]))[0] == -np.inf


def test_sites_side_by_side_have_their_own_numbers(host, rng):
    density = built(host, "boolean", 3, num_sites=2)
    context = rng.normal(size=(2, 5, 3))
    value = rng.integers(0, 2, size=(2, 5, 3)).astype(float)
    together = host.density_log_prob(density, context, value)
    for site in range(2):
        alone = host.density_log_prob(density, context[site], value[site], site)
        np.testing.assert_allclose(together[site], alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(*host.density_log_prob(density, context[[0, 0]], value[[0, 0]]))


def test_bad_options(host):
    with pytest.raises(ValueError, match="num_orders: expected at least 1, got 0"):
        host.package.NADEDensity(num_orders=0)
    with pytest.raises(ValueError, match="num_components: expected at least 1, got 0"):
        host.package.NADEDensity(num_components=0)
    model = host.models.poisson_count
    with pytest.raises(ValueError, match="its range has no upper bound, and NADEDensity cannot"):
        host.guide(model, observed="y", densities=host.package.NADEDensity()).setup()


@pytest.mark.compiles
def test_a_guide_is_trained_drawn_from_and_refused_by_bounds(host, tmp_path):
    model, package = host.models.switches, host.package
    spec = package.NADEDensity(hidden_dims=(8,), num_orders=2)
    guide = host.guide(model, observed="y", densities=spec)
    amortized = host.fit(model, guide, package.NPE(16), num_steps=5)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    y = host.simulate(model, 1)["y"][0]
    for each in (amortized, loaded):
        draws = host.sample(each.at(y=y), 50, seed=1)
        assert np.all(np.isfinite(host.log_prob(each.at(y=y), draws)))
    with pytest.raises(ValueError, match="and the gradient of IWAE is right for reparameterised"):
        host.fit(
            model,
            host.guide(model, observed="y", densities=spec),
            package.IWAE(4),
            args=(y,),
            num_steps=2,
        )


@pytest.mark.compiles
def test_a_guide_of_real_sites_in_plates_and_outside(host, tmp_path, rng):
    """Constrained events of several kinds: saved, scored as drawn, no path for a bound."""
    model, package = host.models.wide_supports, host.package
    spec = package.NADEDensity(hidden_dims=(8,), num_orders=2, num_components=3)
    guide = host.guide(model, observed="y", densities=spec)
    amortized = host.fit(model, guide, package.NPE(16), num_steps=5)
    assert np.all(np.isfinite(amortized.history.losses))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    y = host.array(rng.normal(size=3))
    draws = host.sample(amortized.at(y=y), 50, seed=1)
    assert len(np.unique(draws["box"])) == draws["box"].size
    before, after = (host.log_prob(each.at(y=y), draws) for each in (amortized, loaded))
    assert np.all(np.isfinite(before))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="and the gradient of IWAE is right for reparameterised"):
        host.fit(
            model,
            host.guide(model, observed="y", densities=spec),
            package.IWAE(4),
            args=(y,),
            num_steps=2,
        )
