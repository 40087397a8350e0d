"""Plates pooled by attention: any order, any mask, groups by index vectors, the empty set."""

import numpy as np
import pytest
from scipy.special import softmax

from tests.backends import numpy_tree, small

pytestmark = pytest.mark.compiles  # `tests/parity/` has the numbers in NumPyro too

GROUP = np.array([2, 0, 2, 0, 0, 3])  # nobody in the second of four
HEADS, READERS, SIZE = 2, 3, 4


def pooling_of(host, like, *, group=None, present=None):
    """Rows of a plate, pooled whole or by an index vector into four groups."""
    structure, levels = host.module("structure"), host.module("levels")
    if group is None:
        dims, groups, wanted = {"rows": -1}, (), [()]
    else:
        dims, groups = {"groups": -1, "rows": -1}, (levels.GroupInfo("group", "groups", "rows"),)
        wanted = [("groups",)]
    plates = {name: structure.PlateInfo(name, dim, 1) for name, dim in dims.items()}
    model = structure.ModelStructure(latents=(), observed=(), plates=plates, groups=groups)
    found = levels.pooling_levels(("rows",), wanted, dims, groups)
    indices = {} if group is None else {"group": host.array(group)}
    mask = None if present is None else host.array(present[:, None])
    return host.module("pooling").Pooling(
        model, found, host.array(like), indices, {"groups": 4}, {}, mask
    )


def built(host, num_blocks=2):
    kind = host.module("embeddings.set_attention").SetAttention
    if host.name == "pyro":
        host.seed(0)
        return kind(4, 2, 3, num_blocks)
    return kind(4, 2, 3, num_blocks, host.key(0))


def pooled(host, network, rows, **options):
    pooling = pooling_of(host, rows, **options)
    return numpy_tree(host.compiled(lambda value: network(value, 1, pooling))(host.array(rows)))


def test_weights_are_a_softmax_over_the_rows_that_are_there(host, rng):
    """Against NumPy; a mask after the softmax would not return a constant."""
    scores = 50 * rng.normal(size=(6, HEADS, READERS))
    values = rng.normal(size=(6, HEADS, SIZE))
    there = np.array([True, False, True, True, True, True])
    for group in (None, GROUP):
        pooling = pooling_of(host, scores[:, 0], group=group, present=there)
        found = numpy_tree(pooling.attend(1, host.array(scores), host.array(values)))
        for number in range(1 if group is None else 4):
            own = there & (True if group is None else group == number)
            weights = softmax(scores[own], axis=0) if own.any() else scores[own]
            expected = np.einsum("nhr,nhs->rhs", weights, values[own])
            np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-5)
        constant = host.array(np.full_like(values, 1.5))
        found = numpy_tree(pooling.attend(1, host.array(scores), constant))
        full = slice(None) if group is None else [0, 2, 3]
        np.testing.assert_allclose(found[full], 1.5, rtol=1e-5)


def test_order_and_masked_rows_change_nothing(host, rng):
    network, rows = built(host), rng.normal(size=(6, 4))
    expected = pooled(host, network, rows)
    order = rng.permutation(6)
    np.testing.assert_allclose(pooled(host, network, rows[order]), expected, atol=1e-5)
    changed = rows.copy()
    changed[3, 0] += 1.0  # all four would be the same to the norm
    assert np.abs(pooled(host, network, changed) - expected).max() > 1e-4
    for filling in (0.0, 1e6):
        more = np.concatenate([rows, np.full((3, 4), filling)])
        found = pooled(host, network, more, present=np.arange(9) < 6)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_each_group_is_pooled_as_if_it_were_alone(host, rng):
    network, rows = built(host, 1), rng.normal(size=(6, 4))
    found = pooled(host, network, rows, group=GROUP)
    for number in (0, 3):
        alone = pooled(host, network, rows[number == GROUP])
        np.testing.assert_allclose(found[number], alone[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found).all()  # the empty one too


def test_nothing_to_read_is_finite_and_so_is_its_gradient(host, rng):
    network, rows = built(host, 1), rng.normal(size=(6, 4))
    nobody = np.zeros(6, bool)
    pooling = pooling_of(host, rows, present=nobody)
    first = pooled(host, network, rows, present=nobody)
    np.testing.assert_array_equal(pooled(host, network, rows**2, present=nobody), first)
    assert np.isfinite(first).all()
    run = host.compiled(lambda value: network(value, 1, pooling).sum())
    np.testing.assert_array_equal(host.gradient(run, rows), 0.0)
    some = pooling_of(host, rows, present=np.arange(6) < 2)
    run = host.compiled(lambda value: network(value, 1, some).sum() ** 2)
    gradient = host.gradient(run, rows)
    assert np.isfinite(gradient).all()
    assert np.all(gradient[:2] != 0)
    assert np.all(gradient[2:] == 0)


def test_copies_of_all_rows_are_not_seen_by_attention_alone(host, rng):
    """Which is why the counts are pooled beside it."""
    network, rows = built(host), rng.normal(size=(6, 4))
    twice = pooled(host, network, np.concatenate([rows, rows]))
    np.testing.assert_allclose(twice, pooled(host, network, rows), rtol=1e-5, atol=1e-5)


def test_a_guide_that_pools_by_attention(host, tmp_path):
    """Trained, saved, with groups, a row more in another group, and no data at all."""
    attention = host.package.PlateEmbedding(
        8, (8,), pooling="attention", num_heads=2, num_inducing=3, num_blocks=1
    )
    model = host.models.rows_of_any_number
    options = small(host, embedding=attention, missing="y", sizes={"num_rows": "rows"})
    guide = host.guide(model, observed="y", **options)
    sizes = host.model_args(lambda rng: (int(rng.integers(5, 8)),))
    objective = host.package.NPE(16, missing=0.5, model_args=sizes)
    amortized = host.fit(model, guide, objective, num_steps=8)
    assert np.isfinite(amortized.history.losses).all()
    y, latents = np.array([0.5, -1.0, np.nan, 2.0, 0.3, 1.0]), {"z": np.linspace(-2, 2, 5)}

    def found(answer, y):
        return host.log_prob(answer.at(len(y), y=host.array(y)), latents)

    expected = found(amortized, y)
    np.testing.assert_allclose(found(amortized, y[::-1].copy()), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found(amortized, np.append(y, np.nan)), expected, rtol=1e-5, atol=1e-5
    )
    nothing = found(amortized, np.full(6, np.nan))
    assert np.isfinite(nothing).all()
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    np.testing.assert_allclose(found(loaded, y), expected, rtol=1e-6)


def test_heads_that_do_not_divide_the_features(host):
    spec = host.package.PlateEmbedding(feature_dim=6, pooling="attention")
    guide = host.guide(host.models.conjugate_normal, observed="x", embedding=spec)
    with pytest.raises(ValueError, match="feature_dim: expected a multiple of num_heads, 1 or mo"):
        guide.setup()


def test_another_kind_of_pooling(host):
    with pytest.raises(ValueError, match="expected pooling='mean' or pooling='attention', got"):
        host.package.PlateEmbedding(pooling="max")
