"""Guides that follow the plates: index vectors, crossed plates, several levels, ragged groups."""

import numpy as np
import pytest

from tests.backends import small_guide
from tests.problems import PROBLEMS

CROSSED, GROUPED = PROBLEMS["crossed_effects"], PROBLEMS["grouped_normal"]
SIZES = {"num_rows": "rows", "num_columns": "columns"}
INDICES = {"row": ("rows", "cells"), "column": ("columns", "cells")}


def cells(num_rows, num_columns):
    """Index vectors of a full grid, rows first."""
    return np.repeat(np.arange(num_rows), num_columns), np.tile(np.arange(num_columns), num_rows)


def grouped(host, group=GROUPED.group, num_groups=GROUPED.num_groups, **options):
    guide = small_guide(
        host,
        host.models.grouped_normal,
        observed="y",
        groups={"group": ("groups", "rows")},
        sizes={"num_groups": "groups"},
        **options,
    )
    return host.models.grouped_normal, guide, (host.array(group), num_groups)


def with_weights_of(host, amortized, model, guide, *args):
    """A guide of another model with the same networks and constants."""
    other = host.untrained(model, guide, *args)
    if host.name == "pyro":
        other.guide.load_state_dict(
            {
                name: value
                for name, value in amortized.guide.state_dict().items()
                if not name.endswith("_extra_state")
            },
            strict=False,
        )
        return other
    return host.package.AmortizedPosterior(model, guide, params=amortized.params)


@pytest.mark.compiles
def test_a_grid_and_its_cells_by_index_get_the_same_posterior(host, rng):
    models = host.models
    size = CROSSED.num_rows, CROSSED.num_columns
    latents, data = CROSSED.sample_joint(rng, 1)
    grid = small_guide(host, models.crossed_effects, observed="y", sizes=SIZES)
    scrambled = host.scrambled(models.crossed_effects, grid, *size, scale=0.05)
    order = rng.permutation(len(cells(*size)[0]))  # cells in any order
    args = tuple(host.array(index[order]) for index in cells(*size)) + size
    flat = small_guide(host, models.crossed_effects_flat, observed="y", groups=INDICES, sizes=SIZES)
    other = with_weights_of(host, scrambled, models.crossed_effects_flat, flat, *args)
    dense = host.log_prob(scrambled.at(*size, y=host.array(data["y"][0])), latents)
    latents["a"] = latents["a"][..., 0]
    y = host.array(data["y"][0].ravel()[order])
    sparse = host.log_prob(other.at(*args, y=y), latents)
    np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-4)


def test_crossed_posteriors_follow_permuted_rows_and_columns(host, rng):
    model = host.models.crossed_effects
    guide = small_guide(host, model, observed="y", sizes=SIZES)
    amortized = host.scrambled(model, guide, 9, 6, scale=0.05)
    latents, data = CROSSED.sample_joint(rng, 1)
    rows, columns = rng.permutation(9), rng.permutation(6)
    before = host.log_prob(amortized.at(9, 6, y=host.array(data["y"][0])), latents)
    moved = {"a": latents["a"][:, rows], "b": latents["b"][:, columns]}
    y = host.array(data["y"][0][rows][:, columns])
    np.testing.assert_allclose(
        host.log_prob(amortized.at(9, 6, y=y), moved), before, rtol=1e-4, atol=1e-4
    )
    # Elements of `a` moved against their data are another posterior.
    alone = {"a": latents["a"][:, rows], "b": latents["b"]}
    assert abs(host.log_prob(amortized.at(9, 6, y=host.array(data["y"][0])), alone) - before) > 0.01


@pytest.mark.compiles
def test_crossed_draws_have_the_density_that_scores_them(host, rng):
    """Correlated elements too: the guide's own density of its own draws integrates to one."""
    model = host.models.crossed_effects
    guide = small_guide(
        host, model, observed="y", sizes=SIZES, densities=host.package.NormalDensity()
    )
    amortized = host.scrambled(model, guide, 3, 2, scale=0.05)
    y = host.array(rng.normal(size=(3, 2)))
    draws = host.sample(amortized.at(3, 2, y=y), 20000)
    values = np.concatenate([draws["a"][:, :, 0], draws["b"]], axis=1)
    log_q = host.log_prob(amortized.at(3, 2, y=y), draws)
    mean, covariance = values.mean(0), np.cov(values.T)
    deviation = values - mean
    quadratic = np.einsum("ni,ij,nj->n", deviation, np.linalg.inv(covariance), deviation)
    normal = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])
    # Not normal exactly (`a` reads `b` through networks): E exp(log normal - log q) is 1 for any.
    assert np.exp(normal - log_q).mean() == pytest.approx(1.0, abs=0.05)


