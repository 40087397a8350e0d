"""The table of a calibration: what each check means, and p-values for all of them together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from amortize_diagnostics.calibration import FALSE_ALARMS, CalibrationRow
from amortize_diagnostics.coverage import coverage_of
from amortize_diagnostics.multiplicity import holm, pooled_uniformity
from amortize_diagnostics.ranks import EcdfTest, ecdf_test, shape_words

Array = NDArray[np.float64]

DENSITIES = {"log_likelihood": "log likelihood", "log_joint": "log joint"}
TARP = {
    "tarp_independent": "TARP, points that ignore data",
    "tarp_data": "TARP, points from the data",
}
_MOST_ELEMENTS = 200


class CalibrationTable:
    """Rows with the tests behind them, whose p-values are adjusted together.

    Args:
        rng: Weighs pooled ranks.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.rows: list[CalibrationRow] = []
        self.notes: list[str] = []
        self._tests: dict[int, list[float]] = {}  # p-values by row
        self._words: dict[int, list[str]] = {}  # and what each would mean
        self._passed: dict[int, str] = {}

    def _append(
        self, site: str, check: str, value: str, tests: list[tuple[float, str]], passed: str
    ) -> None:
        number = len(self.rows)
        self.rows.append(CalibrationRow(site, check, value, np.nan, ""))
        self._tests[number] = [p_value for p_value, _ in tests]
        self._words[number] = [word for _, word in tests]
        self._passed[number] = passed

    def add_latent(self, name: str, ranks: Array, *, is_pooled: bool) -> None:
        """Ranks of a site, scalar by scalar; and pooled, if these are elements of plates."""
        num = ranks.shape[1]
        chosen = np.linspace(0, num - 1, min(num, _MOST_ELEMENTS)).astype(int)
        tests = [ecdf_test(ranks[:, column]) for column in chosen]
        if len(chosen) < num:
            self.notes.append(
                f"site '{name}': {len(chosen)} of its {num} numbers were ranked by themselves"
            )
        check = "ranks" if num == 1 else f"ranks, each of {len(chosen)}"
        found = [(test.p_value, test.shape) for test in tests]
        self._append(name, check, _central(ranks[:, chosen]), found, "uniform")
        if is_pooled and num > 1:
            pooled = pooled_uniformity(ranks, self._rng)
            found = [(pooled, _pooled_words(ranks))]
            self._append(name, f"ranks, {num} pooled", _central(ranks), found, "uniform")

    def add_density(self, name: str, ranks: Array) -> None:
        """Ranks of a density of the model."""
        test = ecdf_test(ranks)
        what = "fit the data" if name == "log_likelihood" else "score"
        words = f"draws {what} otherwise than the truth"
        if abs(test.offset) > 3:
            better = "worse" if test.offset > 0 else "better"
            words = f"draws {what} {better} than the truth"
        value = f"mean rank {ranks.mean():.2f} ± {(1 / 12 / len(ranks)) ** 0.5:.2f}"
        self._append(DENSITIES[name], "ranks", value, [(test.p_value, words)], "uniform")

    def add_coverage(self, site: str, check: str, credibility: Array) -> None:
        """Coverage of regions of a guide's density."""
        found = coverage_of(credibility)
        row = int(np.argmin(np.abs(found.levels - 0.9)))
        value = f"90 % regions hold {100 * found.coverage[row]:.0f} ± {100 * found.se[row]:.0f} %"
        words = _region_words(found.test)
        self._append(site, check, value, [(found.test.p_value, words)], "covers what it promises")

    def add_tarp(self, name: str, credibility: Array) -> None:
        """Coverage of balls around points."""
        test = ecdf_test(credibility)
        value = f"90 % balls hold {100 * np.mean(credibility <= 0.9):.0f} %"
        if name == "tarp_independent":
            upper = np.mean(np.maximum(1 - np.maximum(credibility, 0.5), 0)) - 0.375
            words = "too wide" if upper > 0 else "too narrow or biased"
        else:
            words = "wrong around points that the data point to"
        passed = "covers what it promises"
        self._append("all latents", TARP[name], value, [(test.p_value, words)], passed)

    def add_local(self, ranks: Array, errors: Array) -> None:
        """Ranks of what a classifier has learned to tell draws from truths by."""
        error = (1 / 12 / len(ranks)) ** 0.5
        p_value = float(norm.sf((0.5 - ranks.mean()) / error))  # one-sided: it learned to pick them
        share = 100 * (1 - ranks.mean())
        value = f"classifier picks the draw in {share:.0f} ± {100 * error:.0f} % of pairs"
        words = f"wrong given the data, most so at data set {int(np.argmax(errors))}"
        passed = "no draw can be told from a truth"
        self._append("all latents", "local (L-C2ST)", value, [(p_value, words)], passed)

    def adjusted(self) -> tuple[CalibrationRow, ...]:
        """The rows, with the p-value and the words of the worst test of each."""
        p_values = holm([p for tests in self._tests.values() for p in tests])
        start, rows = 0, list(self.rows)
        for number, tests in self._tests.items():
            own = p_values[start : start + len(tests)]
            start += len(tests)
            worst = int(np.argmin(own))
            row = rows[number]
            rejected = own[worst] < FALSE_ALARMS
            words = self._words[number]
            verdict = self._passed[number]
            if rejected and len(tests) > 1:
                wrong = [word for word, p in zip(words, own, strict=True) if p < FALSE_ALARMS]
                counts = sorted({*wrong}, key=lambda word: -wrong.count(word))
                verdict = f"{counts[0]} in {wrong.count(counts[0])}"
            elif rejected:
                verdict = words[0]
            rows[number] = CalibrationRow(
                row.site, row.check, row.value, float(own[worst]), verdict
            )
        return tuple(rows)


def _pooled_words(ranks: Array) -> str:
    """The shape of all ranks together, with errors from data set to data set."""
    root = np.sqrt(len(ranks))
    means, squares = ranks.mean(1) - 0.5, np.mean((ranks - 0.5) ** 2, 1) - 1 / 12
    return shape_words(
        *(float(each.mean() / max(each.std(ddof=1), 1e-12) * root) for each in (means, squares))
    )


def _central(ranks: Array) -> str:
    """What central intervals of 90 % hold."""
    return f"90 % intervals hold {100 * np.mean(np.abs(ranks - 0.5) <= 0.45):.0f} %"


def _region_words(test: EcdfTest) -> str:
    if abs(test.offset) < 2:
        return "cover other than promised"
    return "overconfident" if test.offset > 0 else "conservative"
