"""The discrepancy that shapes the contexts of simulations: its maths, and what it reaches."""

from importlib import import_module

import numpy as np
import pytest

from amortize_diagnostics import squared_mmd
from tests.backends import host as host_of
from tests.backends import small_guide
from tests.conftest import require

WIDTHS = (0.5, 1.0, 2.0)


def discrepancy(host, contexts, normal, is_used=None):
    is_used = np.ones(len(contexts), bool) if is_used is None else is_used
    own = host.module("objectives.mmd_regularizer").squared_mmd
    return float(own(*(host.array(each) for each in (contexts, normal, is_used)), WIDTHS))


def drawn(host, data, args=(), seed=0, is_used=None):
    """Data as simulations of one step; the latents are not read."""
    used = np.ones(len(data), bool) if is_used is None else is_used
    used, name = host.array(used), "y" if args or data.ndim > 2 else "x"
    own, key = host.module("objectives.npe").Drawn, ()
    if host.name == "numpyro":
        key = (host.key(seed),)
    else:
        host.seed(seed)
    return own((args, {}), {}, {name: host.array(data)}, None, used, used, *key)


def penalty(host, objective, amortized, simulations):
    """The penalty of given simulations, without its weight."""
    if host.name == "numpyro":
        jax = import_module("jax")
        own = jax.jit(lambda params: objective._discrepancy(params, amortized.guide, simulations))
        return float(own(dict(amortized.params)))
    return float(objective._discrepancy(amortized.guide, simulations).detach())


def gradients(host, objective, amortized, simulations):
    """Of the penalty with respect to each weight, by name."""
    guide = amortized.guide
    if host.name == "numpyro":
        jax, names = import_module("jax"), host.module("guides.weights").PARAMS
        own = jax.jit(jax.grad(lambda params: objective._discrepancy(params, guide, simulations)))
        return {name: np.asarray(value) for name, value in own(amortized.params)[names].items()}
    torch = import_module("torch")
    named = dict(guide._chain().named_parameters())
    loss = objective._discrepancy(guide, simulations)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: np.zeros(value.shape) if part is None else part.numpy()
        for (name, value), part in zip(named.items(), found, strict=True)
    }


def test_it_is_the_unbiased_discrepancy_of_the_rows_that_count(host):
    rng, num = np.random.default_rng(0), 30
    contexts, normal = 0.5 + 1.5 * rng.normal(size=(num, 3)), rng.normal(size=(num, 3))
    exact = squared_mmd(contexts, normal, bandwidths=np.sqrt(3) * np.array(WIDTHS))
    with host.double_precision():
        np.testing.assert_allclose(discrepancy(host, contexts, normal), exact, rtol=1e-9)
        more = [np.concatenate([each, each[:5] + 7.0]) for each in (contexts, normal)]
        used = np.arange(num + 5) < num
        np.testing.assert_allclose(discrepancy(host, *more, used), exact, rtol=1e-9)
        assert discrepancy(host, *more, np.arange(num + 5) < 1) == 0.0


def test_it_averages_to_zero_and_with_the_diagonal_it_would_not(host):
    """500 repeats at 20 rows of each."""
    rng = np.random.default_rng(1)
    found = [discrepancy(host, *rng.normal(size=(2, 20, 2))) for _ in range(500)]
    error = np.std(found) / np.sqrt(500)
    assert abs(np.mean(found)) < 3 * error
    with_diagonal = 2 * (1 - np.mean([(1 + 1 / width**2) ** -1 for width in WIDTHS])) / 20
    assert 3 * error < 0.5 * with_diagonal


@pytest.mark.compiles
def test_the_gradient_reaches_the_embedding_alone(host):
    model = host.models.conjugate_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="x"), scale=0.1)
    objective = host.package.MMDRegularizer(host.package.NPE(8))
    data = np.random.default_rng(0).normal(size=(8, 20))
    found = gradients(host, objective, amortized, drawn(host, data))
    reached = {name for name, value in found.items() if np.any(value)}
    assert reached == {name for name in found if name.startswith("embeddings")}
    model = host.models.nested_groups  # latents in plates: no gradient through spreads
    amortized = host.scrambled(model, small_guide(host, model, observed="y"), scale=0.1)
    data = np.tile(np.arange(8.0)[:, None, None], (1, 4, 5))  # elements are alike
    found = gradients(host, objective, amortized, drawn(host, data))
    assert all(np.all(np.isfinite(value)) for value in found.values())
    assert any(np.any(value) for value in found.values())


