"""One page that says what a guide is, how it was trained and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from amortize_diagnostics.calibration import Calibration, p_text
from amortize_diagnostics.charts import Line, Site, graph, line_chart
from amortize_diagnostics.page import PAGE, STYLE
from amortize_diagnostics.ranks import ecdf_test

_MOST_POINTS, _MOST_PANELS = 300, 24
_REGION = "density_region"  # credibilities of regions of highest density


class ReportedSite(Protocol):
    """A site, or a covariate, of a model's structure."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def plates(self) -> Sequence[str]:
        """Its plates."""


class ReportedLatent(ReportedSite, Protocol):
    """A latent site, with what the guide's factor of it reads."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Earlier latents that it reads."""


class ReportedStructure(Protocol):
    """What a guide has read of its model; `str` says it in words."""

    @property
    def observed(self) -> Sequence[ReportedSite]:
        """Observed sites."""

    @property
    def inputs(self) -> Sequence[ReportedSite]:
        """Covariates."""

    @property
    def latents(self) -> Sequence[ReportedLatent]:
        """Latent sites in the order in which the guide draws them."""


class ReportedTraining(Protocol):
    """A training run; `str` says it in a line."""

    @property
    def losses(self) -> ArrayLike:
        """Loss of every step, in nats."""

    @property
    def held_out_steps(self) -> ArrayLike:
        """Steps after which the held-out loss was measured."""

    @property
    def held_out_losses(self) -> ArrayLike:
        """That loss, in nats."""


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Args:
        title: Its title.
        structure: What the guide has read of its model.
        calibration: What simulated data say of the guide, or None.
        unchecked: Why it is None.
        histories: Training runs, one for each member of an ensemble; none if not known.
        answers: What is known of the answers at data sets, in words; none if not asked for.
    """

    title: str
    structure: ReportedStructure
    calibration: Calibration | None = None
    unchecked: str = ""
    histories: Sequence[ReportedTraining] = ()
    answers: str = ""

    def html(self) -> str:
        """The page: one file without scripts, that loads nothing."""
        sections = [
            self._training(),
            self._calibration(),
            _section("Answers at data sets", _text(self.answers)) if self.answers else "",
            _section(
                "The guide",
                f"<figure>{graph(_sites(self.structure), title='Sites of the guide')}</figure>"
                "<p>Data first, then the latents in the order in which the guide draws them. "
                "All read the data; an arc leads to a latent from an earlier one that it reads."
                "</p>" + _text(str(self.structure)),
            ),
        ]
        reason = f": {self.unchecked}" if self.unchecked else ""
        verdict, state = f"not checked on simulated data{reason}", "unknown"
        if self.calibration is not None:
            verdict = self.calibration.verdict
            state = "good" if self.calibration.is_accepted else "bad"
        return PAGE.format(
            title=escape(self.title),
            verdict=escape(_sentence(verdict)),
            state=state,
            style=STYLE,
            sections="".join(sections),
        )

    def write(self, path: str | PathLike[str]) -> None:
        """Write the page to a file.

        Args:
            path: The file.
        """
        Path(path).write_text(self.html(), encoding="utf-8")

    def _training(self) -> str:
        charts = []
        for number, history in enumerate(self.histories, 1):
            name = f"Training of member {number}" if len(self.histories) > 1 else "Training"
            chart = line_chart(
                [
                    Line(*_thinned(history.losses), "faint", "loss of a step"),
                    Line(history.held_out_steps, history.held_out_losses, "main", "held-out loss"),
                ],
                labels=("step", "loss, nats"),
                size=(620, 240),
                title=name,
            )
            caption = escape(str(history))
            charts.append(f"<figure>{chart}<figcaption>{caption}</figcaption></figure>")
        if not charts:
            return ""
        legend = "<p>Faint: the loss of training steps, medians of neighbours. Strong: the loss on "
        return _section("Training", legend + "what training does not see.</p>" + "".join(charts))

    def _calibration(self) -> str:
        found = self.calibration
        if found is None:
            return ""
        rows = "".join(
            f'<tr class="{"rejected" if row.is_rejected else ""}"><th scope="row">'
            f"{escape(row.site)}</th><td>{escape(row.check)}</td><td>{escape(row.value)}</td>"
            f'<td class="number">{escape(p_text(row.p_value))}</td>'
            f"<td>{escape(row.verdict)}</td></tr>"
            for row in found.rows
        )
        table = (
            '<div class="wide"><table><thead><tr><th>site</th><th>check</th><th>value</th>'
            f"<th>p</th><th>verdict</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
        notes = "".join(f"<p>{escape(_sentence(note))}</p>" for note in found.notes)
        head = (
            f"<p>{found.num_datasets:,} simulated data sets, {found.num_draws:,} draws of each; "
            "p-values are adjusted for all tests.</p>"
        )
        return _section("Calibration", head + table + notes + _panels(found))


def _panels(found: Calibration) -> str:
    """The ranks of each quantity beside the uniform distribution, the worst first."""
    tests = []
    for quantity, pit in found.pit.items():
        flat = np.reshape(pit, (len(pit), -1))
        for index, column in enumerate(flat.T):
            where = np.unravel_index(index, np.shape(pit)[1:])
            name = quantity + (f"[{', '.join(str(i) for i in where)}]" if where else "")
            tests.append((name, column, ecdf_test(column)))
    tests.sort(key=lambda each: each[2].p_value)
    panels = []
    for name, _, test in tests[:_MOST_PANELS]:
        chart = line_chart(
            [Line(test.points, test.difference, "main", name)],
            band=(test.points, test.lower, test.upper),
            labels=("rank", ""),
            size=(230, 160),
            title=f"Ranks of {name}",
        )
        panels.append(
            f"<figure>{chart}<figcaption>{escape(name)}, p = "
            f"{escape(p_text(test.p_value))}</figcaption></figure>"
        )
    left_out = len(tests) - len(panels)
    more = f" The {left_out} that lie closest to it are left out." if left_out > 0 else ""
    text = (
        "<h3>Ranks</h3><p>How the distribution of the ranks differs from the uniform one, which "
        "the exact posterior has, with a band that holds everywhere at once with probability 0.95; "
        f"p-values here are each quantity's own.{more}</p>"
    )
    return text + f'<div class="panels">{"".join(panels)}</div>' + _coverage(found)


def _coverage(found: Calibration) -> str:
    """How often regions of highest density hold the truth."""
    credibility = found.pit.get(_REGION)
    if credibility is None:
        return ""
    ordered = np.sort(np.ravel(credibility))
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    some = np.unique(np.linspace(0, len(ordered) - 1, _MOST_POINTS).astype(int))
    chart = line_chart(
        [
            Line([0, 1], [0, 1], "faint", "what is promised"),
            Line(ordered[some], share[some], "main", "what is found"),
        ],
        labels=("probability of the region", "share of truths in it"),
        size=(300, 260),
        title="Coverage of regions of highest density",
    )
    text = "<h3>Coverage</h3><p>Regions of highest density of all latents together.</p>"
    return f"{text}<figure>{chart}</figure>"


def _sites(structure: ReportedStructure) -> list[Site]:
    """Data, covariates and latents, in the order in which the guide reads and draws them."""
    found = [Site(each.name, _where(each.plates), (), "observed") for each in structure.observed]
    found += [Site(each.name, _where(each.plates), (), "input") for each in structure.inputs]
    return found + [
        Site(each.name, _where(each.plates), each.parents) for each in structure.latents
    ]


def _where(plates: Sequence[str]) -> str:
    return f"in {', '.join(plates)}" if plates else ""


def _thinned(losses: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses, medians of neighbours if there are many."""
    values = np.asarray(losses, float)
    blocks = np.array_split(np.arange(len(values)), min(len(values), _MOST_POINTS))
    return (
        np.array([block.mean() + 1 for block in blocks]),
        np.array([np.median(values[block]) for block in blocks]),
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _text(text: str) -> str:
    return f'<div class="wide"><pre>{escape(text)}</pre></div>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
