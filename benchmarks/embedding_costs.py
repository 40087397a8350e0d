"""What each embedding costs: its parameters, and the time of its values and their gradient.

128 data sets, each one event of 64 numbers: a vector, a set, a series, an image of 8 x 8, or, for
the embeddings of plates, 64 rows of one number in a plate. The forward pass and the gradient of all
weights are timed, after the first call; torch has one thread, JAX what it takes. Run it alone, for
both backends: `python benchmarks/embedding_costs.py pyro` and `numpyro`. It prints a table and
appends a line to `benchmarks/results.jsonl`.
"""

import argparse
import importlib
import statistics
import time

import numpy as np
from records import append_record

BATCH, NUM = 128, 64
VERSIONS = ("numpy", "torch", "pyro-ppl", "jax", "numpyro")
# Name, options, event shape, rows in a plate.
ROWS = {
    "PlateEmbedding": ("PlateEmbedding", {}, (), NUM),
    "PlateEmbedding, attention": ("PlateEmbedding", {"pooling": "attention"}, (), NUM),
    "MLPEmbedding": ("MLPEmbedding", {}, (NUM,), 0),
    "SequenceEmbedding, convolution": ("SequenceEmbedding", {}, (NUM,), 0),
    "SequenceEmbedding, recurrent": ("SequenceEmbedding", {"kind": "recurrent"}, (NUM,), 0),
    "SequenceEmbedding, transformer": ("SequenceEmbedding", {"kind": "transformer"}, (NUM,), 0),
    "ImageEmbedding": ("ImageEmbedding", {}, (8, 8), 0),
    "PerceiverEmbedding": ("PerceiverEmbedding", {}, (NUM,), 0),
}


def pooling_of(package, values, num_rows):
    """The levels of one observed site, in one plate or none."""
    structure, levels, pooling = (
        importlib.import_module(f"{package}.{name}") for name in ("structure", "levels", "pooling")
    )
    dims = {"rows": -1} if num_rows else {}
    plates = {name: structure.PlateInfo(name, dim, num_rows) for name, dim in dims.items()}
    model = structure.ModelStructure(latents=(), observed=(), plates=plates)
    found = levels.pooling_levels(tuple(dims), [], dims)
    return pooling.Pooling(model, found, values, {}, {}, {})


def values_of(event_shape, num_rows):
    shape = (BATCH, *((num_rows,) if num_rows else ()), int(np.prod(event_shape)))
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pyro_run(name, options, event_shape, num_rows):
    """A function that computes values and gradients once, and the number of parameters."""
    import torch

    import pyro_amortize

    torch.set_num_threads(1)
    spec = getattr(pyro_amortize, name)(**options)
    network = spec.build(event_shape, 0, [0] if num_rows else [])
    values = torch.as_tensor(values_of(event_shape, num_rows))
    pooling = pooling_of("pyro_amortize", values, num_rows)

    def run():
        network.zero_grad()
        sum((part**2).sum() for part in network(values, pooling)).backward()

    return run, sum(parameter.numel() for parameter in network.parameters())


def numpyro_run(name, options, event_shape, num_rows):
    """The same, compiled."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import numpyro_amortize

    spec = getattr(numpyro_amortize, name)(**options)
    network = spec.build(event_shape, 0, [0] if num_rows else [], jax.random.key(0))
    values = jnp.asarray(values_of(event_shape, num_rows))
    pooling = pooling_of("numpyro_amortize", values, num_rows)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(network, values):
        return sum((part**2).sum() for part in network(values, pooling))

    leaves = jax.tree.leaves(eqx.filter(network, eqx.is_array))
    return lambda: jax.block_until_ready(gradient(network, values)), sum(x.size for x in leaves)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["pyro", "numpyro"])
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    make = {"pyro": pyro_run, "numpyro": numpyro_run}[arguments.backend]
    rows = []
    print("| embedding | parameters | ms, median | ms, least |\n| --- | ---: | ---: | ---: |")
    for title, row in ROWS.items():
        run, num_parameters = make(*row)
        run()
        times = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        median, least = statistics.median(times), min(times)
        rows.append(
            {
                "backend": arguments.backend,
                "embedding": title,
                "parameters": num_parameters,
                "median_ms": median,
                "least_ms": least,
            }
        )
        print(f"| {title} | {num_parameters:,} | {median:.1f} | {least:.1f} |")
    append_record("embedding_costs", rows, repeats=arguments.repeats, versions=VERSIONS)


if __name__ == "__main__":
    main()
