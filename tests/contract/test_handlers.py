"""Models inside effect handlers of the host: right, or refused with advice."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import lognorm, multivariate_normal, norm

pytestmark = pytest.mark.compiles

Y = np.array([0.4, 1.2, -0.3, 0.9])
X = np.array([0.1, -0.2, 0.5, 0.0])
LATENTS = {"mu": np.array([0.2, -1.0, 0.7]), "theta": np.array([0.5, -0.4, 1.5])}


def wrapped(host, name, model, *options):
    """A model inside one handler of the host, whose names and arguments differ."""
    if host.name == "pyro":
        from pyro import poutine
        from pyro.contrib.autoname import scope
        from pyro.infer import reparam

        handlers = poutine
    else:
        from numpyro import handlers
        from numpyro.handlers import scope
        from numpyro.infer import reparam
    (first, *_) = options or (None,)
    if name == "repeat" and host.name == "pyro":
        return handlers.replay(model, trace=handlers.trace(model).get_trace())
    if name == "repeat":
        return handlers.substitute(model, data={"mu": host.array(0.3)})
    if name in ("condition", "do"):
        return getattr(handlers, name)(model, data=host.arrays(first))
    if name == "centred":
        return handlers.reparam(model, config={first: reparam.LocScaleReparam(*options[1:])})
    if name == "transformed":
        return handlers.reparam(model, config={first: reparam.TransformReparam()})
    if name == "scope":
        return scope(model, prefix=first)
    if name == "lift":
        return handlers.lift(model, prior=first)
    if name == "mask":
        return handlers.mask(model, mask=first)
    if name == "scale":
        return handlers.scale(model, scale=first)
    if name == "block":
        return handlers.block(model, hide=[first])
    return handlers.seed(model, rng_seed=0)


def small_guide(host, model, observed="y", **options):
    package = host.package
    return host.guide(
        model,
        observed=observed,
        embedding=package.PlateEmbedding(feature_dim=4, hidden_dims=(8,)),
        densities=package.NormalDensity(hidden_dims=(8,)),
        **options,
    )


def joint(mu=LATENTS["mu"], theta=LATENTS["theta"], *, cause=None, effect=None):
    """Log joint density of the two latents and the rows, of which an intervention sets causes."""
    mean, centre = (mu if cause is None else cause), (theta if effect is None else effect)
    rows = norm.logpdf(Y, np.reshape(centre, (-1, 1)), 1.0).sum(1)
    return norm.logpdf(mu) + norm.logpdf(theta, mean, 0.5) + rows


def decentred(theta, mu, centred):
    """The auxiliary site of the host's reparameterisation by location and scale."""
    return (theta - mu) * 0.5 ** (centred - 1) + centred * mu


MU, THETA = LATENTS["mu"], LATENTS["theta"]
CASES = {
    # name: handlers from the inside out, latents, log joint density
    "a constant": ([("condition", {"mu": 0.3})], {"theta": THETA}, joint(0.3)),
    "data by a handler": ([("condition", {"y": Y})], LATENTS, joint()),
    "an intervention": ([("do", {"mu": 0.3})], LATENTS, joint(cause=0.3)),
    "a cut": ([("do", {"theta": 0.3})], LATENTS, joint(effect=0.3)),
    "a mask of nothing": ([("mask", True)], LATENTS, joint()),
    "decentred": (
        [("centred", "theta", 0.0)],
        {"mu": MU, "theta_decentered": decentred(THETA, MU, 0.0)},
        joint() + np.log(0.5),
    ),
    "half decentred": (
        [("centred", "theta", 0.5)],
        {"mu": MU, "theta_decentered": decentred(THETA, MU, 0.5)},
        joint() + 0.5 * np.log(0.5),
    ),
    "a scope": ([("scope", "m")], {"m/mu": MU, "m/theta": THETA}, joint()),
    "several": (
        [("condition", {"mu": 0.3}), ("centred", "theta", 0.0), ("scope", "m")],
        {"m/theta_decentered": decentred(THETA, 0.3, 0.0)},
        joint(0.3) + np.log(0.5),
    ),
}


def handled(host, steps, model=None):
    """A model inside several handlers."""
    model = model or host.models.location_chain
    for name, *options in steps:
        model = wrapped(host, name, model, *options)
    return model


