"""Networks on events that are series or images, and networks of the user's own."""

import importlib
import json

import numpy as np
import pytest
from safetensors import safe_open
from scipy.stats import norm

from tests.backends import numpy_tree

pytestmark = pytest.mark.compiles

SMALL = {"num_channels": 8, "num_latents": 3, "num_cross": 1, "num_blocks": 1}
WEIGHT = np.array([0.5, -1.0, 2.0])


def build(host, spec, event_shape, num_inputs=0, num_plates=1):
    sources = list(range(num_plates))
    if host.name == "pyro":
        host.seed(0)
        return spec.build(event_shape, num_inputs, sources)
    return spec.build(event_shape, num_inputs, sources, host.key(0))


def features(host, network, events):
    """Features of events by the network of one event, `(rows, num_features)`."""
    if host.name == "pyro":
        return network(host.array(events)).detach().numpy()
    import jax

    return np.asarray(jax.vmap(network)(host.array(events)))


def levels(host, network, values, num_plates):
    """Contexts of rows in no plate or in two, the inner one pooled first."""
    structure, dims = host.module("structure"), {"outer": -2, "inner": -1} if num_plates else {}
    plates = {name: structure.PlateInfo(name, dim, 1) for name, dim in dims.items()}
    model = structure.ModelStructure(latents=(), observed=(), plates=plates)
    found = host.module("levels").pooling_levels(tuple(dims), [], dims)
    values = host.array(values)
    pooling = host.module("pooling").Pooling(model, found, values, {}, {}, {})
    found = network(values, pooling)
    return [np.asarray(part.detach() if host.name == "pyro" else part) for part in found]


def specs(host):
    package = host.package
    return {
        "convolution": (package.SequenceEmbedding(num_channels=8, feature_dim=5), (12, 2)),
        "recurrent": (package.SequenceEmbedding("recurrent", 5, num_channels=8), (12,)),
        "transformer": (package.SequenceEmbedding("transformer", 5, num_channels=8), (12,)),
        "image": (package.ImageEmbedding(feature_dim=5, num_channels=4), (2, 5, 6)),
        "image without channels": (package.ImageEmbedding(feature_dim=5, num_blocks=1), (4, 4)),
        "vector": (package.MLPEmbedding(5), (3, 4)),
        "attention": (package.PlateEmbedding(8, (8,), pooling="attention", num_blocks=1), (3,)),
        "perceiver": (package.PerceiverEmbedding("grid", 5, **SMALL), (2, 3, 4)),
        "mine": (package.PlateEmbedding(feature_dim=5, event_network=my_network(host)), (3, 4)),
    }


def my_network(host):
    """A function that makes a network of the user's own."""
    if host.name == "pyro":
        from torch import nn

        def factory(event_shape, feature_dim):
            size = int(np.prod(event_shape))
            return nn.Sequential(nn.Flatten(), nn.Linear(size, feature_dim + 1), nn.Tanh())

        return factory
    equinox, jax = importlib.import_module("equinox"), importlib.import_module("jax")

    def factory(event_shape, feature_dim, rng_key):
        size = int(np.prod(event_shape))
        return equinox.nn.Sequential(
            [
                equinox.nn.Lambda(lambda event: event.reshape(-1)),
                equinox.nn.Linear(size, feature_dim + 1, key=rng_key),
                equinox.nn.Lambda(jax.numpy.tanh),
            ]
        )

    return factory


NAMES = [
    "convolution",
    "recurrent",
    pytest.param("transformer", marks=pytest.mark.compiles),
    "image",
    "image without channels",
    "vector",
    pytest.param("attention", marks=pytest.mark.compiles),
    pytest.param("perceiver", marks=pytest.mark.compiles),
    "mine",
]
SERIES = NAMES[:3]


@pytest.mark.parametrize("name", NAMES)
def test_contexts_have_the_sizes_that_are_announced_and_follow_the_rows(host, rng, name):
    spec, event_shape = specs(host)[name]
    network = build(host, spec, event_shape, num_inputs=3, num_plates=2)
    values = rng.normal(size=(4, 7, int(np.prod(event_shape)) + 3))
    found = levels(host, network, values, 2)
    sizes = tuple(part.shape[-1] for part in found)
    assert sizes == spec.context_sizes(event_shape, 3, [0, 1])
    assert [part.shape[:-1] for part in found] == [(4, 7), (4, 1), (1, 1)]
    order = rng.permutation(7)
    moved = levels(host, network, values[:, order], 2)
    np.testing.assert_allclose(moved[0], found[0][:, order], atol=1e-5)
    for first, second in zip(found[1:], moved[1:], strict=True):
        np.testing.assert_allclose(second, first, atol=1e-5)
    # Every value and every input matters.
    base = found[-1]
    for position in range(0, values.shape[-1], 5):
        changed = values.copy()
        changed[2, 3, position] += 1.0
        assert np.abs(levels(host, network, changed, 2)[-1] - base).max() > 1e-6
    with_input = values.copy()
    with_input[2, 3, -1] += 1.0
    assert np.abs(levels(host, network, with_input, 2)[-1] - base).max() > 1e-6


