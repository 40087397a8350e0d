"""One guide for data sets of any size, complete or not, against closed forms."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import kstest, norm

from amortize_diagnostics import expected_gap
from tests.backends import host as host_of
from tests.catalogue import GAUSSIAN, OTHER
from tests.problems import GroupedNormal, HierarchicalNormal, NormalUnknownScale

pytestmark = pytest.mark.slow  # minutes of training for each

NUM_DRAWS = 2000


def log_uniform(low, high):
    """Sizes of which small ones are as common as large ones."""
    return lambda rng: int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))


@cache
def trained_on_groups(backend):
    host = host_of(backend)
    size = log_uniform(3, 60)
    model = host.models.normals_of_any_number
    guide = host.guide(model, observed="y", sizes={"num_groups": "groups"})
    objective = host.package.NPE(128, model_args=host.model_args(lambda rng: (size(rng),)))
    return host.fit(model, guide, objective, num_steps=4000)


@pytest.mark.parametrize("num_groups", [3, 10, 60])
def test_any_number_of_groups(host, num_groups):
    """theta_j ~ Normal(mu, tau), y_j ~ Normal(theta_j, 1): global and local gaps, a dimension."""
    amortized = trained_on_groups(host.name)
    problem = GroupedNormal(counts=(1,) * num_groups)
    latents, data = problem.sample_joint(np.random.default_rng(1), NUM_DRAWS)
    in_order = np.argsort(problem.group)  # the problem's rows are in the order of an index vector
    data = {"y": data["y"][:, in_order]}
    exact = problem.log_posterior(latents, {"y": data["y"][:, problem.group]})
    mu, tau = latents["mu"][:, None], latents["tau"][:, None]
    precision = 1 / tau**2 + 1 / problem.noise**2
    mean = (mu / tau**2 + data["y"] / problem.noise**2) / precision
    local = norm.logpdf(latents["theta"], mean, precision**-0.5).sum(1)
    found = host.site_log_probs(amortized, (num_groups,), latents, data)
    found = {name: part.reshape(NUM_DRAWS, -1).sum(1) for name, part in found.items()}
    gaps = {
        "global": (expected_gap(exact - local, found["mu"] + found["tau"]), 2, 0.05),
        "local": (expected_gap(local, found["theta"]), num_groups, 0.02),
    }
    for name, (gap, num_dims, tolerance) in gaps.items():
        assert gap.upper / num_dims < tolerance, (name, gap)
        assert gap.mean > -3 * gap.se, (name, gap)


@cache
def trained_by_elbo(backend):
    """A stream of data sets, another size at every step, under the host's own bound."""
    host = host_of(backend)
    size = log_uniform(3, 60)

    def data_set(rng):
        problem = HierarchicalNormal(num_groups=size(rng))
        return problem.sample_joint(rng, 1)[1]["y"][0], problem.num_groups

    model = host.models.hierarchical_normal
    density = host.package.NormalDensity()
    guide = host.guide(model, observed="y", sizes={"num_groups": "groups"}, densities=density)
    return host.fit(
        model,
        guide,
        host.trace_elbo(num_particles=8),
        model_args=host.model_args(data_set),
        num_steps=4000,
        learning_rate=3e-3,
    )


@pytest.mark.parametrize("num_groups", [3, 10, 60])
def test_a_bound_of_the_host_over_data_sets_of_any_size(host, num_groups):
    amortized = trained_by_elbo(host.name)
    problem = HierarchicalNormal(num_groups=num_groups)
    latents, data = problem.sample_joint(np.random.default_rng(4), NUM_DRAWS)
    found = host.site_log_probs(amortized, (None, num_groups), latents, data)
    log_q = sum(part.reshape(NUM_DRAWS, -1).sum(1) for part in found.values())
    gap = expected_gap(problem.log_posterior(latents, data), log_q)
    assert gap.upper / problem.num_latents < GAUSSIAN, gap
    assert gap.mean > -3 * gap.se, gap


@cache
def trained_on_rows(backend):
    host = host_of(backend)
    size = log_uniform(5, 200)
    model = host.models.normal_unknown_scale
    guide = host.guide(model, observed="x", sizes={"num_rows": "rows"}, missing="x")
    objective = host.package.NPE(
        128, model_args=host.model_args(lambda rng: (None, size(rng))), missing=0.6
    )
    return host.fit(model, guide, objective, num_steps=4000)


def rows_with_holes(num_rows, is_complete, seed):
    """The problem without the missing rows, draws of its latents, its data and those with holes."""
    num_there = num_rows if is_complete else num_rows - round(0.3 * num_rows)
    problem = NormalUnknownScale(num_rows=num_there)
    rng = np.random.default_rng(seed)
    latents, data = problem.sample_joint(rng, NUM_DRAWS)
    x = np.full((NUM_DRAWS, num_rows), np.nan)
    x[:, :num_there] = data["x"]
    return problem, latents, data, rng.permuted(x, axis=1)


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("num_rows", [5, 37, 200])
def test_any_number_of_rows_some_of_them_missing(host, num_rows, is_complete):
    amortized = trained_on_rows(host.name)
    problem, latents, data, x = rows_with_holes(num_rows, is_complete, seed=2)
    found = host.site_log_probs(amortized, (None, num_rows), latents, {"x": x})
    log_q = sum(part.reshape(NUM_DRAWS, -1).sum(1) for part in found.values())
    gap = expected_gap(problem.log_posterior(latents, data), log_q)
    assert gap.upper / problem.num_latents < OTHER, gap
    assert gap.mean > -3 * gap.se, gap


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("num_rows", [5, 37, 200])
def test_answers_of_any_size_are_calibrated(host, num_rows, is_complete):
    """Ranks of the truth among the draws are uniform, and those of draws too narrow are not."""
    amortized = trained_on_rows(host.name)
    _, latents, _, x = rows_with_holes(num_rows, is_complete, seed=3)
    posterior = amortized.at_each(None, num_rows, observations={"x": host.array(x)})
    draws = host.sample(posterior, 99)
    for name, truth in latents.items():
        narrow = draws[name].mean(0) + 0.7 * (draws[name] - draws[name].mean(0))
        own, of_narrow = (rank_p_value(each, truth) for each in (draws[name], narrow))
        assert own > 1e-4, (name, own)
        assert of_narrow < 1e-6, (name, of_narrow)


def rank_p_value(draws, truth):
    """Of a test that ranks are uniform; draws lead."""
    ranks = np.sum(draws < truth, axis=0) + np.random.default_rng(0).uniform(size=truth.shape)
    return kstest(ranks / (len(draws) + 1), "uniform").pvalue