@pytest.mark.parametrize("case", CASES)
def test_joint_density_is_that_of_the_handled_model(host, case):
    steps, latents, expected = CASES[case]
    model = handled(host, steps)
    guide = small_guide(host, model, "m/y" if ("scope", "m") in steps else "y")
    amortized = host.untrained(model, guide)
    posterior = amortized.at() if "data" in case else amortized.at(y=host.array(Y))
    assert [site.name for site in guide.structure.latents] == list(latents)
    np.testing.assert_allclose(host.log_joint(posterior, latents), expected, rtol=1e-4)


def test_joint_density_of_a_transformed_and_of_a_lifted_site(host):
    tau = np.array([0.5, 1.0, 3.0])
    rows = norm.logpdf(Y, tau[:, None], 1.0).sum(1)
    model = wrapped(host, "transformed", host.models.positive_location, "tau")
    posterior = host.untrained(model, small_guide(host, model)).at(y=host.array(Y))
    found = host.log_joint(posterior, {"tau_base": np.log(tau)})
    np.testing.assert_allclose(found, norm.logpdf(np.log(tau), 0.5, 0.3) + rows, rtol=1e-4)
    draws = host.sample(posterior, 20)
    np.testing.assert_allclose(draws["tau"], np.exp(draws["tau_base"]), rtol=1e-4)

    distributions = host.module("tracing").dist
    prior = {"scale": distributions.LogNormal(0.0, 0.5)}
    model = wrapped(host, "lift", host.models.parameter_location, prior)
    posterior = host.untrained(model, small_guide(host, model)).at(y=host.array(Y))
    found = host.log_joint(posterior, {"scale": tau, "mu": tau})
    expected = lognorm.logpdf(tau, 0.5) + norm.logpdf(tau, 0.0, tau) + rows
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("steps", "mean", "sd"),
    [
        ([("condition", {"mu": 3.0})], 3.0, np.sqrt(1.25)),
        ([("do", {"mu": 3.0})], 3.0, np.sqrt(1.25)),
        ([("do", {"theta": 3.0})], 3.0, 1.0),
        ([("condition", {"y": Y}), ("centred", "theta", 0.0)], 0.0, 1.5),
    ],
)
def test_simulations_are_those_of_the_handled_model(host, steps, mean, sd):
    """What NPE trains on: constants stay, data do not."""
    guide = small_guide(host, handled(host, steps)).setup()
    y = np.asarray(host.simulate(guide.model, 4000).sites["y"])
    assert y[:, 0].mean() == pytest.approx(mean, abs=0.1)
    assert y[:, 0].std() == pytest.approx(sd, rel=0.1)


def test_every_answer_of_a_guide_for_a_model_inside_several_handlers(host, tmp_path):
    steps = [("condition", {"mu": 0.3}), ("centred", "theta", 0.0), ("scope", "m")]
    model = handled(host, steps)
    guide = small_guide(host, model, "m/y")
    amortized = host.fit(model, guide, host.package.NPE(8), num_steps=2)
    posterior = amortized.at(y=host.array(Y))
    draws = host.sample(posterior, 100)
    expected = 0.3 + 0.5 * draws["m/theta_decentered"]
    np.testing.assert_allclose(draws["m/theta"], expected, rtol=1e-4, atol=1e-5)
    summary = host.importance_sample(posterior, 2000).summary
    exact = norm.logpdf(0.3) + multivariate_normal(np.full(4, 0.3), np.eye(4) + 0.25).logpdf(Y)
    assert abs(summary.log_evidence - exact) < 5 * summary.log_evidence_se + 1e-3
    assert str(guide.structure).splitlines()[-1] == "constants: m/mu"
    amortized.save(tmp_path / "guide.safetensors")
    load = host.package.AmortizedPosterior.load
    loaded = load(tmp_path / "guide.safetensors", model)
    assert loaded.guide.structure == guide.structure
    latents = {"m/theta_decentered": np.array([0.1, -0.4])}
    again = loaded.at(y=host.array(Y))
    np.testing.assert_allclose(
        host.log_joint(again, latents), host.log_joint(posterior, latents), rtol=1e-5
    )
    free = handled(host, steps[1:])
    with pytest.raises(ValueError, match="(?s)another model.*fixed 'm/mu': only in the guide"):
        load(tmp_path / "guide.safetensors", free)


def test_the_hosts_bound_of_a_handled_model(host):
    model = handled(host, [("condition", {"mu": 0.3}), ("centred", "theta", 0.0)])
    guide = small_guide(host, model)
    amortized = host.fit(model, guide, host.trace_elbo(), args=(host.array(Y),), num_steps=3)
    assert np.isfinite(amortized.history.losses).all()