@pytest.mark.parametrize("name", SERIES)
def test_networks_along_time_take_any_length(host, rng, name):
    spec, event_shape = specs(host)[name]
    network = build(host, spec, event_shape).event.network
    channels = event_shape[1] if len(event_shape) == 2 else 1
    for length in (1, 2, 12, 40):
        assert features(host, network, rng.normal(size=(3, length, channels))).shape == (3, 16)


@pytest.mark.parametrize("name", SERIES)
def test_the_order_of_the_steps_matters(host, rng, name):
    spec, event_shape = specs(host)[name]
    network = build(host, spec, event_shape).event.network
    series = rng.normal(size=(1, 12, event_shape[1] if len(event_shape) == 2 else 1))
    found = features(host, network, np.concatenate([series, series[:, ::-1]]))
    assert np.abs(found[0] - found[1])[:8].max() > 1e-3  # their mean over time, and the last


def test_convolutions_remember_as_many_steps_as_they_say(host, rng):
    """1 + (kernel_size - 1) (2**num_layers - 1), read off the last step."""
    spec = host.package.SequenceEmbedding(num_channels=4, num_layers=3, kernel_size=3)
    network = build(host, spec, (30,)).event.network
    series = np.tile(rng.normal(size=(30, 1)), (30, 1, 1))
    changed = series.copy()
    changed[np.arange(30), np.arange(30)] += 5.0
    moved = np.abs(features(host, network, changed) - features(host, network, series))[:, 4:]
    assert list(np.flatnonzero(moved.max(1) > 1e-6)) == list(range(30 - 15, 30))


def test_networks_on_images_take_any_size(host, rng):
    spec, event_shape = specs(host)["image"]
    network = build(host, spec, event_shape).event.network
    for size in ((1, 1), (3, 9), (16, 16)):
        assert features(host, network, rng.normal(size=(3, 2, *size))).shape == (3, 8)


def test_convolutions_along_time_are_causal(host, rng):
    kind = host.module("networks").Convolution
    options = {"num_dims": 1, "dilation": 2}
    if host.name == "numpyro":
        options["rng_key"] = host.key(0)
    network = kind(2, 3, 3, **options)
    series = rng.normal(size=(2, 9))
    later = series.copy()
    later[:, 5] += 1.0

    def apply(value):
        value = host.array(value[None] if host.name == "pyro" else value)
        found = network(value)
        return np.asarray(found.detach()[0] if host.name == "pyro" else found)

    moved = np.abs(apply(later) - apply(series)).max(0) > 1e-6
    assert list(np.flatnonzero(moved)) == [5, 7]  # itself, and what reads two and four back


def test_what_skips_the_network_is_a_mean_and_a_spread_of_each_channel(host, rng):
    spec, event_shape = specs(host)["convolution"]
    network = build(host, spec, event_shape, num_plates=0)
    values = rng.normal(size=(6, *event_shape))
    found = levels(host, network, values.reshape(6, -1), 0)[0][:, -4:]
    expected = np.concatenate([values.mean(1), values.std(1)], 1)
    np.testing.assert_allclose(found, np.arcsinh(expected), atol=1e-5)
    spec, event_shape = specs(host)["image"]
    network = build(host, spec, event_shape, num_plates=0)
    values = rng.normal(size=(6, *event_shape))
    found = levels(host, network, values.reshape(6, -1), 0)[0][:, -4:]
    expected = np.concatenate([values.mean((2, 3)), values.std((2, 3))], 1)
    np.testing.assert_allclose(found, np.arcsinh(expected), atol=1e-5)


