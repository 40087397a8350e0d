"""`__all__`, the catalogue and METHODS.md name the same things: nothing is public and untested."""

import re

import pytest

from tests.catalogue import CATALOGUE
from tests.problems import PROBLEMS
from tests.source_tree import ROOT, TWINS, exported, modules


def methods_tables() -> list[list[str]]:
    """The names in backticks that open the rows of METHODS.md: methods, then diagnostics."""
    text = (ROOT / "METHODS.md").read_text(encoding="utf-8")
    rows = [re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for part in text.split("\n## ")]
    return [re.findall(r"`(\w+)`", " ".join(part)) for part in rows]


@pytest.mark.parametrize("package", TWINS)
def test_public_names_are_catalogued(package):
    assert set(exported(modules(package)["__init__.py"])) == {entry.name for entry in CATALOGUE}


def test_methods_table_and_catalogue_agree():
    names, _ = methods_tables()
    assert len(names) == len(set(names))
    assert set(names) == {entry.name for entry in CATALOGUE}


def test_diagnostics_table_names_what_is_public():
    _, names = methods_tables()
    assert sorted(names) == sorted(exported(modules("amortize_diagnostics")["__init__.py"]))


def test_catalogue_entries_are_unique_and_name_known_problems():
    names = [entry.name for entry in CATALOGUE]
    assert len(names) == len(set(names))
    assert {problem for entry in CATALOGUE for problem in entry.problems} <= set(PROBLEMS)


def test_methods_are_tested_on_a_problem():
    slots = {"guide", "density", "embedding", "objective"}
    for entry in CATALOGUE:
        assert bool(entry.problems) == (entry.kind in slots), entry.name
        assert (entry.tolerance is None) == (not entry.problems), entry.name
