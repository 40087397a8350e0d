"""Sabotages, each with the named check that it must turn red.

The checks are those of the other files, run here on sabotaged code.
"""

import importlib

import numpy as np
import pytest

from tests.catalogue import GAUSSIAN
from tests.contract import (
    test_flows,
    test_importance,
    test_spline,
    test_supports,
    test_traps,
    test_truncated_prior,
)
from tests.diagnostics import test_calibration, test_ranks
from tests.problems import PROBLEMS
from tests.statistical import test_expected_gap as gaps

pytestmark = pytest.mark.mutant


def is_red(check, *arguments):
    """Whether a check fails by its own assertion."""
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


def test_dropped_log_determinant_of_the_support(host, monkeypatch):
    """Red: `test_guide_density_integrates_to_one`."""
    check = test_supports.test_guide_density_integrates_to_one
    assert not is_red(check, host, "interval")
    chain = host.module("guides.chain")
    pack = chain.pack

    def without(structure, site, value, batch_dims):
        coordinates, log_det = pack(structure, site, value, batch_dims)
        return coordinates, 0.0 * log_det

    monkeypatch.setattr(chain, "pack", without)
    assert is_red(check, host, "interval")
    assert is_red(check, host, "simplex")


def trained(host, model, problem, num_steps=400):
    guide = host.guide(model, observed=list(problem), densities=host.package.NormalDensity())
    return host.fit(model, guide, host.package.NPE(64), num_steps=num_steps, learning_rate=5e-3)


def gap(host, amortized, name):
    problem = PROBLEMS[name]
    return gaps.gap_of(host, amortized, problem).upper / problem.num_latents


def test_npe_that_scores_latents_of_other_rows(host, monkeypatch):
    """Red: the expected gap. The guide learns the prior, as when it scores its own draws."""
    model = host.models.conjugate_normal
    assert gap(host, trained(host, model, "x"), "conjugate_normal") < 5 * GAUSSIAN
    kind = host.package.AmortizedGuide
    score = kind.site_log_probs

    def shuffled(self, *arguments, **options):
        *first, latents, observations = arguments
        rolled = {name: value[np.roll(np.arange(len(value)), 1)] for name, value in latents.items()}
        return score(self, *first, rolled, observations, **options)

    monkeypatch.setattr(kind, "site_log_probs", shuffled)
    sabotaged = trained(host, model, "x")
    monkeypatch.undo()
    assert gap(host, sabotaged, "conjugate_normal") > 10 * GAUSSIAN


def test_ignored_conditional_scale_of_a_local_latent(host, monkeypatch):
    """Red: draws against the density that scores them."""
    model = host.models.eight_schools_centered
    sigma = host.array(np.linspace(9, 18, 8))
    guide = host.guide(model, observed="y", inputs={"sigma": "schools"})
    amortized = host.scrambled(model, guide, sigma, scale=0.05)
    y = host.array(np.linspace(-5, 25, 8))
    latents = {
        "mu": np.full(50, 4.0),
        "tau": np.full(50, 3.0),
        "theta": 4 + 3 * np.random.default_rng(0).normal(size=(50, 8)),
    }
    honest = host.log_prob(amortized.at(sigma, y=y), latents)
    kind = type(_chain(host, guide))

    def ignored(self, site, standardisation, conditionals):
        loc, scale = standardisation.draws[site.name]
        if not site.is_conditional:
            return loc, scale
        own_loc, own_scale = conditionals[site.name]
        return own_loc + loc, 0.0 * own_scale + scale

    monkeypatch.setattr(kind, "_location_scale", ignored)
    if host.name == "numpyro":
        import jax

        jax.clear_caches()  # or the honest density, already compiled, would answer again
    sabotaged = host.log_prob(amortized.at(sigma, y=y), latents)
    assert np.abs(sabotaged - honest).max() > 1.0


def _chain(host, guide):
    return guide._chain() if host.name == "pyro" else guide._weights.unpack(guide.init_params())[0]


def test_sign_of_k_hat(host, monkeypatch):
    """Red: `test_trap_11_k_hat_looks_at_the_large_weights`."""
    from amortize_diagnostics import importance

    class Negated:
        @staticmethod
        def psislw(values):
            return type(real).psislw(real, -np.asarray(values))

    real = importance.array_stats
    check = test_traps.test_trap_11_k_hat_looks_at_the_large_weights
    assert not is_red(check, host)
    monkeypatch.setattr(importance, "array_stats", Negated())
    assert is_red(check, host)


