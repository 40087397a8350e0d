"""The sbibm tasks: both backends have one model, whose simulations look like the observations."""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.conftest import require

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TASKS = (
    "bernoulli_glm",
    "bernoulli_glm_raw",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "lotka_volterra",
    "sir",
    "slcp",
    "slcp_distractors",
    "two_moons",
)
PARAMETERS = {"sir": ("beta", "gamma"), "lotka_volterra": ("alpha", "beta", "gamma", "delta")}


@cache
def benchmark_module(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def model_of(host, task):
    return benchmark_module(f"tasks.{host.name}_models").MODELS[task]


def named(task, draws):
    """Columns of reference draws as sites of the models."""
    if task not in PARAMETERS:
        return {"theta": draws}
    return dict(zip(PARAMETERS[task], np.moveaxis(draws, -1, 0), strict=True))


def log_joint(host, task, draws, data):
    """Log joint densities by the host itself, one after the other."""
    model, data = model_of(host, task), host.array(data)
    values = [{n: host.array(v) for n, v in named(task, draw).items()} for draw in draws]
    if host.name == "numpyro":
        density = import_module("numpyro.infer.util").log_density
        jitted = import_module("jax").jit(lambda latents: density(model, (data,), {}, latents)[0])
        return np.array([float(jitted(latents)) for latents in values])
    poutine = import_module("pyro").poutine
    traces = [poutine.trace(poutine.condition(model, latents)) for latents in values]
    return np.array([float(trace.get_trace(data).log_prob_sum()) for trace in traces])


@pytest.mark.parametrize("task", TASKS)
def test_both_backends_have_one_density(task):
    """And reference draws are likelier than those of another observation."""
    require("numpyro")
    require("pyro")
    published = benchmark_module("tasks.published")
    data, draws = published.observations(task), published.reference(task)
    found = {}
    for name in ("numpyro", "pyro"):
        host = host_of(name)
        found[name] = log_joint(host, task, np.concatenate(draws[:2, :3]), data[0])
        assert found[name][:3].mean() > found[name][3:].mean()
    np.testing.assert_allclose(found["numpyro"], found["pyro"], rtol=2e-3, atol=2e-2)


@pytest.mark.compiles
@pytest.mark.parametrize("task", TASKS)
def test_simulations_of_true_parameters_look_like_the_observations(host, task):
    """Each number of the first observation within six robust sds of 200 simulations."""
    published = benchmark_module("tasks.published")
    data = published.observations(task)[0]
    truth = published.constants(task)["true_parameters"][:1]
    model = model_of(host, task)
    values = {name: host.array(value[0]) for name, value in named(task, truth).items()}
    if host.name == "pyro":
        fixed = import_module("pyro").poutine.condition(model, values)
    else:
        fixed = import_module("numpyro").handlers.substitute(model, values)
    simulations = np.asarray(host.simulate(fixed, 200)["x"]).astype(float)
    if task == "slcp_distractors":  # the noise has no variance
        is_point = published.constants(task)["permutation"] < 8
        data, simulations = data[is_point], simulations[:, is_point]
    centre = np.median(simulations, 0)
    spread = np.subtract(*np.percentile(simulations, [84, 16], axis=0)) / 2
    assert np.all(np.abs(data - centre) <= 6 * spread + 1e-6 * np.abs(centre) + 1)
