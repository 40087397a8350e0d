"""Covariates: arguments, deterministic sites, and observed sites that other sites read."""

import numpy as np
import pytest

from tests.backends import small
from tests.problems import PROBLEMS

pytestmark = pytest.mark.compiles

LINE = PROBLEMS["line"]
EXPOSURE = np.exp(np.array([0.4, -1.0, 2.0, 0.3, 1.5, -0.2]))
Y = np.array([0.1, -2.0, 3.0, 0.5, 1.0, 0.2])


def refusal(host, name, *args, **options):
    guide = host.guide(getattr(host.models, name), observed="y", **options)
    with pytest.raises(ValueError, match="cannot be built for this model") as caught:
        guide.setup(*args)
    return str(caught.value)


def latents_of_a_line(num=5):
    intercept, slope = np.random.default_rng(3).normal(size=(2, num))
    return {"intercept": intercept, "slope": slope}


def test_a_deterministic_site_says_the_same_as_the_argument(host):
    """Equal weights and equal covariates: equal posteriors."""
    by_argument, by_site = host.models.line_through, host.models.line_through_logarithms
    options = {"observed": "y", "inputs": {"x": "rows"}, **small(host)}
    first = host.scrambled(
        by_argument, host.guide(by_argument, **options), host.array(Y), scale=0.1
    )
    second = host.scrambled(
        by_site, host.guide(by_site, **options), host.array(np.exp(Y)), scale=0.1
    )
    latents = latents_of_a_line()
    x = np.log(EXPOSURE)
    expected = host.log_prob(first.at(host.array(x), y=host.array(Y)), latents)
    posterior = second.at(host.array(EXPOSURE), y=host.array(Y))
    np.testing.assert_allclose(host.log_prob(posterior, latents), expected, rtol=1e-4, atol=1e-4)
    moved = host.log_prob(second.at(host.array(EXPOSURE + 1), y=host.array(Y)), latents)
    assert np.abs(moved - expected).max() > 1e-3
    assert host.sample(posterior, 3)["x"].shape == (3, 6)
    info = second.guide.structure.inputs[0]
    assert (info.name, info.plates, info.event_shape, info.is_site) == ("x", ("rows",), (), True)
    assert "  x (input) ['rows']" in str(second.guide.structure)


def test_a_deterministic_site_in_a_plate_on_the_left_or_of_constants(host):
    model = host.models.two_deterministics
    guide = host.guide(model, observed="y", inputs={"x": "rows"}, **small(host))
    exposure = host.array(EXPOSURE)
    posterior = host.untrained(model, guide, exposure).at(exposure, y=host.array(np.zeros((6, 2))))
    assert guide.structure.inputs[0].event_shape == ()
    assert np.isfinite(host.log_prob(posterior, {"z": np.zeros(3)})).all()
    model = host.models.constants_as_a_site
    guide = host.guide(
        model, observed="y", inputs={"t": "rows"}, sizes={"num_rows": "rows"}, **small(host)
    )
    for size in (6, 4):
        posterior = host.untrained(model, guide).at(y=host.array(Y[:size]), num_rows=size)
        assert host.sample(posterior, 5)["t"].shape == (5, size)


def test_saved_with_a_deterministic_site(host, tmp_path):
    model, path = host.models.line_through_logarithms, tmp_path / "guide.safetensors"
    exposure = host.array(EXPOSURE)
    guide = host.guide(model, observed="y", inputs={"x": "rows"}, **small(host))
    amortized = host.scrambled(model, guide, exposure, scale=0.1)
    amortized.save(path)
    loaded = host.package.AmortizedPosterior.load(path, model)
    assert loaded.guide.structure == guide.structure
    found, expected = (
        host.log_prob(each.at(exposure, y=host.array(Y)), latents_of_a_line())
        for each in (loaded, amortized)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_deterministic_sites_in_training_by_simulations_and_by_the_hosts_bound(host):
    model = host.models.line_through_logarithms
    guide = host.guide(model, observed="y", inputs={"x": "rows"}, **small(host))
    objective = host.package.NPE(
        8, model_args=host.model_args(lambda rng: (np.exp(rng.normal(size=6)),))
    )
    assert np.isfinite(host.fit(model, guide, objective, num_steps=3).history.losses).all()
    args = (host.array(EXPOSURE), host.array(Y))
    history = host.fit(model, guide, host.trace_elbo(), args=args, num_steps=3).history
    assert np.isfinite(history.losses).all()


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        ("two_deterministics", {"mean": "rows"}, "input 'mean': this deterministic site changes"),
        ("two_deterministics", {"x": None}, "input 'x': this deterministic site is in the plates"),
        ("two_deterministics", {"x": "columns"}, "expected leading shape (2,) for plates"),
        ("two_deterministics", {"w": "rows"}, "no such argument; it has ['exposure', 'y'] and"),
        ("unused_deterministic", {"x": "rows"}, "uses what their statements return"),
        ("half_of_an_argument", {"x": "rows"}, "argument 'exposure': changes sites ['y'] but"),
    ],
)
def test_deterministic_sites_that_are_no_inputs(host, name, inputs, expected):
    message = refusal(host, name, host.array(EXPOSURE), inputs=inputs)
    assert expected in message


