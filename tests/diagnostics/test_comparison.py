"""Probabilities of models and Bayes factors: closed forms, errors by repetition, words."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from amortize_diagnostics import compare_models, importance_summary


def nested_regressions(rng, num_rows=40):
    """Data of a line, and the exact log evidences of regressions on 1, 2 and 3 columns."""
    design = np.column_stack([np.ones(num_rows), rng.normal(size=(num_rows, 2))])
    y = design[:, :2] @ np.array([0.5, 0.6]) + rng.normal(size=num_rows)
    exact = {}
    for size, name in enumerate(("constant", "line", "plane"), start=1):
        used = design[:, :size]
        covariance = np.eye(num_rows) + used @ used.T
        exact[name] = multivariate_normal(np.zeros(num_rows), covariance).logpdf(y)
    return design, y, exact


def weighted_evidence(design, y, rng, num_draws=4000, widening=1.5):
    """The summary of weights of draws from a proposal wider than the posterior."""
    precision = np.eye(design.shape[1]) + design.T @ design
    mean = np.linalg.solve(precision, design.T @ y)
    proposal = multivariate_normal(mean, widening**2 * np.linalg.inv(precision))
    draws = proposal.rvs(num_draws, random_state=rng).reshape(num_draws, -1)
    log_p = norm.logpdf(draws).sum(1) + norm.logpdf(y - draws @ design.T).sum(1)
    return importance_summary(log_p - proposal.logpdf(draws if draws.shape[1] > 1 else draws[:, 0]))


def test_probabilities_of_nested_regressions(rng):
    design, y, exact = nested_regressions(rng)
    summaries = {
        name: weighted_evidence(design[:, :size], y, rng)
        for size, name in enumerate(exact, start=1)
    }
    found, truth = compare_models(summaries), compare_models(exact)
    assert truth.probability.sum() == pytest.approx(1.0)
    assert np.argmax(truth.probability) == 1  # neither trivial
    assert 0.03 < truth.probability[2] < 0.9
    np.testing.assert_allclose(found.probability, truth.probability, atol=0.03)
    error = np.abs(found.log_evidence - truth.log_evidence)
    assert np.all(error < 3 * found.log_evidence_se)
    assert np.all(found.is_trusted)
    assert "line" in str(found).splitlines()[1]
    assert "Not to be trusted" not in str(found)


def test_standard_errors_are_the_spread_over_repetitions(rng):
    evidence, error = np.array([0.0, 0.5, -1.0]), np.array([0.05, 0.1, 0.2])
    names = ("a", "b", "c")

    def at(values):
        return compare_models(
            dict(zip(names, values, strict=True)), dict(zip(names, error, strict=True))
        )

    noisy = evidence + error * rng.normal(size=(4000, 3))
    repeated = np.stack([at(values).probability for values in noisy])
    factors = noisy[:, 0] - noisy[:, 1]
    found = at(evidence)
    np.testing.assert_allclose(found.probability_se, repeated.std(0), rtol=0.08)
    assert found.log_bayes_factor_se[0] == pytest.approx(factors.std(), rel=0.05)
    assert found.log_bayes_factor_se[1] == 0
    assert found.log_bayes_factor.tolist() == [-0.5, 0.0, -1.5]


def test_many_data_sets(rng):
    evidence = {"a": np.array([0.0, 1.0, -40.0]), "b": np.array([0.0, -1.0, 0.0])}
    found = compare_models(evidence)
    assert found.probability.shape == (2, 3)
    np.testing.assert_allclose(found.probability.sum(0), 1.0)
    np.testing.assert_allclose(found.probability[0], [0.5, 1 / (1 + np.exp(-2)), 0.0], atol=1e-12)
    assert str(found).splitlines()[0] == "3 data sets; model, mean probability, most probable in"


@pytest.mark.parametrize(
    ("gap", "word"),
    [
        (0.5, "not worth more than a mention"),
        (2.0, "positive"),
        (4.0, "strong"),
        (9.0, "very strong"),
    ],
)
def test_words(gap, word):
    text = str(compare_models({"a": 0.0, "b": -gap}))
    assert text.endswith(f"Evidence for a against b: {word}.")


def test_evidences_within_their_errors_are_not_ranked():
    errors = {"a": 0.5, "b": 0.5}
    text = str(compare_models({"a": 0.0, "b": -1.0}, errors))
    assert "a and b cannot be told apart" in text


def test_an_evidence_whose_khat_fails_is_named(rng):
    # A proposal five times too narrow: k-hat is about 1 - 0.2^2.
    draws = 0.2 * rng.normal(size=20000)
    bad = importance_summary(norm.logpdf(draws) - norm.logpdf(draws, 0, 0.2))
    assert bad.khat > bad.khat_threshold
    text = str(compare_models({"narrow": bad, "exact": importance_summary([0.0] * 100)}))
    assert "Not to be trusted: the evidence of narrow" in text


def test_prior_probabilities_multiply():
    found = compare_models({"a": 0.0, "b": 0.0}, prior={"a": 1.0, "b": 3.0})
    assert found.probability.tolist() == [0.25, 0.75]
    none = compare_models({"a": 5.0, "b": 0.0}, prior={"a": 0.0, "b": 1.0})
    assert none.probability.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (({"a": 0.0},), "log_evidence: expected at least two models, got 1"),
        (({"a": 0.0, "b": 0.0}, {"a": 0.1}), "standard_error: expected the models a, b, got a"),
        (({"a": 0.0, "b": [0.0, 1.0]},), "log_evidence: expected numbers, or one array"),
        (({"a": 0.0, "b": np.nan},), "log_evidence of b: expected finite numbers"),
        (({"a": 0.0, "b": 0.0}, {"a": -1.0, "b": 0.0}), "expected none negative"),
    ],
)
def test_bad_input(arguments, match):
    with pytest.raises(ValueError, match=match):
        compare_models(*arguments)


def test_prior_of_unknown_models():
    with pytest.raises(ValueError, match="prior: expected the models a, b, got a, c"):
        compare_models({"a": 0.0, "b": 0.0}, prior={"a": 0.5, "c": 0.5})
