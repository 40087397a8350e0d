"""One guide for which observed sites carry data."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, poisson

from tests.backends import small_guide

Y, W = np.array(1.3), np.array([-0.4, 2.2])
ALTERNATIVES = [("y",), "w", ("y", "w")]


def two_sources(host, alternatives=ALTERNATIVES, **options):
    model = host.models.two_sources
    density = host.package.NormalDensity()
    options = {"sizes": {"num_rows": "rows"}, "densities": density} | options
    return model, small_guide(host, model, observed=alternatives, **options)


def data(host, names):
    return {name: host.array({"y": Y, "w": W}[name]) for name in names}


def exact(names):
    """Posterior mean and sd, and log evidence of the data that are there."""
    seen = np.concatenate([np.ravel({"y": Y, "w": W}[name]) for name in names])
    variances = np.concatenate([{"y": [1.0], "w": [4.0, 4.0]}[name] for name in names])
    precision = 1 + (1 / variances).sum()
    evidence = multivariate_normal(np.zeros(len(seen)), 1 + np.diag(variances)).logpdf(seen)
    return (seen / variances).sum() / precision, precision**-0.5, evidence


@pytest.mark.slow  # trains a guide well
def test_one_guide_answers_for_every_alternative(host, tmp_path):
    model, guide = two_sources(host)
    objective = host.package.NPE(128)
    amortized = host.fit(model, guide, objective, num_steps=700, learning_rate=5e-3)
    amortized.save(tmp_path / "guide.safetensors")
    loaded = host.package.AmortizedPosterior.load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.alternatives == (("y",), ("w",), ("y", "w"))
    for names in loaded.guide.alternatives:
        mean, sd, evidence = exact(names)
        posterior = loaded.at(**data(host, names))
        draws = host.sample(posterior, 10_000)["z"]
        assert abs(draws.mean() - mean) < 0.1 * sd
        assert abs(draws.std() / sd - 1) < 0.1
        summary = host.importance_sample(posterior, 4000).summary
        assert abs(summary.log_evidence - evidence) < 5 * summary.log_evidence_se + 1e-3


@pytest.fixture
def amortized(host):
    model, guide = two_sources(host, [("y",), ("y", "w")])
    return host.scrambled(model, guide, scale=0.1)


def test_each_data_set_has_its_own_sites(host, amortized):
    """NaN throughout says that a site has no data."""
    many = {"y": np.stack([Y, Y]), "w": np.stack([W, W * np.nan])}
    latents = {"z": np.linspace(-1, 1, 5)}
    together = amortized.at_each(observations=host.arrays(many))
    found = host.log_prob(together, {"z": np.tile(latents["z"][:, None], (1, 2))})
    for column, names in enumerate((("y", "w"), ("y",))):
        alone = amortized.at(**data(host, names))
        np.testing.assert_allclose(
            found[:, column], host.log_prob(alone, latents), rtol=1e-4, atol=1e-5
        )
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3


def test_rows_without_data_are_as_many_as_the_call_says(host, amortized):
    posterior = amortized.at(y=host.array(Y), num_rows=4)
    assert posterior.observations["w"].shape == (4,)
    assert np.isnan(np.asarray(posterior.observations["w"])).all()
    tree = host.to_datatree(amortized.at(y=host.array(Y)), 20)
    assert np.isnan(tree["observed_data"]["w"].values).all()
    assert np.isfinite(tree["posterior_predictive"]["w"].values).all()
    assert np.isfinite(tree["sample_stats"]["lp"].values).all()


@pytest.mark.compiles
def test_the_hosts_bound_uses_the_data_that_are_there(host):
    model, guide = two_sources(host, [("y",), ("y", "w")])
    options = {"num_steps": 300, "learning_rate": 1e-2}
    amortized = host.fit(model, guide, host.trace_elbo(4), args=(host.array(Y),), **options)
    mean, sd, evidence = exact(["y"])
    assert amortized.history.losses[-100:].mean() == pytest.approx(-evidence, abs=0.1)
    draws = host.sample(amortized.at(y=host.array(Y)), 4000)["z"]
    assert abs(draws.mean() - mean) < 0.3 * sd


def test_the_handler_leaves_out_sites_without_data(host):
    model = host.package.fill_missing(host.models.two_sources, optional="w")
    if host.name == "pyro":
        from pyro import poutine

        trace = poutine.trace(model).get_trace(host.array(Y))
        trace.compute_log_prob()
        log_prob = trace.nodes["w"]["log_prob_sum"]
    else:
        from numpyro import handlers

        trace = handlers.trace(handlers.seed(model, host.key(0))).get_trace(host.array(Y))
        log_prob = trace["w"]["fn"].log_prob(trace["w"]["value"]).sum()
        assert trace["w"]["is_observed"]
    assert float(log_prob) == 0.0


def test_counts_may_be_absent_too(host):
    """Whole numbers have no NaN; at other data sets the site has none at all."""
    model = host.models.counts_and_rows
    guide = host.guide(model, observed=[("y",), ("y", "count")])
    amortized = host.untrained(model, guide)
    rows = host.array(np.zeros(3))
    latents = {"z": np.array([0.5])}
    with_count = amortized.at(a=rows, counts=host.array(np.array(2)))
    found = host.log_joint(with_count, latents) - host.log_joint(amortized.at(a=rows), latents)
    np.testing.assert_allclose(found, poisson.logpmf(2, 3.0), rtol=1e-4)


def test_structure_says_what_may_be_absent(host, amortized):
    lines = str(amortized.guide.structure).splitlines()
    assert "  w ['rows'] (in some data sets only)" in lines
    assert lines[-1] == "data at {y} or {y, w}"


def test_one_set_of_names_keeps_its_meaning(host):
    for observed in (["y", "w"], ("y", "w"), [("y", "w")]):
        _, guide = two_sources(host, observed)
        assert guide.observed == ("y", "w")
        assert guide.setup().structure.incomplete == ()


def test_data_at_sites_that_are_no_alternative(host, amortized):
    message = (
        r"observed sites \['w'\]: have data in this call, but the guide is for data at \['y'\]"
    )
    with pytest.raises(ValueError, match=message):
        amortized.at(**data(host, ["w"]))
    with pytest.raises(ValueError, match=r"observed sites \[\]: have data in this call"):
        amortized.at()
    many = {"y": np.stack([Y, Y * np.nan]), "w": np.stack([W, W])}
    with pytest.raises(ValueError, match="observed site 'y': 1 of 2 values are NaN or infinite"):
        amortized.at_each(observations=host.arrays(many))
    model, guide = two_sources(host, [("y",), ("w",)])
    either = host.untrained(model, guide)
    with pytest.raises(ValueError, match=r"observed sites \['y', 'w'\]: have data in this call"):
        either.at(**data(host, ["y", "w"]))


def test_single_values_may_miss_only_if_declared(host, amortized):
    holed = host.array(np.array([np.nan, 1.0]))
    with pytest.raises(ValueError, match="observed site 'w': 1 of 2 values are NaN or infinite"):
        amortized.at(y=host.array(Y), w=holed)
    model, guide = two_sources(host, [("y",), ("y", "w")], missing="w")
    posterior = host.untrained(model, guide).at(y=host.array(Y), w=holed)
    assert np.isnan(np.asarray(posterior.observations["w"])).sum() == 1


@pytest.mark.parametrize("options", [{"observed": [("w",), ("y", "w")]}, {"missing": "y"}])
def test_a_site_that_others_depend_on_cannot_be_without_data(host, options):
    guide = host.guide(host.models.chain_of_data, **{"observed": ("y", "w")} | options)
    with pytest.raises(ValueError, match=r"site 'y': may have no data, but sites \['w'\] depend"):
        guide.setup()


def test_an_alternative_without_a_site(host):
    with pytest.raises(ValueError, match="observed: expected at least one site name in each alt"):
        two_sources(host, [(), ("y",)])[1].setup()


def test_file_of_a_guide_with_other_alternatives(host, amortized):
    structure = amortized.guide.structure
    other = two_sources(host)[1].setup().structure
    assert any("expected alternatives" in each for each in structure.differences(other))