def test_structure_of_crossed_plates_is_printed(host):
    guide = host.guide(host.models.crossed_effects, observed="y", sizes=SIZES)
    text = str(guide.setup(3, 2).structure)
    assert "b ['columns'] | y (elements coupled through a: to one rank)" in text
    assert "a ['rows'] | b, y (own rows)" in text


def test_groups_follow_a_new_numbering_and_the_order_of_rows(host, rng):
    model, guide, args = grouped(host)
    amortized = host.scrambled(model, guide, *args, scale=0.1)
    latents, data = GROUPED.sample_joint(rng, 4)
    y = data["y"][0]
    before = host.log_prob(amortized.at(*args, y=host.array(y)), latents)
    number, rows = rng.permutation(GROUPED.num_groups), rng.permutation(len(y))
    renumbered = np.argsort(number)[GROUPED.group][rows]
    moved = {**latents, "theta": latents["theta"][:, number]}
    posterior = amortized.at(host.array(renumbered), args[1], y=host.array(y[rows]))
    np.testing.assert_allclose(host.log_prob(posterior, moved), before, rtol=1e-4, atol=1e-4)


def test_an_empty_group_changes_no_other_posterior(host, rng):
    model, guide, args = grouped(host)
    amortized = host.scrambled(model, guide, *args, scale=0.1)
    amortized.history = None  # no warning about sizes
    latents, data = GROUPED.sample_joint(rng, 4)
    y = host.array(data["y"][0])
    whole = host.site_log_probs(amortized, args, latents, {"y": np.tile(data["y"][0], (4, 1))})
    more = {**latents, "theta": np.append(latents["theta"], rng.normal(size=(4, 1)), axis=1)}
    bigger = (args[0], args[1] + 1)
    found = host.site_log_probs(amortized, bigger, more, {"y": np.tile(data["y"][0], (4, 1))})
    for name in ("mu", "tau"):
        np.testing.assert_allclose(found[name].ravel(), whole[name].ravel(), rtol=1e-4, atol=1e-4)
    theta = found["theta"].reshape(4, -1)
    np.testing.assert_allclose(theta[:, :-1], whole["theta"].reshape(4, -1), rtol=1e-4, atol=1e-4)
    draws = host.sample(amortized.at(*bigger, y=y), 5)
    assert draws["theta"].shape == (5, GROUPED.num_groups + 1)


@pytest.mark.compiles
def test_weights_marginalise_the_groups(host, rng):
    """Joint and marginalised weights estimate one evidence; the latter spread less."""
    model, guide, args = grouped(host)
    amortized = host.scrambled(model, guide, *args, scale=0.02)
    assert guide.structure.local_plates() == ("groups",)
    _, data = GROUPED.sample_joint(rng, 1)
    posterior = amortized.at(*args, y=host.array(data["y"][0]))
    found = host.importance_sample(posterior, 4000)
    summary, exact = found.summary, GROUPED.log_evidence({"y": data["y"]})[0]
    assert abs(summary.log_evidence - exact) < 5 * summary.log_evidence_se + 0.05
    draws = host.sample(posterior, 4000)
    joint = host.log_joint(posterior, draws) - host.log_prob(posterior, draws)
    own = host.importance_sample(posterior, 4000, defensive_fraction=0)
    assert own.log_weights.std() < joint.std()
    assert found.samples["theta"].shape == (4000, GROUPED.num_groups)


