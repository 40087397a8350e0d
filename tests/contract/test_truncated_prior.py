"""The truncated prior: its region, its draws, and what it refuses."""

import importlib

import numpy as np
import pytest
from scipy.stats import kstest, norm, truncnorm

from tests import backends
from tests.backends import numpy_tree, small, small_guide
from tests.conftest import require

pytestmark = pytest.mark.compiles

X = np.random.default_rng(0).normal(0.5, 1.0, size=20).astype("float32")
SIGMA = np.linspace(9.0, 18.0, 5).astype("float32")
Y = np.array([12.0, -3.0, 5.0, 8.0, 1.0], "float32")


def of_one_latent(host):
    """A guide with random weights, and the data; its density is normal, the region an interval."""
    model = host.models.conjugate_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="x"))
    return model, amortized, {"x": host.array(X)}


def of_schools(host):
    """Two global latents and one for each school, standardised by what the model says."""
    model = host.models.eight_schools_centered
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"}, **small(host))
    amortized = host.scrambled(model, guide, host.array(SIGMA), scale=0.1)
    return model, amortized, {"y": host.array(Y)}


def of_two_guides(host):
    """An ensemble, whose region is that of the mixture."""
    model = host.models.conjugate_normal
    members = [
        host.scrambled(model, small_guide(host, model, observed="x"), seed=seed)
        for seed in range(2)
    ]
    ensemble = host.ensemble(members)
    return model, ensemble, {"x": host.array(X)}


@pytest.mark.parametrize("quantile", [0.1, 0.01])
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(of_one_latent, id="one"),
        pytest.param(of_schools, id="schools", marks=pytest.mark.compiles),
        pytest.param(of_two_guides, id="ensemble", marks=pytest.mark.compiles),
    ],
)
def test_what_is_cut_off_of_the_guide(host, made, quantile):
    """Of fresh draws all but the quantile are inside; with the wrong tail it would be the rest."""
    model, amortized, data = made(host)
    args = (host.array(SIGMA),) if made is of_schools else ()
    truncated = host.truncated_prior(
        model,
        amortized,
        data,
        args=args,
        quantile=quantile,
        num_samples=50_000,
        min_acceptance_rate=1e-4,
    )
    num = 5000
    draws = host.sample(amortized.at(*args, **data), num, seed=1)
    fraction = numpy_tree(truncated.contains(host.arrays(draws))).mean()
    assert abs(fraction - (1 - quantile)) < 3 * np.sqrt(quantile * (1 - quantile) / num)
    latents = {site.name: draws[site.name] for site in amortized.guide.structure.latents}
    log_probs = host.log_prob(amortized.at(*args, **data), latents)
    is_clear = np.abs(log_probs - truncated.threshold) > 1e-3
    expected = log_probs >= truncated.threshold
    found = numpy_tree(truncated.contains(host.arrays(latents)))
    np.testing.assert_array_equal(found[is_clear], expected[is_clear])


@pytest.mark.parametrize("way", ["simulate of the region", "simulate of the model", "one run"])
def test_draws_are_those_of_the_prior_in_the_region(host, way):
    """The region of a normal density is an interval, the truncated prior a truncated normal."""
    model, amortized, data = of_one_latent(host)
    truncated = host.truncated_prior(model, amortized, data, quantile=0.2, num_samples=5000)
    grid = np.linspace(-8, 8, 4001).astype("float32")
    inside = grid[numpy_tree(truncated.contains({"z": host.array(grid)}))]
    low, high = inside[0], inside[-1]
    assert len(inside) < 3000
    mass = norm.cdf(high) - norm.cdf(low)
    assert truncated.acceptance_rate == pytest.approx(mass, abs=0.02)
    if way == "one run":
        runs = [host.run(truncated, seed) for seed in range(5)]
        z = np.array([run["z"][0] for run in runs])
        assert ((low - 0.01 < z) & (z < high + 0.01)).all()
        assert runs[0]["x"][0].shape == (20,)
        return
    if way == "simulate of the region":
        bank = host.simulate_truncated(truncated, 2000)
    else:
        bank = host.simulate(truncated, 2000, method="vectorized")
    z, x = np.asarray(bank["z"]), np.asarray(bank["x"])
    assert (z.shape, x.shape) == ((2000,), (2000, 20))
    assert kstest(z, truncnorm(low, high).cdf).pvalue > 1e-3
    errors = x - z[:, None]
    assert abs(errors.mean()) < 4 / np.sqrt(40_000)
    assert abs(errors.std() - 1) < 0.02
    assert bank.nonfinite == {}


