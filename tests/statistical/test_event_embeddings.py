"""Embeddings learn where moments do not do: against exact posteriors, tolerances fixed before."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from amortize_diagnostics import expected_gap
from tests.backends import host as host_of
from tests.catalogue import GAUSSIAN, OTHER
from tests.problems import PROBLEMS

pytestmark = pytest.mark.slow

NUM_DRAWS = 4000
SLOPES = PROBLEMS["slopes"]
TRANSFORMER = {"kind": "transformer", "num_channels": 16, "num_layers": 1}
PERCEIVER = {"num_channels": 32, "num_latents": 8, "num_cross": 1, "num_blocks": 1}
ATTENTION = {"pooling": "attention"}
# Problem, embedding and its options, simulations per step, steps, learning rate.
RUNS = {
    "convolution": ("autoregression", "SequenceEmbedding", {}, 128, 1500, 2e-3),
    "recurrent": ("autoregression", "SequenceEmbedding", {"kind": "recurrent"}, 128, 2500, 5e-3),
    "transformer": ("autoregression", "SequenceEmbedding", TRANSFORMER, 128, 2000, 2e-3),
    "times": ("slopes", "SequenceEmbedding", {"times": "times"}, 32, 6000, 2e-3),
    "attention": ("contaminated_normal", "PlateEmbedding", ATTENTION, 128, 4000, 1e-3),
    "vector": ("ramp", "MLPEmbedding", {}, 128, 1500, 2e-3),
    "perceiver": ("contaminated_normal", "PerceiverEmbedding", PERCEIVER, 128, 4000, 2e-3),
    "image": ("blob_image", "ImageEmbedding", {}, 256, 4000, 2e-3),
}
# Arguments of the model that change from step to step, and of the guide.
CALLS = {
    "times": (lambda rng: (SLOPES.draw_times(rng).astype("f4"),), {"inputs": {"times": "rows"}})
}
# Observed site and largest fraction of values that training hides, if not "y" and none.
DATA = {"attention": ("x", 0.95), "perceiver": ("x", 0)}
GAUSSIANS = ("times", "vector")  # runs whose posterior is a normal
MODELS = {"perceiver": "contaminated_set"}  # if not the problem's name


@cache
def trained(backend, run):
    host = host_of(backend)
    problem, embedding, options, batch, steps, rate = RUNS[run]
    model = getattr(host.models, MODELS.get(run, problem))
    spec, (observed, missing) = getattr(host.package, embedding)(**options), DATA.get(run, ("y", 0))
    draw, declared = CALLS.get(run, (None, {}))
    if run in GAUSSIANS:
        declared = declared | {"densities": host.package.NormalDensity()}
    may_miss = {"missing": observed} if missing else {}
    guide = host.guide(model, observed=observed, embedding=spec, **may_miss, **declared)
    sampler = draw and host.model_args(draw)
    objective = host.package.NPE(batch, missing=missing, model_args=sampler)
    return host.fit(model, guide, objective, num_steps=steps, learning_rate=rate)


def gap_of(host, run, hidden=None):
    problem = PROBLEMS[RUNS[run][0]]
    latents, observations = problem.sample_joint(np.random.default_rng(1), NUM_DRAWS)
    if hidden is not None:
        observations = {site: np.where(hidden, np.nan, y) for site, y in observations.items()}
    args = (host.array(problem.times),) if run == "times" else ()
    found = host.site_log_probs(trained(host.name, run), args, latents, observations)
    log_q = sum(part.reshape(NUM_DRAWS, -1).sum(1) for part in found.values())
    return expected_gap(problem.log_posterior(latents, observations), log_q)


@pytest.mark.parametrize("run", sorted(RUNS))
def test_expected_gap(host, run):
    problem = PROBLEMS[RUNS[run][0]]
    gap = gap_of(host, run)
    assert gap.upper / problem.num_latents < (GAUSSIAN if run in GAUSSIANS else OTHER), gap
    assert gap.mean > -3 * gap.se, gap


@pytest.mark.parametrize("kept", [0, 3])
def test_expected_gap_of_attention_over_some_rows_or_none(host, kept):
    """Of none the posterior is the prior."""
    problem = PROBLEMS["contaminated_normal"]
    hidden = np.arange(problem.num_rows) >= kept
    latents, x = problem.sample_joint(np.random.default_rng(0), 3)
    nothing = problem.log_posterior(latents, {"x": np.full_like(x["x"], np.nan)})
    np.testing.assert_allclose(nothing, norm.logpdf(latents["z"]), atol=1e-8)
    gap = gap_of(host, "attention", hidden)
    assert gap.upper < OTHER, gap
    assert gap.mean > -3 * gap.se, gap


@cache
def trained_on_sets(backend):
    """Sets of 1 to 64 numbers, small ones as common as large ones, padded."""
    host = host_of(backend)
    model = host.models.set_as_an_event

    def draw(rng):
        return (np.arange(64) < int(np.exp(rng.uniform(0, np.log(65)))),)

    guide = host.guide(
        model,
        observed="x",
        missing={"is_there": "x"},
        embedding=host.package.PerceiverEmbedding(**PERCEIVER),
        densities=host.package.NormalDensity(),
    )
    objective = host.package.NPE(64, model_args=host.model_args(draw))
    return host.fit(model, guide, objective, num_steps=3000)


def test_latents_see_how_many_elements_a_set_has(host):
    """Gap to the exact normal at 4 and 64 elements, and the ratio of sds, 10 per cent at most."""
    amortized, sds = trained_on_sets(host.name), []
    for num in (4, 64):
        rng, there = np.random.default_rng(num), np.arange(64) < num
        z = rng.normal(size=NUM_DRAWS)
        x = z[:, None] + rng.normal(size=(NUM_DRAWS, 64))
        exact = norm(x[:, :num].sum(1) / (1 + num), (1 + num) ** -0.5)
        args, data = (host.array(there),), {"x": np.where(there, x, np.nan)}
        found = host.site_log_probs(amortized, args, {"z": z}, data)
        gap = expected_gap(exact.logpdf(z), found["z"].reshape(-1))
        assert gap.upper < GAUSSIAN, (num, gap)
        posterior = amortized.at(*args, x=host.array(x[0]))
        sds.append(host.sample(posterior, 10_000)["z"].std())
    assert abs(sds[0] / sds[1] / np.sqrt(65 / 5) - 1) < 0.1, sds


def test_ess_fraction_of_the_guide_of_images(host):
    """Every one of ten data sets, of which the prior makes some with the blob at the edge."""
    problem = PROBLEMS["blob_image"]
    _, observations = problem.sample_joint(np.random.default_rng(2), 10)
    posterior = trained(host.name, "image").at_each(
        observations={"y": host.array(observations["y"])}
    )
    summary = host.importance_sample(posterior, 4000).summary
    assert np.all(summary.ess_fraction > 0.5), summary.ess_fraction
    exact = problem.log_evidence(observations)
    assert np.all(np.abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se + 1e-3)
