"""The default guides against sbi and BayesFlow on sbibm tasks, 10,000 simulations each.

Everyone is trained on the same simulations with the defaults of its library: sbi's `NPE` with its
two flows, BayesFlow's `BasicWorkflow` on JAX. A run is a process of its own, pinned to one core,
with one thread; seconds are its CPU time. `log density` is the mean of the log density of the true
parameters of 1,000 fresh data sets, which needs no reference. sbi draws again whatever falls
outside the prior, its log density is that of its raw flow.

Run it with `make bench-peers`, or a part with `--contender`, `--task`, `--seed`; it prints a table
and appends a line to `benchmarks/results.jsonl`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from peers.contenders import CONTENDERS
from records import append_record

TASKS = (
    "two_moons",
    "slcp",
    "gaussian_linear",
    "gaussian_mixture",
    "bernoulli_glm",
    "sir",
)
NUM_SIMULATIONS, NUM_FRESH = 10_000, 1_000
VERSIONS = ("numpy", "torch", "pyro-ppl", "jax", "numpyro", "optax", "sbi", "bayesflow", "keras")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def save_bank(path, task, seed):
    """Simulate with the task's NumPyro model and write the arrays that everyone is given."""
    import jax
    from tasks.numpyro_models import MODELS

    from numpyro_amortize import simulate

    found = simulate(MODELS[task], NUM_SIMULATIONS + NUM_FRESH, rng_key=jax.random.key(seed))
    arrays = {}
    for name in ("theta", "x"):
        values = np.asarray(found[name], dtype=np.float32)
        arrays[name] = values[:NUM_SIMULATIONS]
        arrays[f"fresh_{name}"] = values[NUM_SIMULATIONS:]
    np.savez(path, **arrays)


def run(contender, task, seed, bank):
    """Figures of one run, or None where it failed; its error is printed."""
    command = [sys.executable, Path(__file__).resolve().parent / "peers" / "one_run.py"]
    figures = bank.with_suffix(".json")
    found = subprocess.run(
        [*command, contender, task, str(seed), bank, figures],
        env={**os.environ, **ONE_THREAD},
        cwd=bank.parent,  # sbi writes logs where it runs
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        print(f"{contender} on {task} failed:\n{found.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(figures.read_text())


HEADER = """\
| task | seed | contender | C2ST | log density | training, s | to first draw, s | draws per second \
| of 1,000 data sets | training, MiB |
| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def line(row):
    """One row as Markdown."""
    return (
        f"| {row['task']} | {row['seed']} | {row['contender']} | {row['c2st']:.3f} "
        f"| {row['log_density']:.2f} | {row['training_seconds']:.0f} "
        f"| {row['first_draw_seconds']:.0f} | {row['draws_per_second']:,.0f} "
        f"| {row['draws_per_second_many']:,.0f} | {row['training_mib']:,.0f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS, action="append")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--seed", type=int, action="append")
    options = parser.parse_args()
    print(HEADER, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in options.task or TASKS:
            for seed in options.seed or (0, 1, 2):
                bank = Path(folder) / f"{task}_{seed}.npz"
                save_bank(bank, task, seed)
                for contender in options.contender or CONTENDERS:
                    row = run(contender, task, seed, bank)
                    if row:
                        rows.append(row)
                        print(line(row), flush=True)
    append_record("peers_on_tasks", rows, repeats=1, versions=VERSIONS)


if __name__ == "__main__":
    main()
