"""Model comparison: posterior probabilities and Bayes factors, with their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from amortize_diagnostics.importance import ImportanceSummary

Array = NDArray[np.float64]

# Twice the log Bayes factor, Kass and Raftery (1995), section 3.2.
_WORDS = ((2.0, "not worth more than a mention"), (6.0, "positive"), (10.0, "strong"))


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """How probable models are at one data set, or at each of many.

    `print(found)` gives the table. Axes are those of the models, then of the data sets if there
    are many.

    Args:
        names: Names of the models.
        log_evidence: `log p(x | model)`, in nats.
        log_evidence_se: Its standard error.
        probability: `p(model | x)`.
        probability_se: Its standard error.
        log_bayes_factor: `log p(x | model) - log p(x | best model)`, zero or less.
        log_bayes_factor_se: Its standard error, zero for the best.
        is_trusted: Whether k-hat passes where the evidence has one, else True.

    Example:
        >>> print(compare_models({"line": -10.0, "plane": -12.5}, {"line": 0.1, "plane": 0.1}))
        model     log evidence     probability     Bayes factor
        line   -10.000 ± 0.100   0.924 ± 0.010            1.000
        plane  -12.500 ± 0.100   0.076 ± 0.010    0.082 ± 0.012
        Evidence for line against plane: positive.

    References:
        Kass and Raftery (1995), Bayes factors, Journal of the American Statistical Association 90,
        eqs. 1-3 and section 3.2 for the words.
    """

    names: tuple[str, ...]
    log_evidence: Array
    log_evidence_se: Array
    probability: Array
    probability_se: Array
    log_bayes_factor: Array
    log_bayes_factor_se: Array
    is_trusted: NDArray[np.bool_]

    def __str__(self) -> str:
        """The table and what it means in words."""
        return self._of_many() if self.log_evidence.ndim > 1 else self._of_one()

    def _of_one(self) -> str:
        width = max(len("model"), *map(len, self.names))
        head = f"{'log evidence':>15}   {'probability':>13}    {'Bayes factor':>13}"
        lines = [f"{'model':<{width}}  {head}"]
        order = np.argsort(-self.log_evidence, kind="stable")
        for row in order:
            factor = np.exp(self.log_bayes_factor[row])
            error = factor * self.log_bayes_factor_se[row]
            evidence = f"{self.log_evidence[row]:.3f} ± {self.log_evidence_se[row]:.3f}"
            probability = f"{self.probability[row]:.3f} ± {self.probability_se[row]:.3f}"
            shown = f"{factor:.3f} ± {error:.3f}" if error else f"{factor:.3f}"
            lines.append(
                f"{self.names[row]:<{width}}  {evidence:>15}   {probability:>13}    {shown:>13}"
            )
        best, second = order[:2]
        gap, error = -self.log_bayes_factor[second], self.log_bayes_factor_se[second]
        if gap < 2 * error:
            lines.append(
                f"{self.names[best]} and {self.names[second]} cannot be told apart: their "
                "evidences differ by less than two standard errors. More draws make these smaller."
            )
        else:
            word = next((word for limit, word in _WORDS if 2 * gap < limit), "very strong")
            lines.append(f"Evidence for {self.names[best]} against {self.names[second]}: {word}.")
        lines += self._warning(self.is_trusted)
        return "\n".join(line.rstrip() for line in lines)

    def _of_many(self) -> str:
        num = self.log_evidence.shape[1]
        best = np.argmax(self.probability, axis=0)
        width = max(map(len, self.names))
        lines = [f"{num} data sets; model, mean probability, most probable in"]
        lines += [
            f"{name:<{width}}  {self.probability[row].mean():.3f}  {np.sum(best == row)}"
            for row, name in enumerate(self.names)
        ]
        return "\n".join([*lines, *self._warning(np.asarray(self.is_trusted.all(1)))])

    def _warning(self, is_trusted: NDArray[np.bool_]) -> list[str]:
        names = [name for name, ok in zip(self.names, is_trusted, strict=True) if not ok]
        if not names:
            return []
        return [
            f"Not to be trusted: the evidence of {', '.join(names)}, whose k-hat fails; its error "
            "is larger than it looks."
        ]


def compare_models(
    log_evidence: Mapping[str, ImportanceSummary | ArrayLike],
    standard_error: Mapping[str, ArrayLike] | None = None,
    *,
    prior: Mapping[str, float] | None = None,
) -> ModelComparison:
    """Posterior probabilities of models, and Bayes factors against the best, with their errors.

    `p(m | x) = p(m) p(x | m) / sum_k p(k) p(x | k)`, and to first order in independent errors
    `s_m` of the log evidences `var p(m | x) = p_m^2 ((1 - p_m)^2 s_m^2 + sum_k p_k^2 s_k^2)`, the
    sum over the other models.

    Use it with the evidences of `importance_sample` of guides of several models at the same data.
    Evidences depend on the priors of the parameters, however vague: for predictions compare by
    leave-one-out instead.

    Args:
        log_evidence: By name of the model its `ImportanceSummary`, or the log evidence in nats,
            a number or shape `(num_datasets,)`.
        standard_error: By name the standard errors of log evidences given as numbers; zero if
            None.
        prior: Prior probabilities by name, up to a factor; equal ones if None.

    Returns:
        The comparison.

    Raises:
        ValueError: If there are fewer than two models, if names or shapes differ, if a log
            evidence is not finite, or if an error or a prior probability is negative.

    Example:
        >>> found = compare_models({"a": 0.0, "b": np.log(3.0)}, prior={"a": 3.0, "b": 1.0})
        >>> found.probability.round(3).tolist()
        [0.5, 0.5]

    References:
        See `ModelComparison`.
    """
    names = tuple(log_evidence)
    if len(names) < 2:
        raise ValueError(
            f"log_evidence: expected at least two models, got {len(names)}: {list(names)}"
        )
    for argument, given in (("standard_error", standard_error), ("prior", prior)):
        if given is not None and set(given) != set(names):
            raise ValueError(
                f"{argument}: expected the models {', '.join(sorted(names))}, got "
                f"{', '.join(sorted(given))}"
            )
    values, errors, trusted = [], [], []
    for name in names:
        item = log_evidence[name]
        if isinstance(item, ImportanceSummary):
            values.append(np.asarray(item.log_evidence, float))
            errors.append(np.asarray(item.log_evidence_se, float))
            trusted.append(np.asarray(item.khat) < item.khat_threshold)
        else:
            values.append(np.asarray(item, float))
            error = 0.0 if standard_error is None else standard_error[name]
            errors.append(np.broadcast_to(np.asarray(error, float), values[-1].shape))
            trusted.append(np.ones(values[-1].shape, bool))
    shapes = {name: value.shape for name, value in zip(names, values, strict=True)}
    if len(set(shapes.values())) > 1 or values[0].ndim > 1:
        raise ValueError(
            "log_evidence: expected numbers, or one array (num_datasets,) for each model, got "
            f"shapes {shapes}"
        )
    evidence, error = np.stack(values), np.stack(errors)
    weights = np.array([1.0 if prior is None else prior[name] for name in names])
    if not np.all(np.isfinite(evidence)):
        bad = [
            name for name, value in zip(names, values, strict=True) if not np.isfinite(value).all()
        ]
        raise ValueError(f"log_evidence of {', '.join(bad)}: expected finite numbers")
    if np.any(error < 0) or np.any(weights < 0) or not weights.sum() > 0:
        raise ValueError("standard_error and prior: expected none negative and a positive prior")
    return _compared(names, evidence, error, weights, np.stack(trusted))


def _compared(
    names: tuple[str, ...],
    evidence: Array,
    error: Array,
    weights: Array,
    trusted: NDArray[np.bool_],
) -> ModelComparison:
    with np.errstate(divide="ignore"):  # a model without prior probability
        log_prior = np.log(weights / weights.sum()).reshape(-1, *[1] * (evidence.ndim - 1))
    joint = evidence + log_prior
    probability = np.exp(joint - logsumexp(joint, axis=0))
    spread = (probability * error) ** 2
    others = spread.sum(0) - spread
    best = np.argmax(evidence, axis=0)[None]
    best_error = np.take_along_axis(error, best, 0)
    is_best = np.arange(len(names)).reshape(-1, *[1] * (evidence.ndim - 1)) == best
    return ModelComparison(
        names,
        log_evidence=evidence,
        log_evidence_se=error,
        probability=probability,
        probability_se=probability * np.sqrt(((1 - probability) * error) ** 2 + others),
        log_bayes_factor=evidence - np.take_along_axis(evidence, best, 0),
        log_bayes_factor_se=np.where(is_best, 0.0, np.hypot(error, best_error)),
        is_trusted=trusted,
    )
