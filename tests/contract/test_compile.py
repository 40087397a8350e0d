"""`fit(compile=True)` in Pyro: recorded operations do what model and guide do."""

import itertools

import numpy as np
import pytest

from tests.backends import host as adapter
from tests.backends import small_guide as small_backend_guide
from tests.conftest import require
from tests.contract.test_flows import FLOWS, specification
from tests.contract.test_objectives import CAPABILITIES, OBJECTIVES, REFUSALS
from tests.contract.test_shapes import Case
from tests.shapes import SHAPES

require("pyro")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import torch  # noqa: E402
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO  # noqa: E402

import pyro_amortize  # noqa: E402
from pyro_amortize import NPE, AmortizedGuide, NormalDensity, fit  # noqa: E402
from pyro_amortize.recorded_graph import RecordingError  # noqa: E402
from pyro_amortize.recording import DepartureError, record  # noqa: E402

NUM_STEPS = 30
ROUNDING = 1e-5


def rows(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


DATA = {"x": torch.tensor([0.5, -0.2, 0.1, 1.0])}


def small_guide(model, observed="x", **options):
    return AmortizedGuide(model, observed=observed, densities=NormalDensity(), **options)


def trained(model, make_objective, *, compile, num_steps=NUM_STEPS, guide=None, **options):
    """Losses, held-out losses and parameters after training from a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    amortized = fit(
        model,
        guide or small_guide(model),
        make_objective(),
        num_steps=num_steps,
        compile=compile,
        progress_bar=False,
        **options,
    )
    history = amortized.history
    parameters = [value.detach().flatten() for value in amortized.guide.parameters()]
    store = [value.detach().flatten() for _, value in sorted(pyro.get_param_store().items())]
    return history.losses, history.held_out_losses, torch.cat(parameters + store).numpy()


def assert_same(model, make_objective, *, make_guide=small_guide, **options):
    plain, compiled = (
        trained(model, make_objective, compile=compile, guide=make_guide(model), **options)
        for compile in (False, True)
    )
    for first, second in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(second, first, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_bounds_of_the_host_train_alike(objective):
    assert_same(rows, objective, kwargs=DATA)


@pytest.mark.parametrize("name", ["NPE", "IWAE", "RWS", "Mixed", "WeightedELBO"])
def test_objectives_train_alike(name):
    kwargs = {} if name == "NPE" else DATA
    assert_same(rows, lambda: OBJECTIVES[name](pyro_amortize), kwargs=kwargs)


ALLOWED = [
    (capability, name)
    for capability in CAPABILITIES
    for name in OBJECTIVES
    if capability not in REFUSALS.get(name, {})
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("capability", "name"), ALLOWED)
def test_every_objective_trains_alike_with_every_capability(capability, name):
    case = Case(adapter("pyro"), CAPABILITIES[capability])
    call = case.kwargs if name == "NPE" else case.call_with_data(0)
    assert_same(
        case.model,
        lambda: OBJECTIVES[name](pyro_amortize),
        make_guide=lambda model: case.new_guide(),
        num_steps=3,
        kwargs=call,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_trains_alike(name):
    case = Case(adapter("pyro"), name)
    assert_same(
        case.model,
        lambda: NPE(4),
        make_guide=lambda model: case.new_guide(),
        num_steps=3,
        kwargs=case.kwargs,
    )


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", ["NPE", "IWAE"])
def test_every_flow_trains_alike(flow, name):
    model, spec = adapter("pyro").models.parabola, specification(adapter("pyro"), flow)
    assert_same(
        model,
        lambda: OBJECTIVES[name](pyro_amortize),
        make_guide=lambda model: AmortizedGuide(model, observed="x", densities=spec),
        num_steps=3,
        kwargs={} if name == "NPE" else {"x": torch.tensor(0.7)},
    )


def flow_matching_trains_alike(objective, **options):
    model, host = adapter("pyro").models.parabola, adapter("pyro")
    spec = host.package.FlowMatchingDensity(hidden_dims=(8,), **options)
    assert_same(
        model,
        lambda: OBJECTIVES[objective](pyro_amortize),
        make_guide=lambda model: small_backend_guide(host, model, observed="x", densities=spec),
        num_steps=5,
        kwargs={} if objective == "NPE" else {"x": torch.tensor(0.7)},
    )


def test_a_density_with_its_own_loss_trains_alike():
    flow_matching_trains_alike("NPE")


def test_a_solver_of_equal_steps_trains_alike():
    flow_matching_trains_alike("IWAE", num_steps=2)


@pytest.mark.slow
def test_a_solver_that_chooses_its_steps_runs_as_python_and_says_so():
    with pytest.warns(UserWarning, match="compile: . of 5 steps ran as Python"):
        flow_matching_trains_alike("IWAE", tolerance=1e-4)


def test_parameters_and_trained_modules_of_the_model_train_alike():
    torch.manual_seed(0)
    initial = torch.nn.Linear(1, 1).state_dict()

    def make():
        layer = torch.nn.Linear(1, 1)
        layer.load_state_dict(initial)

        def model(x=None):
            pyro.module("layer", layer)
            scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            with pyro.plate("rows", 4):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(layer(z[..., None])[..., 0], scale), obs=x)

        return model

    plain = trained(make(), Trace_ELBO, compile=False, kwargs=DATA)
    compiled = trained(make(), Trace_ELBO, compile=True, kwargs=DATA)
    for first, second in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(second, first, rtol=ROUNDING, atol=ROUNDING)


def test_arguments_that_are_drawn_are_inputs():
    """A recording for each size; the values are those of the step."""

    def model(num_rows, x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", num_rows):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def draw():
        num_rows = int(torch.randint(3, 6, ()))
        return {"num_rows": num_rows, "x": torch.randn(num_rows)}

    def with_sizes(model):
        return small_guide(model, sizes={"num_rows": "rows"})

    assert_same(model, Trace_ELBO, make_guide=with_sizes, model_args=draw)


def test_arguments_of_too_many_kinds_are_an_error(monkeypatch):
    monkeypatch.setattr("pyro_amortize.compiled._MOST_RECORDINGS", 3)

    def model(num_rows, x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", num_rows):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = small_guide(model, sizes={"num_rows": "rows"})
    sizes = itertools.count(1)
    objective = NPE(2, model_args=lambda: {"num_rows": next(sizes)})
    with pytest.raises(ValueError, match="compile: arguments of 3 kinds"):
        trained(model, lambda: objective, compile=True, num_steps=5, guide=guide)


def test_subsampled_plates_train_alike():
    def model(x=None):
        with pyro.plate("rows", 4, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if x is None else x[index])

    assert_same(model, Trace_ELBO, kwargs=DATA)


def test_decisions_by_drawn_values_are_followed():
    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = 1.0 if z.sum() > 0 else 3.0
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    assert_same(model, Trace_ELBO, kwargs=DATA)


def test_steps_that_seldom_repeat_are_told():
    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = 1.0 + int((8 * torch.sigmoid(z)).long())
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    with pytest.warns(UserWarning, match="compile: .* of 40 steps ran as Python"):
        trained(model, Trace_ELBO, compile=True, num_steps=40, kwargs=DATA)


def test_a_tensor_that_is_changed_between_steps_is_read_at_each():
    weight = torch.tensor(1.0)

    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z, weight), obs=x)

    def draw():
        weight.mul_(0.9)
        return dict(DATA)

    results = []
    for compile in (False, True):
        weight.fill_(1.0)
        results.append(trained(model, Trace_ELBO, compile=compile, model_args=draw))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=ROUNDING)


def counter():
    counts = [0.0]

    def model(x=None):
        counts[0] += 0.01 * torch.is_grad_enabled()  # set-up reads the model without
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z, 1.0 + counts[0]), obs=x)

    return model


def foreign_noise():
    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        noise = float(np.random.default_rng().normal()) * torch.is_grad_enabled()
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z + noise, 1.0), obs=x)

    return model


def test_numbers_that_change_late_are_an_error():
    scale = [1.0]

    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z, scale[0]), obs=x)

    steps = itertools.count()

    def draw():
        scale[0] = 1.0 if next(steps) < 100 else 2.0
        return dict(DATA)

    with pytest.raises(ValueError, match="no longer gives what the model gives"):
        trained(model, Trace_ELBO, compile=True, num_steps=400, model_args=draw)


@pytest.mark.parametrize("make", [counter, foreign_noise])
def test_what_recordings_cannot_see_is_an_error(make):
    with pytest.raises(ValueError, match="no longer gives what the model gives"):
        trained(make(), Trace_ELBO, compile=True, num_steps=400, kwargs=DATA)


def test_numbers_that_leave_torch_are_an_error():
    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = torch.as_tensor(np.abs(z.detach().numpy()))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"compile: .*Tensor.numpy.*Leave compile out"):
        trained(model, Trace_ELBO, compile=True, kwargs=DATA)


def test_state_of_modules_is_an_error():
    norm = torch.nn.BatchNorm1d(1)

    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            moved = norm(torch.stack([z, z + 1.0]).reshape(2, 1)).reshape(2)[0]
            pyro.sample("x", dist.Normal(moved, 1.0), obs=x)

    with pytest.raises(ValueError, match="changes a tensor that outlives the step"):
        trained(model, Trace_ELBO, compile=True, kwargs=DATA)


def test_objectives_without_a_differentiable_loss_are_refused():
    with pytest.raises(ValueError, match="compile: TraceGraph_ELBO has no differentiable_loss"):
        trained(rows, TraceGraph_ELBO, compile=True, kwargs=DATA)


def test_losses_that_are_not_finite_are_explained():
    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(z, torch.tensor(1.0)), obs=x)
        pyro.factor("edge", torch.where(z > 0, 0.0, torch.log(z * 0.0)))

    with (
        pyro.validation_enabled(is_validate=False),
        pytest.raises(FloatingPointError, match="edge"),
    ):
        trained(model, Trace_ELBO, compile=True, kwargs=DATA)


def run(recording, seed):
    torch.manual_seed(seed)
    return recording()


def test_a_recording_draws_what_the_function_draws():
    weight = torch.tensor([2.0, 3.0], requires_grad=True)

    def function():
        weight.grad = None
        draw = torch.randn(2)
        ((weight * draw) ** 2).sum().backward()
        return [draw, weight.grad]

    recording = record(function)
    with torch.no_grad():
        weight.add_(1.0)
    torch.manual_seed(5)
    expected = function()
    for found, value in zip(run(recording, 5), expected, strict=True):
        assert torch.equal(found, value)


def test_gradients_of_two_parameters_do_not_share_memory():
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))

    def function():
        first.grad = second.grad = None
        (first + second).sum().backward()
        return [first.grad, second.grad]

    found = record(function)()
    found[0].mul_(2.0)
    assert found[1].tolist() == [1.0, 1.0]


def test_gradients_that_are_constant_are_new_at_each_run():
    weight = torch.ones(2, requires_grad=True)

    def function():
        weight.grad = None
        weight.sum().backward()
        return [weight.grad]

    recording = record(function)
    recording()[0].mul_(2.0)
    assert recording()[0].tolist() == [1.0, 1.0]


def test_decisions_and_shapes_are_compared():
    def function():
        draw = torch.rand(4)
        kept = draw[draw > 0.5]
        return [kept.sum() / max(len(kept), 1)]

    torch.manual_seed(0)
    recording = record(function)
    expected, departures = [], 0
    for seed in range(20):
        torch.manual_seed(seed)
        expected = function()
        try:
            assert torch.equal(run(recording, seed)[0], expected[0])
        except DepartureError:
            departures += 1
    assert 0 < departures < 20


def test_buffers_made_inside_are_filled_anew():
    def function():
        total = torch.zeros(2)
        view = total[:1]
        total += torch.randn(2)
        return [view * 1.0, total]

    recording = record(function)
    torch.manual_seed(3)
    expected = function()
    for found, value in zip(run(recording, 3), expected, strict=True):
        assert torch.equal(found, value)


def test_constants_are_folded_and_repeats_merged():
    data = torch.arange(3.0)

    def function():
        draw = torch.randn(3)
        return [draw + data.exp().sum(), (draw * 2.0) + (draw * 2.0)]

    recording = record(function, constants=[data])
    with torch.autograd.profiler.profile() as profile:
        recording()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert "aten::exp" not in counts
    assert counts["aten::mul"] == 1


def test_inputs_are_replaced():
    value = torch.tensor([1.0, 2.0])
    recording = record(lambda: [value * 2.0], inputs=[value])
    assert recording([torch.tensor([5.0, 6.0])])[0].tolist() == [10.0, 12.0]


def test_numbers_of_constants_may_be_read():
    data = torch.tensor([1.0, 2.0])

    def function():
        return [torch.randn(2) * float(data.sum()) + data.numpy().sum()]

    recording = record(function, constants=[data])
    torch.manual_seed(1)
    assert torch.equal(run(recording, 1)[0], (torch.manual_seed(1), function()[0])[1])


def test_numbers_of_draws_may_not():
    with pytest.raises(RecordingError, match="turns a tensor into a Python number"):
        record(lambda: [torch.randn(2) * float(torch.rand(()))])
