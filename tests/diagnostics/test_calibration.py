"""The certificate of a guide as a whole: the exact posterior passes, each liar gets its words."""

import sys

import numpy as np
import pytest

from amortize_diagnostics import CalibrationRun, holm, pooled_uniformity
from tests.liars import answers


def joint(z, log_likelihood):
    return log_likelihood - 0.5 * np.sum(z**2, -1)


def checked(name, rng, num_blocks=2, **options):
    """Every check on what a guide of this name answers, in blocks of draws."""
    past = answers("exact", rng, num_datasets=600, num_draws=20)
    found = answers(name, rng, **{"num_draws": 299} | options)
    truths, likelihood = found.truths, found.log_likelihood_truths
    run = CalibrationRun(
        {"z": truths},
        rng,
        densities={"log_likelihood": likelihood, "log_joint": joint(truths, likelihood)},
        log_guide=found.log_guide_truths,
        past={"z": past.truths},
        data=found.data,
        past_data=past.data,
        dims={"z": ("element",)},
        plates=("element",),
    )
    for rows in np.array_split(np.arange(len(found.draws)), num_blocks):
        draws, likelihood = found.draws[rows], found.log_likelihood_draws[rows]
        run.add(
            {"z": draws},
            densities={"log_likelihood": likelihood, "log_joint": joint(draws, likelihood)},
            log_guide=found.log_guide_draws[rows],
        )
    return run.result()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shift 0.3 sd", "z too high"),
        ("width 0.7", "z too narrow"),
        ("width 1.4", "z too wide"),
        ("width 3", "z too wide"),
        ("prior", "the guide ignores the data"),
        ("permuted", "the draws of z belong to other data"),
        ("flipped", "the draws of z belong to other data"),
    ],
)
def test_liars_are_rejected_with_the_right_words(rng, name, words):
    found = checked(name, rng)
    assert not found.is_accepted
    assert found.verdict.startswith(f"not calibrated: {words}")
    assert f"Verdict: {found.verdict}." in str(found)


def test_the_exact_posterior_is_accepted(rng):
    found = checked("exact", rng)
    assert found.is_accepted
    assert found.verdict == "no error found"
    table = str(found).splitlines()
    assert table[0].startswith("300 simulated data sets, 299 draws of each")
    assert [line.split()[0] for line in table[1:4]] == ["site", "z", "z"]
    assert {name: ranks.shape for name, ranks in found.pit.items()} == {
        "z": (300, 2),
        "log_likelihood": (300,),
        "log_joint": (300,),
        "density_region": (300,),
        "tarp_independent": (300,),
        "tarp_data": (300,),
    }


@pytest.mark.slow
def test_false_alarms_of_the_whole_table_are_at_most_those_declared(rng):
    """500 repetitions of 7 tests each, adjusted for their number; 5 % and three errors."""
    rejected = [
        not checked("exact", rng, num_datasets=100, num_draws=99, num_blocks=1).is_accepted
        for _ in range(500)
    ]
    assert np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)


def test_blocks_of_draws_give_what_all_at_once_give():
    one, five = (
        checked("exact", np.random.default_rng(3), num_datasets=60, num_draws=50, num_blocks=num)
        for num in (1, 5)
    )
    for name, ranks in one.pit.items():
        np.testing.assert_array_equal(ranks, five.pit[name])
    for part in ("zscore", "contraction", "correlation"):
        first, second = (getattr(each.recoveries["z"], part) for each in (one, five))
        np.testing.assert_allclose(first, second)


def test_ranks_that_depend_on_each_other_are_pooled_honestly(rng):
    """Eight elements with one rank: pooled as if independent, exact ranks would be rejected."""

    def rejected(num_datasets, shared):
        own = rng.uniform(size=(num_datasets, 8))
        ranks = np.where(shared, own[:, :1], own)
        return pooled_uniformity(ranks, rng) < 0.05

    for shared in (True, False):
        rate = np.mean([rejected(300, shared) for _ in range(120)])
        assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)


def test_an_error_that_elements_share_adds_up_over_them(rng):
    ranks = rng.uniform(size=(100, 50)) ** 1.08  # each by itself too little to see
    assert pooled_uniformity(ranks, rng) < 0.01


def test_holm_is_its_definition():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_latents_with_heavy_tails_are_squashed_and_said_to_be(rng):
    tau = np.abs(rng.standard_cauchy(size=300))
    draws = np.abs(rng.standard_cauchy(size=(100, 300)))
    run = CalibrationRun({"tau": tau}, rng)
    run.add({"tau": draws})
    found = run.result()
    assert "site 'tau': its prior has heavy tails" in str(found)
    assert abs(float(found.recoveries["tau"].mean_contraction)) < 0.3
    assert "nothing here reads the data" in str(found)
    assert found.verdict == "no error found; the data say little about tau (see contraction)"


def test_constant_numbers_are_left_out_and_named(rng):
    """The diagonal of a correlation matrix, and a site that is a constant."""
    corner = rng.uniform(-1, 1, size=300)

    def matrices(values):
        ones = np.ones_like(values)
        return np.stack([np.stack([ones, values], -1), np.stack([values, ones], -1)], -2)

    run = CalibrationRun({"corr": matrices(corner), "fixed": np.ones(300)}, rng)
    draws = rng.uniform(-1, 1, size=(50, 300))
    run.add({"corr": matrices(draws), "fixed": np.ones((50, 300))})
    found = run.result()
    assert "site 'corr': 2 of 4 of its numbers are constant" in str(found)
    assert "site 'fixed' is constant: nothing to rank" in str(found)
    assert found.is_accepted
    assert "fixed" not in found.pit