def test_a_deterministic_site_that_is_not_finite(host):
    model = host.models.line_through_logarithms
    guide = host.guide(model, observed="y", inputs={"x": "rows"}, **small(host))
    amortized = host.untrained(model, guide, host.array(EXPOSURE))
    with pytest.raises(ValueError, match="input 'x': expected finite values, got NaN or infinite"):
        amortized.at(host.array(np.where(EXPOSURE > 1, EXPOSURE, 0.0)), y=host.array(Y))


def test_rows_of_two_observed_sites_are_read_in_pairs(host):
    """Only the pairs tell the slope: the same values, paired otherwise, are other data."""
    model = host.models.line
    guide = host.guide(model, observed=("x", "y"), sizes={"num_rows": "rows"}, **small(host))
    amortized = host.scrambled(model, guide, scale=0.3)
    _, data = LINE.sample_joint(np.random.default_rng(0), 1)
    x, y = host.array(data["x"][0]), data["y"][0]

    def found(x, y):
        return host.log_prob(amortized.at(x, host.array(y)), latents_of_a_line())

    expected = found(x, y)
    assert np.abs(found(x, y[::-1]) - expected).max() > 1e-3
    order = np.random.default_rng(1).permutation(len(y))
    turned = found(host.array(data["x"][0][order]), y[order])
    np.testing.assert_allclose(turned, expected, rtol=1e-3, atol=1e-3)


def test_a_missing_covariate_of_a_row(host):
    """Rows with a hole in one of two independent measurements still say what the other says."""
    model = host.models.paired_rows
    guide = host.guide(model, observed=("a", "b"), missing="a", **small(host))
    amortized = host.scrambled(model, guide, scale=0.1)
    a, b = np.array([0.3, np.nan, -1.0]), np.array([1.0, 2.0, -3.0])

    def found(b):
        posterior = amortized.at(host.array(a), host.array(b))
        return host.log_prob(posterior, {"z": np.linspace(-1, 1, 4)})

    assert np.isfinite(found(b)).all()
    for row in range(3):
        assert np.abs(found(b + np.eye(3)[row]) - found(b)).max() > 1e-5


def test_evidence_of_a_regression_is_exact(host):
    model = host.models.line
    guide = host.guide(model, observed=("x", "y"), sizes={"num_rows": "rows"}, **small(host))
    _, data = LINE.sample_joint(np.random.default_rng(2), 1)
    posterior = host.untrained(model, guide).at(*(host.array(data[name][0]) for name in "xy"))
    summary = host.importance_sample(posterior, 8000).summary
    exact = LINE.log_evidence(data)[0]
    assert abs(summary.log_evidence - exact) < 4 * summary.log_evidence_se + 1e-3


def test_a_single_number_as_covariate(host):
    """An array without axes, and a plate that the host does not list by its own name."""
    model = host.models.scaled_scalar
    guide = host.guide(model, observed="y", inputs={"scale": None}, **small(host))
    amortized = host.untrained(model, guide, host.array(np.array(2.0)))
    posterior = amortized.at(host.array(np.array(3.0)), y=host.array(np.array(0.5)))
    assert host.sample(posterior, 7)["z"].shape == (7,)
    if host.name == "pyro":
        import pyro

        rows = pyro.plate("rows", 6, dim=-1)  # outside of the model

        def outside(x, y=None):
            slope = pyro.sample("slope", pyro.distributions.Normal(0.0, 1.0))
            with rows:
                pyro.sample("y", pyro.distributions.Normal(slope * x, 1.0), obs=y)

        guide = host.guide(outside, observed="y", inputs={"x": "rows"}, **small(host))
        assert guide.setup(host.array(Y)).structure.inputs[0].plates == ("rows",)