def test_a_module_of_the_users_is_taken_as_it_is(host, rng):
    """As an instance: its own weights, and the features that it gives."""
    factory = my_network(host)
    if host.name == "pyro":
        module = factory((3, 4), 5)
    else:
        module = factory((3, 4), 5, host.key(1))
    network = build(host, host.package.PlateEmbedding(event_network=module), (3, 4))
    events = rng.normal(size=(6, 3, 4))
    np.testing.assert_array_equal(
        features(host, network.event.network, events), features(host, module, events)
    )
    assert network.event.num_features == 6
    if host.name == "pyro":  # a copy: two guides do not share what they train
        assert network.event.network is not module


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_the_activation_is_the_mean_of_a_random_mask(host, activation):
    """x times a coin with the probability Phi(x), and its approximation by a tanh."""
    module = host.module("embeddings.mlp")
    network = build(host, host.package.MLPEmbedding(1, (1,), activation), ()).event.network
    assert isinstance(network, module.Perceptron)
    x = np.linspace(-4, 4, 81)
    (weight, bias), (last_weight, last_bias) = (
        [np.asarray(numpy_tree(part[0])).reshape(()) for part in (layer.weights, layer.biases)]
        for layer in network.layers
    )
    hidden = x * weight + bias
    exact = hidden * norm.cdf(hidden)
    inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
    wanted = exact if activation == "gelu" else hidden * (1 + np.tanh(inner)) / 2
    found = features(host, network, x[:, None])[:, 0]
    np.testing.assert_allclose(found, wanted * last_weight + last_bias, rtol=1e-5, atol=1e-6)
    rng = np.random.default_rng(0)
    masked = hidden * (rng.normal(size=(100_000, 1)) < hidden)
    error = 4 * masked.std(0) / np.sqrt(100_000) + 1e-3
    assert np.all(np.abs(masked.mean(0) - wanted) < error)


def test_hidden_positions_of_a_vector_change_nothing(host, rng):
    spec = host.package.MLPEmbedding(4).for_masked_events("y")
    network = build(host, spec, (6,)).event
    there = np.arange(6) < np.array([[6], [3], [0]])

    def found(values):
        flat = np.concatenate([np.where(there, values, 0.0), there], 1)
        return np.concatenate([numpy_tree(part) for part in network(host.array(flat))], 1)

    values = rng.normal(size=(3, 6))
    expected = found(values)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found(np.where(there, values, 9.0)), expected)
    means = np.where(there, values, 0.0).sum(1) / np.maximum(there.sum(1), 1)
    np.testing.assert_allclose(expected[:, -2], means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["ImageEmbedding", pytest.param("PerceiverEmbedding", marks=pytest.mark.compiles)]
)
def test_hidden_pixels_of_an_image(host, kind):
    """What they are changes nothing, that they are hidden does; evidence from what is there."""
    model, own = host.models.image_with_holes, {"num_channels": 4}
    if kind == "PerceiverEmbedding":
        own = SMALL | {"positions": "grid"}
    embedding = getattr(host.package, kind)(feature_dim=4, hidden_dims=(8,), **own)
    density = host.package.NormalDensity(hidden_dims=(8,))
    options = {"embedding": embedding, "densities": density, "missing": {"is_there": "y"}}
    rng = np.random.default_rng(0)
    y, there = rng.normal(size=(2, 4, 4)), rng.uniform(size=(2, 4, 4)) < 0.6
    guide = host.guide(model, observed="y", **options)
    amortized = host.scrambled(model, guide, host.array(there), scale=0.1)
    latents = {"z": rng.normal(size=5)}

    def found(y, there):
        return host.log_prob(amortized.at(host.array(there), y=host.array(y)), latents)

    expected = found(y, there)
    np.testing.assert_allclose(found(np.where(there, y, 9.0), there), expected, rtol=1e-5)
    assert np.isfinite(found(y, np.zeros_like(there))).all()
    other = there.copy()
    other[tuple(np.argwhere(there)[0])] = False
    assert np.abs(found(y, other) - expected).max() > 1e-5


def test_series_with_a_covariate_in_a_plate(host, tmp_path):
    model, weight = host.models.panels, host.array(WEIGHT)
    embedding = host.package.SequenceEmbedding(num_layers=2, num_channels=8, hidden_dims=(16,))
    options = {
        "embedding": embedding,
        "densities": host.package.NormalDensity(hidden_dims=(16,)),
        "inputs": {"weight": "rows"},
    }
    guide = host.guide(model, observed="y", **options)
    amortized = host.fit(model, guide, host.package.NPE(16), args=(weight,), num_steps=2)
    y = np.random.default_rng(0).normal(size=(3, 6))
    draws = host.sample(amortized.at(weight, y=host.array(y)), 20)
    assert draws["level"].shape == (20, 3)
    log_q = host.log_prob(amortized.at(weight, y=host.array(y)), draws)
    order = np.array([2, 0, 1])
    moved = amortized.at(host.array(WEIGHT[order]), y=host.array(y[order]))
    turned = {"phi": draws["phi"], "level": draws["level"][:, order]}
    np.testing.assert_allclose(host.log_prob(moved, turned), log_q, rtol=1e-3, atol=1e-3)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.specifications(loaded.guide.structure)[0] == {"y": embedding}
    again = host.log_prob(loaded.at(weight, y=host.array(y)), draws)
    np.testing.assert_allclose(again, log_q, rtol=1e-5, atol=1e-5)


