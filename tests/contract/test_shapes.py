"""The whole contract on every shape of model in `tests/shapes.py`."""

import numpy as np
import pytest
from scipy.special import logsumexp

from tests.backends import host as adapter
from tests.backends import numpy_tree
from tests.conftest import forget_compiled_code, require
from tests.shapes import SHAPES

pytestmark = pytest.mark.compiles

NUM = 3


def small(host, shape):
    """Small networks, which compile in half the time."""
    package = host.package
    embedding = package.PlateEmbedding(feature_dim=4, hidden_dims=(8,), num_rounds=1)
    if shape.embedding:
        embedding = getattr(package, shape.embedding)(feature_dim=4, hidden_dims=(8,))
    if shape.is_discrete:
        return {"embedding": embedding}
    return {"embedding": embedding, "densities": package.SplineFlowDensity(hidden_dims=(8,))}


class Case:
    """A guide with random weights for one shape, and joint draws of its model."""

    def __init__(self, host, name):
        self.host, self.shape = host, SHAPES[name]
        self.model = getattr(host.models, name)
        self.kwargs = hosted(host, self.shape.arguments)
        self.guide = self.new_guide()
        self.amortized = host.scrambled(
            self.model, self.guide, scale=self.shape.scale, **self.kwargs
        )
        self.structure = self.guide.structure
        bank = host.simulate(self.model, NUM, kwargs=self.kwargs).sites
        values = {name: np.asarray(value) for name, value in bank.items()}
        self.latents = {site.name: values[site.name] for site in self.structure.latents}
        self.data = {site.name: values[site.name] for site in self.structure.observed}

    def new_guide(self):
        options = {**self.shape.options, **small(self.host, self.shape)}
        return self.host.guide(self.model, observed=self.shape.observed, **options)

    def call_with_data(self, row):
        """Keyword arguments of the model's call with one simulated data set."""
        data = {name: np.asarray(value[row]) for name, value in self.data.items()}
        return self.kwargs | hosted(self.host, self.shape.data(data))

    def holey(self, call, data):
        """Data with NaN where a mask of the call says so, as guides read them."""
        masks = {info.site: call[info.argument] for info in self.structure.missing}
        return data | {
            site: np.where(np.asarray(mask), data[site], np.nan) for site, mask in masks.items()
        }

    def site_log_probs(self, call, latents, data):
        """By latent site, `(NUM, *plates)`."""
        score = self.guide.site_log_probs
        latents, data = self.host.arrays(latents), self.host.arrays(self.holey(call, data))
        if self.host.name == "pyro":
            return numpy_tree(score((), call, latents, data, batch_dims=1))
        found = score(self.amortized.params, (), call, latents, data, batch_dims=1)
        return numpy_tree(found)

    def log_prob(self, call, latents):
        """Of the guide at draws that share the data, which are embedded once, `(NUM,)`."""
        params = (self.amortized.params,) if self.host.name == "numpyro" else ()
        return numpy_tree(self.guide.log_prob(*params, self.host.arrays(latents), **call))


