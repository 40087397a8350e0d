"""A weighted sum of objectives: its value and gradient, what each part sees, bad input."""

from importlib import import_module

import numpy as np
import pytest

from tests.backends import numpy_tree
from tests.contract.test_model_parameters import Y, scale_of, small_guide
from tests.problems import PROBLEMS


def losses_and_gradients(host, objectives, amortized, model, *args):
    """Loss of each objective, and its gradient in the model's `scale` and in all of the guide.

    The objectives draw in turn in Pyro, each with its own key of a split one in NumPyro.
    """
    if host.name == "numpyro":
        jax = import_module("jax")
        keys = jax.random.split(host.key(0), len(objectives))
        if len(objectives) == 1:
            keys = [host.key(0)]
        found = []
        for key, objective in zip(keys, objectives, strict=True):

            def loss(params, key=key, objective=objective):
                return objective.loss(key, params, model, amortized.guide, *args)

            value, gradient = jax.value_and_grad(loss)(dict(amortized.params))
            scale = gradient.pop("scale")
            leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)]
            found.append((float(value), float(scale), numpy_tree(np.concatenate(leaves))))
        return found
    pyro = import_module("pyro")
    host.seed(0)
    found = []
    for objective in objectives:
        scale = pyro.param("scale").unconstrained()
        trained = [scale, *amortized.guide.parameters()]
        for parameter in trained:
            parameter.grad = None
        loss = objective.loss_and_grads(model, amortized.guide, *args)
        own, *others = [
            np.zeros(each.shape) if each.grad is None else numpy_tree(each.grad).copy()
            for each in trained
        ]
        found.append((loss, float(own), np.concatenate([each.reshape(-1) for each in others])))
    return found


@pytest.mark.compiles
def test_value_and_gradient_are_the_weighted_sums(host):
    """Only the bound reaches the model's parameter, at its weight."""
    package, model = host.package, host.models.local_parameter
    guide, y = small_guide(host, model), host.array(Y)
    amortized = host.fit(model, guide, host.trace_elbo(), args=(y,), num_steps=1)
    npe, iwae = package.NPE(16), package.IWAE(3)
    losses_and_gradients(host, [iwae], amortized, model, y)  # Pyro counts plates by a first run
    parts = losses_and_gradients(host, [npe, iwae], amortized, model, y)
    (mixed,) = losses_and_gradients(
        host, [package.Mixed({npe: 0.25, iwae: 2.0})], amortized, model, y
    )
    for first, second, whole in zip(*parts, mixed, strict=True):
        np.testing.assert_allclose(0.25 * first + 2.0 * second, whole, rtol=1e-4, atol=1e-4)
    assert parts[0][1] == 0.0
    assert abs(parts[1][1]) > 1e-3


@pytest.mark.compiles
def test_fit_trains_parameters_of_the_model_under_a_mixture_and_counts_simulations(host):
    package, model = host.package, host.models.local_parameter
    objective = package.Mixed({package.NPE(8): 0.5, host.trace_elbo(): 0.5})
    amortized = host.fit(
        model,
        small_guide(host, model),
        objective,
        args=(host.array(Y),),
        num_steps=40,
        learning_rate=5e-2,
    )
    before = scale_of(host, amortized)
    assert abs(before - 2.0) > 0.05
    assert amortized.history.num_simulations == 8 * 40
    # Another objective goes on from there, and simulations leave the parameter as it is.
    options = {"params": amortized.params} if host.name == "numpyro" else {}
    options |= {"args": (host.array(Y),), "num_steps": 3, "progress_bar": False}
    again = package.fit(model, amortized.guide, package.NPE(8), **options)
    assert scale_of(host, again) == pytest.approx(before)


@pytest.mark.compiles
def test_missing_values_are_filled_for_the_bound_only(host):
    """Half of the rows, and what the exact posterior is for the other half."""
    package, problem = host.package, PROBLEMS["conjugate_normal"]
    model = host.models.conjugate_normal
    _, data = problem.sample_joint(np.random.default_rng(0), 1)
    x = data["x"][0].copy()
    x[::2] = np.nan
    guide = host.guide(model, observed="x", missing="x", densities=package.NormalDensity())
    objective = package.Mixed({package.NPE(64, missing=0.9): 0.5, package.IWAE(4): 0.5})
    amortized = host.fit(
        model, guide, objective, args=(host.array(x),), num_steps=400, learning_rate=5e-3
    )
    posterior = amortized.at(x=host.array(x))
    draws = host.sample(posterior, 4000)
    weights = host.log_joint(posterior, draws) - host.log_prob(posterior, draws)
    # The log weights of the exact posterior are constant.
    assert weights.std() < 0.25
    assert draws["z"].std() > 0


def test_mixtures_that_cannot_be(host):
    package = host.package
    mixed, make = package.Mixed({package.NPE(): 1.0}), package.Mixed
    with pytest.raises(ValueError, match="at least one objective with its weight"):
        make({})
    with pytest.raises(ValueError, match=r"the weight of NPE is 0\.0; expected a positive"):
        make({package.NPE(): 0.0})
    with pytest.raises(ValueError, match="the weight of IWAE is nan"):
        make({package.IWAE(): float("nan")})
    with pytest.raises(ValueError, match="a mixture within a mixture"):
        make({mixed: 1.0})
    with pytest.raises(ValueError, match="more than one NPE"):
        make({package.NPE(): 1.0, package.NPE(8): 1.0})
    with pytest.raises(TypeError, match="expected objectives such as NPE"):
        make({"NPE": 1.0})
    with pytest.raises(ValueError, match=r"model_args: an NPE in a mixture sees the arguments"):
        make({package.NPE(model_args=lambda *_: ()): 1.0, package.IWAE(): 1.0})
    if host.name == "pyro":  # where these bounds have no loss to weigh
        for name in ("RenyiELBO", "TraceGraph_ELBO"):
            with pytest.raises(TypeError, match=f"{name} has no differentiable_loss"):
                make({getattr(host.infer, name)(): 1.0})


def test_a_discrete_site_under_a_mixture_with_a_bound(host):
    package, model = host.package, host.models.poisson_count
    guide = host.guide(model, observed="y")
    bound = host.infer.TraceMeanField_ELBO()
    with pytest.raises(ValueError, match="is discrete, and the gradient of TraceMeanField_ELBO"):
        host.fit(model, guide, package.Mixed({package.NPE(8): 1.0, bound: 1.0}), num_steps=1)
