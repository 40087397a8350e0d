"""Answers of an ensemble: diagnostics, training of its members, files."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from scipy.special import logsumexp
from scipy.stats import norm

from tests.backends import host as host_of
from tests.backends import small_guide
from tests.conftest import require
from tests.contract.test_ensemble import QUICK, WEIGHTS, Y, mixture_of
from tests.problems import PROBLEMS

pytestmark = pytest.mark.compiles

Y0 = Y[QUICK][0]


def guides_of(host, num=2, name="conjugate_normal", observed="x", **options):
    model = getattr(host.models, name)
    return model, [small_guide(host, model, observed=observed, **options) for _ in range(num)]


def ensemble_fit(host, objective, *, name="conjugate_normal", observed="x", **options):
    model, guides = guides_of(host, name=name, observed=observed)
    ensemble = host.package.EnsembleGuide(guides, [2.0, 1.0])
    return host.fit(model, ensemble, objective, **options)


def test_an_answer_from_members(host):
    members, ensemble = mixture_of(host, QUICK)
    assert ensemble.members == tuple(members)
    np.testing.assert_allclose(ensemble.guide.weights, WEIGHTS)
    assert ensemble.history is None
    from_members = host.package.AmortizedPosterior.from_members
    with pytest.raises(TypeError, match="AmortizedPosterior, got EnsembleGuide as member 1"):
        from_members([members[0], ensemble.guide])
    with pytest.raises(TypeError, match=r"got EnsembleGuide as member 1.*\*ensemble.guides"):
        from_members([members[0], ensemble])
    with pytest.raises(ValueError, match="guides: expected at least one guide"):
        from_members([])
    again = host.package.AmortizedPosterior(ensemble.model, ensemble.guide)
    assert [each.guide for each in again.members] == [each.guide for each in members]
    assert members[0].members == ()


def test_rates_add_up_to_the_divergence_from_the_prior(host):
    _, ensemble = mixture_of(host, QUICK)
    posterior, num = ensemble.at(y=host.array(Y0)), 200
    draws = host.sample(posterior, num)
    tau = PROBLEMS[QUICK].tau
    prior = norm.logpdf(draws["mu"])
    prior += norm.logpdf(draws["theta"], draws["mu"][:, None], tau).sum(1)
    expected = (host.log_prob(posterior, draws) - prior).mean()
    rates = host.rates(posterior, num)
    total = rates.mean["mu"] + 8 * rates.mean["theta"]
    assert total == pytest.approx(expected, abs=0.02)


def test_information_is_that_of_the_mixture(host):
    members, ensemble = mixture_of(host, QUICK)
    posterior, num = ensemble.at_each(observations={"y": host.array(Y[QUICK])}), 40
    draws = host.sample(posterior, num)
    crossed = []  # the draws of data set i at data set i - k
    for shift in range(3):
        data = {"y": host.array(np.roll(Y[QUICK], shift, axis=0))}
        parts = [host.log_prob(each.at_each(observations=data), draws) for each in members]
        crossed.append(logsumexp(np.stack(parts), axis=0, b=WEIGHTS[:, None, None]))
    expected = crossed[0] - logsumexp(np.stack(crossed), axis=0) + np.log(3)
    found = host.mutual_information(posterior, num)
    assert found.mean == pytest.approx(expected.mean(), abs=5e-3)


def test_rows_have_no_information_of_their_own(host):
    model, guides = guides_of(
        host,
        name="factor_analysis",
        sizes={"num_rows": "data", "batch_size": "data"},
    )
    ensemble = host.ensemble([host.untrained(model, guide) for guide in guides])
    posterior = ensemble.at(host.array(np.zeros(10)), 10, 10)
    with pytest.raises(
        ValueError, match="mutual_information: rows have no posteriors of their own"
    ):
        host.mutual_information(posterior, 4)


def test_export_to_arviz(host):
    """log_q is that of the mixture."""
    members, ensemble = mixture_of(host, QUICK)
    tree = host.to_datatree(ensemble.at(y=host.array(Y0)), 30)
    draws = {name: np.asarray(tree["posterior"][name])[0] for name in ("mu", "theta")}
    parts = [host.log_prob(each.at(y=host.array(Y0)), draws) for each in members]
    expected = logsumexp(np.stack(parts), axis=0, b=WEIGHTS[:, None])
    found = np.asarray(tree["sample_stats"]["log_q"])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_an_untrained_member_is_reported(host):
    members, _ = mixture_of(host, QUICK)
    fresh = small_guide(host, members[0].model, observed="y").setup()
    blank = host.package.AmortizedPosterior(members[0].model, fresh)
    ensemble = host.package.AmortizedPosterior.from_members([members[0], blank])
    with pytest.warns(UserWarning, match="the guide is not trained"):
        ensemble.at(y=host.array(Y0))


def test_sizes_that_one_member_has_not_seen(host):
    """Each member has its own range; a size outside of one of them is said."""
    model = host.models.hierarchical_normal
    members = []
    for low, high in ((4, 8), (6, 12)):
        guide = small_guide(host, model, observed="y", sizes={"num_groups": "groups"})
        amortized = host.scrambled(model, guide, num_groups=8, scale=0.02)
        one = np.zeros(1)
        amortized.history = host.package.TrainingHistory(
            one, one, one, plate_sizes={"groups": (low, high)}
        )
        members.append(amortized)
    ensemble = host.package.AmortizedPosterior.from_members(members)
    y, latents = np.linspace(-1.0, 1.0, 7), {"mu": np.zeros(3), "theta": np.zeros((3, 7))}
    found = host.log_prob(ensemble.at(y=host.array(y), num_groups=7), latents)
    # NumPyro pads what varied in training: elements that do not exist have no say in the members.
    parts = [host.log_prob(each.at(y=host.array(y), num_groups=7), latents) for each in members]
    np.testing.assert_allclose(found, logsumexp(parts, axis=0) - np.log(2), rtol=1e-4, atol=1e-3)
    with pytest.warns(UserWarning, match="size 5 is outside the trained range 6 to 12"):
        ensemble.at(y=host.array(np.zeros(5)), num_groups=5)


OBJECTIVES = {
    "NPE": lambda package: package.NPE(4),
    "IWAE": lambda package: package.IWAE(4),
    "RWS": lambda package: package.RWS(4, insomnia=1.0),
    "VIS": lambda package: package.VIS(4),
    "WeightedELBO": lambda package: package.WeightedELBO(2),
    "SelfConsistency": lambda package: package.SelfConsistency(4),
    "TrajectoryBalance": lambda package: package.TrajectoryBalance(4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_refuse_a_mixture_also_without_gradients(host, name):
    _, ensemble = mixture_of(host, QUICK)
    objective = OBJECTIVES[name](host.package)
    with pytest.raises(TypeError, match="needs a guide .* one chain.*EnsembleGuide draws from one"):
        host.evaluate(objective, ensemble, host.array(Y0))


def test_refine_takes_one_guide(host):
    _, ensemble = mixture_of(host, QUICK)
    with pytest.raises(TypeError, match="amortized: expected one guide.*amortized.members"):
        host.package.refine(ensemble, host.trace_elbo(), args=(host.array(Y0),), num_steps=1)


def test_rounds_are_for_one_guide(host):
    _, ensemble = mixture_of(host, QUICK)
    data = {"y": host.array(Y0)}
    with pytest.raises(TypeError, match="guide: expected an AmortizedGuide.*from_members"):
        host.package.fit_sequential(ensemble.model, ensemble.guide, data)


def test_fit_trains_each_member_by_itself(host):
    """On draws of its own from initial weights of its own, for simulations and for bounds."""
    x = host.array(np.random.default_rng(0).normal(size=20))
    for objective, args in ((host.package.NPE(8), ()), (host.trace_elbo(), (x,))):
        amortized = ensemble_fit(host, objective, args=args, num_steps=6, learning_rate=1e-2)
        first, second = amortized.members
        assert amortized.guide.guides == (first.guide, second.guide)
        np.testing.assert_allclose(amortized.guide.weights, [2 / 3, 1 / 3])
        assert len(first.history.losses) == len(second.history.losses) == 6
        assert np.all(first.history.losses != second.history.losses)
        for each in amortized.members:
            _, (fresh, _) = guides_of(host)
            before = host.weights(host.untrained(each.model, fresh))
            moved = [
                np.abs(value - before[name]).max() for name, value in host.weights(each).items()
            ]
            assert max(moved) > 1e-3
        draws = host.sample(amortized.at(x), 5)["z"]
        assert draws.shape == (5,)


def test_a_bank_is_read_by_each_member_in_its_own_order(host):
    model, guides = guides_of(host)
    bank = host.simulate(model, 60)
    ensemble = host.package.EnsembleGuide(guides)
    amortized = host.fit(
        model, ensemble, host.package.NPE(4, simulations=bank), num_steps=30, patience=10
    )
    first, second = (each.history for each in amortized.members)
    assert not np.allclose(first.losses[:5], second.losses[:5])
    assert len(first.held_out_losses) > 1


def test_parameters_of_the_model_are_not_trained_once_for_each_member(host):
    model = host.models.parameter_location
    guides = [small_guide(host, model, observed="y") for _ in range(2)]
    ensemble, y = host.package.EnsembleGuide(guides), host.array(np.zeros(4))
    with pytest.raises(ValueError, match="objective: IWAE trains parameters .* of the model"):
        host.fit(model, ensemble, host.package.IWAE(2), args=(y,), num_steps=1)


def test_members_of_numpyro_with_different_parameters_of_the_model():
    require("numpyro")
    host = host_of("numpyro")
    members, _ = mixture_of(host, QUICK)
    first, second = (
        host.package.AmortizedPosterior(
            each.model, each.guide, params={**each.params, "scale": host.array(value)}
        )
        for each, value in zip(members[:2], (1.0, 2.0), strict=True)
    )
    with pytest.raises(ValueError, match="parameter 'scale' of the model differs between them"):
        host.package.AmortizedPosterior.from_members([first, second])
    one_model = host.package.AmortizedPosterior.from_members([first, members[1]])
    assert float(one_model.params["scale"]) == 1.0


def header_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["header"])


def test_files_hold_all_members(host, tmp_path):
    model, guides = guides_of(host)
    x = host.array(np.random.default_rng(0).normal(size=20))
    ensemble = host.package.EnsembleGuide(guides, [3.0, 1.0])
    amortized = host.fit(model, ensemble, host.package.NPE(8), num_steps=4)
    path = tmp_path / "ensemble.safetensors"
    amortized.save(path)
    assert header_of(path)["version"] == 2
    loaded = host.package.AmortizedPosterior.load(path, model)
    np.testing.assert_allclose(loaded.guide.weights, [0.75, 0.25])
    for before, after in zip(amortized.members, loaded.members, strict=True):
        np.testing.assert_array_equal(after.history.losses, before.history.losses)
    latents = host.sample(amortized.at(x), 50, seed=3)
    again = host.sample(loaded.at(x), 50, seed=3)
    np.testing.assert_array_equal(again["z"], latents["z"])
    expected = host.log_prob(amortized.at(x), latents)
    np.testing.assert_allclose(host.log_prob(loaded.at(x), latents), expected, rtol=1e-5)


def test_a_single_guide_is_written_in_the_first_format(host, tmp_path):
    """Which earlier versions read, and which is still read."""
    members, _ = mixture_of(host, QUICK)
    path = tmp_path / "guide.safetensors"
    members[0].save(path)
    assert header_of(path)["version"] == 1
    loaded = host.package.AmortizedPosterior.load(path, members[0].model)
    assert loaded.members == ()
    latents = host.sample(members[0].at(y=host.array(Y0)), 5)
    expected = host.log_prob(members[0].at(y=host.array(Y0)), latents)
    found = host.log_prob(loaded.at(y=host.array(Y0)), latents)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow  # compiles in NumPyro, whichever package writes
def test_the_other_package_reads_the_file(host, tmp_path):
    other = host_of("pyro" if host.name == "numpyro" else "numpyro")
    require(other.name)
    members, ensemble = mixture_of(host, QUICK)
    path = tmp_path / "ensemble.safetensors"
    ensemble.save(path)
    loaded = other.package.AmortizedPosterior.load(path, getattr(other.models, QUICK))
    latents = host.sample(ensemble.at(y=host.array(Y0)), 20)
    expected = host.log_prob(ensemble.at(y=host.array(Y0)), latents)
    found = other.log_prob(loaded.at(y=other.array(Y0)), latents)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)
