"""Subsampled plates: model and guide look at the same rows, and nothing is stored per row."""

import numpy as np
import pytest

from tests import backends
from tests.conftest import require

pytestmark = pytest.mark.compiles

X = np.linspace(-2.0, 2.0, 10)
SIZES = {"num_rows": "data", "batch_size": "data"}


def guide_of(host, name="factor_analysis", **options):
    model = getattr(host.models, name)
    return model, host.guide(model, observed="x", sizes=SIZES, **options)


def traces(host, amortized, model, *args, seed=0):
    """Traces of guide and model as the host's SVI makes them: rows, draws, scales and data."""
    if host.name == "pyro":
        import pyro
        from pyro import poutine

        pyro.clear_param_store()
        host.seed(seed)
        guide_trace = poutine.trace(amortized.guide).get_trace(*args)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args)
        guide_trace.compute_log_prob()
        return guide_trace.nodes, model_trace.nodes
    from numpyro import handlers

    guide = handlers.seed(amortized.guide, host.key(seed))
    guide = handlers.substitute(guide, data=dict(amortized.params))
    guide_trace = handlers.trace(guide).get_trace(*args)
    model = handlers.replay(handlers.seed(model, host.key(1)), guide_trace)
    return guide_trace, handlers.trace(model).get_trace(*args)


def test_model_and_guide_look_at_the_same_rows(host):
    model, guide = guide_of(host)
    amortized = host.scrambled(model, guide, scale=0.1)
    for seed in range(3):
        of_guide, of_model = traces(host, amortized, model, host.array(X), 10, 3, seed=seed)
        rows = np.asarray(of_guide["data"]["value"])
        assert len(set(rows.tolist())) == 3
        np.testing.assert_array_equal(np.asarray(of_model["data"]["value"]), rows)
        np.testing.assert_allclose(np.asarray(of_model["x"]["value"]), X[rows], rtol=1e-6)
        assert float(of_guide["z"]["scale"]) == pytest.approx(10 / 3)
        # The guide's density of each draw is that of its own row, whatever the batch.
        z = np.asarray(
            of_guide["z"]["value"].detach() if host.name == "pyro" else of_guide["z"]["value"]
        )
        latents, data = {"z": z[None]}, {"x": X[rows][None]}
        own = host.site_log_probs(amortized, (None, 3, 3), latents, data)["z"].ravel()
        fn, value = of_guide["z"]["fn"], of_guide["z"]["value"]
        found = backends.numpy_tree(fn.log_prob(value))
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)


def test_the_subsample_size_may_change_between_calls(host):
    model, guide = guide_of(host)
    amortized = host.scrambled(model, guide, scale=0.1)
    for size in (1, 4, 10):
        of_guide, _ = traces(host, amortized, model, host.array(X), 10, size)
        assert of_guide["z"]["value"].shape == (size,)


def test_training_on_batches_answers_every_row(host):
    """Exact: z given x is Normal(0.8 x, 0.2), one row at a time."""
    model, guide = guide_of(host, densities=host.package.NormalDensity(hidden_dims=(16,)))
    x = np.random.default_rng(0).normal(size=400) * np.sqrt(1.25)
    args = (host.array(x), 400, 50)
    objective = host.trace_elbo(4)
    amortized = host.fit(model, guide, objective, args=args, num_steps=400, learning_rate=2e-2)
    assert amortized.history.plate_sizes == {"data": (400, 400)}
    draws = host.sample(amortized.at(host.array(X), 10, 10), 4000)["z"]
    assert np.abs(draws.mean(0) - 0.8 * X).max() < 0.25 * np.sqrt(0.2)
    assert np.abs(draws.std(0) / np.sqrt(0.2) - 1).max() < 0.1
    # Scaled to all rows, the bound on the held-out batches is that of the evidence.
    evidence = (-0.5 * x**2 / 1.25 - 0.5 * np.log(2 * np.pi * 1.25)).sum()
    assert -amortized.history.held_out_losses[-1] == pytest.approx(evidence, rel=0.15)


def test_a_global_latent_is_told_how_many_rows_there_are(host):
    """Equal batches of larger data: another context, since the mean of more rows is surer."""
    model, guide = guide_of(host, "shared_mean")
    amortized = host.scrambled(model, guide, scale=0.1)
    x = np.tile(X, 10)
    small, _ = traces(host, amortized, model, host.array(X), 10, 10)
    large, _ = traces(host, amortized, model, host.array(x), 100, 10)
    mu = host.array(np.array(0.3))

    def log_prob(trace):
        return float(backends.numpy_tree(trace["mu"]["fn"].log_prob(mu)))

    assert abs(log_prob(small) - log_prob(large)) > 1e-4


def test_npe_takes_local_latents_of_batches(host):
    model, guide = guide_of(host, densities=host.package.NormalDensity(hidden_dims=(16,)))
    objective = host.package.NPE(8)
    history = host.fit(model, guide, objective, args=(None, 10, 3), num_steps=3).history
    assert np.isfinite(history.losses).all()


