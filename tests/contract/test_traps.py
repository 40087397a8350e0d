"""Regression tests of traps that were met before (DESIGN.md, section 5), by their numbers."""

import numpy as np
import pytest

from tests.backends import host as host_of
from tests.backends import num_distinct, small_guide
from tests.conftest import require


def test_trap_1_every_draw_is_distinct(host):
    """Draws expanded under a plate would have the right shape and be all the same."""
    model = host.models.hierarchical_normal
    amortized = host.untrained(model, small_guide(host, model, observed="y"))
    posterior = amortized.at(y=host.array(np.linspace(-1, 1, 8)))
    draws = host.sample(posterior, 500)
    assert num_distinct(draws["mu"]) > 0.99
    assert num_distinct(draws["theta"]) > 0.99
    many = amortized.at_each(observations={"y": np.zeros((5, 8), "float32")})
    assert num_distinct(host.sample(many, 100)["mu"]) > 0.99
    weighted = host.importance_sample(posterior, 300)
    assert num_distinct(weighted.samples["mu"]) > 0.99
    assert num_distinct(weighted.samples["theta"]) > 0.99
    bank = host.simulate(model, 200)
    assert num_distinct(np.asarray(bank["y"])) > 0.99


def test_trap_1_in_vectorised_particles_of_the_host(host):
    model = host.models.hierarchical_normal
    guide = small_guide(host, model, observed="y")
    amortized = host.untrained(model, guide)
    y = host.array(np.linspace(-1, 1, 8))
    if host.name == "pyro":
        import pyro
        from pyro import poutine

        pyro.clear_param_store()
        with pyro.plate("particles", 6, dim=-2):
            trace = poutine.trace(guide).get_trace(y)
        values = {name: trace.nodes[name]["value"].detach().numpy() for name in ("mu", "theta")}
    else:
        import jax
        from numpyro import handlers

        def one(key):
            trace = handlers.trace(
                handlers.substitute(handlers.seed(guide, key), data=dict(amortized.params))
            ).get_trace(y)
            return {name: trace[name]["value"] for name in ("mu", "theta")}

        values = jax.vmap(one)(jax.random.split(host.key(0), 6))
    assert num_distinct(values["mu"]) > 0.99
    assert num_distinct(values["theta"]) > 0.99


def test_trap_3_the_embedding_gets_gradients(host):
    """A stopped gradient at the condition leaves the embedding untrained without a sign."""
    model = host.models.hierarchical_normal
    guide = small_guide(host, model, observed="y")
    before = host.weights(host.scrambled(model, guide, scale=0.05))
    if host.name == "numpyro":
        params = host.scrambled(model, guide, scale=0.05).params
        amortized = host.fit(model, guide, host.package.NPE(16), num_steps=3, params=params)
    else:
        amortized = host.fit(model, guide, host.package.NPE(16), num_steps=3)
    after = host.weights(amortized)
    assert before.keys() == after.keys()
    assert any("embeddings" in name for name in before)
    for name, value in before.items():
        assert np.abs(after[name] - value).max() > 1e-6, name


def test_trap_5_the_loss_registers_the_parameters_with_the_host(host):
    """A loss that scores without going through the guide trains nothing in stock SVI."""
    model = host.models.conjugate_normal
    guide = small_guide(host, model, observed="x")
    guide.setup()
    x = host.array(np.zeros(20))
    before = host.weights(host.untrained(model, guide))
    if host.name == "pyro":
        import pyro

        pyro.clear_param_store()
        svi = host.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), host.package.NPE(16))
        svi.step(x)
        svi.step(x)
        assert len(list(pyro.get_param_store().keys())) == len(before)
        after = host.weights(host.package.AmortizedPosterior(model, guide))
    else:
        import optax

        svi = host.infer.SVI(model, guide, optax.adam(1e-2), host.package.NPE(16))
        result = svi.run(host.key(0), 2, x, progress_bar=False)
        after = host.weights(host.package.AmortizedPosterior(model, guide, params=result.params))
    for name, value in before.items():
        assert np.abs(after[name] - value).max() > 1e-5, name


def test_trap_6_a_reduction_across_a_plate_is_never_silently_wrong(host):
    """Right by itself, wrong under an outer plate: y ~ Normal(sum of all, 1)."""
    model = host.models.cross_plate_sum
    if host.name == "pyro":
        with pytest.warns(UserWarning, match="site 'y' mixes vectorised runs"):
            bank = host.simulate(model, 300)
        with pytest.raises(ValueError, match="cannot be vectorised: site 'y' mixes"):
            host.simulate(model, 300, method="vectorized")
    else:
        bank = host.simulate(model, 300)
    error = np.asarray(bank["y"]) - np.asarray(bank["a"]).sum(1)
    assert 0.8 < error.std() < 1.2


def test_trap_6_in_a_deterministic_site_of_a_plate(host):
    """No density reads it, so only the values themselves can show the mistake."""
    model = host.models.reduced_deterministic
    guide = host.guide(model, observed="y").setup()
    if host.name == "pyro":
        assert not guide.is_vectorized
        assert guide.vectorization_problem.startswith("site 'share' mixes vectorised runs")
        with pytest.warns(UserWarning, match="site 'share' mixes vectorised runs"):
            bank = host.simulate(model, 5).sites
    else:
        bank = host.simulate(model, 5).sites
    posterior = host.untrained(model, guide).at(y=host.array(np.array([1.0, -0.5, 2.0])))
    weighted = host.importance_sample(posterior, 6, num_local_samples=2).samples
    for draws in (bank, host.sample(posterior, 6), weighted):
        a, share = np.asarray(draws["a"]), np.asarray(draws["share"])
        assert share.shape == a.shape
        np.testing.assert_allclose(share, a / a.sum(1, keepdims=True), rtol=1e-3, atol=1e-4)


