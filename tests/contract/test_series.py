"""Models of time: loops with a site for each step, series as one event, and what is refused."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests import backends
from tests.conftest import require
from tests.problems import PROBLEMS

LEVEL = PROBLEMS["local_level"]


def small(host, **options):
    package = host.package
    return {
        "embedding": package.PlateEmbedding(8, (16,)),
        "densities": package.NormalDensity(hidden_dims=(16,)),
        **options,
    }


def sites(stem, num=LEVEL.num_steps):
    return [f"{stem}_{step}" for step in range(num)]


def series_of(seed=0):
    _, observations = LEVEL.sample_joint(np.random.default_rng(seed), 1)
    return observations, np.array([observations[name][0] for name in sites("y")])


def test_steps_of_a_loop_are_a_chain(host):
    """Given the step before, a step needs no other earlier one."""
    guide = host.guide(host.models.local_level, observed=sites("y"), **small(host)).setup()
    parents = {site.name: site.parents for site in guide.structure.latents}
    assert parents == {f"x_{t}": (f"x_{t - 1}",) if t else () for t in range(LEVEL.num_steps)}


@pytest.mark.parametrize("written", ["local_level", "level_as_an_event"])
def test_evidence_of_a_series_is_exact(host, written):
    """Of steps in a loop, and of the same walk as one event."""
    model, (observations, y) = getattr(host.models, written), series_of()
    options = small(host)
    if written == "level_as_an_event":
        options["embedding"] = host.package.SequenceEmbedding(num_channels=4, num_layers=2)
    observed = sites("y") if written == "local_level" else "y"
    amortized = host.untrained(model, host.guide(model, observed=observed, **options))
    summary = host.importance_sample(amortized.at(y=host.array(y)), 8000).summary
    exact = LEVEL.log_evidence(observations)[0]
    assert summary.log_evidence_se < 0.2
    assert abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se


def test_a_loop_in_training_by_simulations_and_by_the_hosts_bound(host):
    model, (_, y) = host.models.local_level, series_of()
    for objective in (host.package.NPE(8), host.trace_elbo()):
        guide = host.guide(model, observed=sites("y"), **small(host))
        history = host.fit(model, guide, objective, args=(host.array(y),), num_steps=3).history
        assert np.isfinite(history.losses).all()


def test_a_loop_inside_of_a_plate(host):
    """Every row has its own series, and its own posterior."""
    model = host.models.local_level_of_rows
    options = small(host, sizes={"num_rows": "rows"})
    amortized = host.scrambled(
        model, host.guide(model, observed=sites("y", 3), **options), scale=0.1
    )
    latents = amortized.guide.structure.latents
    assert all(site.is_own_row and site.plates == ("rows",) for site in latents)
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(1, 4)) for name in sites("y", 3)}
    values = {name: rng.normal(size=(1, 4)) for name in sites("x", 3)}

    def found(order):
        found = host.site_log_probs(
            amortized,
            (),
            {name: value[:, order] for name, value in values.items()},
            {name: value[:, order] for name, value in data.items()},
        )
        return sum(part.reshape(-1) for part in found.values())

    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(found(order), found(np.arange(4))[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["scanned_level", "scanned_data"])
def test_sites_inside_of_scan(name):
    require("numpyro")
    host = backends.host("numpyro")
    guide = host.guide(getattr(host.models, name), observed="y")
    with pytest.raises(ValueError, match="site 'y': is inside scan, .* Write the series as one ev"):
        guide.setup()


def test_more_steps_than_a_loop_should_have(host):
    model = partial(host.models.local_level, num_steps=65)
    guide = host.guide(model, observed=sites("y", 65))
    with pytest.raises(ValueError, match="sites 'x_0' to 'x_64': expected at most 64 sites of one"):
        guide.setup()


def test_rows_that_depend_on_the_rows_before_them(host):
    guide = host.guide(host.models.walk_along_a_plate, observed="y")
    with pytest.raises(ValueError, match="site 'z': its elements along plate 'rows' depend on ea"):
        guide.setup()


def test_pyro_loops_over_a_sequential_plate():
    """Independent steps one by one are sites like any other."""
    require("pyro")
    host = backends.host("pyro")
    model, y = host.models.rows_one_by_one, host.array(np.array([0.4, -1.0, 2.0]))
    guide = host.guide(model, observed=sites("y", 3), **small(host))
    amortized = host.fit(model, guide, host.trace_elbo(), args=(y,), num_steps=2)
    summary = host.importance_sample(amortized.at(y), 4000).summary
    covariance = 1 + np.eye(3) * 1.25
    exact = multivariate_normal(cov=covariance).logpdf(y)
    assert abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se
