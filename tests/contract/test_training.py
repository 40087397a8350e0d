"""`fit`, NPE and `simulate`: what they report and what they leave alone."""

import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests import backends
from tests.backends import small_guide
from tests.conftest import require


@pytest.mark.compiles
def test_history(host):
    model = host.models.conjugate_normal
    guide = host.guide(model, observed="x", densities=host.package.NormalDensity())
    amortized = host.fit(model, guide, host.package.NPE(32), num_steps=120, learning_rate=5e-3)
    history = amortized.history
    assert history.losses.shape == (120,)
    assert history.held_out_steps[-1] == 120
    assert len(history.held_out_steps) == len(history.held_out_losses)
    assert history.held_out_losses[-1] < history.held_out_losses[0]
    assert (history.num_simulations, history.num_nonfinite) == (32 * 120, 0)
    assert history.seconds > 0
    assert history.plate_sizes == {"rows": (20, 20)}
    assert "120 steps" in str(history)
    assert type(history).from_dict(history.to_dict()).to_dict() == history.to_dict()


def test_equal_seeds_give_equal_guides_and_others_do_not(host):
    model = host.models.conjugate_normal

    def losses(seed):
        guide = host.guide(model, observed="x", densities=host.package.NormalDensity())
        return host.fit(model, guide, host.package.NPE(8), num_steps=5, seed=seed).history.losses

    np.testing.assert_array_equal(losses(0), losses(0))
    assert not np.array_equal(losses(0), losses(1))


def test_set_up_is_idempotent_and_leaves_random_state_alone(host):
    model = host.models.conjugate_normal
    guide = host.guide(model, observed="x")
    if host.name == "pyro":
        import torch

        state = torch.get_rng_state()
        assert guide.setup() is guide
        assert torch.equal(state, torch.get_rng_state())
    assert guide.setup() is guide
    structure = guide.structure
    assert guide.setup() is guide
    assert guide.structure is structure
    other = host.guide(model, observed="x").setup()
    first, second = (host.weights(host.untrained(model, each)) for each in (guide, other))
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=1e-6)


def test_bank_of_simulations(host):
    model = host.models.conjugate_normal
    bank = host.simulate(model, 500)
    guide = host.guide(model, observed="x", densities=host.package.NormalDensity())
    amortized = host.fit(
        model, guide, host.package.NPE(64, simulations=bank), num_steps=150, learning_rate=5e-3
    )
    history = amortized.history
    assert history.held_out_losses[-1] < history.losses[:5].mean() - 0.3
    assert len(bank) == 500
    assert bank["x"].shape == (500, 20)
    assert bank.is_finite().all()


@pytest.mark.parametrize("nonfinite", ["raise", "drop"])
def test_draws_on_the_boundary_of_a_support_are_left_out(host, nonfinite):
    """Rounding makes one in millions of half-normal draws zero, whose logarithm is infinite."""
    model = host.models.positive_location
    bank = host.simulate(model, 200)
    tau = np.asarray(bank["tau"]).copy()
    tau[::3] = 0.0
    sites = {"tau": host.array(tau), "y": bank["y"]}
    objective = host.package.NPE(
        32, simulations=host.package.Simulations(sites, 200, {}), nonfinite=nonfinite
    )
    guide = small_guide(host, model, observed="y")
    history = host.fit(model, guide, objective, num_steps=5).history
    assert np.isfinite(history.losses).all()
    assert history.losses.mean() < 5.0
    assert history.num_nonfinite == 0


def test_simulate_is_the_model(host):
    """Means and variances of joint draws, with the deterministic sites."""
    model = host.models.eight_schools_noncentered
    sigma = np.linspace(9, 18, 8)
    bank = host.simulate(model, 20000, args=(host.array(sigma),))
    z, y, theta = (np.asarray(bank[name]) for name in ("z", "y", "theta"))
    assert set(bank.sites) == {"mu", "tau", "z", "theta", "y"}
    np.testing.assert_allclose(z.mean(0), 0, atol=0.04)
    np.testing.assert_allclose((y - theta).std(0), sigma, rtol=0.03)
    mu, tau = np.asarray(bank["mu"]), np.asarray(bank["tau"])
    np.testing.assert_allclose(theta, mu[:, None] + tau[:, None] * z, rtol=1e-4, atol=1e-3)
    assert abs(mu.std() - 5) < 0.15
    assert abs(np.median(tau) - 5) < 0.25
    assert bank.nonfinite == {}


