"""`fit_sequential`: where each round simulates, and what the guide is trained on."""

import numpy as np
import pytest

from tests.backends import numpy_tree, small_guide

X = np.random.default_rng(0).normal(0.5, 1.0, size=20).astype("float32")
ROUNDS = {"num_rounds": 3, "num_simulations": 40, "num_samples": 1000, "quantile": 0.2}


class Rounds:
    """Three rounds of few steps, with what went into each of them."""

    def __init__(self, host, monkeypatch):
        self.host, self.model = host, host.models.conjugate_normal
        self.objectives, self.regions, self.posteriors = [], [], []
        module = host.module("sequential")
        fit, truncated_prior = module.fit, module.truncated_prior

        def record_fit(model, guide, objective, **options):
            self.objectives.append(objective)
            self.posteriors.append(fit(model, guide, objective, **options))
            return self.posteriors[-1]

        def record_region(*args, **options):
            self.regions.append(truncated_prior(*args, **options))
            return self.regions[-1]

        monkeypatch.setattr(module, "fit", record_fit)
        monkeypatch.setattr(module, "truncated_prior", record_region)
        self.guide = small_guide(host, self.model, observed="x")
        self.amortized = host.fit_sequential(
            self.model,
            self.guide,
            {"x": host.array(X)},
            objective=host.package.NPE(16),
            num_steps=30,
            learning_rate=1e-2,
            **ROUNDS,
        )

    def bank(self, number):
        sites = self.objectives[number].simulations.sites
        return {name: np.asarray(value) for name, value in sites.items()}


@pytest.mark.compiles
def test_each_round_simulates_in_the_last_region_and_keeps_what_was(host, monkeypatch):
    rounds = Rounds(host, monkeypatch)
    assert len(rounds.objectives) == 3
    assert len(rounds.regions) == 2
    for number in range(3):
        bank = rounds.bank(number)
        assert bank["z"].shape == (40 * (number + 1),)
        assert bank["x"].shape == (40 * (number + 1), 20)
        for name, value in rounds.bank(max(number - 1, 0)).items():
            np.testing.assert_array_equal(bank[name][: len(value)], value)
        if number:
            new = {"z": host.array(bank["z"][-40:])}
            assert numpy_tree(rounds.regions[number - 1].contains(new)).all()
            assert 0 < rounds.regions[number - 1].acceptance_rate < 0.95
    history = rounds.amortized.history
    rates = (1.0, *(region.acceptance_rate for region in rounds.regions))
    assert history.acceptance_rates == rates
    assert f"acceptance rates by round 1, {rates[1]:.2g}, {rates[2]:.2g}" in str(history)
    assert history.num_simulations == 120
    parts = [amortized.history for amortized in rounds.posteriors]
    np.testing.assert_array_equal(history.losses, np.concatenate([each.losses for each in parts]))
    start = sum(len(each.losses) for each in parts[:2])
    assert history.best_step == start + parts[-1].best_step
    assert (np.diff(history.held_out_steps) > 0).all()
    assert type(history).from_dict(history.to_dict()).to_dict() == history.to_dict()
    assert host.sample(rounds.amortized.at(host.array(X)), 5)["z"].shape == (5,)


@pytest.mark.compiles
def test_the_gradient_is_that_of_npe_on_all_simulations(host, monkeypatch):
    """Without weights, and not of the last round only; by hand from the densities of the sites."""
    rounds = Rounds(host, monkeypatch)
    num, bank = 120, {name: host.array(value) for name, value in rounds.bank(-1).items()}
    latents, data = {"z": bank["z"]}, {"x": bank["x"]}
    every_row = np.arange(num)
    draw_rows = lambda *_, **__: rows_of(host, every_row)  # noqa: E731
    monkeypatch.setattr(host.module("objectives.npe"), "draw_rows", draw_rows)
    guide = rounds.guide
    if host.name == "pyro":
        guide.zero_grad()
        rounds.objectives[-1].differentiable_loss(rounds.model, guide).backward()
        found = {name: value.grad.clone() for name, value in guide.named_parameters()}
        guide.zero_grad()
        parts = guide.site_log_probs((), {}, latents, data, batch_dims=1)
        (-parts["z"].sum() / num).backward()
        expected = {name: value.grad for name, value in guide.named_parameters()}
    else:
        import jax

        def loss(params):
            key, objective = host.key(0), rounds.objectives[-1]
            return objective.loss(key, params, rounds.model, guide)

        def by_hand(params):
            parts = guide.site_log_probs(params, (), {}, latents, data, batch_dims=1)
            return -parts["z"].sum() / num

        params = rounds.amortized.params
        name = host.module("guides.weights").PARAMS
        found, expected = (jax.grad(each)(params)[name] for each in (loss, by_hand))
    assert found.keys() == expected.keys()
    largest = 0.0
    for name, value in numpy_tree(dict(expected)).items():
        np.testing.assert_allclose(numpy_tree(found[name]), value, rtol=1e-3, atol=1e-6)
        largest = max(largest, np.abs(value).max())
    assert largest > 1e-3


def rows_of(host, rows):
    if host.name == "pyro":
        import torch

        return torch.as_tensor(rows)
    return rows


@pytest.mark.compiles
def test_one_round_is_npe_on_a_bank(host):
    """The same simulations and steps as by hand, in Pyro to the last bit: nothing else is done."""
    model = host.models.conjugate_normal
    options = {"num_steps": 10, "learning_rate": 1e-2}
    guide = small_guide(host, model, observed="x")
    first = host.fit_sequential(
        model,
        guide,
        {"x": host.array(X)},
        num_rounds=1,
        num_simulations=60,
        patience=None,
        **options,
    )
    assert first.history.best_step is None
    assert first.history.acceptance_rates == (1.0,)
    if host.name == "numpyro":
        return
    guide.setup()
    other = small_guide(host, model, observed="x").setup()
    bank = host.simulate(model, 60, method="vectorized")
    objective = host.package.NPE(simulations=bank)
    second = host.package.fit(model, other, objective, progress_bar=False, **options)
    np.testing.assert_array_equal(first.history.losses, second.history.losses)


def test_bad_input(host):
    model, package, x = host.models.conjugate_normal, host.package, {"x": host.array(X)}

    def fit(observations=x, **options):
        guide = small_guide(host, model, observed="x")
        return host.fit_sequential(model, guide, observations, **{"num_steps": 1} | options)

    with pytest.raises(ValueError, match="observed site 'x': no data in this call"):
        fit(None)
    with pytest.raises(ValueError, match="num_rounds: expected at least 1, got 0"):
        fit(num_rounds=0)
    with pytest.raises(ValueError, match="num_simulations: expected at least 20 in a round"):
        fit(num_simulations=19)
    with pytest.raises(TypeError, match="objective: expected NPE, got Trace_ELBO"):
        fit(objective=host.trace_elbo())
    bank = host.simulate(model, 20)
    for objective in (package.NPE(simulations=bank), package.NPE(model_args=lambda *_: ())):
        with pytest.raises(ValueError, match="objective: the simulations are those of the rounds"):
            fit(objective=objective)


@pytest.mark.compiles
def test_a_region_with_too_little_of_the_prior(host):
    model = host.models.conjugate_normal
    with pytest.raises(ValueError, match="at quantile=0.2 .* min_acceptance_rate=1. Take fewer"):
        host.fit_sequential(
            model,
            small_guide(host, model, observed="x"),
            {"x": host.array(X)},
            num_steps=2,
            **ROUNDS,
            min_acceptance_rate=1.0,
        )
