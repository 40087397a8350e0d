"""Run every tutorial script and write it, with its outputs, as the notebook beside it.

python tutorials/execute.py                      every tutorial
python tutorials/execute.py pyro/01_first_posterior.py ...     only these
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent
# A remark of tqdm about notebook widgets, which would show paths of this machine.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"


def execute(script: Path) -> Path:
    """Execute a percent script from its own folder and write the notebook beside it."""
    notebook = jupytext.read(script)
    # This interpreter's own kernel, whatever kernels are registered on the machine.
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": script.parent}})
    client.execute()
    target = script.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def main(names: list[str]) -> None:
    scripts = [TUTORIALS / name for name in names] or sorted(TUTORIALS.glob("*/[0-9][0-9]_*.py"))
    for script in scripts:
        start = time.perf_counter()
        target = execute(script)
        print(f"{target.relative_to(TUTORIALS)}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