@pytest.mark.compiles
def test_three_levels_by_index(host, rng):
    model = host.models.three_levels
    class_of, school_of = np.array([0, 0, 1, 2, 2, 3, 4]), np.array([0, 0, 1, 1, 1])
    guide = small_guide(
        host,
        model,
        observed="y",
        groups={"class_of": ("classes", "pupils"), "school_of": ("schools", "classes")},
        sizes={"num_classes": "classes", "num_schools": "schools"},
    )
    args = (host.array(class_of), host.array(school_of), 5, 2)
    amortized = host.scrambled(model, guide, *args, scale=0.05)
    levels = [level.plates for level in guide.structure.levels(guide.structure.site("y"))]
    assert levels == [("pupils",), ("classes",), ("schools",), ()]
    assert guide.structure.local_plates() == ("schools",)
    y = rng.normal(size=7)
    posterior = amortized.at(*args, y=host.array(y))
    draws = host.sample(posterior, 3)
    assert draws["school"].shape == (3, 2)
    assert draws["klass"].shape == (3, 5)
    # Numbering schools the other way round changes nothing but their order.
    turned = (args[0], host.array(1 - school_of), 5, 2)
    moved = {**draws, "school": draws["school"][:, ::-1]}
    np.testing.assert_allclose(
        host.log_prob(amortized.at(*turned, y=host.array(y)), moved),
        host.log_prob(posterior, draws),
        rtol=1e-4,
        atol=1e-4,
    )
    assert host.importance_sample(posterior, 100).log_weights.shape == (100,)


def test_saved_with_its_index_vectors(host, rng, tmp_path):
    model, guide, args = grouped(host)
    amortized = host.scrambled(model, guide, *args, scale=0.1)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    latents, data = GROUPED.sample_joint(rng, 2)
    y = host.array(data["y"][0])
    np.testing.assert_allclose(
        host.log_prob(loaded.at(*args, y=y), latents),
        host.log_prob(amortized.at(*args, y=y), latents),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, "if it is an index vector, groups={'group': (plate it points into"),
        ({"country": ("groups", "rows")}, "groups 'country': the call has no such argument"),
        ({"group": ("counties", "rows")}, "groups 'group': no site is in a plate called"),
        ({"num_groups": ("groups", "rows")}, "groups 'num_groups': expected an array of whole"),
    ],
)
def test_index_vectors_that_do_not_fit_the_model(host, groups, expected):
    guide = host.guide(
        host.models.grouped_normal,
        observed="y",
        groups=groups,
        sizes={"num_groups": "groups"},
    )
    with pytest.raises(ValueError, match="cannot be built for this model") as caught:
        guide.setup(host.array(GROUPED.group), GROUPED.num_groups)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([0, 1, 9], "groups 'group': expected indices from 0 to 7 into plate 'groups' of size 8"),
        ([0.0, 1.0, 2.0], "groups 'group': expected an array of whole numbers"),
        ([[0, 1], [2, 3]], "groups 'group': expected one index for each row of plate 'rows'"),
    ],
)
def test_index_vectors_that_do_not_fit_the_call(host, index, expected):
    model, guide, args = grouped(host)
    amortized = host.untrained(model, guide, *args)
    with pytest.raises(ValueError, match=expected):
        amortized.at(host.array(index), 8, y=host.array(np.zeros(len(index)))).sample(2)


def test_index_vector_that_the_model_does_not_use(host):
    """A shifted index would pool the wrong rows: found by changing one group."""
    import functools

    model = host.models.grouped_normal

    @functools.wraps(model)
    def shifted(group, num_groups, y=None):
        return model((group + 1) % num_groups, num_groups, y)

    guide = host.guide(
        shifted,
        observed="y",
        groups={"group": ("groups", "rows")},
        sizes={"num_groups": "groups"},
    )
    with pytest.raises(ValueError, match="element 0 of site 'theta' changes site 'y' at rows"):
        guide.setup(host.array(GROUPED.group), GROUPED.num_groups)


def test_two_indices_into_one_plate_are_refused(host):
    guide = host.guide(
        host.models.two_indices,
        observed="y",
        groups={"first": ("teams", "games"), "second": ("teams", "games")},
        sizes={"num_teams": "teams"},
    )
    with pytest.raises(ValueError, match="a second index vector from plate 'games' into 'teams'"):
        guide.setup(host.array([0, 1, 2]), host.array([1, 2, 0]), 3)
