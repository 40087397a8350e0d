"""Pointers to elements of a plate: any number of them, renumbered with them, none outside."""

import numpy as np
import pytest

from tests.problems import Outlier


def pointers(host, **options):
    return {"k": host.package.PointerDensity("rows", (8,), **options)}


def guide_of_outliers(host):
    return host.guide(
        host.models.outlier,
        observed="y",
        sizes={"num_rows": "rows"},
        densities=pointers(host),
    )


def probabilities(host, amortized, y, args=()):
    """Of every element at one data set."""
    numbers = np.arange(len(y))
    data = np.broadcast_to(y, (len(y), len(y)))
    found = host.site_log_probs(amortized, args, {"k": numbers}, {"y": data})["k"]
    return np.exp(found.reshape(-1).astype(float))


@pytest.mark.compiles
def test_every_size_and_every_order_of_the_elements(host, rng):
    """Sums of one, probabilities that move with their elements, and other sizes than at set-up."""
    amortized = host.scrambled(host.models.outlier, guide_of_outliers(host), None, 8, scale=0.2)
    for size in (8, 3, 20):
        y = rng.normal(size=size)
        found = probabilities(host, amortized, y, (None, size))
        assert found.sum() == pytest.approx(1.0, abs=1e-5)
        assert found.std() > 1e-3 / size
        order = rng.permutation(size)
        moved = probabilities(host, amortized, y[order], (None, size))
        np.testing.assert_allclose(moved, found[order], rtol=1e-4, atol=1e-6)
        posterior = amortized.at(host.array(y), size)
        draws = host.sample(posterior, 200)["k"]
        assert set(np.unique(draws)) <= set(range(size))
        assert len(np.unique(draws)) > 1
    log_q = host.log_prob(posterior, {"k": np.arange(20)})
    np.testing.assert_allclose(np.exp(log_q), found, rtol=1e-3, atol=1e-5)


def built(host, num_sites=1, scale=0.5):
    support = host.module("supports").Support("categorical", 0, 4)
    spec = host.package.PointerDensity("rows", (8,))
    density = host.build_density(spec, num_sites, 1, 3, support=(support,))
    return host.scrambled_density(density, scale)


def test_probabilities_are_a_softmax_over_the_elements(host, rng):
    density = built(host, num_sites=2)
    context = rng.normal(size=(2, 6, 5, 3))
    every = np.stack(
        [
            host.density_log_prob(density, context, np.full((2, 6, 1), float(number)))
            for number in range(5)
        ]
    )
    np.testing.assert_allclose(np.exp(every).sum(0), 1.0, rtol=1e-5)
    outside = host.density_log_prob(density, context, np.full((2, 6, 1), 5.0))
    assert np.all(outside == -np.inf)
    alone = host.density_log_prob(density, context[1], np.full((6, 1), 2.0), 1)
    np.testing.assert_allclose(alone, every[2, 1], rtol=1e-5, atol=1e-6)


def test_draws_have_their_probabilities(host, rng):
    """Within 4.5 standard errors for each of five elements."""
    density, context = built(host), rng.normal(size=(5, 3))
    drawn, log_prob = host.density_draw(density, np.broadcast_to(context, (4000, 5, 3)))
    counts = np.bincount(drawn[:, 0].astype(int), minlength=5) / 4000
    every = [
        host.density_log_prob(density, context, np.array([float(number)]), 0) for number in range(5)
    ]
    expected = np.exp(every)
    assert np.all(np.abs(counts - expected) < 4.5 * np.sqrt(expected / 4000))
    np.testing.assert_allclose(np.exp(log_prob), expected[drawn[:, 0].astype(int)], rtol=1e-4)


def test_far_scores_have_gradients(host):
    density = built(host, scale=30.0)
    flow = density(host.array(np.random.default_rng(0).normal(size=(5, 3))), 0)
    for number in (0.0, 9.0):
        found = np.asarray(host.compiled(flow.log_prob)(host.array(np.array([number]))).tolist())
        assert np.isfinite(found) == (number < 5)


@pytest.mark.compiles
def test_a_pointer_in_each_element_of_another_plate(host, tmp_path, rng):
    """Trained, saved, read by a later site, scored as drawn."""
    model, package = host.models.outliers_of_sets, host.package
    guide = host.guide(model, observed="y", densities=pointers(host))
    amortized = host.fit(model, guide, package.NPE(16), num_steps=3)
    assert np.all(np.isfinite(amortized.history.losses))
    amortized.save(tmp_path / "guide.safetensors")
    loaded = package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    y = rng.normal(size=(3, 5))
    draws = host.sample(loaded.at(y=host.array(y)), 100)
    assert draws["k"].shape[:2] == (100, 3)
    log_q = host.log_prob(loaded.at(y=host.array(y)), draws)
    parts = host.site_log_probs(amortized, (), draws, {"y": np.broadcast_to(y, (100, 3, 5))})
    total = sum(part.reshape(100, -1).sum(1) for part in parts.values())
    np.testing.assert_allclose(log_q, total, rtol=1e-4, atol=1e-4)


