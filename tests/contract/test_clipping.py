"""What is cut from the gradients of one step, and what must not be."""

import numpy as np
import pytest

from tests.problems import PROBLEMS


def norms_after(host, objectives, norms):
    """The norms of gradients that come with these ones, one step after the other."""
    clipping = host.module("clipping").gradient_clipping(objectives)
    found = []
    if host.name == "numpyro":
        state = clipping.init(None)
        for norm in norms:
            gradient, state = clipping.update({"a": host.array(np.array([0.0, norm]))}, state)
            found.append(float(gradient["a"][1]))
        return found
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2))
    for norm in norms:
        parameter.grad = torch.tensor([0.0, norm])
        clipping([parameter])
        found.append(float(parameter.grad[1]))
    return found


def test_simulations_have_a_fixed_limit(host):
    found = norms_after(host, [host.package.NPE()], [1.0, 7.0, 100.0])
    np.testing.assert_allclose(found, [1.0, 5.0, 5.0], rtol=1e-4)


def test_bounds_have_one_that_follows_them(host):
    """Never below that of NPE; a jump is cut, and a new level is reached after some steps."""
    parts = [host.package.NPE(), host.package.IWAE()]
    found = norms_after(host, parts, [100.0, 900.0, 1e5, 0.0])
    running = (0.99 * 100.0 + 900.0) / 1.99
    np.testing.assert_allclose(found, [100.0, 900.0, 10 * running, 0.0], rtol=1e-4)
    np.testing.assert_allclose(norms_after(host, parts, [0.0, 4.0]), [0.0, 4.0], rtol=1e-4)
    assert norms_after(host, parts, [10.0] * 100 + [1e4] * 200)[-1] == pytest.approx(1e4)


@pytest.mark.compiles
def test_noisy_gradients_of_a_sum_do_not_widen_the_guide(host):
    """One data set far from the prior: with gradients cut at 5 the sd comes out twice as large."""
    package, problem = host.package, PROBLEMS["conjugate_normal"]
    x = 5.0 + np.random.default_rng(0).normal(size=(1, problem.num_rows))
    guide = host.guide(
        host.models.conjugate_normal, observed="x", densities=package.NormalDensity()
    )
    amortized = host.fit(
        guide.model,
        guide,
        host.trace_elbo(),
        args=(host.array(x[0]),),
        num_steps=1000,
        learning_rate=5e-3,
    )
    draws = host.sample(amortized.at(host.array(x[0])), 4000)["z"]
    (mean,), sd = problem.posterior({"x": x})
    assert abs(draws.mean() - mean) < 0.2 * sd
    assert draws.std() / sd == pytest.approx(1.0, abs=0.15)