@pytest.mark.compiles
def test_it_judges_the_contexts_of_diagnose(host):
    """The part of `contexts()` that networks make, and no other."""
    model = host.models.conjugate_normal
    amortized = host.scrambled(model, small_guide(host, model, observed="x"), scale=0.1)
    data = np.random.default_rng(0).normal(size=(300, 20))
    contexts = amortized.at_each(observations={"x": host.array(data)}).contexts()
    objective = host.package.MMDRegularizer(host.package.NPE(8), bandwidths=WIDTHS)
    found = penalty(host, objective, amortized, drawn(host, data))
    size = contexts.shape[1] - 3  # the mean, the spread and the number of rows skip the networks
    normal = np.random.default_rng(2).normal(size=(300, size))
    exact = discrepancy(host, contexts[:, :size], normal)
    assert abs(found / exact - 1) < 0.1
    assert abs(found / discrepancy(host, contexts[:, 3:], normal) - 1) > 0.2
    used = np.arange(300) < 200
    some = penalty(host, objective, amortized, drawn(host, data, is_used=used))
    assert some != found


@pytest.mark.compiles
def test_without_weight_it_is_npe(host):
    """The same steps; held-out losses are those of NPE whatever the weight."""
    model, package = host.models.conjugate_normal, host.package

    def trained(objective):
        return host.fit(model, small_guide(host, model, observed="x"), objective, num_steps=3)

    plain, none, much = (
        trained(objective)
        for objective in (
            package.NPE(8),
            package.MMDRegularizer(package.NPE(8), 0.0),
            package.MMDRegularizer(package.NPE(8), 10.0),
        )
    )
    others = host.weights(none), host.weights(much)
    for name, value in host.weights(plain).items():
        np.testing.assert_array_equal(value, others[0][name])
    assert any(np.any(value != others[1][name]) for name, value in host.weights(plain).items())
    np.testing.assert_array_equal(plain.history.losses, none.history.losses)
    bank = host.simulate(model, 50)
    objectives = (
        package.NPE(8).on_bank(bank),
        package.MMDRegularizer(package.NPE(8), 10.0).on_bank(bank),
    )
    losses = [host.bank_loss(objective, model, plain) for objective in objectives]
    assert losses[0] == losses[1]


@pytest.mark.compiles
def test_banks_gaps_and_arguments_of_the_npe_are_kept(host):
    model, package = host.models.rows_of_any_number, host.package
    guide = small_guide(host, model, observed="y", missing="y", sizes={"num_rows": "rows"})
    sizes = host.model_args(lambda rng: (int(rng.integers(4, 9)),))
    npe = package.NPE(8, model_args=sizes, missing=0.5)
    amortized = host.fit(model, guide, package.MMDRegularizer(npe), num_steps=4)
    assert np.all(np.isfinite(amortized.history.losses))
    objective = package.MMDRegularizer(package.NPE(8)).on_bank(host.simulate(model, 50, args=(6,)))
    assert objective.weight == 1.0
    assert len(objective.simulations) == 50


@pytest.mark.slow
def test_numpyro_penalty_looks_at_rows_that_exist():
    """In Pyro nothing is padded."""
    require("numpyro")
    host = host_of("numpyro")
    jax = import_module("jax")
    model = host.models.rows_of_any_number
    guide = small_guide(host, model, observed="y", sizes={"num_rows": "rows"})
    amortized = host.scrambled(model, guide, 6, scale=0.1)
    objective = host.package.MMDRegularizer(host.package.NPE(3))
    y = np.random.default_rng(0).normal(size=(3, 16))
    padded = objective.for_call({"rows": jax.numpy.asarray(6)})
    found = penalty(host, padded, amortized, drawn(host, y, (16,)))
    own = penalty(host, objective, amortized, drawn(host, y[:, :6], (6,)))
    np.testing.assert_allclose(found, own, rtol=1e-4)


def test_bad_input_raises(host):
    package = host.package
    with pytest.raises(TypeError, match="npe: expected an NPE such as NPE.128., got Mixed"):
        package.MMDRegularizer(package.Mixed({package.NPE(2): 1.0}))
    with pytest.raises(ValueError, match="npe: expected at least 2 simulations per step"):
        package.MMDRegularizer(package.NPE(1))
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight: expected a number from 0 on, got"):
            package.MMDRegularizer(package.NPE(2), weight)
    for widths in ((), (1.0, 0.0), (float("nan"),)):
        with pytest.raises(ValueError, match="bandwidths: expected positive numbers, got"):
            package.MMDRegularizer(package.NPE(2), bandwidths=widths)
