"""NumPyro compiles once for each bucket of sizes, and padding changes no answer.

Pyro compiles nothing, so nothing is padded there.
"""

from importlib import import_module

import numpy as np
import pytest

from tests.backends import host as adapter
from tests.conftest import require
from tests.problems import PROBLEMS


@pytest.fixture
def host():
    require("numpyro")
    return adapter("numpyro")


def small_guide(host, model, **declared):
    """Small networks, which compile in half the time."""
    density = host.package.NormalDensity(hidden_dims=(8,))
    embedding = host.package.PlateEmbedding(feature_dim=4, hidden_dims=(8,), num_rounds=1)
    return host.guide(model, observed="y", densities=density, embedding=embedding, **declared)


def sampler_of_sizes(*sizes):
    def draw(rng_key):
        bits = import_module("jax").random.bits(rng_key)
        return {"num_groups": int(np.random.default_rng(int(bits)).choice(sizes))}

    return draw


def with_data(host, sampler):
    def draw(rng_key):
        arguments = sampler(rng_key)
        y = np.random.default_rng(arguments["num_groups"]).normal(size=arguments["num_groups"])
        return {**arguments, "y": host.array(y)}

    return draw


def count_traces(monkeypatch, host):
    """Sizes at which the step of the training loop has been compiled."""
    step = host.module("training_step").TrainingStep
    seen, original = [], step._loop

    def loop(self, state, keys, num_steps, is_training, call, true_sizes):
        args, kwargs = call
        seen.extend(value for value in (*args, *kwargs.values()) if isinstance(value, int))
        return original(self, state, keys, num_steps, is_training, call, true_sizes)

    monkeypatch.setattr(step, "_loop", loop)
    return seen


@pytest.mark.parametrize("objective", ["NPE", pytest.param("Trace_ELBO", marks=pytest.mark.slow)])
def test_one_compilation_for_each_bucket(host, monkeypatch, objective):
    model = host.models.normals_of_any_number
    guide = small_guide(host, model, sizes={"num_groups": "groups"})
    seen = count_traces(monkeypatch, host)
    sampler = sampler_of_sizes(3, 9, 17, 60)
    if objective == "NPE":
        amortized = host.fit(model, guide, host.package.NPE(8, model_args=sampler), num_steps=25)
    else:
        amortized = host.fit(
            model, guide, host.trace_elbo(), model_args=with_data(host, sampler), num_steps=25
        )
    assert sorted(seen) == [16, 64]  # of 25 calls of four sizes
    low, high = amortized.history.plate_sizes["groups"]
    assert (low, high) == (3, 60)

    # Answers too: three sizes, one bucket, one compilation.
    compiled = [host.module("conditioned")._sample, host.module("conditioned")._log_prob]
    before = [function._cached._cache_size() for function in compiled]
    for num in (low, low + 1, low + 2):
        posterior = amortized.at(num_groups=num, y=host.array(np.arange(float(num))))
        draws = host.sample(posterior, 10)
        assert draws["theta"].shape == (10, num)
        assert host.log_prob(posterior, draws).shape == (10,)
    after = [function._cached._cache_size() for function in compiled]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1]


SLOW_BOUNDS = ("TraceMeanField_ELBO", "RenyiELBO", "IWAE", "wake")


