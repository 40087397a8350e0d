"""Time of `check_calibration` on the demo model: 300 simulated data sets, 999 draws of each.

A guide for eight schools is trained for a few steps, which changes nothing about the time, and
judged twice: the first time with compilation, where the backend compiles. Torch has one thread, JAX
what it takes. Run it alone: `python benchmarks/calibration_time.py pyro`, or `numpyro`. It prints a
table and appends a line to `benchmarks/results.jsonl`.
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from records import append_record

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
VERSIONS = ("numpy", "torch", "pyro-ppl", "jax", "numpyro")
HEADER = "| backend | call | seconds | processor seconds |\n| --- | --- | ---: | ---: |"


def rows_of(backend):
    """Seconds of the first and the second call."""
    package, model = (import_module(name) for name in (f"{backend}_amortize", f"model_{backend}"))
    if backend == "pyro":
        import torch

        torch.set_num_threads(1)
        sigma = torch.tensor(SIGMA, dtype=torch.get_default_dtype())
    else:
        import jax.numpy as jnp

        sigma = jnp.asarray(SIGMA)
    guide = package.AmortizedGuide(model.eight_schools, observed="y", inputs={"sigma": "schools"})
    amortized = package.fit(
        model.eight_schools,
        guide,
        package.NPE(),
        args=(sigma,),
        num_steps=20,
        progress_bar=False,
    )
    for call in ("first", "second"):
        wall, processor = time.perf_counter(), time.process_time()
        amortized.check_calibration()
        yield {
            "backend": backend,
            "call": call,
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("pyro", "numpyro"))
    rows = []
    print(HEADER)
    for row in rows_of(parser.parse_args().backend):
        rows.append(row)
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
    append_record("calibration_time", rows, repeats=1, versions=VERSIONS)


if __name__ == "__main__":
    main()