def test_a_network_of_the_users_in_a_guide_and_in_a_file(host, tmp_path):
    model, path = host.models.blob_image, tmp_path / "guide.safetensors"
    embedding = host.package.PlateEmbedding(8, (8,), event_network=my_network(host))
    densities = host.package.NormalDensity(hidden_dims=(8,))
    guide = host.guide(model, observed="y", embedding=embedding, densities=densities)
    amortized = host.fit(model, guide, host.package.NPE(16), num_steps=2)
    amortized.save(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["header"])
        assert any("event.network" in name for name in file.keys())  # noqa: SIM118
    assert "factory" in str(header["embedding"]["y"])
    load = host.package.AmortizedPosterior.load
    with pytest.raises(ValueError, match="event_network=.*which is not of this package; pass"):
        load(path, model)
    loaded = load(path, model, embedding=embedding)
    y = host.array(np.random.default_rng(0).normal(size=(8, 8)))
    draws = {"z": np.zeros((3, 2))}
    np.testing.assert_array_equal(
        host.log_prob(loaded.at(y=y), draws), host.log_prob(amortized.at(y=y), draws)
    )


def test_a_network_of_the_users_that_is_none(host):
    embedding = host.package.PlateEmbedding
    for wrong in (3, lambda *_: "features"):
        with pytest.raises(TypeError, match="event_network: expected an? .*Module"):
            build(host, embedding(event_network=wrong), (3,))


def test_features_of_the_users_of_another_shape(host):
    if host.name == "pyro":
        from torch import nn

        module = nn.Identity()
    else:
        module = importlib.import_module("equinox").nn.Identity()
    with pytest.raises(ValueError, match="event_network: expected features of shape"):
        build(host, host.package.PlateEmbedding(event_network=module), (3, 4))


def test_another_kind_of_sequence_network(host):
    match = "expected kind='convolution', 'recurrent' or 'transformer', got kind='lstm'; choose"
    with pytest.raises(ValueError, match=match):
        host.package.SequenceEmbedding("lstm")
    with pytest.raises(ValueError, match="num_channels: expected a multiple of num_heads, 1 or m"):
        host.package.SequenceEmbedding("transformer", num_channels=6)


def test_sizes_follow_the_number_of_latents(host):
    """Twice their number, from 32 to 128; what is given stays."""
    spec = host.package.PlateEmbedding()
    for num, expected in ((0, 32), (16, 32), (20, 40), (1000, 128)):
        own = spec.for_latents(num)
        assert own.own_sizes() == (expected, 2 * (2 * expected,))
    assert host.package.SequenceEmbedding(feature_dim=3).for_latents(50).own_sizes()[0] == 3
    assert host.package.ImageEmbedding(hidden_dims=(7,)).for_latents(50).own_sizes()[1] == (7,)
    guide = host.guide(host.models.linear_gaussian_10, observed="x").setup()
    assert guide.specifications(guide.structure)[0]["x"] == spec


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("MLPEmbedding", {"hidden_dims": ()}, "expected at least one hidden layer, got hidden_d"),
        ("MLPEmbedding", {"hidden_dims": (8, 0)}, r"expected hidden_dims of 1 or more, got \(8, 0"),
        ("MLPEmbedding", {"activation": "relu"}, "expected activation='gelu' or activation='gel"),
        ("PlateEmbedding", {"feature_dim": 0}, "expected feature_dim of 1 or more, got 0; raise"),
        ("SequenceEmbedding", {"num_layers": 0}, "expected num_layers of 1 or more, got 0; raise"),
        ("ImageEmbedding", {"num_blocks": 0}, "expected num_blocks of 1 or more, got 0; raise it"),
    ],
)
def test_sizes_and_words_that_are_none(host, kind, options, match):
    with pytest.raises(ValueError, match=f"{kind}: {match}"):
        getattr(host.package, kind)(**options)


@pytest.mark.parametrize("name", NAMES)
def test_events_of_another_width(host, name):
    spec, event_shape = specs(host)[name]
    network, size = build(host, spec, event_shape, num_plates=0), int(np.prod(event_shape))
    with pytest.raises(ValueError, match=f"expected {size} values for each event with its inpu"):
        levels(host, network, np.zeros((3, size + 1)), 0)


@pytest.mark.parametrize("event_shape", [(), (3, 4, 5)])
def test_events_that_are_no_series(host, event_shape):
    with pytest.raises(ValueError, match=r"expected an event of shape \(T,\) or \(T, d\), got"):
        build(host, host.package.SequenceEmbedding(), event_shape)


@pytest.mark.parametrize("event_shape", [(), (3,), (1, 2, 3, 4)])
def test_events_that_are_no_images(host, event_shape):
    with pytest.raises(ValueError, match=r"expected an event of shape \(H, W\) or \(C, H, W\)"):
        build(host, host.package.ImageEmbedding(), event_shape)
