"""Simulations per second of `simulate`, against the host's own ways to run a model many times.

The model is a linear regression of 20 points on three covariates: an intercept, three slopes and
a noise scale are drawn, then the data. For each backend:

- `simulate`: one call of this library, everything that such a call does included;
- `Predictive(parallel=True)`: the host's own vectorised draws, and for NumPyro the same compiled;
- a Python loop of single runs of the model, timed on fewer runs, as it is so slow.

The first call is timed by itself and left out of the rest; torch has one thread, JAX what it takes.
Run it with `make bench`; it prints a table and appends a line to `benchmarks/results.jsonl`.
"""

import argparse
import statistics
import time

import numpy as np
from records import append_record

SIZES = (10_000, 100_000)
NUM_LOOP_RUNS = 300
NUM_POINTS, NUM_SLOPES = 20, 3
COVARIATES = np.random.default_rng(0).normal(size=(NUM_POINTS, NUM_SLOPES)).astype(np.float32)
VERSIONS = ("numpy", "torch", "pyro-ppl", "jax", "numpyro")


def numpyro_methods():
    """Functions of a number of simulations and a seed, by name."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.handlers import seed, trace
    from numpyro.infer import Predictive

    from numpyro_amortize import simulate

    def model(x, y=None):
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
        slopes = [numpyro.sample(f"slope_{i}", dist.Normal(0.0, 1.0)) for i in range(NUM_SLOPES)]
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        mean = intercept + sum(slope * x[:, i] for i, slope in enumerate(slopes))
        with numpyro.plate("points", NUM_POINTS):
            numpyro.sample("y", dist.Normal(mean, sigma), obs=y)

    x = jnp.asarray(COVARIATES)
    compiled = {size: jax.jit(Predictive(model, num_samples=size, parallel=True)) for size in SIZES}

    def own(num, number):
        return simulate(model, num, args=(x,), rng_key=jax.random.key(number)).sites

    def predictive(num, number):
        return Predictive(model, num_samples=num, parallel=True)(jax.random.key(number), x)

    def predictive_compiled(num, number):
        return compiled[num](jax.random.key(number), x)

    def loop(num, number):
        for key in jax.random.split(jax.random.key(number), num):
            sites = trace(seed(model, key)).get_trace(x)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}

    methods = {
        "simulate": own,
        "Predictive(parallel=True)": predictive,
        "Predictive(parallel=True), compiled": predictive_compiled,
        "loop": loop,
    }
    return methods, jax.block_until_ready


def pyro_methods():
    """Functions of a number of simulations and a seed, by name."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import Predictive

    from pyro_amortize import simulate

    def model(x, y=None):
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        slopes = [pyro.sample(f"slope_{i}", dist.Normal(0.0, 1.0)) for i in range(NUM_SLOPES)]
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        mean = intercept + sum(slope * x[:, i] for i, slope in enumerate(slopes))
        with pyro.plate("points", NUM_POINTS):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    torch.set_num_threads(1)
    x = torch.as_tensor(COVARIATES)

    def own(num, number):
        pyro.set_rng_seed(number)
        return simulate(model, num, args=(x,)).sites

    def predictive(num, number):
        pyro.set_rng_seed(number)
        return Predictive(model, num_samples=num, parallel=True)(x)

    def loop(num, number):
        pyro.set_rng_seed(number)
        with torch.no_grad():
            for _ in range(num):
                sites = pyro.poutine.trace(model).get_trace(x).nodes
        return {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}

    return {"simulate": own, "Predictive(parallel=True)": predictive, "loop": loop}, lambda x: x


BACKENDS = {"Pyro": pyro_methods, "NumPyro": numpyro_methods}


def seconds_of(method, num, number, wait):
    start = time.perf_counter()
    sites = wait(method(num, number))
    seconds = time.perf_counter() - start
    if sites["y"].shape not in ((num, NUM_POINTS), (NUM_POINTS,)):  # the last run of a loop
        raise ValueError(f"y: expected {num} data sets, got shape {tuple(sites['y'].shape)}")
    return seconds


def measure(backend, num_repeats):
    """One row for each method and size."""
    methods, wait = BACKENDS[backend]()
    rows = []
    for name, method in methods.items():
        for size in SIZES if name != "loop" else (NUM_LOOP_RUNS,):
            first = seconds_of(method, size, 0, wait)
            later = [seconds_of(method, size, 1 + i, wait) for i in range(num_repeats)]
            rates = sorted(size / seconds for seconds in later)
            rows.append(
                {
                    "backend": backend,
                    "method": name,
                    "simulations": size,
                    "median_per_second": round(statistics.median(rates)),
                    "lowest_per_second": round(rates[0]),
                    "highest_per_second": round(rates[-1]),
                    "first_call_seconds": round(first, 3),
                }
            )
            print(table(rows[-1:], has_header=len(rows) == 1), flush=True)
    return rows


def table(rows, *, has_header=True):
    """The rows as Markdown."""
    header = [
        "| backend | method | simulations a call | per second, median | lowest to highest "
        "| first call |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines = [
        f"| {row['backend']} | {row['method']} | {row['simulations']:,} "
        f"| {row['median_per_second']:,} "
        f"| {row['lowest_per_second']:,} to {row['highest_per_second']:,} "
        f"| {row['first_call_seconds']:.2f} s |"
        for row in rows
    ]
    return "\n".join([*(header if has_header else []), *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, help="only this one")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = []
    for backend in [options.backend] if options.backend else BACKENDS:
        rows += measure(backend, options.repeats)
    append_record("simulation_throughput", rows, repeats=options.repeats, versions=VERSIONS)


if __name__ == "__main__":
    main()