def hosted(host, arguments):
    return {
        name: host.array(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


@pytest.fixture(scope="module")
def case(request):
    name, backend = request.param
    require(backend)
    yield Case(adapter(backend), name)
    forget_compiled_code()


def every_shape(condition=lambda shape, backend: True):
    cases = [
        (name, backend)
        for backend in ("numpyro", "pyro")
        for name, shape in SHAPES.items()
        if condition(shape, backend)
    ]
    ids = [f"{backend}-{name}" for name, backend in cases]
    return pytest.mark.parametrize("case", cases, ids=ids, indirect=True)


@every_shape()
def test_densities_of_draws_are_those_of_the_sites(case):
    host, call = case.host, case.call_with_data(0)
    posterior = case.amortized.at(**call)
    draws = host.sample(posterior, NUM)
    latents = {name: draws[name] for name in case.latents}
    for name, value in latents.items():
        assert value.shape == case.latents[name].shape, name
        assert np.isfinite(value).all(), name
    total = host.log_prob(posterior, latents)
    data = {name: np.stack([value[0]] * NUM) for name, value in case.data.items()}
    parts = case.site_log_probs(call, latents, data)
    assert set(parts) == set(latents)
    by_site = sum(part.reshape(NUM, -1).sum(1) for part in parts.values())
    np.testing.assert_allclose(total, by_site, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(case.log_prob(call, latents), total, rtol=1e-4, atol=1e-4)
    assert np.isfinite(total).all()
    assert np.isfinite(host.log_joint(posterior, latents)).all()


def train(case, objective, call):
    host = case.host
    before = host.weights(host.untrained(case.model, case.new_guide(), **case.kwargs))
    amortized = host.fit(case.model, case.new_guide(), objective, kwargs=call, num_steps=2)
    assert np.isfinite(amortized.history.losses).all()
    after = host.weights(amortized)
    assert after.keys() == before.keys()
    assert all(np.isfinite(value).all() for value in after.values())
    assert max(np.abs(after[name] - value).max() for name, value in before.items()) > 1e-4


@every_shape()
def test_trains_on_simulations(case):
    train(case, case.host.package.NPE(4), case.kwargs)


@every_shape(lambda shape, backend: not (shape.is_discrete and backend == "numpyro"))
def test_trains_under_a_bound(case):
    train(case, case.host.trace_elbo(), case.call_with_data(0))


@every_shape()
def test_trains_under_importance_weights(case):
    objective = case.host.package.IWAE(3)
    if case.shape.is_discrete:
        with pytest.raises(ValueError, match="is (discrete|not reparameterised), and"):
            train(case, objective, case.call_with_data(0))
    else:
        train(case, objective, case.call_with_data(0))


@every_shape(lambda shape, backend: not shape.is_discrete)
def test_trains_under_a_weighted_bound(case):
    objective = case.host.package.WeightedELBO(2, kl_weight=0.5, free_bits=0.01)
    train(case, objective, case.call_with_data(0))


@every_shape()
def test_saved_and_loaded(case, tmp_path):
    path = tmp_path / "guide.safetensors"
    case.amortized.save(path)
    loaded = case.host.package.AmortizedPosterior.load(path, case.model)
    assert loaded.guide.structure == case.structure
    call = case.call_with_data(0)
    before, after = (
        case.host.log_prob(amortized.at(**call), case.latents)
        for amortized in (case.amortized, loaded)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@every_shape()
def test_a_mixture_of_two_guides(case):
    """Log density, the host's trace, weights and draws of an ensemble, for every shape."""
    host, scale, call = case.host, case.shape.scale, case.call_with_data(0)
    guide = case.new_guide()
    other = host.scrambled(case.model, guide, scale=scale, seed=1, **case.kwargs)
    members, weights = (case.amortized, other), np.array([0.7, 0.3])
    ensemble = host.ensemble(members, weights)
    draws = host.sample(ensemble.at(**call), 4)
    values, densities = host.trace_of(ensemble, list(case.latents), call)
    latents = {name: np.concatenate([draws[name], value[None]]) for name, value in values.items()}
    parts = np.stack([host.log_prob(each.at(**call), latents) for each in members])
    expected = logsumexp(parts, axis=0, b=weights[:, None])
    found = host.log_prob(ensemble.at(**call), latents)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)
    total = sum(density.sum() for density in densities.values())
    assert total == pytest.approx(expected[-1], rel=1e-4, abs=2e-3)
    weighted = host.importance_sample(ensemble.at(**call), 20, num_local_samples=2)
    assert np.isfinite(weighted.log_weights).all()


def axis_of(structure, name, num_axes, plate):
    """Axis of a plate of a site in arrays of this many axes without events, or None."""
    is_in = plate in structure.site(name).plates
    return num_axes + structure.plates[plate].dim if is_in else None


def moved_values(structure, values, plate, order):
    moved = {}
    for name, value in values.items():
        axis = axis_of(structure, name, value.ndim - len(structure.site(name).event_shape), plate)
        moved[name] = value if axis is None else np.take(value, order, axis)
    return moved


def moved_densities(structure, densities, plate, order):
    moved = {}
    for name, density in densities.items():
        axis = axis_of(structure, name, density.ndim, plate)
        moved[name] = density if axis is None else np.take(density, order, axis)
    return moved


def moved_arguments(case, plate, order):
    """What rows of a plate carry goes with them; indices into the plate are renumbered."""
    structure, moved = case.structure, dict(case.shape.arguments)
    for item in structure.inputs:
        name = case.shape.computed.get(item.name, item.name)
        if plate in item.plates:
            moved[name] = np.take(moved[name], order, item.plates.index(plate))
    for group in structure.groups:
        if group.plate == plate:
            moved[group.name] = np.argsort(order)[moved[group.name]]
        if group.along == plate:
            moved[group.name] = moved[group.name][order]
    for info in structure.missing:
        event_dim = len(structure.site(info.site).event_shape) if info.has_positions else 0
        axis = axis_of(structure, info.site, moved[info.argument].ndim - event_dim, plate)
        if axis is not None:
            moved[info.argument] = np.take(moved[info.argument], order, axis)
    return moved


@every_shape(lambda shape, backend: shape.has_plates)
def test_plates_are_symmetries(case):
    structure, host = case.structure, case.host
    event_plates = {plate for site in structure.latents for plate in site.event_plates}
    found = case.site_log_probs(case.kwargs, case.latents, case.data)
    plates = sorted(set(structure.plates) - event_plates)
    assert plates
    for plate in plates:
        order = np.roll(np.arange(structure.plates[plate].size), 1)
        arguments = moved_arguments(case, plate, order)
        latents = moved_values(structure, case.latents, plate, order)
        data = moved_values(structure, case.data, plate, order)
        moved = case.site_log_probs(hosted(host, arguments), latents, data)
        for name, expected in moved_densities(structure, found, plate, order).items():
            np.testing.assert_allclose(
                moved[name], expected, rtol=1e-4, atol=1e-4, err_msg=f"{name} along {plate}"
            )


@every_shape(lambda shape, backend: shape.padded and backend == "numpyro")
def test_padded_densities_are_the_true_ones(case):
    """Pyro compiles nothing, so nothing is padded there."""
    host, structure, guide = case.host, case.structure, case.guide
    call = ((), case.kwargs)
    padding = host.module("padding").CallPadding(
        guide.model, structure, guide.sizes, case.shape.padded
    )
    assert padding.find_problem([call]) is None
    padded = padding.pad(call)
    assert set(padded.padded_sizes.values()) == {16}
    latents, data = (
        padded.extend(structure, host.arrays(values))
        for values in (case.latents, case.holey(case.kwargs, case.data))
    )

    def densities(true_sizes):
        found = guide.site_log_probs(
            case.amortized.params,
            *padded.call,
            latents,
            data,
            batch_dims=1,
            true_sizes=true_sizes,
        )
        return numpy_tree(padded.cut(structure, found, has_event=False))

    own = case.site_log_probs(case.kwargs, case.latents, case.data)
    for name, density in densities(padded.true_sizes).items():
        np.testing.assert_allclose(density, own[name], rtol=2e-5, atol=2e-5, err_msg=name)
    # The test can fail: without the true sizes the padding is data, where data are pooled.
    wrong = densities(None)
    if any(set(case.shape.padded) - set(site.plates) for site in structure.latents):
        assert max(np.abs(wrong[name] - own[name]).max() for name in own) > 1e-2
