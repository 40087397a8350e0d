"""What each density costs, and the flows beside those of zuko and flowjax.

Five coordinates, a context of 32 features, and batches of 256 and 10,000 contexts: the time of log
densities of given values, of their gradient for all weights, and of a draw with its density. Flows
have five steps, eight bins and two hidden layers of 64 units, those of zuko (Pyro) and flowjax
(NumPyro) too. The runs of all densities alternate and the median counts; torch has one thread, and
so has JAX, compiled before; its first call is the seconds of a training step's compilation.

Run it alone: `python benchmarks/density_costs.py pyro` and `numpyro`. It prints a table and appends
a line to `benchmarks/results.jsonl`.
"""

import argparse
import importlib
import os
import statistics
import time

import numpy as np
from records import append_record

SIZE, CONTEXT, WIDTHS, NUM_TRANSFORMS, NUM_BINS = 5, 32, (64, 64), 5, 8
BATCHES = (256, 10_000)
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
VERSIONS = ("numpy", "torch", "pyro-ppl", "zuko", "torchdiffeq", "jax", "numpyro", "flowjax")
OWN = {
    "NormalDensity": ("NormalDensity", {}),
    "MultivariateNormalDensity": ("MultivariateNormalDensity", {}),
    "LowRankNormalDensity": ("LowRankNormalDensity", {"rank": 1}),
    "StudentTDensity": ("StudentTDensity", {}),
    "MixtureDensity": ("MixtureDensity", {}),
    "AffineFlowDensity": ("AffineFlowDensity", {}),
    "AffineFlowDensity, autoregressive": ("AffineFlowDensity", {"kind": "autoregressive"}),
    "SplineFlowDensity": ("SplineFlowDensity", {}),
    "SplineFlowDensity, autoregressive": ("SplineFlowDensity", {"kind": "autoregressive"}),
    "PlanarFlowDensity": ("PlanarFlowDensity", {"num_transforms": NUM_TRANSFORMS}),
    "RadialFlowDensity": ("RadialFlowDensity", {"num_transforms": NUM_TRANSFORMS}),
    "FlowMatchingDensity": ("FlowMatchingDensity", {}),
    "DiffusionDensity": ("DiffusionDensity", {}),
    "ContinuousFlowDensity": ("ContinuousFlowDensity", {}),
    "ConsistencyDensity": ("ConsistencyDensity", {}),
}
PEERS = {
    "pyro": {"zuko, coupling": 2, "zuko, autoregressive": None},
    "numpyro": {"flowjax, coupling": "coupling", "flowjax, autoregressive": "autoregressive"},
}


def inputs(batch):
    """Contexts and values."""
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(batch, CONTEXT)).astype(np.float32),
        rng.normal(size=(batch, SIZE)).astype(np.float32),
    )


def pyro_densities():
    """The built densities by name."""
    import torch

    import pyro_amortize

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {
        name: getattr(pyro_amortize, family)(**options).build(1, SIZE, CONTEXT)
        for name, (family, options) in OWN.items()
    }
    import zuko

    torch.distributions.Distribution.set_default_validate_args(True)  # zuko switches it off
    for name, passes in PEERS["pyro"].items():
        flow = {"transforms": NUM_TRANSFORMS, "bins": NUM_BINS, "hidden_features": WIDTHS}
        spec = pyro_amortize.ExternalFlowDensity(
            lambda size, context, flow=flow, passes=passes: zuko.flows.NSF(
                size, context, passes=passes, **flow
            )
        )
        found[name] = spec.build(1, SIZE, CONTEXT)
    return found


def pyro_runs(density, batch):
    """What is timed, by column."""
    import torch

    context, value = map(torch.as_tensor, inputs(batch))

    def loss():
        made = density(context, 0)
        return (
            made.training_loss(value) if hasattr(made, "training_loss") else -made.log_prob(value)
        )

    def score():
        with torch.no_grad():
            density(context, 0).log_prob(value)

    def train():
        density.zero_grad()
        loss().sum().backward()

    def draw():
        with torch.no_grad():
            made = density(context, 0)
            drawn = made.rsample()
            if getattr(made, "has_log_prob", True):
                made.log_prob(drawn)

    has_density = getattr(density(context[:2], 0), "has_log_prob", True)
    return {"density": score if has_density else None, "training": train, "draw": draw}