@pytest.mark.compiles
def test_hosts_enumerate_it(host):
    """A scalar label is the host's own Categorical, over the elements of the call."""
    amortized = host.scrambled(host.models.outlier, guide_of_outliers(host), None, 8, scale=0.2)
    y = host.array(np.linspace(-1, 1, 6))
    fn = host.site_fn(amortized, "k", y, 6)
    assert type(fn).__name__.startswith("Categorical")
    assert np.asarray(fn.enumerate_support()).reshape(-1).tolist() == list(range(6))


REFUSED = {
    ("outlier", "k", "columns"): r"the model has no such plate; its plates are \['rows'\]",
    ("mixture_assignments", "z", "rows"): "the site is inside it, and its elements cannot point at",
    ("outliers_of_sets", "k", "sets"): "the site is inside it, and its elements cannot point at",
    ("hierarchical_normal", "mu", "groups"): "its values are not whole numbers from 0 up to a lar",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_points_nowhere_is_refused(host, case):
    name, site, into = case
    densities = {site: host.package.PointerDensity(into)}
    guide = host.guide(getattr(host.models, name), observed="y", densities=densities)
    message = f"densities: site '{site}': cannot point into plate '{into}': {REFUSED[case]}"
    with pytest.raises(ValueError, match=message):
        guide.setup()


def test_without_a_pointer_the_elements_are_no_plate(host):
    """What pointers are for: they are alike only if the number of the one moves with them."""
    guide = host.guide(host.models.outlier, observed="y")
    with pytest.raises(ValueError, match="plate 'rows': its elements are not exchangeable at site"):
        guide.setup()


def test_shapes_that_it_cannot_follow_are_refused(host):
    module = host.module("structure")
    support = host.module("supports").Support
    spec, label = host.package.PointerDensity("rows"), support("categorical", 0, 3)

    def problem(event_shape=(), observed=("rows",), **options):
        site = module.SiteInfo("k", event_shape, support=label)
        rows = module.PlateInfo("rows", -1, 4, **options)
        others = module.PlateInfo("columns", -2, 2)
        structure = module.ModelStructure(
            latents=(site,),
            observed=(module.SiteInfo("y", (), observed),),
            plates={"rows": rows, "columns": others},
        )
        return spec.problem_at(site, structure)

    assert problem() is None
    assert problem((2,)) == "has several values, and each needs a site of its own to be a pointer"
    assert "is subsampled, so that the element may" in problem(is_subsampled=True)
    message = "no observed site is in the plates ['rows'] and no others"
    assert problem(observed=("rows", "columns")) == message
    assert spec.problem(label) is None
    for other in (support("real"), support("nonnegative_integer", 0), support("categorical", 1, 3)):
        assert spec.problem(other) == "its values are not whole numbers from 0 up to a largest one"
    few = module.SiteInfo("k", (), support=support("categorical", 0, 2))
    found = host.module("discrete").pointer_problems(
        {"k": "rows"}, [few], {"rows": module.PlateInfo("rows", -1, 4)}
    )
    assert found == [
        "densities: site 'k': cannot point into plate 'rows': it has 3 values, and the plate 4 "
        "elements"
    ]
    guide = host.guide(host.models.outlier, observed="y", densities=spec)
    with pytest.raises(ValueError, match="densities: expected a site by name for PointerDensity"):
        guide.setup()


@pytest.mark.compiles
def test_later_sites_that_read_it_fix_the_size(host):
    check = host.module("densities.pointer").check_number_of_rows
    guide = host.guide(host.models.outliers_of_sets, observed="y", densities=pointers(host)).setup()
    structure = guide.structure
    site = structure.site("k")
    assert [other.name for other in structure.latents if "k" in other.parents] == ["mean"]
    check(structure, site, "rows", 5)
    with pytest.raises(ValueError, match="site 'k': expected 5 elements of plate 'rows', as at"):
        check(structure, site, "rows", 6)


def test_the_problem_is_what_it_says():
    problem = Outlier(num_rows=4)
    _, data = problem.sample_joint(np.random.default_rng(0), 50)
    np.testing.assert_allclose(np.exp(problem.log_probs(data)).sum(1), 1.0)
