"""The certificate of a guide as a whole: every check from one pass over its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amortize_diagnostics.coverage import Recovery
from amortize_diagnostics.datatree import to_datatree

if TYPE_CHECKING:
    from xarray import DataTree

Array = NDArray[np.float64]

FALSE_ALARMS = 0.05  # of the whole table
_LITTLE = 0.1  # contraction below which a latent counts as unmoved by the data


@dataclass(frozen=True)
class CalibrationRow:
    """One check of one site.

    Args:
        site: What is checked.
        check: By what.
        value: What was found, in words.
        p_value: P-value, adjusted for all tests of the table; NaN where nothing is tested.
        verdict: What it means.

    Example:
        >>> CalibrationRow("mu", "ranks", "", 0.4, "uniform").is_rejected
        False
    """

    site: str
    check: str
    value: str
    p_value: float
    verdict: str

    @property
    def is_rejected(self) -> bool:
        """Whether the exact posterior would not give this."""
        return self.p_value < FALSE_ALARMS


@dataclass(frozen=True, eq=False)
class Calibration:
    """What simulated data say about a guide as a whole; `print` shows a table.

    P-values are adjusted for the number of tests by Holm's method: of exact guides at most 5 % get
    any verdict but "uniform" or "covers what it promises". A pass means that errors are smaller
    than such data show, which with 300 data sets is about 0.3 posterior standard deviations or
    30 % of a width. Calibration holds over simulations of the model, not at one real data set:
    for that see importance weights.

    Args:
        num_datasets: Number of data sets.
        num_draws: Number of draws of each.
        rows: The table.
        pit: By quantity its uniform ranks, `(num_datasets, ...)`: all latents on their constrained
            space, `log_likelihood` and `log_joint` where the model has a density, the
            credibilities `density_region` and of TARP, and with the local check `local`.
        recoveries: By latent its z-scores, contraction and correlation.
        notes: What was left out, and why.
        dims: By quantity the names of its axes after that of the data sets.
        local_errors: With the local check, for each data set the mean squared distance from 1/2 of
            a classifier's probability that a draw is none of the posterior (L-C2ST), shape
            `(num_datasets,)`; None without.
    """

    num_datasets: int
    num_draws: int
    rows: tuple[CalibrationRow, ...]
    pit: dict[str, Array]
    recoveries: dict[str, Recovery]
    notes: tuple[str, ...]
    dims: dict[str, tuple[str, ...]]
    local_errors: Array | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether no check rejects the guide."""
        return not any(row.is_rejected for row in self.rows)

    @property
    def verdict(self) -> str:
        """The whole table in a sentence or two."""
        if self.is_accepted:
            text = "no error found"
            unmoved = [
                name for name, found in self.recoveries.items() if _contraction(found) < _LITTLE
            ]
            if unmoved:
                text += f"; the data say little about {', '.join(unmoved)} (see contraction)"
            return text
        tested = [row for row in self.rows if not np.isnan(row.p_value)]
        num = sum(row.is_rejected for row in tested)
        reasons = "; ".join(self._reasons())
        return f"not calibrated: {reasons} ({num} of {len(tested)} checks reject)"

    def _reasons(self) -> list[str]:
        rejected = [row for row in self.rows if row.is_rejected]
        elsewhere = [name for name, each in self.recoveries.items() if _follows_other_data(each)]
        if elsewhere:
            return [
                f"the draws of {', '.join(elsewhere)} belong to other data (they contract, but "
                "their means do not follow the truths)"
            ]
        latents = {row.site: row.verdict for row in rejected if row.site in self.recoveries}
        if latents:  # of a site with pooled ranks these come last
            return [f"{site} {verdict}" for site, verdict in latents.items()]
        if all(_ignores_data(each) for each in self.recoveries.values()):
            return ["the guide ignores the data: its draws are those of the prior"]
        return [f"{row.site}: {row.verdict}" for row in rejected]

    def __str__(self) -> str:
        header = ("site", "check", "value", "p", "verdict")
        lines = [header] + [
            (
                row.site,
                row.check,
                row.value,
                p_text(row.p_value),
                row.verdict,
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join(
            [
                f"{self.num_datasets} simulated data sets, {self.num_draws} draws of each; p-values"
                " adjusted for all tests",
                *table,
                *(f"Note: {note}." for note in self.notes),
                f"Verdict: {self.verdict}.",
            ]
        )

    def to_datatree(self, *, coords: Mapping[str, Any] | None = None) -> DataTree:
        """The uniform ranks as an ArviZ `DataTree`, in the group that ArviZ's plots expect.

        Args:
            coords: Labels along named axes, `{"school": ["A", "B"]}`.

        Returns:
            A tree with the group `prior_sbc`, whose draws are the data sets.

        Raises:
            ImportError: If ArviZ is not installed.
        """
        return to_datatree({"prior_sbc": self.pit}, dims=self.dims, coords=coords)

    def plot(
        self,
        var_names: str | Sequence[str] | None = None,
        *,
        envelope_prob: float = 0.95,
        **kwargs: Any,
    ) -> Any:
        """Empirical minus uniform distribution of the ranks, with a band, by arviz-plots.

        Args:
            var_names: Quantities to show; all if None.
            envelope_prob: Probability that a calibrated guide is within the band.
            **kwargs: Other arguments of `arviz_plots.plot_ecdf_pit`, such as `coverage`.

        Returns:
            The `PlotCollection`.

        Raises:
            ImportError: If ArviZ or matplotlib is not installed.
        """
        try:
            import matplotlib  # noqa: F401
            from arviz_plots import plot_ecdf_pit
        except ImportError as error:
            raise ImportError(
                f"Calibration.plot: expected arviz-plots and matplotlib, got none ({error}). "
                "Install them with `pip install 'pyro-amortize[arviz]'`."
            ) from error
        is_newest = "envelope_prob" in signature(plot_ecdf_pit).parameters  # else ci_prob
        band = {"envelope_prob" if is_newest else "ci_prob": envelope_prob}
        options: dict[str, Any] = {"backend": "matplotlib", **band, **kwargs}
        return plot_ecdf_pit(self.to_datatree(), var_names=var_names, **options)


def recovery_row(site: str, found: Recovery) -> CalibrationRow:
    """The row that says how a latent lies to its truths and to the prior; nothing is tested."""
    worst = np.argmax(np.abs(found.mean_zscore).ravel())
    zscore, se = (
        float(np.ravel(each)[worst]) for each in (found.mean_zscore, found.mean_zscore_se)
    )
    correlation = float(np.mean(found.correlation))
    value = (
        f"z-score {zscore:+.2f} ± {se:.2f}, contraction {_contraction(found):.2f}, correlation "
        f"{correlation:.2f}"
    )
    words = "belongs to other data" if _follows_other_data(found) else ""
    if not words and _contraction(found) < _LITTLE:
        is_wider = _contraction(found) < -2 * _LITTLE
        words = "wider than the prior" if is_wider else "as wide as the prior"
    return CalibrationRow(site, "recovery", value, np.nan, words)


def p_text(p_value: float) -> str:
    """A p-value in a table; nothing where nothing is tested.

    Args:
        p_value: The p-value, or NaN.
    """
    if np.isnan(p_value):
        return ""
    return f"{p_value:.2g}" if p_value >= 1e-6 else "<1e-6"


def _contraction(found: Recovery) -> float:
    return float(np.mean(found.mean_contraction))


def _explained(found: Recovery) -> float:
    """Fraction of the prior variance that posterior means explain; below zero, they point away.

    Of the exact posterior it is the contraction.
    """
    return float(np.mean(found.correlation * np.abs(found.correlation)))


def _ignores_data(found: Recovery) -> bool:
    return abs(_contraction(found)) < 2 * _LITTLE and _explained(found) < _LITTLE


def _follows_other_data(found: Recovery) -> bool:
    """Whether posteriors contract around means that do not follow the truths."""
    explained = _explained(found)
    contraction = _contraction(found)
    return contraction > 2 * _LITTLE and explained < contraction / 4
