"""Every tutorial exists for both hosts with the same sections, runs, and keeps its claims."""

import re
from pathlib import Path

import jupytext
import matplotlib as mpl
import nbformat
import numpy as np
import pytest

from tests.conftest import require

TUTORIALS = Path(__file__).parents[2] / "tutorials"
REFERENCE = TUTORIALS.parent / "data" / "posteriordb" / "eight_schools.npz"
HOSTS = ("pyro", "numpyro")
NAMES = sorted({path.stem for host in HOSTS for path in (TUTORIALS / host).glob("[0-9]*.py")})

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def cells(host, name):
    return jupytext.read(TUTORIALS / host / f"{name}.py").cells


def headings(host, name):
    prose = "\n".join(cell.source for cell in cells(host, name) if cell.cell_type == "markdown")
    return re.findall(r"^#+ .*$", prose, re.MULTILINE)


def is_claim(cell):
    return "claims" in cell.metadata.get("tags", [])


def run(host, name, monkeypatch, *, num_steps=None):
    """Run a tutorial from its own folder; with `num_steps`, short and without its claims."""
    code = [cell for cell in cells(host, name) if cell.cell_type == "code"]
    source = "\n".join(cell.source for cell in code if not (num_steps and is_claim(cell)))
    if num_steps:
        source, num_changed = re.subn(r"num_steps=\d+", f"num_steps={num_steps}", source)
        assert num_changed
    monkeypatch.chdir(TUTORIALS / host)
    namespace = {}
    try:
        exec(compile(source, f"{host}/{name}.py", "exec"), namespace)
    finally:
        plt.close("all")
    return namespace


def test_there_are_tutorials():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_same_sections_on_both_sides(name):
    assert headings("pyro", name) == headings("numpyro", name)
    assert len(headings("pyro", name)) > 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", HOSTS)
def test_ends_in_claims(host, name):
    last = [cell for cell in cells(host, name) if cell.cell_type == "code"][-1]
    assert is_claim(last)
    assert "assert " in last.source


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", HOSTS)
def test_notebook_is_the_script_executed(host, name):
    notebook = nbformat.read(TUTORIALS / host / f"{name}.ipynb", as_version=4)
    script = cells(host, name)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in script]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count
            for output in cell.outputs:
                assert output.output_type != "error"
                assert output.get("name") != "stderr", output.text  # warnings, and paths in them


@pytest.mark.slow  # what the tutorial draws and plots takes a minute after any training
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", HOSTS)
def test_runs_with_few_steps(host, name, monkeypatch):
    require(host)
    run(host, name, monkeypatch, num_steps=50)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", HOSTS)
def test_claims_hold(host, name, monkeypatch):
    require(host)
    run(host, name, monkeypatch)


@pytest.mark.parametrize("host", HOSTS)
def test_published_moments_are_those_of_the_file(host):
    """The first tutorial types the reference in, so that it can be read and run anywhere."""
    source = "\n".join(cell.source for cell in cells(host, "01_first_posterior"))
    with np.load(REFERENCE) as file:
        for moment in ("mean", "sd"):
            line = re.search(rf"reference_{moment} = np\.array\(\[(.*)\]\)", source).group(1)
            typed = [float(number) for number in line.split(",")]
            published = [np.atleast_1d(file[f"{moment}_{s}"]) for s in ("mu", "tau", "theta")]
            np.testing.assert_allclose(typed, np.concatenate(published), atol=0.006)