@pytest.mark.parametrize(
    "bound",
    [
        "Trace_ELBO",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BOUNDS),
    ],
)
def test_a_padded_bound_is_the_bound(host, bound):
    """At the same draws, with its gradient: what padding adds is in no term and no network."""
    jax, handlers = import_module("jax"), import_module("numpyro.handlers")
    padding, mask_padding = host.module("padding"), host.module("handlers.padding").mask_padding
    model, problem = host.models.hierarchical_normal, PROBLEMS["hierarchical_normal"]
    guide = small_guide(host, model, sizes={"num_groups": "groups"})
    latents, data = problem.sample_joint(np.random.default_rng(1), 1)
    y, num_groups = host.array(data["y"][0]), data["y"].shape[1]
    amortized = host.scrambled(model, guide, None, num_groups)
    latents = {name: host.array(value[0]) for name, value in latents.items()}
    call = padding.CallPadding(model, guide.structure, guide.sizes, ("groups",)).pad(
        ((y, num_groups), {})
    )
    assert call.padded_sizes == {"groups": 16}
    if bound == "wake":
        objective = host.package.RWS(2, insomnia=1.0).parts[0][0]
    else:
        make = host.package.IWAE if bound == "IWAE" else getattr(host.infer, bound)
        objective = make(num_particles=2)

    def loss(params, arguments, model, guide):
        return objective.loss(host.key(0), params, model, guide, *arguments)

    differentiate = jax.value_and_grad(loss)
    own = differentiate(
        amortized.params, (y, num_groups), model, handlers.substitute(guide, data=latents)
    )
    padded_guide = handlers.substitute(
        guide.padded(call.true_sizes), data=call.extend(guide.structure, latents)
    )
    arguments = call.call[0], mask_padding(model, call.true_sizes)
    padded = differentiate(
        amortized.params, *arguments, mask_padding(padded_guide, call.true_sizes)
    )
    for first, second in zip(jax.tree.leaves(own), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    # Either half of the padding is seen if it is left out.
    unmasked = differentiate(amortized.params, *arguments, padded_guide)
    assert abs(unmasked[0] - own[0]) > 0.1
    blind = handlers.substitute(guide, data=call.extend(guide.structure, latents))
    seen = differentiate(amortized.params, *arguments, mask_padding(blind, call.true_sizes))
    assert abs(seen[0] - own[0]) > 1e-3


@pytest.mark.slow
def test_padded_answers_are_the_answers(host):
    """The same densities, weights and evidence as without padding."""
    model, problem = host.models.hierarchical_normal, PROBLEMS["hierarchical_normal"]
    guide = small_guide(host, model, sizes={"num_groups": "groups"})
    y = host.array(problem.sample_joint(np.random.default_rng(1), 1)[1]["y"][0])
    plain = host.untrained(model, guide, None, len(y))
    history = host.package.TrainingHistory(
        np.zeros(1), np.ones(1), np.zeros(1), plate_sizes={"groups": (2, 60)}
    )
    padded = host.package.AmortizedPosterior(model, guide, params=plain.params, history=history)
    posteriors = [amortized.at(y, len(y)) for amortized in (plain, padded)]
    draws = host.sample(posteriors[1], 500)
    assert draws["theta"].shape == (500, len(y))
    for method in (host.log_prob, host.log_joint):
        first, second = (method(posterior, draws) for posterior in posteriors)
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-4)
    first, second = (host.rates(posterior, 2000) for posterior in posteriors)
    assert second.elements["theta"].shape == (len(y),)
    assert first.mean["theta"] == pytest.approx(second.mean["theta"], abs=0.05)
    first, second = (host.importance_sample(posterior, 4000) for posterior in posteriors)
    assert second.samples["theta"].shape == (4000, len(y))
    exact = problem.log_evidence({"y": np.asarray(y)[None]})[0]
    for found in (first, second):
        assert found.summary.log_evidence_se < 0.05
        assert abs(found.summary.log_evidence - exact) < 4 * found.summary.log_evidence_se
    many = padded.at_each(num_groups=len(y), observations={"y": np.stack([y, y + 1])})
    assert host.importance_sample(many, 100).samples["theta"].shape == (100, 2, len(y))
    assert abs(host.mutual_information(many, 20).mean) < 1e-3  # the guide is not trained


