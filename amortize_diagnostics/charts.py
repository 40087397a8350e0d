"""Charts of a report as SVG text, coloured by the style sheet of the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 8, 34  # margins in pixels
_ROW, _ARC = 26, 9  # height of a site in a graph, and width of the shortest arc


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        x: Positions.
        y: Values, same shape.
        style: Class of the line in the style sheet.
        name: What it is, shown when it is pointed at.
    """

    x: ArrayLike
    y: ArrayLike
    style: str = "main"
    name: str = ""


@dataclass(frozen=True)
class Site:
    """A row of a graph.

    Args:
        name: Name of the site.
        text: What else to say of it.
        parents: Names of the rows above that it reads.
        style: Class of its mark in the style sheet.
    """

    name: str
    text: str = ""
    parents: tuple[str, ...] = ()
    style: str = "latent"


def line_chart(
    lines: Sequence[Line],
    *,
    band: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    labels: tuple[str, str] = ("", ""),
    size: tuple[int, int] = (300, 190),
    title: str = "",
) -> str:
    """Lines over a band, with axes.

    Args:
        lines: The lines; values that are not finite are left out.
        band: Positions, lower and upper edges of a band behind them, or None.
        labels: What the two axes are.
        size: Width and height in pixels.
        title: What the chart is, for those who cannot see it.
    """
    drawn = [(_finite(line.x, line.y), line) for line in lines]
    every = [points for points, _ in drawn]
    if band is not None:
        x, lower, upper = (np.asarray(each, float) for each in band)
        every += [np.stack([x, lower]), np.stack([x, upper])]
    joined = np.concatenate(every, axis=1)
    frame = _Frame(*_range(joined[0]), *_range(joined[1]), *size)
    parts = [frame.axes(labels)]
    if band is not None:
        edge = [*zip(x, lower, strict=True), *zip(x[::-1], upper[::-1], strict=True)]
        parts.append(f'<polygon class="band" points="{frame.path(edge)}"/>')
    for points, line in drawn:
        parts.append(
            f'<polyline class="line {escape(line.style)}" points="{frame.path(points.T)}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
    return _svg(*size, title, parts)


def graph(sites: Sequence[Site], *, title: str = "") -> str:
    """Sites one below the other, with arcs from each to those that read it.

    Args:
        sites: The sites, parents before those that read them.
        title: What the graph is, for those who cannot see it.
    """
    rows = {site.name: number for number, site in enumerate(sites)}
    arcs = [
        (rows[parent], rows[site.name])
        for site in sites
        for parent in site.parents
        if parent in rows
    ]
    reach = max((end - start for start, end in arcs), default=0)
    left = 12 + _ARC * (reach + 1)
    width = left + 20 + 7 * max(len(site.name) + len(site.text) + 3 for site in sites)
    parts = []
    for start, end in arcs:
        bend = left - _ARC * (end - start) - 14
        parts.append(
            f'<path class="arc" d="M{left - 7} {_middle(start)} C{bend} {_middle(start)} {bend} '
            f'{_middle(end)} {left - 7} {_middle(end)}"/>'
        )
    for number, site in enumerate(sites):
        y = _middle(number)
        parts.append(f'<circle class="mark {escape(site.style)}" cx="{left}" cy="{y}" r="5"/>')
        parts.append(
            f'<text x="{left + 13}" y="{y + 4}"><tspan class="name">{escape(site.name)}</tspan>'
            f"<tspan>&#160; {escape(site.text)}</tspan></text>"
        )
    return _svg(width, _ROW * len(sites) + 8, title, parts)


@dataclass(frozen=True)
class _Frame:
    """Where numbers are on the page."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return (
            _LEFT + across * (self.width - _LEFT - _RIGHT),
            self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM),
        )

    def path(self, points: ArrayLike) -> str:
        places = (self.place(x, y) for x, y in np.asarray(points, float))
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    def axes(self, labels: tuple[str, str]) -> str:
        """Grid lines with their numbers, and the labels."""
        bottom, parts = self.height - _BOTTOM, []
        for tick in _ticks(self.x_low, self.x_high):
            x, _ = self.place(tick, self.y_low)
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            )
            parts.append(f'<text class="tick middle" x="{x:.1f}" y="{bottom + 14}">{tick:g}</text>')
        for tick in _ticks(self.y_low, self.y_high):
            _, y = self.place(self.x_low, tick)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>'
            )
            parts.append(f'<text class="tick end" x="{_LEFT - 5}" y="{y + 4:.1f}">{tick:g}</text>')
        center = (_LEFT + self.width - _RIGHT) / 2
        parts.append(
            f'<text class="tick middle" x="{center}" y="{self.height - 4}">'
            f"{escape(labels[0])}</text>"
        )
        if labels[1]:
            y = (bottom + _TOP) / 2
            parts.append(
                f'<text class="tick middle" transform="rotate(-90 11 {y})" x="11" y="{y}">'
                f"{escape(labels[1])}</text>"
            )
        return "".join(parts)


def _middle(row: int) -> int:
    return _ROW * row + _ROW // 2 + 4


def _finite(x: ArrayLike, y: ArrayLike) -> Array:
    points = np.stack([np.asarray(x, float), np.asarray(y, float)])
    return points[:, np.isfinite(points).all(0)]


def _range(values: Array) -> tuple[float, float]:
    """The smallest and the largest value, never the same."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> Array:
    """Some three to six round numbers in a range."""
    power = 10.0 ** np.floor(np.log10((high - low) / 3))
    step = max(power * unit for unit in (1, 2, 5) if power * unit <= (high - low) / 3)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return np.round(np.arange(first, last + 1) * step, 12) + 0.0  # no minus zero


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