def test_a_likelihood_that_no_draw_meets_is_not_certified(rng):
    z = rng.normal(size=100)
    run = CalibrationRun({"z": z}, rng, densities={"log_likelihood": np.zeros(100)})
    draws = rng.normal(size=(50, 100))
    run.add({"z": draws}, densities={"log_likelihood": np.full((50, 100), -np.inf)})
    found = run.result()
    assert "log likelihood: zero at 100 % of the draws" in str(found)
    assert "what needs the likelihood is not certified" in str(found)
    assert "log_likelihood" not in found.pit
    run = CalibrationRun({"z": z}, rng, densities={"log_likelihood": np.zeros(100)})
    for _ in range(2):
        run.add({"z": draws}, densities={"log_likelihood": np.full((50, 100), np.nan)})
    assert str(run.result()).count("log likelihood: NaN at 5000 of 5000 draws") == 1
    run = CalibrationRun({"z": z}, rng, densities={"log_likelihood": np.ones(100)})
    run.add({"z": draws}, densities={"log_likelihood": np.ones((50, 100))})
    assert "log likelihood is constant: nothing to rank" in str(run.result())


def test_many_elements_and_many_latents_are_thinned_and_said_to_be(rng):
    truths = {"w": rng.normal(size=(60, 250))}
    run = CalibrationRun(truths, rng, data=np.full((60, 2), np.nan), past_data=np.ones((60, 2)))
    run.add({"w": rng.normal(size=(20, 60, 250))})
    text = str(run.result())
    assert "200 of its 250 numbers were ranked by themselves" in text
    assert "TARP reads 64 numbers spread over all sites and leaves out 186" in text


def test_data_with_gaps_still_lead_to_references(rng):
    past, found = (answers("exact", rng, num_draws=30), answers("prior", rng, num_draws=99))
    data, old = found.data.copy(), past.data.copy()
    data[::3, 0], old[::3, 0] = np.nan, np.nan
    run = CalibrationRun(
        {"z": found.truths}, rng, past={"z": past.truths}, data=data, past_data=old
    )
    run.add({"z": found.draws})
    rejected = [row.check for row in run.result().rows if row.is_rejected]
    assert rejected == ["TARP, points from the data"]


def test_arviz_takes_the_ranks_as_they_are(rng):
    import matplotlib as mpl

    mpl.use("Agg")
    from arviz_plots import plot_ecdf_pit

    found = checked("exact", rng, num_datasets=60, num_draws=50)
    tree = found.to_datatree(coords={"element": ["a", "b"]})
    assert dict(tree["prior_sbc"].sizes) == {"chain": 1, "draw": 60, "element": 2}
    assert plot_ecdf_pit(tree, var_names=["z"], backend="matplotlib") is not None
    assert found.plot(var_names=["z", "log_likelihood"]) is not None


def test_missing_arviz_names_the_extra(rng, monkeypatch):
    found = checked("exact", rng, num_datasets=50, num_draws=20)
    monkeypatch.setitem(sys.modules, "arviz_plots", None)
    with pytest.raises(
        ImportError, match=r"Calibration.plot.*pip install 'pyro-amortize\[arviz\]'"
    ):
        found.plot()
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-amortize\[arviz\]'"):
        found.to_datatree()


def test_bad_input_raises(rng):
    z, draws = rng.normal(size=50), rng.normal(size=(20, 50))
    with pytest.raises(ValueError, match="truths: expected one latent site or more"):
        CalibrationRun({}, rng)
    with pytest.raises(ValueError, match="truths: expected arrays with one leading axis"):
        CalibrationRun({"z": z, "w": z[:40]}, rng)
    with pytest.raises(ValueError, match="truths: expected at least 50 data sets, got 49"):
        CalibrationRun({"z": z[:49]}, rng)
    with pytest.raises(ValueError, match="site 'z': truths: expected numbers, got NaN"):
        CalibrationRun({"z": np.full(50, np.nan)}, rng)
    with pytest.raises(ValueError, match=r"draws: expected the sites \['z'\]"):
        CalibrationRun({"z": z}, rng).add({"w": draws})
    with pytest.raises(ValueError, match="site 'z': expected draws of shape"):
        CalibrationRun({"z": z}, rng).add({"z": draws[:, :40]})
    with pytest.raises(ValueError, match="site 'z': draws: expected numbers, got NaN in 1000"):
        CalibrationRun({"z": z}, rng).add({"z": np.full((20, 50), np.nan)})
    short = CalibrationRun({"z": z}, rng)
    short.add({"z": draws[:19]})
    with pytest.raises(ValueError, match="draws: expected at least 20 draws"):
        short.result()
    constant = CalibrationRun({"z": np.ones(50)}, rng, past={"z": z})
    constant.add({"z": np.ones((20, 50))})
    with pytest.raises(ValueError, match="truths: expected latents that vary"):
        constant.result()
    with pytest.raises(ValueError, match="p_values: expected probabilities"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="pit: expected shape"):
        pooled_uniformity(np.zeros((49, 2)), rng)