def shrinking_scale(num_groups=3, y=None):
    numpyro, dist = import_module("numpyro"), import_module("numpyro.distributions")
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups):
        theta = numpyro.sample("theta", dist.Normal(mu, num_groups**-0.5))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def size_of_its_own(labels=("group",) * 3, y=None):
    numpyro, dist = import_module("numpyro"), import_module("numpyro.distributions")
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", len(labels)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def constant_rows(num_groups=3, y=None):
    numpyro, dist = import_module("numpyro"), import_module("numpyro.distributions")
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups):
        scale = import_module("jax.numpy").ones(4)[:num_groups]
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)


# What is wrong with a model, and the words that say so.
PROBLEMS_OF_PADDING = {
    shrinking_scale: "site 'theta': changes when plates .'groups'. are padded",
    size_of_its_own: "plate 'groups': its size does not follow from the declared arguments",
    constant_rows: "the model cannot run with plates .'groups'. padded",
}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(shrinking_scale, marks=pytest.mark.slow),
        size_of_its_own,
        constant_rows,
    ],
)
def test_models_that_cannot_be_padded(host, monkeypatch, model):
    message = PROBLEMS_OF_PADDING[model]
    objective = host.package.NPE(8, model_args=sampler_of_sizes(3, 4))
    declared = {} if model is size_of_its_own else {"sizes": {"num_groups": "groups"}}
    if model is size_of_its_own:
        objective = host.package.NPE(8, model_args=lambda key: unsized(sampler_of_sizes(3, 4)(key)))

    def fit(how):
        guide = small_guide(host, model, **declared)
        return host.fit(model, guide, objective, num_steps=6 if how == "never" else 1, padding=how)

    with pytest.raises(ValueError, match=f"padding='always': {message}"):
        fit("always")
    with pytest.warns(UserWarning, match=f"{message}.*compiled by itself"):
        fit("auto")
    if model is shrinking_scale:
        seen = count_traces(monkeypatch, host)
        fit("never")  # warnings are errors
        assert sorted(seen) == [3, 4]


def pull_of_the_size(num_groups=3, y=None):
    numpyro, dist = import_module("numpyro"), import_module("numpyro.distributions")
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.factor("local", -(theta**2))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
    numpyro.factor("pull", -num_groups * mu**2)


def drawn_rows(num_groups=3, y=None):
    numpyro, dist = import_module("numpyro"), import_module("numpyro.distributions")
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=None if y is None else y[rows])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (pull_of_the_size, "site 'pull': changes when plates .'groups'. are padded"),
        (drawn_rows, "plate 'groups': rows are drawn from the padded ones too"),
    ],
)
def test_bounds_that_cannot_be_padded(host, model, message):
    guide = small_guide(host, model, sizes={"num_groups": "groups"})
    sampler = with_data(host, sampler_of_sizes(3, 4))
    with pytest.raises(ValueError, match=f"padding='always': {message}"):
        host.fit(model, guide, host.trace_elbo(), model_args=sampler, num_steps=1, padding="always")


def unsized(arguments):
    """A size as the length of something that nothing is declared about."""
    return {"labels": ("group",) * arguments["num_groups"]}


def test_a_rule_of_missing_values_sees_no_padded_shape(host):
    model = host.models.rows_of_any_number
    guide = host.guide(model, observed="y", sizes={"num_rows": "rows"}, missing="y")
    objective = host.package.NPE(
        8,
        model_args=lambda key: {"num_rows": 3 + int(import_module("jax").random.bits(key)) % 2},
        missing=lambda rng_key, site, shape: np.arange(shape[-1]) > 1,
    )
    with pytest.raises(ValueError, match="missing: a function of the shape would see the padded"):
        host.fit(model, guide, objective, num_steps=1, padding="always")


def test_padding_is_a_closed_choice(host):
    model = host.models.conjugate_normal
    guide = host.guide(model, observed="x")
    with pytest.raises(ValueError, match="padding: expected 'auto', 'always' or 'never'"):
        host.fit(model, guide, host.package.NPE(8), num_steps=1, padding="sometimes")