def test_npe_refuses_latents_outside_that_see_a_part_of_the_rows(host):
    model, guide = guide_of(host, "shared_mean")
    with pytest.raises(ValueError, match="plate 'data': NPE would simulate 3 of 10 rows"):
        host.fit(model, guide, host.package.NPE(8), args=(None, 10, 3), num_steps=1)


def test_an_answer_needs_rows_that_the_user_chooses(host):
    model, guide = guide_of(host)
    amortized = host.scrambled(model, guide, None, 10, 3, scale=0.1)
    with pytest.raises(ValueError, match="plate 'data': this call of the model looks at a random"):
        amortized.at(host.array(X), 10, 3)
    assert host.sample(amortized.at(host.array(X), 10, 10), 5)["z"].shape == (5, 10)


WEIGHT = np.linspace(-1.0, 2.0, 10)


def guide_with_covariates(host, name="weight", **options):
    model = host.models.covariate_of_drawn_rows
    settings = {"sizes": {"batch_size": "data"}, "inputs": {name: "data"}}
    return model, host.guide(model, observed="x", **settings, **options)


@pytest.mark.parametrize("name", ["weight", "t"])
def test_covariates_are_those_of_the_drawn_rows(host, name):
    """An argument has all rows; a deterministic site has those that the model looks at."""
    model, guide = guide_with_covariates(host, name)
    args = (host.array(WEIGHT), host.array(X))
    amortized = host.scrambled(model, guide, *args, 4, scale=0.1)
    for seed in range(3):
        of_guide, of_model = traces(host, amortized, model, *args, 4, seed=seed)
        rows = np.asarray(of_guide["data"]["value"])
        np.testing.assert_array_equal(np.asarray(of_model["data"]["value"]), rows)
        mu, z = (backends.numpy_tree(of_guide[site]["value"]) for site in ("mu", "z"))
        latents = {"mu": mu[None], "z": z[None]}
        small = (host.array(WEIGHT[rows]), None, 4)
        own = host.site_log_probs(amortized, small, latents, {"x": X[rows][None]})["z"].ravel()
        fn, value = of_guide["z"]["fn"], of_guide["z"]["value"]
        found = backends.numpy_tree(fn.log_prob(value))
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)
        wrong = (host.array(WEIGHT[:4]), None, 4)
        other = host.site_log_probs(amortized, wrong, latents, {"x": X[rows][None]})["z"].ravel()
        assert np.abs(other - own).max() > 1e-3  # the covariates matter


@pytest.mark.slow
def test_training_on_batches_with_covariates(host):
    """Exact: z given mu is Normal((mu + t + 4 (x + 2 t)) / 5, 1 / 5)."""
    normal = host.package.NormalDensity(hidden_dims=(16,))
    model, guide = guide_with_covariates(host, densities=normal)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=400)
    x = 0.5 + rng.normal(size=400) * np.sqrt(1.25) - weight
    args = (host.array(weight), host.array(x), 50)
    objective = host.trace_elbo(4)
    amortized = host.fit(model, guide, objective, args=args, num_steps=800, learning_rate=2e-2)
    posterior = amortized.at(host.array(weight), host.array(x), 400)
    draws = host.sample(posterior, 4000)
    exact = (draws["mu"][:, None] + weight + 4 * (x + 2 * weight)) / 5
    error = draws["z"] - exact
    assert np.sqrt((error.mean(0) ** 2).mean()) < 0.1 * np.sqrt(0.2)
    assert np.abs(error.std() / np.sqrt(0.2) - 1) < 0.05
    precision = 1 + 400 / 1.25
    mean = (x + weight).sum() / 1.25 / precision
    assert abs(draws["mu"].mean() - mean) < 0.3 * precision**-0.5


def test_npe_refuses_covariates_of_rows_that_change(host):
    model, guide = guide_with_covariates(host)
    call = {"weight": host.array(WEIGHT), "batch_size": 3, "with_mean": False}
    with pytest.raises(ValueError, match=r"NPE would simulate other 3 of 10 rows .*\['weight'\]"):
        host.fit(model, guide, host.package.NPE(8), kwargs=call, num_steps=1)


GROUP = np.array([0, 1, 1, 0, 2, 1, 0, 2, 2, 1])


def guide_of_groups(host, **options):
    model = host.models.group_of_drawn_rows
    settings = {"groups": {"group": ("groups", "data")}, "sizes": {"batch_size": "data"}}
    settings["sizes"]["num_groups"] = "groups"
    return model, host.guide(model, observed="x", **settings, **options)


