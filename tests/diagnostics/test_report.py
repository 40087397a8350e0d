"""The page of a guide: its verdict, its charts, and that it is one file that loads nothing."""

from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest

from amortize_diagnostics.charts import Line, Site, graph, line_chart
from amortize_diagnostics.report import Report
from tests.diagnostics.test_calibration import checked


@dataclass
class Named:
    """A site with its plates and parents."""

    name: str
    plates: tuple
    parents: tuple = ()


SITES = [Site("y", "in rows", (), "observed"), Site("mu"), Site("z", "in rows", ("mu",))]


@dataclass
class Structure:
    """What a report reads of a model's structure."""

    text: str = "structure"
    observed: tuple = (Named("y", ("rows",)),)
    inputs: tuple = ()
    latents: tuple = (Named("mu", (), ()), Named("z", ("rows",), ("mu",)))

    def __str__(self):
        return self.text


@dataclass
class Training:
    """What a report reads of a training run."""

    losses: np.ndarray
    held_out_steps: list
    held_out_losses: list

    def __str__(self):
        return f"{len(self.losses)} steps"


VOID = {"meta", "circle", "line", "polygon", "path"}


class Page(HTMLParser):
    """Elements in order, and an error for one that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def classes(self, tag):
        return [attrs.get("class", "") for found, attrs in self.elements if found == tag]


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [("exact", "good", "No error found"), ("width 0.7", "bad", "Not calibrated: z too narrow")],
)
def test_the_verdict_stands_at_the_top(rng, name, state, words):
    found = checked(name, rng)
    text = Report("model", Structure(), calibration=found).html()
    page = Page(text)
    assert f"verdict {state}" in page.classes("p")
    assert words in text
    assert len([each for each in page.classes("tr") if each == "rejected"]) == sum(
        row.is_rejected for row in found.rows
    )
    num_quantities = sum(np.size(pit) // len(pit) for pit in found.pit.values())
    assert page.classes("polygon").count("band") == num_quantities
    assert "share of truths in it" in text


def test_what_is_not_checked_is_said_with_the_reason():
    page = Report("model", Structure(), unchecked="a factor site").html()
    assert 'class="verdict unknown"' in page
    assert "Not checked on simulated data: a factor site." in page


def test_the_page_loads_nothing_and_escapes_names():
    structure = Structure("a < b", observed=(Named("<b>", ()),))
    text = Report("<script>", structure, answers="x & y").html()
    Page(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert "x &amp; y" in text
    assert not {"src", "href"} & {key for _, attrs in Page(text).elements for key in attrs}


def test_each_training_run_has_its_course(tmp_path):
    steps = np.arange(2000)
    history = Training(np.exp(-steps / 100), [1000, 2000], [0.5, 0.1])
    path = tmp_path / "report.html"
    Report("model", Structure(), histories=[history, history]).write(path)
    text = path.read_text(encoding="utf-8")
    assert "Training of member 2" in text
    assert text.count("2000 steps") == 2
    lines = [each for tag, each in Page(text).elements if tag == "polyline"]
    assert len(lines[0]["points"].split()) == 300  # medians of neighbours


def test_a_chart_leaves_out_what_is_not_finite_and_has_round_ticks():
    chart = line_chart([Line([0, 1, 2, 10], [0.0, np.nan, np.inf, 0.35])])
    ((_, line),) = [each for each in Page(chart).elements if each[0] == "polyline"]
    assert len(line["points"].split()) == 2
    for tick in (">0<", ">2<", ">10<", ">0.1<", ">0.3<"):
        assert tick in chart
    assert line_chart([Line([1, 1], [3, 3])]).count("polyline") == 2  # opened and closed


def test_a_chart_of_nothing_is_empty():
    assert Page(line_chart([Line([], [])])).classes("polyline") == ["line main"]


def test_arcs_lead_from_parents_to_those_that_read_them():
    text = graph([*SITES, Site("w", "", ("mu", "z", "elsewhere"))])
    assert text.count('class="arc"') == 3
    assert text.count("<circle") == 4