def test_repeated_draws(host, monkeypatch):
    """Red: `test_trap_1_every_draw_is_distinct`."""
    check = test_traps.test_trap_1_every_draw_is_distinct
    assert not is_red(check, host)
    kind = host.package.Posterior
    sample = kind.sample

    def one_draw(self, num_samples=1000, **options):
        draws = sample(self, 1, **options)
        if host.name == "pyro":
            return {
                name: value.expand(num_samples, *value.shape[1:]) for name, value in draws.items()
            }
        return {name: np.repeat(value, num_samples, axis=0) for name, value in draws.items()}

    monkeypatch.setattr(kind, "sample", one_draw)
    assert is_red(check, host)


def test_off_by_one_bin_of_the_spline(host, monkeypatch):
    """Red: `test_knots_are_met_and_the_derivative_is_continuous`."""
    check = test_spline.test_knots_are_met_and_the_derivative_is_continuous
    assert not is_red(check, host, np.random.default_rng(0))
    flow = host.module("densities.splines")
    bins = flow._bins

    def shifted(raw, bound):
        knots, sizes = bins(raw, bound)
        return knots, sizes[..., np.roll(np.arange(sizes.shape[-1]), 1)]

    monkeypatch.setattr(flow, "_bins", shifted)
    assert is_red(check, host, np.random.default_rng(0))


def test_outputs_that_read_their_own_value(host, monkeypatch):
    """Red: `test_masks_are_exact`."""
    check = test_flows.test_masks_are_exact
    assert not is_red(check, host, np.random.default_rng(0), (8,))
    networks = host.module("networks")
    degrees = networks._degrees

    def shifted(context_size, *sizes):
        first, *others = degrees(context_size, *sizes)
        return [np.maximum(first - 1, 0), *others]

    monkeypatch.setattr(networks, "_degrees", shifted)
    assert is_red(check, host, np.random.default_rng(0), (8,))


def test_defensive_draws_weighed_as_the_guides_own(host, monkeypatch):
    """Red: the evidence of a model whose posterior has heavy tails."""
    check = test_importance.test_defensive_draws_mend_light_tails
    assert not is_red(check, host)
    module = host.module("importance")
    monkeypatch.setattr(module, "_mixture", lambda log_tails, heavy: 0.0 * log_tails)
    assert is_red(check, host)


def test_truncation_of_the_wrong_tail(host, monkeypatch):
    """Red: `test_what_is_cut_off_of_the_guide`."""
    check = test_truncated_prior.test_what_is_cut_off_of_the_guide
    assert not is_red(check, host, test_truncated_prior.of_one_latent, 0.1)
    module = host.module("handlers.truncated_prior")
    threshold = module._threshold

    def wrong(*arguments):
        swapped = [1 - each if isinstance(each, float) else each for each in arguments]
        return threshold(*swapped)

    monkeypatch.setattr(module, "_threshold", wrong)
    assert is_red(check, host, test_truncated_prior.of_one_latent, 0.1)


def test_ranks_off_by_one_and_ties_on_one_side(rng, monkeypatch):
    """Red: `test_ties_of_discrete_latents_are_broken_at_random`."""
    check = test_ranks.test_ties_of_discrete_latents_are_broken_at_random
    assert not is_red(check, np.random.default_rng(0))
    ranks = importlib.import_module("amortize_diagnostics.ranks")
    plain = ranks.ranks_from_counts
    for sabotage in (
        lambda below, equal, *rest: plain(below, 0 * equal, *rest),
        lambda below, equal, *rest: plain(below + equal, 0 * equal, *rest),
    ):
        monkeypatch.setattr(ranks, "ranks_from_counts", sabotage)
        assert is_red(check, np.random.default_rng(0))
    off_by_one = lambda below, equal, *rest: plain(below + 1, equal, *rest)  # noqa: E731
    monkeypatch.setattr(ranks, "ranks_from_counts", off_by_one)
    with pytest.raises(ValueError, match="expected values from 0 to 1"):
        check(np.random.default_rng(0))


def test_a_band_that_holds_at_each_point_alone(monkeypatch):
    """Red: `test_uniform_numbers_leave_the_band_at_the_declared_rate`."""
    check = test_ranks.test_uniform_numbers_leave_the_band_at_the_declared_rate
    ranks = importlib.import_module("amortize_diagnostics.ranks")
    monkeypatch.setattr(ranks, "_band_level", lambda num, num_points, prob: 1 - prob)
    assert is_red(check, np.random.default_rng(0), 100)


def test_pooled_ranks_taken_for_independent(monkeypatch):
    """Red: `test_ranks_that_depend_on_each_other_are_pooled_honestly`."""
    check = test_calibration.test_ranks_that_depend_on_each_other_are_pooled_honestly
    ranks = importlib.import_module("amortize_diagnostics.ranks")
    pooled = lambda pit, rng: ranks.ecdf_test(pit.ravel()).p_value  # noqa: E731
    monkeypatch.setattr(test_calibration, "pooled_uniformity", pooled)
    assert is_red(check, np.random.default_rng(0))
