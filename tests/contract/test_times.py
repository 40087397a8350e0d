"""Series at times of their own: what the network reads of them, and what is refused."""

import numpy as np
import pytest

from tests.backends import numpy_tree, small
from tests.problems import PROBLEMS

SLOPES = PROBLEMS["slopes"]
TIMES = SLOPES.times[:3, :5]
THERE = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 1, 0, 0, 0]], bool)


def test_what_is_read_of_times(host):
    """The time, and the time since the last step that is there, in units of an even gap."""
    channels = host.module("embeddings.pooled_features")._time_channels
    found = numpy_tree(channels(host.array(TIMES)))
    gaps = 5 * np.diff(TIMES, axis=1, prepend=TIMES[:, :1])
    np.testing.assert_allclose(found, np.arcsinh(np.stack([TIMES, gaps], -1)), rtol=1e-5)
    found = numpy_tree(channels(host.array(TIMES), host.array(THERE)))
    for row in range(3):
        own = TIMES[row, THERE[row]]
        gaps = 5 * np.diff(own, prepend=own[:1])
        expected = np.arcsinh(np.stack([own, gaps], -1))
        np.testing.assert_allclose(found[row, THERE[row]], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[row, ~THERE[row]], 0.0)


def guide_of(host, spec=None, **options):
    spec = spec or host.package.SequenceEmbedding(num_channels=4, num_layers=2, times="times")
    options = small(host, embedding=spec, inputs={"times": "rows"}, **options)
    return host.guide(host.models.slopes, observed="y", **options)


def test_all_steps_have_one_location_and_scale(host):
    """Else even times would all be the same after each has been standardised by itself."""
    times = np.tile(np.arange(1.0, 6.0), (3, 1))
    guide = guide_of(host).setup(host.array(times))
    if host.name == "pyro":
        kind = host.module("standardisation").Standardisation
        constants = kind.from_vector(guide.structure, guide.standardisation)
    else:
        constants = guide._weights.unpack(guide.init_params())[1]
    loc, scale = (numpy_tree(part) for part in constants.inputs["times"])
    np.testing.assert_allclose(loc, 3.0, rtol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(2.0), rtol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        "convolution",
        pytest.param("recurrent", marks=pytest.mark.compiles),
        pytest.param("transformer", marks=pytest.mark.compiles),
    ],
)
def test_times_of_hidden_steps_do_not_matter_and_others_do(host, kind, tmp_path):
    spec = host.package.SequenceEmbedding(kind, num_channels=4, num_layers=1, times="times")
    guide = guide_of(host, spec, missing={"is_there": "y"})
    times, y = host.array(TIMES), np.random.default_rng(0).normal(size=(3, 5))
    amortized = host.scrambled(host.models.slopes, guide, times, host.array(THERE), scale=0.2)
    latents = {"slope": np.random.default_rng(1).normal(size=(4, 3))}

    def found(times, answer=amortized):
        args = host.array(times), host.array(THERE)
        return host.log_prob(answer.at(*args, y=host.array(y)), latents)

    expected = found(TIMES)
    np.testing.assert_allclose(found(np.where(THERE, TIMES, 77.0)), expected, rtol=1e-5)
    np.testing.assert_allclose(found(np.where(THERE, TIMES, -5.0)), expected, rtol=1e-5)
    later = TIMES + 0.3 * (np.arange(5) > 0)
    assert np.abs(found(later) - expected).max() > 1e-3
    order = np.array([2, 0, 1])
    moved = amortized.at(host.array(TIMES[order]), host.array(THERE[order]), y=host.array(y[order]))
    turned = {"slope": latents["slope"][:, order]}
    np.testing.assert_allclose(host.log_prob(moved, turned), expected, rtol=1e-4, atol=1e-4)
    if kind == "convolution":
        amortized.save(tmp_path / "guide.safetensors")
        load = host.package.AmortizedPosterior.load
        loaded = load(tmp_path / "guide.safetensors", host.models.slopes)
        np.testing.assert_allclose(found(TIMES, loaded), expected, rtol=1e-6)
        with pytest.raises(ValueError, match="times 'times': expected times that do not decrease"):
            found(TIMES[:, ::-1].copy())


def test_times_that_are_no_input_or_of_another_length(host):
    times, spec = host.array(TIMES), host.package.SequenceEmbedding(times="when")
    with pytest.raises(ValueError, match=r"times='when' to be an input of 5 .*got inputs \['times"):
        guide_of(host, spec).setup(times)
    guide = host.guide(
        host.models.panels,
        observed="y",
        inputs={"weight": "rows"},
        embedding=host.package.SequenceEmbedding(times="weight"),
    )
    with pytest.raises(ValueError, match="times='weight' to be an input of 6 .*got one of 1 value"):
        guide.setup(host.array(np.ones(3)))


@pytest.mark.compiles
def test_training_at_times_that_change(host):
    sampler = host.model_args(lambda rng: (SLOPES.draw_times(rng)[:3, :5].astype("f4"),))
    objective = host.package.NPE(8, model_args=sampler)
    amortized = host.fit(host.models.slopes, guide_of(host), objective, num_steps=3)
    assert np.isfinite(amortized.history.losses).all()