def test_the_hosts_bound_of_a_scaled_model_with_the_guide_of_the_plain_one(host):
    """The loss is linear in the scale: E[log q] - scale E[log p]."""
    model = host.models.location_chain
    guide = small_guide(host, model)
    amortized = host.scrambled(model, guide, host.array(Y), scale=0.1)

    def loss(scale):
        scaled = wrapped(host, "scale", model, scale)
        if host.name == "numpyro":
            found = host.trace_elbo().loss(
                host.key(0), dict(amortized.params), scaled, guide, host.array(Y)
            )
            return float(found)
        host.seed(0)
        return host.trace_elbo().loss(scaled, guide, host.array(Y))

    half, one, two = loss(0.5), loss(1.0), loss(2.0)
    assert two - one == pytest.approx(2 * (one - half), rel=1e-3)
    assert one - half > 1


def test_inputs_and_sizes_are_found_under_handlers(host):
    """The arguments are those of the function inside, and the sizes may change."""
    model = handled(host, [("condition", {"mu": 0.3})], host.models.local_chain)
    guide = small_guide(host, model, inputs={"x": "rows"}, sizes={"num_rows": "rows"})
    amortized = host.untrained(model, guide, host.array(X))
    x, y = np.linspace(-1, 1, 6), np.linspace(0, 2, 6)
    theta, offset = np.random.default_rng(0).normal(size=(2, 3, 6))
    found = host.log_joint(
        amortized.at(host.array(x), 6, y=host.array(y)), {"theta": theta, "offset": offset}
    )
    parts = norm.logpdf(offset) + norm.logpdf(theta, 0.3, 0.5) + norm.logpdf(y, theta + offset + x)
    np.testing.assert_allclose(found, norm.logpdf(0.3) + parts.sum(1), rtol=1e-4)


def test_a_constant_in_a_plate_and_an_intervention_in_a_plate(host):
    steps = [("do", {"theta": np.full(4, 0.2)}), ("condition", {"offset": np.zeros(4)})]
    model = handled(host, steps, host.models.local_chain)
    guide = small_guide(host, model, inputs={"x": "rows"})
    amortized = host.scrambled(model, guide, host.array(X), scale=0.05)
    posterior = amortized.at(host.array(X), y=host.array(Y))
    theta = np.random.default_rng(0).normal(size=(3, 4))
    found = host.log_joint(posterior, {"mu": MU, "theta": theta})
    shared = 4 * norm.logpdf(0.0) + norm.logpdf(Y, 0.2 + X).sum()
    latent = norm.logpdf(MU) + norm.logpdf(theta, MU[:, None], 0.5).sum(1)
    np.testing.assert_allclose(found, shared + latent, rtol=1e-4)
    summary = host.importance_sample(posterior, 1000).summary
    assert abs(summary.log_evidence - shared) < 5 * summary.log_evidence_se + 1e-3


def test_reparameterised_rows(host):
    model = wrapped(host, "centred", host.models.local_chain, "theta", 0.0)
    guide = small_guide(host, model, inputs={"x": "rows"})
    posterior = host.untrained(model, guide, host.array(X)).at(host.array(X), y=host.array(Y))
    draws = host.sample(posterior, 50)
    mu, offset, base = draws["mu"], draws["offset"], draws["theta_decentered"]
    theta = mu[:, None] + 0.5 * base
    np.testing.assert_allclose(draws["theta"], theta, rtol=1e-4, atol=1e-5)
    rows = norm.logpdf(offset) + norm.logpdf(base) + norm.logpdf(Y, theta + offset + X)
    found = host.log_joint(posterior, draws)
    np.testing.assert_allclose(found, norm.logpdf(mu) + rows.sum(1), rtol=1e-4)


REFUSALS = {
    "depends on sites ['mu'], so that it is data about them": [("condition", {"theta": 0.3})],
    "site 'mu': takes the same value in every run": [("repeat",)],
    "site 'theta': takes the same value in every run": [("seed",)],
    "observed site 'y': the model has no such site": [("block", "y")],
    "site 'y': changes from run to run although all sites": [("block", "theta")],
    "site 'theta': changes from run to run although all sites": [("block", "mu")],
    "site 'theta': scaled sites are not supported. Make the guide for": [("scale", 0.5)],
    "site 'theta': masked latents are not supported": [("mask", np.ones((), bool))],
}