def test_quantile_zero_is_the_prior(host):
    """The same values from the same seed, with the same log densities."""
    model, amortized, data = of_one_latent(host)
    truncated = host.truncated_prior(model, amortized, data, quantile=0.0)
    assert truncated.acceptance_rate == 1.0
    assert numpy_tree(truncated.contains({"z": host.array(np.array([-1e6, 3.0]))})).all()
    plain, cut = host.run(model, seed=3), host.run(truncated, seed=3)
    assert plain.keys() == cut.keys() == {"z", "x"}
    for name, (value, log_prob) in plain.items():
        np.testing.assert_array_equal(cut[name][0], value)
        np.testing.assert_array_equal(cut[name][1], log_prob)
    expected = host.simulate(model, 50, method="vectorized", seed=4)
    for found in (
        host.simulate(truncated, 50, method="vectorized", seed=4),
        host.simulate_truncated(truncated, 50, seed=4),
    ):
        for name, value in expected.sites.items():
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value))


def test_pyro_same_stream_where_nothing_is_rejected():
    """In Pyro the first attempt is the model's own draw."""
    require("pyro")
    host = backends.host("pyro")
    model, amortized, data = of_one_latent(host)
    options = {"quantile": 0.2, "num_samples": 2000, "num_candidates": 200}
    truncated = host.truncated_prior(model, amortized, data, **options)
    kept = 0
    for seed in range(40):
        plain = host.run(model, seed)
        if numpy_tree(truncated.contains({"z": host.array(plain["z"][0][None])})).all():
            np.testing.assert_array_equal(host.run(truncated, seed)["x"][0], plain["x"][0])
            kept += 1
    assert 0 < kept < 40


def test_training_the_guide_does_not_move_the_region(host):
    model, amortized, data = of_one_latent(host)
    truncated = host.truncated_prior(model, amortized, data, quantile=0.2, num_samples=2000)
    values = {"z": host.array(np.linspace(-4, 4, 200))}
    before = numpy_tree(truncated.contains(values))
    objective = host.package.NPE(8)
    host.fit(model, amortized.guide, objective, num_steps=20, learning_rate=0.1)
    np.testing.assert_array_equal(numpy_tree(truncated.contains(values)), before)
    other = host.truncated_prior(
        model, host.scrambled(model, amortized.guide, seed=1), data, quantile=0.2, num_samples=2000
    )
    assert (numpy_tree(other.contains(values)) != before).any()


def test_plates_and_parents_of_a_truncated_prior(host):
    """All sites of a run belong together: a centred effect is drawn around its own mean."""
    model, amortized, data = of_schools(host)
    sigma = host.array(SIGMA)
    truncated = host.truncated_prior(
        model,
        amortized,
        data,
        args=(sigma,),
        quantile=0.3,
        num_samples=2000,
        min_acceptance_rate=1e-4,
    )
    for bank in (
        host.simulate_truncated(truncated, 400),
        host.simulate(truncated, 40, args=(sigma,), method="vectorized"),
    ):
        assert numpy_tree(truncated.contains(bank.sites)).all()
        assert np.asarray(bank["theta"]).shape[1:] == (5,)
        errors = (np.asarray(bank["y"]) - np.asarray(bank["theta"])) / SIGMA
        assert abs(errors.std() - 1) < 0.2
    # What the prior says of theta given mu and tau is not changed by much where little is cut off.
    assert np.corrcoef(bank["mu"], np.asarray(bank["theta"]).mean(1))[0, 1] > 0.2