def test_index_vectors_are_those_of_the_drawn_rows(host):
    """The groups of the rows that are drawn matter, those of the others do not."""
    model, guide = guide_of_groups(host)
    amortized = host.scrambled(model, guide, host.array(GROUP), 3, host.array(X), 4)

    def log_prob(group):
        args = (host.array(group), 3, host.array(X), 4)
        of_guide, of_model = traces(host, amortized, model, *args)
        rows = np.asarray(of_guide["data"]["value"])
        np.testing.assert_array_equal(np.asarray(of_model["data"]["value"]), rows)
        theta = host.array(np.array([0.5, -0.5, 1.0]))
        return rows, backends.numpy_tree(of_guide["theta"]["fn"].log_prob(theta))

    rows, own = log_prob(GROUP)
    others = np.setdiff1d(np.arange(10), rows)
    elsewhere, here = GROUP.copy(), GROUP.copy()
    elsewhere[others] = (GROUP[others] + 1) % 3
    here[rows[0]] = (GROUP[rows[0]] + 1) % 3
    np.testing.assert_allclose(log_prob(elsewhere)[1], own, rtol=1e-5, atol=1e-5)
    assert np.abs(log_prob(here)[1] - own).max() > 1e-3
    # The whole plate in one batch is the call that has no batches: same rows, same answer.
    latents, data = {"theta": np.zeros((1, 3))}, {"x": X[None]}
    whole = host.site_log_probs(amortized, (host.array(GROUP), 3, None, 10), latents, data)
    order = np.random.default_rng(0).permutation(10)
    args, data = (host.array(GROUP[order]), 3, None, 10), {"x": X[order][None]}
    found = host.site_log_probs(amortized, args, latents, data)
    np.testing.assert_allclose(found["theta"], whole["theta"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_on_batches_of_groups(host):
    """Exact: theta of a group is Normal(4 sum x / (1 + 4 n), 1 / (1 + 4 n))."""
    model, guide = guide_of_groups(host, densities=host.package.NormalDensity(hidden_dims=(16,)))
    rng = np.random.default_rng(0)
    group = rng.choice(5, size=400, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    x = rng.normal(size=5)[group] + 0.5 * rng.normal(size=400)
    args = (host.array(group), 5, host.array(x), 100)
    objective = host.trace_elbo(4)
    amortized = host.fit(model, guide, objective, args=args, num_steps=1500, learning_rate=1e-2)
    draws = host.sample(amortized.at(*args[:3], 400), 4000)["theta"]
    precision = 1 + 4 * np.bincount(group)
    mean = 4 * np.bincount(group, x) / precision
    assert np.abs((draws.mean(0) - mean) * precision**0.5).max() < 0.4
    assert np.abs(draws.std(0) * precision**0.5 - 1).max() < 0.25


def test_npe_refuses_index_vectors_of_rows_that_change_unless_all_are_drawn(host):
    model, guide = guide_of_groups(host)
    with pytest.raises(ValueError, match="plate 'data': NPE would simulate 4 of 10 rows, and si"):
        host.fit(
            model, guide, host.package.NPE(8), args=(host.array(GROUP), 3, None, 4), num_steps=1
        )
    args = host.array(GROUP), 3, None, 10  # the whole plate
    losses = host.fit(model, guide, host.package.NPE(8), args=args, num_steps=2).history.losses
    assert np.isfinite(losses).all()


def test_index_vectors_of_drawn_rows_have_all_of_them(host):
    model, guide = guide_of_groups(host)
    with pytest.raises(ValueError, match="groups 'group': points into the subsampled plate 'data'"):
        host.guide(
            model, observed="x", groups={"group": ("data", "groups")}, sizes={"batch_size": "data"}
        ).setup(host.array(GROUP), 3, None, 4)


def test_covariates_that_follow_the_rows_without_being_in_their_plate(host):
    """NPE would read those of other rows than it simulates."""
    guide = host.guide(host.models.mean_of_drawn_rows, observed="x", inputs={"t": None})
    with pytest.raises(ValueError, match="input 't': this deterministic site changes with what"):
        guide.setup(host.array(WEIGHT))


def test_masks_of_drawn_rows_are_refused(host):
    model = host.models.mask_of_drawn_rows
    guide = host.guide(model, observed="x", missing={"is_there": "x"})
    with pytest.raises(ValueError, match="missing 'is_there': a mask of rows of the subsampled"):
        guide.setup(host.array(WEIGHT > 0))


def test_pyro_models_with_covariates_of_drawn_rows_are_vectorised():
    require("pyro")
    host = backends.host("pyro")
    model, guide = guide_with_covariates(host)
    args = (host.array(WEIGHT), host.array(X))
    amortized = host.scrambled(model, guide, *args, 4, scale=0.1)
    assert guide.is_vectorized
    posterior = amortized.at(*args, 10)
    draws = host.sample(posterior, 50)
    assert draws["z"].shape == (50, 10)
    found = host.importance_sample(posterior, 200)
    assert found.log_weights.shape == (200,)
