"""Latents that read many elements: sets in any order, masks, positions, cost."""

import time

import numpy as np
import pytest

from tests import backends
from tests.backends import numpy_tree
from tests.conftest import require

pytestmark = pytest.mark.compiles  # `tests/parity/` has the numbers in NumPyro too

SMALL = {"num_channels": 8, "num_latents": 3, "num_cross": 1, "num_blocks": 1, "num_bands": 3}


def event_of(host, event_shape, *, is_masked=False, **options):
    """The network on whole events, with its moments."""
    spec = host.package.PerceiverEmbedding(feature_dim=4, **(SMALL | options))
    spec = spec.for_masked_events("y") if is_masked else spec
    keys = () if host.name == "pyro" else (host.key(0),)
    host.seed(0) if host.name == "pyro" else None
    return spec.build(event_shape, 0, [], *keys).event


def features(host, event, values, there=None):
    flat = values.reshape(len(values), -1)
    if there is not None:
        flat = np.concatenate([flat, np.broadcast_to(there, values.shape).reshape(flat.shape)], 1)
    run = host.compiled(lambda array: event(array)[0])
    return numpy_tree(run(host.array(flat.astype(float))))


def test_a_set_has_no_order_and_no_count(host, rng):
    """Copies of all elements are not seen by softmax weights."""
    values = rng.normal(size=(2, 6, 2))
    expected = features(host, event_of(host, (6, 2)), values)
    moved = features(host, event_of(host, (6, 2)), values[:, rng.permutation(6)])
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    twice = features(host, event_of(host, (12, 2)), np.concatenate([values, values], 1))
    np.testing.assert_allclose(twice, expected, atol=1e-5)


def test_what_a_mask_hides_changes_nothing_and_the_count_is_seen(host, rng):
    values, there = rng.normal(size=(3, 6)), np.arange(6) < np.array([[6], [2], [0]])
    event = event_of(host, (6,), is_masked=True)
    expected = features(host, event, np.where(there, values, 0.0), there)
    assert np.isfinite(expected).all()
    for filling in (9.0, 1e6):
        found = features(host, event, np.where(there, values, filling), there)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    longer = np.pad(values, ((0, 0), (0, 4)))
    padded = features(
        host, event_of(host, (10,), is_masked=True), longer, np.pad(there, ((0, 0), (0, 4)))
    )
    np.testing.assert_allclose(padded, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected[:, -1], np.log1p(there.sum(1)), rtol=1e-6)
    alone = features(
        host, event_of(host, (2,), is_masked=True), values[1:2, :2], np.ones((1, 2), bool)
    )
    np.testing.assert_allclose(alone[0], expected[1], rtol=1e-5, atol=1e-5)


def test_every_element_that_is_there_has_a_gradient(host, rng):
    values, there = rng.normal(size=6), np.arange(6) < 4
    event = event_of(host, (6,), is_masked=True)
    mask = host.array(there.astype(float)[None])
    join = host.module("pooling").join_features
    run = host.compiled(lambda value: (event(join([value[None], mask]))[0] ** 2).sum())
    gradient = host.gradient(run, values)
    assert np.all(np.abs(gradient[:4]) > 0)
    assert np.all(gradient[4:] == 0)
    run = host.compiled(lambda value: (event(join([value[None], 0 * mask]))[0] ** 2).sum())
    np.testing.assert_array_equal(host.gradient(run, values), 0.0)


def test_weights_of_what_is_there_add_up_to_one(host, rng):
    """A mask after the softmax would not return a constant."""
    attend = host.module("attention").attend
    queries, keys = (host.array(10 * rng.normal(size=(2, num, 2, 4))) for num in (3, 5))
    values = host.array(np.full((2, 5, 2, 4), 1.5))
    present = host.array(np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool))
    found = numpy_tree(attend(queries, keys, values, present))
    np.testing.assert_allclose(found[0], 1.5, rtol=1e-6)
    np.testing.assert_array_equal(found[1], 0.0)


@pytest.mark.parametrize(("positions", "event_shape"), [("time", (6,)), ("grid", (2, 3, 4))])
def test_positions_matter(host, rng, positions, event_shape):
    event = event_of(host, event_shape, positions=positions)
    values = rng.normal(size=(1, *event_shape))
    both = np.concatenate([values, values[..., ::-1]])
    found = features(host, event, both)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_features_of_positions(host):
    positions = host.module("embeddings.perceiver").Positions("grid", 9, 3, has_times=False)
    places = np.array([[-1.0, 0.25], [0.5, 1.0]])
    found = numpy_tree(positions.features(host.array(places)))
    angles = (np.pi * places[..., None] * np.array([1.0, 2.75, 4.5])).reshape(2, -1)
    expected = np.concatenate([np.sin(angles), np.cos(angles), places], -1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert positions.size == 14


def test_a_series_at_times_of_its_own(host):
    spec = host.package.PerceiverEmbedding("time", 4, times="times", **SMALL)
    guide = host.guide(
        host.models.slopes,
        observed="y",
        embedding=spec,
        densities=host.package.NormalDensity(hidden_dims=(8,)),
        inputs={"times": "rows"},
        missing={"is_there": "y"},
    )
    rng = np.random.default_rng(0)
    times, there = np.cumsum(rng.uniform(size=(3, 5)), -1), rng.uniform(size=(3, 5)) < 0.7
    amortized = host.scrambled(
        host.models.slopes, guide, host.array(times), host.array(there), scale=0.2
    )
    y, latents = host.array(rng.normal(size=(3, 5))), {"slope": rng.normal(size=(4, 3))}

    def found(times):
        return host.log_prob(amortized.at(host.array(times), host.array(there), y=y), latents)

    expected = found(times)
    np.testing.assert_allclose(found(np.where(there, times, -3.0)), expected, rtol=1e-5)
    assert np.abs(found(times + 0.5 * (np.arange(5) > 2)) - expected).max() > 1e-4


@pytest.mark.slow
def test_cost_is_linear_in_the_elements():
    """Four times the elements in less than six times the time; the square would be 16 times."""
    require("pyro")
    host = backends.host("pyro")
    import torch

    def seconds(num):
        event = event_of(host, (num,), num_channels=64, num_latents=16)
        values = torch.randn(4, num)
        runs = []
        with torch.no_grad():
            for _ in range(12):
                start = time.perf_counter()
                event(values)
                runs.append(time.perf_counter() - start)
        return min(runs)

    assert seconds(4096) / seconds(1024) < 6


@pytest.mark.parametrize(
    ("options", "event_shape", "match"),
    [
        ({"positions": "space"}, None, "expected positions='none', 'time' or 'grid', got positio"),
        ({"times": "t"}, None, "expected positions='time' with times='t', got positions='none'"),
        ({"num_latents": 0}, None, "expected num_latents of 1 or more, got 0; raise it"),
        ({"num_channels": 6}, None, "num_channels: expected a multiple of num_heads, 1 or more"),
        ({}, (2, 3, 4), r"expected an event of shape \(M,\) or \(M, d\) with positions='none'"),
        ({}, (0,), r"expected an event of shape \(M,\) or \(M, d\) with positions='none', got"),
        ({"positions": "grid"}, (5,), r"expected an event of shape \(H, W\) or \(C, H, W\) with"),
    ],
)
def test_what_is_refused(host, options, event_shape, match):
    with pytest.raises(ValueError, match=match):
        host.package.PerceiverEmbedding(**options).num_skipped(event_shape)