def test_pyro_models_that_cannot_be_vectorised():
    require("pyro")
    host = backends.host("pyro")
    model = host.models.python_branch
    amortized = host.scrambled(model, small_guide(host, model, observed="y"))
    options = {"quantile": 0.2, "num_samples": 500, "num_candidates": 100}
    truncated = host.truncated_prior(model, amortized, {"y": host.array(0.3)}, **options)
    bank = host.simulate_truncated(truncated, 50)
    assert bank["z"].shape == bank["y"].shape == (50,)
    assert truncated.contains(bank.sites).all()


def test_it_trains_by_npe_and_by_nothing_else(host):
    model, amortized, data = of_one_latent(host)
    truncated = host.truncated_prior(model, amortized, data, quantile=0.2, num_samples=2000)
    history = host.fit(truncated, amortized.guide, host.package.NPE(8), num_steps=3).history
    assert np.isfinite(history.losses).all()
    message = "site 'z': its value is set from outside of truncated_prior"
    with pytest.raises(ValueError, match=message):
        host.fit(truncated, amortized.guide, host.trace_elbo(), args=(data["x"],), num_steps=1)
    with pytest.raises(ValueError, match=message):
        step_of_svi(host, truncated, amortized.guide, data["x"])


def step_of_svi(host, model, guide, x):
    """One step of the host's own loop."""
    if host.name == "pyro":
        optimizer = importlib.import_module("pyro.optim").Adam({"lr": 1e-3})
        host.infer.SVI(model, guide, optimizer, host.trace_elbo()).step(x)
    else:
        optimizer = importlib.import_module("numpyro.optim").Adam(1e-3)
        host.infer.SVI(model, guide, optimizer, host.trace_elbo()).init(host.key(0), x)


def test_too_few_prior_draws_in_the_region(host):
    model, amortized, data = of_one_latent(host)
    with pytest.raises(
        ValueError,
        match=r"acceptance rate 0\.\d+ at quantile=0.5 \(\d+ of 10000 draws of the prior\), "
        "expected at least min_acceptance_rate=0.9",
    ):
        host.truncated_prior(
            model, amortized, data, quantile=0.5, num_samples=2000, min_acceptance_rate=0.9
        )


def test_data(host):
    model, amortized, data = of_one_latent(host)
    with pytest.raises(ValueError, match="observed site 'x': no data in this call"):
        host.truncated_prior(model, amortized)
    with pytest.raises(ValueError, match="observations: 'y' is not one of the observed sites"):
        host.truncated_prior(model, amortized, {"y": data["x"]})
    empirical = host.models.prior_from_data
    other = host.untrained(empirical, small_guide(host, empirical, observed="y"))
    with pytest.raises(ValueError, match="truncated_prior: argument 'y': the model reads this"):
        host.truncated_prior(empirical, other, args=(host.array(np.zeros(4)),))
    groups = host.models.hierarchical_normal
    guide = small_guide(host, groups, observed="y", sizes={"num_groups": "groups"})
    five = {"y": host.array(np.zeros(5))}
    with pytest.raises(ValueError, match="plate 'groups': the data have 5 elements along it and"):
        host.truncated_prior(groups, host.untrained(groups, guide), five)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 1.0}, "quantile: expected at least 0 and below 1, got 1.0"),
        ({"quantile": -0.1}, "quantile: expected at least 0 and below 1, got -0.1"),
        ({"num_samples": 500}, "num_samples: expected at least 1 / quantile draws"),
        ({"num_candidates": 0}, "num_candidates: expected at least 1, got 0"),
        ({"min_acceptance_rate": 0.0}, "min_acceptance_rate: expected above 0 and at most 1"),
    ],
)
def test_numbers(host, options, message):
    model, amortized, data = of_one_latent(host)
    with pytest.raises(ValueError, match=message):
        host.truncated_prior(model, amortized, data, **options)


def test_numbers_of_simulations(host):
    model, amortized, data = of_one_latent(host)
    for quantile in (0.0, 0.2):
        truncated = host.truncated_prior(model, amortized, data, quantile=quantile, num_samples=100)
        with pytest.raises(ValueError, match="num_simulations: expected at least 1, got 0"):
            host.simulate_truncated(truncated, 0)
