"""One page that says what a guide is, how it was trained and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from amortize_diagnostics.calibration import Calibration
from amortize_diagnostics.charts import Line, Site, graph, line_chart
from amortize_diagnostics.page import PAGE, STYLE
from amortize_diagnostics.ranks import ecdf_test

_MOST_POINTS, _MOST_PANELS = 300, 24
_REGION = "density_region"  # credibilities of regions of highest density


@dataclass(frozen=True)
class TrainingCourse:
    """What to show of a training run.

    Args:
        losses: Loss of every step, in nats.
        held_out_steps: Steps after which the held-out loss was measured.
        held_out_losses: That loss, in nats.
        text: The run in a line.
    """

    losses: ArrayLike
    held_out_steps: ArrayLike
    held_out_losses: ArrayLike
    text: str = ""


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Args:
        title: Its title.
        sites: Sites of the guide, parents before those that read them.
        structure: The structure of the model in words.
        calibration: What simulated data say of the guide, or None.
        unchecked: Why it is None.
        courses: Training runs, one for each member of an ensemble; none if not known.
        answers: What is known of the answers at data sets, in words; none if not asked for.
    """

    title: str
    sites: Sequence[Site]
    structure: str
    calibration: Calibration | None = None
    unchecked: str = ""
    courses: Sequence[TrainingCourse] = ()
    answers: str = ""

    def html(self) -> str:
        """The page: one file without scripts, that loads nothing."""
        sections = [
            self._training(),
            self._calibration(),
            _section("Answers at data sets", _text(self.answers)) if self.answers else "",
            _section(
                "The guide",
                f"<figure>{graph(self.sites, title='Sites of the guide')}</figure>"
                "<p>Data first, then the latents in the order in which the guide draws them. "
                "All read the data; an arc leads to a latent from an earlier one that it reads."
                "</p>" + _text(self.structure),
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
        for number, course in enumerate(self.courses, 1):
            name = f"Training of member {number}" if len(self.courses) > 1 else "Training"
            chart = line_chart(
                [
                    Line(*_thinned(course.losses), "faint", "loss of a step"),
                    Line(course.held_out_steps, course.held_out_losses, "main", "held-out loss"),
                ],
                labels=("step", "loss, nats"),
                size=(620, 240),
                title=name,
            )
            charts.append(f"<figure>{chart}<figcaption>{escape(course.text)}</figcaption></figure>")
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
            f'<td class="number">{_p_value(row.p_value)}</td><td>{escape(row.verdict)}</td></tr>'
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
            f"<figure>{chart}<figcaption>{escape(name)}, p = {_p_value(test.p_value)}</figcaption>"
            "</figure>"
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


def _p_value(p_value: float) -> str:
    if np.isnan(p_value):
        return ""
    return f"{p_value:.2g}" if p_value >= 1e-6 else "&lt;1e-6"
