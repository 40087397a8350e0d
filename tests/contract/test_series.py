"""Models of time: loops with a site for each step, series as one event, and what is refused."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests import backends
from tests.backends import small
from tests.conftest import require
from tests.problems import PROBLEMS

pytestmark = pytest.mark.compiles

LEVEL = PROBLEMS["local_level"]


LENGTHS = np.array([5, 2, 3])
THERE = np.arange(5) < LENGTHS[:, None]
PANELS = np.random.default_rng(7).normal(size=(3, 5))


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


@pytest.mark.parametrize("are_latents_inside", [True, False])
def test_sites_inside_of_scan(are_latents_inside):
    require("numpyro")
    import numpyro
    from numpyro import distributions as dist
    from numpyro.contrib.control_flow import scan

    def model(y=None):
        size = numpyro.sample("size", dist.HalfNormal(1.0))

        def step(level, seen):
            if are_latents_inside:
                level = numpyro.sample("level", dist.Normal(level, size))
            with numpyro.plate("rows", 3):
                seen = numpyro.sample("y", dist.Normal(level, size), obs=seen)
            return level, None

        scan(step, 0.0, y, length=6)

    guide = backends.host("numpyro").guide(model, observed="y")
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
    import pyro
    from pyro import distributions as dist

    def model(y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for t in pyro.plate("rows", 3):
            x = pyro.sample(f"x_{t}", dist.Normal(mean, 0.5))
            pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=None if y is None else y[t])

    y = host.array(np.array([0.4, -1.0, 2.0]))
    guide = host.guide(model, observed=sites("y", 3), **small(host))
    amortized = host.fit(model, guide, host.trace_elbo(), args=(y,), num_steps=2)
    summary = host.importance_sample(amortized.at(y), 4000).summary
    covariance = 1 + np.eye(3) * 1.25
    exact = multivariate_normal(cov=covariance).logpdf(y)
    assert abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se


@pytest.mark.parametrize(
    "kind",
    ["convolution", "recurrent", pytest.param("transformer", marks=pytest.mark.compiles)],
)
def test_padding_more_changes_no_feature(host, kind):
    """Means are over the steps that are there, and the last step is the last of them."""
    rng, spec = np.random.default_rng(0), host.package.SequenceEmbedding(kind, num_channels=4)
    spec = spec.for_masked_events("y")

    def features(values, there):
        layout = values.shape[1:]
        keys = () if host.name == "pyro" else (host.key(0),)
        host.seed(0) if host.name == "pyro" else None
        network = spec.build(layout, 0, [], *keys)
        flat = np.concatenate([(values * there).reshape(3, -1), there.reshape(3, -1)], -1)
        return [backends.numpy_tree(part) for part in network.event(host.array(flat))]

    values = rng.normal(size=(3, 5, 2))
    there = np.tile(THERE[..., None], (1, 1, 2)).astype(float)
    more = np.concatenate([values, rng.normal(size=(3, 4, 2))], 1)
    padded = np.concatenate([there, np.zeros((3, 4, 2))], 1)
    expected, found = features(values, there), features(more, padded)
    for first, second in zip(expected, found, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    alone = features(values[:, :2], np.ones((3, 2, 2)))  # the second series is as long
    np.testing.assert_allclose(alone[0][1], expected[0][1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone[1][1], expected[1][1], rtol=1e-4, atol=1e-5)
    nothing = features(values, np.zeros((3, 5, 2)))
    assert all(np.isfinite(part).all() for part in nothing)


def padded(host, *, embedding=None):
    model = host.models.padded_panels
    options = small(host, embedding=embedding or host.package.SequenceEmbedding(num_channels=4))
    return model, host.guide(model, observed="y", missing={"is_there": "y"}, **options)


def scrambled_panels(host):
    model, guide = padded(host)
    return host.scrambled(model, guide, host.array(THERE), scale=0.1)


def test_what_a_mask_hides_of_a_series_changes_nothing(host):
    amortized = scrambled_panels(host)
    info = amortized.guide.structure.missing[0]
    assert (info.site, info.argument, info.has_positions) == ("y", "is_there", True)
    rng = np.random.default_rng(0)
    latents = {"slope": rng.normal(size=4), "level": rng.normal(size=(4, 3))}

    def found(y, there=THERE):
        return host.log_prob(amortized.at(host.array(there), y=host.array(y)), latents)

    expected = found(PANELS)
    np.testing.assert_allclose(found(np.where(THERE, PANELS, 9.0)), expected, rtol=1e-5)
    for row in range(3):
        changed = PANELS.copy()
        changed[row, LENGTHS[row] - 1] += 1.0
        assert np.abs(found(changed) - expected).max() > 1e-4
        assert np.abs(found(PANELS, THERE & (np.arange(3) != row)[:, None]) - expected).max() > 1e-4


def exact_evidence(there):
    t = np.arange(5) / 5
    covariance = np.kron(np.ones((3, 3)), np.outer(t, t)) + np.kron(np.eye(3), np.ones((5, 5)))
    covariance += 0.25 * np.eye(15)
    kept = np.flatnonzero(there)
    values = PANELS.reshape(-1)[kept]
    return multivariate_normal(cov=covariance[np.ix_(kept, kept)]).logpdf(values)


@pytest.mark.parametrize("there", [THERE, THERE[::-1], np.arange(5) < np.array([[5], [0], [4]])])
def test_evidence_of_padded_series_is_exact(host, there):
    """Also where a series has no step at all."""
    posterior = scrambled_panels(host).at(host.array(there.copy()), y=host.array(PANELS))
    summary = host.importance_sample(posterior, 4000, num_local_samples=64).summary
    assert summary.log_evidence_se < 0.3
    assert abs(summary.log_evidence - exact_evidence(there)) < 4 * summary.log_evidence_se
    many = np.stack([PANELS, PANELS + 1])
    both = scrambled_panels(host).at_each(host.array(there), observations={"y": host.array(many)})
    assert host.sample(both, 5)["level"].shape == (5, 2, 3)
    bound = posterior.guide  # with NaN for what is hidden
    assert bound.find_observations((host.array(there),), {})["y"].shape == (3, 5)


def test_padded_series_in_training(host):
    def draw(rng):
        return (np.arange(5) < rng.integers(1, 6, size=(3, 1)),)

    model, guide = padded(host)
    objective = host.package.NPE(8, model_args=host.model_args(draw))
    assert np.isfinite(host.fit(model, guide, objective, num_steps=3).history.losses).all()
    args = (host.array(THERE), host.array(PANELS))
    model, guide = padded(host)
    amortized = host.fit(model, guide, host.trace_elbo(), args=args, num_steps=3)
    assert np.isfinite(amortized.history.losses).all()
    assert all(np.isfinite(value).all() for value in host.weights(amortized).values())
    holes = (host.array(THERE), host.array(np.where(THERE, PANELS, np.nan)))
    with pytest.raises(ValueError, match="observed site 'y': NaN at positions that its mask"):
        host.fit(model, guide, host.trace_elbo(), args=holes, num_steps=1)


def test_padded_series_in_a_file(host, tmp_path):
    amortized, path = scrambled_panels(host), tmp_path / "guide.safetensors"
    amortized.save(path)
    loaded = host.package.AmortizedPosterior.load(path, host.models.padded_panels)
    assert loaded.guide.structure == amortized.guide.structure
    latents = {"slope": np.zeros(2), "level": np.zeros((2, 3))}
    args = (host.array(THERE), host.array(PANELS))
    first, second = (host.log_prob(each.at(*args), latents) for each in (loaded, amortized))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_masks_that_do_not_fit(host):
    amortized = scrambled_panels(host)
    y, there = host.array(PANELS), host.array(THERE)
    with pytest.raises(
        ValueError, match=r"missing 'is_there': expected shape \(3, 5\), that of site"
    ):
        amortized.guide.find_observations((host.array(THERE[:, :4]),), {}, {"y": y})
    holes = host.array(np.where(np.arange(5) == 1, np.nan, PANELS))
    with pytest.raises(ValueError, match="observed site 'y': NaN where its mask 'is_there' does n"):
        amortized.guide.find_observations((there,), {}, {"y": holes})
    model, guide = padded(host, embedding=host.package.PlateEmbedding())
    with pytest.raises(ValueError, match="embedding of site 'y': PlateEmbedding reads whole event"):
        guide.setup(there)
    model = host.models.panels_masked_as_a_whole
    guide = host.guide(model, observed="y", missing={"is_there": "y"})
    with pytest.raises(ValueError, match="missing 'is_there': the density of site 'y' is not that"):
        guide.setup(there)