def test_simulations_that_are_not_finite_are_counted(host):
    bank = host.simulate(host.models.sometimes_nan, 2000)
    assert 60 < bank.nonfinite["y"] < 140
    assert "z" not in bank.nonfinite
    assert bank.is_finite().sum() == 2000 - bank.nonfinite["y"]


def test_loop_and_vectorised_simulations_have_one_law(host):
    model = host.models.hierarchical_normal
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = host.simulate(model, 600, method="loop")
        fast = host.simulate(model, 20000, method="vectorized")
    for name in ("mu", "theta", "y"):
        first, second = np.asarray(loop[name]), np.asarray(fast[name])
        assert first.shape[1:] == second.shape[1:]
        assert abs(first.std() / second.std() - 1) < 0.15, name


def test_pyro_npe_of_a_model_that_cannot_be_vectorised(monkeypatch):
    """One bank by the loop, with a warning; it must be finite like any simulation."""
    require("pyro")
    host = backends.host("pyro")
    monkeypatch.setattr(host.module("objectives.npe"), "_BANK_SIZE", 60)
    model = host.models.python_branch
    objective = host.package.NPE(16)
    with pytest.warns(UserWarning, match="so 60 simulations are made once, one by one") as caught:
        host.fit(model, host.guide(model, observed="y"), objective, num_steps=3)
    assert len(caught) == 1
    assert len(objective.simulations) == 60

    def half_nan(y=None):
        import pyro
        import pyro.distributions as dist

        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = z if z > 0 else z * np.nan
        pyro.sample("y", dist.Normal(mean, 1.0, validate_args=False), obs=y)

    guide = host.guide(half_nan, observed="y").setup()
    with (
        pytest.warns(UserWarning, match="so 60 simulations are made once"),
        pytest.raises(ValueError, match=r"simulations are not finite in runs \(of 60\)"),
    ):
        host.package.NPE(16).differentiable_loss(half_nan, guide)


@pytest.mark.compiles
def test_parameters_of_the_model_train_under_a_bound_but_not_under_npe(host):
    model = host.models.with_parameter
    y = host.array(np.random.default_rng(0).normal(0.0, 0.5, size=50))

    def scale(objective, num_steps):
        guide = host.guide(model, observed="y", densities=host.package.NormalDensity())
        amortized = host.fit(
            model, guide, objective, args=(y,), num_steps=num_steps, learning_rate=2e-2
        )
        if host.name == "numpyro":
            return float(amortized.params["scale"])
        import pyro

        return float(pyro.param("scale").detach())

    assert scale(host.trace_elbo(), 150) < 1.2
    assert scale(host.package.NPE(8), 20) == pytest.approx(2.0, abs=1e-6)