def test_trap_7_a_model_that_reads_its_data_is_refused(host):
    model = host.models.random_walk
    y = host.array(np.array([0.5, 1.0, -0.3, 2.0]))
    with pytest.raises(ValueError, match="the model reads this data while it simulates"):
        host.guide(model, observed="y").setup(y)


def test_trap_7_data_in_the_arguments_do_not_leak_into_simulations(host):
    model = host.models.conjugate_normal
    far = host.array(np.full(20, 50.0))
    bank = host.simulate(model, 200, args=(far,))
    assert np.abs(np.asarray(bank["x"])).max() < 10
    free, given = (
        host.standardisation(host.untrained(model, small_guide(host, model, observed="x"), *args))
        for args in ((), (far,))
    )
    np.testing.assert_array_equal(free, given)


def test_trap_8_trees_are_flat_variables_with_chain_and_draw(host):
    """ArviZ 0.23 builds garbage from the nested form without an error."""
    pytest.importorskip("arviz_base")
    model = host.models.conjugate_normal
    amortized = host.untrained(model, small_guide(host, model, observed="x"))
    tree = host.to_datatree(amortized.at(x=host.array(np.zeros(20))), 10)
    assert list(tree["posterior"].data_vars) == ["z"]
    assert tree["posterior"]["z"].dims == ("chain", "draw")
    assert tree["posterior"]["z"].dtype.kind == "f"


def test_trap_11_k_hat_looks_at_the_large_weights(host):
    """With the sign of the weights lost, a guide far too narrow would look reliable."""
    from amortize_diagnostics import importance_summary

    rng = np.random.default_rng(0)
    narrow = 0.25 * rng.normal(size=4000)  # weights with a heavy right tail
    heavy = -0.5 * narrow**2 + 0.5 * (narrow / 0.25) ** 2
    wide = 3 * rng.normal(size=4000)  # bounded weights
    light = -0.5 * wide**2 + 0.5 * (wide / 3) ** 2
    assert importance_summary(heavy).khat > 0.7
    assert importance_summary(light).khat < 0.5
    # The package's own weights have the same sign.
    model = host.models.conjugate_normal
    amortized = host.untrained(model, small_guide(host, model, observed="x"))
    found = host.importance_sample(amortized.at(x=host.array(np.full(20, 0.5))), 2000)
    z = found.samples["z"]
    posterior_mean = 20 * 0.5 / 21
    near = np.abs(z - posterior_mean) < 0.1
    assert found.log_weights[near].mean() > found.log_weights[~near].mean() + 1


def test_a_compiler_that_gives_wrong_sums_is_refused(monkeypatch):
    """jaxlib 0.10.2 does, from element 32,769 of an array on."""
    require("numpyro")
    import jax

    from numpyro_amortize.compiler import check_compiler

    check_compiler.cache_clear()
    check_compiler()
    check_compiler.cache_clear()
    monkeypatch.setattr(jax, "jit", lambda function: lambda *args: function(*args).at[1999].add(1))
    with pytest.raises(RuntimeError, match="its compiler gives wrong results on this machine"):
        check_compiler()


def test_shapes_stay_shapes_where_pyro_follows_dependencies():
    """Solvers of differential equations, for one, ask them how many numbers they hold."""
    require("pyro")
    host = host_of("pyro")

    import pyro
    import pyro.distributions as dist

    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        total = z.reshape(z.shape.numel()).reshape(z.shape)
        pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    guide = host.guide(model, observed="x").setup()
    assert guide.structure.site("z").parents == ()


def test_values_written_in_place_are_read(host):
    """Pyro's own account of dependencies loses them, and with them a posterior's correlations."""
    if host.name == "numpyro":
        import jax.numpy as library
        import numpyro as module
        import numpyro.distributions as dist
    else:
        import pyro as module
        import pyro.distributions as dist
        import torch as library

    def model(x=None):
        a = module.sample("a", dist.Normal(0.0, 1.0))
        b = module.sample("b", dist.Normal(0.0, 1.0))
        c = module.sample("c", dist.Normal(0.0, 1.0))
        if host.name == "numpyro":
            loc = library.zeros(2).at[0].set(a + b)
        else:
            loc = library.zeros(2)
            loc[0] = a + b
        module.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
        module.sample("w", dist.Normal(c, 1.0))

    structure = host.guide(model, observed=("x", "w")).setup().structure
    found = {site.name: site.parents for site in structure.latents}
    assert found == {"a": (), "b": ("a",), "c": ()}


@pytest.mark.compiles
def test_parameters_of_a_differential_equation_are_read_together(host):
    from tests.test_benchmark_tasks import model_of

    for task in ("sir", "lotka_volterra"):
        structure = host.guide(model_of(host, task), observed="x").setup().structure
        for number, site in enumerate(structure.latents):
            assert len(site.parents) == number
