"""One verdict on the answer at a data set: what to use, what to distrust, what to do next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amortize_diagnostics.importance import GOOD, USABLE, ImportanceSummary
from amortize_diagnostics.misspecification import Typicality
from amortize_diagnostics.predictive import PredictiveChecks

Array = NDArray[np.float64]

# All thresholds of a diagnosis are here, and in `importance.py` those of the ESS fraction.
LEAST_EFFECTIVE_DRAWS = 100  # of the weights, so that means are good to a tenth of an sd
RARE = 0.01  # p-value below which data are unlike simulations or predictions
_MOST_ROWS = 10  # of a printed table
_MANY = 0.5  # of the data sets: then it is the guide, and not the data
_USES = ("guide", "weighted", "neither")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """How far to trust an amortized answer at one data set, or at each of many.

    `print(found)` says it in words; of many data sets it is a table with the worst first. Arrays
    have one element for each data set.

    Args:
        importance: ESS fraction, k-hat and log evidence; None if there are no weights.
        predictive: Posterior predictive checks, or None.
        typicality: Distance of the data from the model's simulations, or None.
        notes: What could not be judged, and why.
        is_one: Whether it is of one data set rather than of many.

    References:
        The steps follow Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?: Evaluating
        variational inference, arXiv:1802.02538; the ESS fraction as a verdict of its own is ours,
        as k-hat passes guides that are far too wide.
    """

    importance: ImportanceSummary | None
    predictive: PredictiveChecks | None = None
    typicality: Typicality | None = None
    notes: tuple[str, ...] = ()
    is_one: bool = True

    @property
    def num_datasets(self) -> int:
        """Number of data sets."""
        if self.importance is not None:
            return np.atleast_1d(self.importance.khat).size
        if self.predictive is not None:
            return len(self.predictive.lowest)
        return 0 if self.typicality is None else len(self.typicality.p_value)

    @property
    def use(self) -> NDArray[np.str_]:
        """Which draws to use: those of the `"guide"`, the `"weighted"` ones, or `"neither"`."""
        summary = self.importance
        if summary is None:
            return np.full(self.num_datasets, "neither")
        own = np.atleast_1d(summary.own_ess_fraction) >= GOOD
        ess = summary.num_draws * np.atleast_1d(summary.ess_fraction)
        khat = np.atleast_1d(summary.khat)
        is_reliable = (khat < summary.khat_threshold) & (ess >= LEAST_EFFECTIVE_DRAWS)
        unclear = np.isnan(khat)  # few draws, or largest weights that are tied
        return np.where(
            own & (is_reliable | unclear), "guide", np.where(is_reliable, "weighted", "neither")
        )

    @property
    def is_model_doubtful(self) -> NDArray[np.bool_]:
        """Whether the data are unlike what the model simulates or predicts."""
        found = np.zeros(self.num_datasets, bool)
        if self.predictive is not None:
            found |= self.predictive.lowest < RARE
        if self.typicality is not None:
            found |= self.typicality.p_value < RARE
        return found

    @property
    def order(self) -> NDArray[np.intp]:
        """Data sets from the most to the least trouble."""
        level = np.array([_USES.index(use) for use in self.use]) + 0.5 * self.is_model_doubtful
        ess = (
            np.zeros(self.num_datasets)
            if self.importance is None
            else np.atleast_1d(self.importance.own_ess_fraction)
        )
        return np.lexsort((ess, -level))

    def advice(self, number: int = 0) -> str:
        """What to do next about a data set, in a sentence or two.

        Args:
            number: The data set.
        """
        sentences = [self._about_draws(number)]
        if self.typicality is not None and self.typicality.p_value[number] < RARE:
            sentences.append(
                "The data are unlike the model's simulations, where the guide was not trained: "
                "look at the data and the model."
            )
        if self.predictive is not None and self.predictive.lowest[number] < RARE:
            sentences.append(
                f"The model does not predict the data ({self.predictive.lowest_name[number]}): "
                "change the model."
            )
        return " ".join(sentences)

    def _about_draws(self, number: int) -> str:
        summary, use = self.importance, self.use[number]
        if summary is None:
            return "No weights: nothing is known of the guide's error at these data."
        if use == "guide":
            return "Use the guide's draws."
        if use == "weighted":
            return "Use the weighted draws: importance_sample(...).resample(...)."
        ess_fraction = float(np.atleast_1d(summary.ess_fraction)[number])
        khat = float(np.atleast_1d(summary.khat)[number])
        if khat < summary.khat_threshold:
            enough = int(np.ceil(LEAST_EFFECTIVE_DRAWS / ess_fraction / 1000) * 1000)
            return (
                f"Few of the draws count: importance_sample({enough}) would do; a longer training "
                "makes it cheaper."
            )
        return "Neither the guide nor its weights will do: refine(...) at these data, or nuts()."

    def __str__(self) -> str:
        """The verdict in words, or a table with the worst data sets first."""
        return self._of_one() if self.is_one else self._of_many()

    def _of_one(self) -> str:
        lines = [] if self.importance is None else [str(self.importance)]
        if self.predictive is not None:
            lines.append(
                f"Predictive checks: smallest p-value {self.predictive.lowest[0]:.3f} "
                f"({self.predictive.lowest_name[0]}, times {len(self.predictive.p_values)} checks)."
            )
        if self.typicality is not None:
            lines.append(
                f"Distance from the simulations: {self.typicality.distance[0]:.2f}, p = "
                f"{self.typicality.p_value[0]:.3f} "
                f"(5 % are beyond {self.typicality.threshold:.2f})."
            )
        lines.append(f"Verdict: {self.advice()}")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])

    def _of_many(self) -> str:
        uses, doubtful = self.use, self.is_model_doubtful
        counts = ", ".join(
            f"{word} for {np.sum(uses == use)}"
            for use, word in zip(_USES, ("guide's draws", "weighted draws", "neither"), strict=True)
        )
        lines = [
            f"{self.num_datasets} data sets. Use: {counts}. Model doubtful: {np.sum(doubtful)}.",
            f"{'data set':>8}  {'ESS':>5}  {'k-hat':>6}  {'log evidence':>18}  {'predictive':>10}  "
            f"{'distance':>8}  use",
        ]
        for number in self.order[:_MOST_ROWS]:
            mark = ", model doubtful" if doubtful[number] else ""
            lines.append(f"{number:>8}  {self._numbers(number)}  {uses[number]}{mark}")
        if self.num_datasets > _MOST_ROWS:
            lines.append(f"     ...  {self.num_datasets - _MOST_ROWS} with less trouble")
        lines.append(f"Verdict: {self._overall(uses)}")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])

    def _numbers(self, number: int) -> str:
        parts = [f"{'-':>5}", f"{'-':>6}", f"{'-':>18}"]
        if self.importance is not None:
            own, khat, evidence, error = (
                np.atleast_1d(part)[number]
                for part in (
                    self.importance.own_ess_fraction,
                    self.importance.khat,
                    self.importance.log_evidence,
                    self.importance.log_evidence_se,
                )
            )
            parts = [f"{own:5.2f}", f"{khat:6.2f}", f"{f'{evidence:.2f} ± {error:.2f}':>18}"]
        shown = "-" if self.predictive is None else f"{self.predictive.lowest[number]:.3f}"
        distance = "-" if self.typicality is None else f"{self.typicality.p_value[number]:.3f}"
        return "  ".join([*parts, f"{shown:>10}", f"{distance:>8}"])

    def _overall(self, uses: NDArray[np.str_]) -> str:
        if self.importance is None:
            return "no weights: nothing is known of the guide's error."
        own = np.atleast_1d(self.importance.own_ess_fraction)
        if np.mean(own < USABLE) > _MANY:
            return "poor at most of them: train longer, or give the guide a richer density."
        if np.any(uses == "neither"):
            return "refine(...) at those marked neither, or at(...).nuts() one by one."
        if np.any(uses == "weighted"):
            return "weighted draws wherever the guide's own are not good."
        return "the guide's draws are good everywhere."


def diagnosis(
    importance: ImportanceSummary | None,
    predictive: PredictiveChecks | None = None,
    typicality: Typicality | None = None,
    *,
    notes: tuple[str, ...] = (),
) -> Diagnosis:
    """Join what is known of an answer to one verdict.

    The guide's draws are used if their ESS fraction is at least 0.5, the weighted ones if k-hat
    is below its threshold and they are worth 100 draws, else neither. The model is doubtful if a
    p-value, of predictive checks or of the distance from simulations, is below 0.01, which says
    nothing of the guide where the weights are good.

    Args:
        importance: From `importance_summary`; None if there is no density to weigh by.
        predictive: From `predictive_checks`.
        typicality: From `typicality`.
        notes: What could not be judged, and why.

    Returns:
        The diagnosis.

    Raises:
        ValueError: If nothing is given, or if the parts are of different numbers of data sets.

    Example:
        >>> from amortize_diagnostics import importance_summary
        >>> print(diagnosis(importance_summary([-3.0] * 1000)))
        Guide's own draws: good (ESS fraction 1.00 of 1000 draws).
        Weighted draws: reliable (Pareto k-hat 0.00, threshold 0.67).
        Log evidence: -3.000 ± 0.000 nats.
        Verdict: Use the guide's draws.

    References:
        See `Diagnosis`.
    """
    sizes = {}
    if importance is not None:
        sizes["importance"] = np.atleast_1d(importance.khat).size
    if predictive is not None:
        sizes["predictive"] = len(predictive.lowest)
    if typicality is not None:
        sizes["typicality"] = len(typicality.p_value)
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"diagnosis: expected parts of one number of data sets, got {sizes or 'nothing'}"
        )
    is_one = set(sizes.values()) == {1} if importance is None else np.ndim(importance.khat) == 0
    return Diagnosis(importance, predictive, typicality, notes, bool(is_one))