def numpyro_densities():
    """The built densities by name."""
    import jax
    import jax.numpy as jnp
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow, masked_autoregressive_flow

    import numpyro_amortize

    key = jax.random.key(0)
    found = {
        name: getattr(numpyro_amortize, family)(**options).build(1, SIZE, CONTEXT, key)
        for name, (family, options) in OWN.items()
    }
    makers = {"coupling": coupling_flow, "autoregressive": masked_autoregressive_flow}
    for name, kind in PEERS["numpyro"].items():
        spec = numpyro_amortize.ExternalFlowDensity(
            lambda size, context, key, kind=kind: makers[kind](
                key,
                base_dist=Normal(jnp.zeros(size)),
                transformer=RationalQuadraticSpline(knots=NUM_BINS, interval=10),
                cond_dim=context,
                flow_layers=NUM_TRANSFORMS,
                nn_width=WIDTHS[0],
                nn_depth=len(WIDTHS),
                invert=False,
            )
        )
        found[name] = spec.build(1, SIZE, CONTEXT, key)
    return found


def numpyro_runs(density, batch):
    """What is timed, by column."""
    import equinox as eqx
    import jax

    context, value = map(jax.numpy.asarray, inputs(batch))
    key = jax.random.key(1)

    def loss(density, context, value):
        made = density(context, 0)
        if hasattr(made, "training_loss"):
            return made.training_loss(key, value).sum()
        return -made.log_prob(value).sum()

    @eqx.filter_jit
    def draw(density, context):
        made = density(context, 0)
        drawn, kept = made.sample_with_intermediates(key)
        if not getattr(made, "has_log_prob", True):
            return drawn
        return drawn, made.log_prob(drawn, *([kept] if kept else []))

    score = eqx.filter_jit(lambda density, context, value: density(context, 0).log_prob(value))
    train = eqx.filter_jit(eqx.filter_value_and_grad(loss))

    def ready(function, *args):
        return lambda: jax.block_until_ready(function(density, *args))

    has_density = getattr(density(context[:2], 0), "has_log_prob", True)
    return {
        "density": ready(score, context, value) if has_density else None,
        "training": ready(train, context, value),
        "draw": ready(draw, context),
    }


def num_parameters(density):
    if hasattr(density, "parameters"):
        return sum(parameter.numel() for parameter in density.parameters())
    jax, eqx = importlib.import_module("jax"), importlib.import_module("equinox")
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(density, eqx.is_inexact_array)))


def measure(backend, repeats):
    """One row for each density."""
    densities = {"pyro": pyro_densities, "numpyro": numpyro_densities}[backend]()
    runs = {"pyro": pyro_runs, "numpyro": numpyro_runs}[backend]
    rows = {
        name: {"backend": backend, "density": name, "parameters": num_parameters(density)}
        for name, density in densities.items()
    }
    for batch in BATCHES:
        timed = {name: runs(density, batch) for name, density in densities.items()}
        for column in ("density", "training", "draw"):
            times = {name: [] for name, run in timed.items() if run[column]}
            for repeat in range(-1, repeats):
                for name, own in times.items():
                    start = time.perf_counter()
                    timed[name][column]()
                    seconds = time.perf_counter() - start
                    if repeat < 0:
                        if batch == BATCHES[0] and column == "training":
                            rows[name]["first_s"] = round(seconds, 2)
                        continue
                    own.append(1000 * seconds)
            for name, own in times.items():
                rows[name][f"{column}_{batch}"] = round(statistics.median(own), 2)
    return list(rows.values())


def table(rows):
    columns = [
        f"{column}_{batch}" for batch in BATCHES for column in ("density", "training", "draw")
    ]
    head = " | ".join(f"{name.replace('_', ', ')}, ms" for name in columns)
    lines = [
        f"| density | parameters | {head} | first call, s |",
        "| --- |" + " ---: |" * (len(columns) + 2),
    ]
    for row in rows:
        cells = " | ".join("" if row.get(name) is None else f"{row[name]:.2f}" for name in columns)
        lines.append(
            f"| {row['density']} | {row['parameters']:,} | {cells} | {row['first_s']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("pyro", "numpyro"))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rows = measure(options.backend, options.repeats)
    print(table(rows))
    append_record("density_costs", rows, repeats=options.repeats, versions=VERSIONS)


if __name__ == "__main__":
    main()