def test_numpyro_trains_no_weights_that_no_site_reads():
    """A latent of each row reads its row; one of the whole reads the pooled rows."""
    require("numpyro")
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax

    from numpyro_amortize import NPE, AmortizedGuide
    from numpyro_amortize.training_step import TrainingStep

    def model(has_whole, x=None):
        centre = numpyro.sample("centre", dist.Normal()) if has_whole else 0.0
        with numpyro.plate("rows", 5):
            z = numpyro.sample("z", dist.Normal(centre, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = jnp.zeros(5)
    for has_whole, objective in product((False, True), (NPE(4), numpyro.infer.Trace_ELBO())):
        own = partial(model, has_whole)
        guide = AmortizedGuide(own, observed="x").setup(x=data)
        step = TrainingStep(
            own,
            guide,
            objective,
            ((), {"x": data}),
            optimizer=optax.sgd(1e-3),
            learning_rate=1e-3,
            num_steps=1,
            params=None,
        )
        every = set(guide.init_params()["amortized$params"])
        left_out = every - set(step.initial[0]["amortized$params"])
        pooled = {name for name in every if ".pooled." in name}
        assert pooled
        assert left_out == (set() if has_whole else pooled)
        assert set(step.params(step.initial)["amortized$params"]) == every


def test_sizes_and_settings_are_told_apart(host):
    model = host.models.hierarchical_normal
    guide = small_guide(host, model, observed="y", sizes={"num_groups": "groups"})
    amortized = host.untrained(model, guide, None, 8)
    assert guide.structure.settings == {}
    draws = host.sample(amortized.at(host.array(np.zeros(5)), 5), 10)
    assert draws["theta"].shape == (10, 5)


def test_a_plain_number_as_data_is_no_setting(host):
    """Set up at one number, asked at another; a setting of the same value stays one."""

    def model(scale=2.0, y=None):
        return host.models.scaled_scalar(scale, y)

    guide = host.guide(model, observed="y").setup(2.0, 2.0)
    assert guide.structure.settings == {"scale": 2.0}
    found = guide.find_observations((2.0, 0.5), {})
    assert float(found["y"]) == 0.5
    with pytest.raises(ValueError, match="argument 'scale': expected 2.0"):
        guide.find_observations((3.0, 0.5), {})


def test_a_model_that_has_changed_is_measured_again(host):
    """A second guide of one model, after a number that it reads is another."""
    scales = [1.0]

    def model(y=None):
        return host.models.scaled_scalar(scales[0], y)

    first, second = (
        host.standardisation(host.untrained(model, host.guide(model, observed="y")))[1]
        for scales[0] in (1.0, 100.0)
    )
    assert second == pytest.approx(100 * first, rel=0.1)


def test_a_size_left_at_its_default(host):
    model = host.models.hierarchical_normal
    guide = host.guide(model, observed="y", sizes={"num_groups": "groups"}).setup()
    assert guide.structure.settings == {}
    found = guide.find_observations((), {"num_groups": 5}, {"y": np.zeros(5)})
    assert found["y"].shape == (5,)


def test_an_input_left_at_its_default(host):
    """`functools.partial` makes a default of an argument."""
    x = np.linspace(-1, 1, 5)
    model = partial(host.models.Regression(), x=host.array(x))
    guide = small_guide(host, model, observed="y", inputs={"x": "rows"}).setup()
    assert [(item.name, item.plates) for item in guide.structure.inputs] == [("x", ("rows",))]
    posterior = host.untrained(model, guide).at(y=host.array(x))
    assert host.sample(posterior, 10)["intercept"].shape == (10,)


@pytest.mark.parametrize("kind", ["module", "object", "partial"])
def test_models_that_are_no_functions(host, kind, tmp_path):
    """y - x ~ Normal(intercept, 1): the evidence is that of one multivariate normal."""
    model = host.models.regression_as(kind)
    x, y = np.linspace(-1, 1, 5), np.array([-0.3, 0.9, 0.2, 1.5, 1.1])
    guide = small_guide(host, model, observed="y", inputs={"x": "rows"})
    amortized = host.untrained(model, guide, host.array(x))
    posterior = amortized.at(host.array(x), y=host.array(y))
    exact = multivariate_normal(np.zeros(5), np.eye(5) + 1).logpdf(y - x)
    summary = host.importance_sample(posterior, 4000).summary
    assert summary.log_evidence_se < 0.05
    assert abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.structure == guide.structure


def test_deterministic_sites_and_data_come_back_in_the_hosts_layout(host):
    model = host.models.nested_groups
    amortized = host.untrained(model, small_guide(host, model, observed="y"))
    draws = host.sample(amortized.at(y=host.array(np.zeros((4, 5)))), 7)
    assert draws["level"].shape == (7, 4, 1)
    many = amortized.at_each(observations={"y": np.zeros((3, 4, 5), "float32")})
    draws = host.sample(many, 7)
    assert draws["mu"].shape == (7, 3)
    assert draws["level"].shape == (7, 3, 4, 1)


def test_structure_in_words(host):
    model = host.models.eight_schools_noncentered
    sigma = host.array(np.linspace(9, 18, 8))
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"}).setup(sigma)
    assert str(guide.structure).splitlines()[1:4] == [
        "  mu | y",
        "  tau | mu, y",
        "  z ['schools'] | mu, tau, y (own rows)",
    ]
    assert "  sigma (input) ['schools']" in str(guide.structure)


@pytest.mark.parametrize("centering", ["centered", "noncentered"])
def test_conditional_standardisation_is_for_sites_that_read_latents(host, centering):
    model = getattr(host.models, f"eight_schools_{centering}")
    sigma = host.array(np.linspace(9, 18, 8))
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"}).setup(sigma)
    local = guide.structure.site("theta" if centering == "centered" else "z")
    assert local.is_conditional == (centering == "centered")