@pytest.mark.parametrize("expected", REFUSALS)
def test_handlers_that_no_guide_can_take(host, expected):
    steps = REFUSALS[expected]
    steps = [
        (name, *(host.array(o) if name == "mask" else o for o in rest)) for name, *rest in steps
    ]
    with pytest.raises(ValueError, match="cannot be built for this model") as caught:
        small_guide(host, handled(host, steps)).setup()
    assert expected in str(caught.value)


def test_constants_that_differ_along_a_plate_or_depend_on_latents(host):
    model = host.models.local_chain
    options = {"inputs": {"x": "rows"}}
    differing = wrapped(host, "condition", model, {"offset": 2 * X})
    with pytest.raises(ValueError, match="plate 'rows': its elements are not exchangeable at"):
        small_guide(host, differing, **options).setup(host.array(X))
    dependent = wrapped(host, "condition", model, {"theta": np.zeros(4)})
    with pytest.raises(ValueError, match="site 'theta': has a fixed value and depends on"):
        small_guide(host, dependent, **options).setup(host.array(X))


def test_scope_around_a_subsampled_plate(host):
    model = wrapped(host, "scope", host.models.subsampled, "m")
    guide = small_guide(host, model, "m/y")
    if host.name == "numpyro":  # renames plates everywhere
        assert guide.setup().structure.subsampled == ("m/rows",)
        return
    with pytest.raises(ValueError, match="plate 'm/rows': a scope renames this subsampled plate"):
        guide.setup()


@pytest.mark.parametrize("count", [3, np.array(3)])
def test_data_of_an_argument_are_no_constant(host, count):
    """Whole numbers too, of which a perturbed copy may be equal."""
    guide = small_guide(host, host.models.counts_and_rows)
    count = count if isinstance(count, int) and host.name == "numpyro" else host.array(count)
    with pytest.raises(ValueError, match="site 'count': carries data in this call but is not"):
        guide.setup(counts=count)


def test_a_bank_in_which_a_constant_was_drawn(host):
    model = wrapped(host, "condition", host.models.location_chain, {"mu": 0.3})
    guide = small_guide(host, model).setup()
    bank = host.simulate(model, 20)
    with pytest.raises(ValueError, match="simulations: site 'mu' is a constant of the guide's"):
        host.fit(model, guide, host.package.NPE(8, simulations=bank), num_steps=1)
    bank = host.simulate(guide.model, 20)
    host.fit(model, guide, host.package.NPE(8, simulations=bank), num_steps=1)


def test_arguments_of_models_wrapped_in_every_way(host):
    bound = host.module("arguments").bound_arguments
    model = host.models.local_chain
    ways = [
        wrapped(host, "condition", model, {"mu": 0.3}),
        wrapped(host, "scope", wrapped(host, "centred", model, "theta", 0.0), "m"),
        partial(wrapped(host, "condition", model, {"mu": 0.3}), num_rows=5),
        wrapped(host, "condition", partial(model, num_rows=5), {"mu": 0.3}),
        host.package.fill_missing(wrapped(host, "block", model, "mu")),
    ]
    for way in ways:
        arguments = bound(way, (X,), {}).arguments
        assert list(arguments) == ["x", "num_rows", "y"]
        assert arguments["num_rows"] == (5 if way in ways[2:4] else 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "mean", "sd"),
    [
        # theta given y: precision 4 + 1 / 0.25, or 4 + 1 / 1.25 with mu free
        ([("condition", {"mu": 0.3})], (Y.sum() + 0.3 / 0.25) / 8, 8**-0.5),
        ([("do", {"mu": 0.3})], (Y.sum() + 0.3 / 0.25) / 8, 8**-0.5),
        ([("centred", "theta", 0.0)], Y.sum() / 4.8, 4.8**-0.5),
        ([("scope", "m")], Y.sum() / 4.8, 4.8**-0.5),
    ],
)
def test_npe_for_a_handled_model_gives_its_posterior(host, steps, mean, sd):
    model = handled(host, steps)
    prefix = "m/" if steps[0][0] == "scope" else ""
    guide = host.guide(model, observed=f"{prefix}y", densities=host.package.NormalDensity())
    amortized = host.fit(model, guide, host.package.NPE(128), num_steps=1500, learning_rate=3e-3)
    draws = host.sample(amortized.at(y=host.array(Y)), 10_000)[f"{prefix}theta"]
    assert abs(draws.mean() - mean) < 0.1 * sd
    assert abs(draws.std() / sd - 1) < 0.1
