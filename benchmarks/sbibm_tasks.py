"""NPE with the default guide on the ten sbibm tasks, beside the published results of NPE.

For each task and budget a guide with default networks is trained on a fixed bank of simulations, a
tenth of them held out for early stopping, and asked for the posteriors of observations 1 to 5. Its
2,000 draws are told from as many reference draws by a classifier: C2ST is its accuracy, 0.5 at
best. `weighted` is that of draws resampled by importance weights, for which the model's own joint
density is there.

Run it with `make bench-tasks`, or a part with `--task`, `--backend`, `--budget`; it prints a table
and appends a line to `benchmarks/results.jsonl`.
"""

import argparse
import time
from importlib import import_module

import numpy as np
from records import append_record
from tasks.published import NPE, SEQUENTIAL, observations, reference
from tasks.two_samples import c2st

BACKENDS = ("NumPyro", "Pyro")
BUDGETS = {10_000: 0, 100_000: 1}  # and the column of the published result
NUM_STEPS = {10_000: 6_000, 100_000: 30_000}
NUM_WEIGHTED = 20_000
VERSIONS = ("numpy", "torch", "pyro-ppl", "torchdiffeq", "jax", "numpyro", "diffrax", "optax")


def joined(draws, num):
    """Latents side by side, `(num, dim)`."""
    parts = [np.asarray(value).reshape(num, -1) for value in draws.values()]
    return np.concatenate(parts, -1)


def answers(backend, task, budget, seed):
    """Draws from a guide's answer to each observation, plain and weighted, with k-hat; and seconds.

    Args:
        backend: `"Pyro"` or `"NumPyro"`.
        task: Name of the task.
        budget: Number of simulations.
        seed: Of simulations and training.
    """
    package = import_module(f"{backend.lower()}_amortize")
    model = import_module(f"tasks.{backend.lower()}_models").MODELS[task]
    options = {"num_steps": NUM_STEPS[budget], "patience": NUM_STEPS[budget] // 4}
    start = time.perf_counter()
    if backend == "NumPyro":
        import jax

        keys = jax.random.split(jax.random.key(seed), 4)
        array, seeds = jax.numpy.asarray, [{"rng_key": key} for key in keys]
    else:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        array, seeds = torch.as_tensor, [{}] * 4
        options["compile"] = True
    bank = package.simulate(model, budget, **seeds[0])
    guide = package.AmortizedGuide(model, observed="x")
    objective = package.NPE(simulations=bank)
    amortized = package.fit(model, guide, objective, progress_bar=False, **options, **seeds[1])
    seconds = time.perf_counter() - start
    found = []
    for observation, exact in zip(observations(task), reference(task), strict=True):
        posterior = amortized.at(x=array(observation))
        plain = joined(posterior.sample(len(exact), **seeds[2]), len(exact))
        samples = posterior.importance_sample(NUM_WEIGHTED, **seeds[3])
        weighted = joined(samples.resample(len(exact), seed=seed), len(exact))
        found.append((plain, weighted, float(np.max(samples.summary.khat)), exact))
    return found, seconds, len(amortized.history.losses)


def row(backend, task, budget, seed):
    """The figures of one task."""
    found, seconds, steps = answers(backend, task, budget, seed)
    plain = [c2st(draws, exact) for draws, _, _, exact in found]
    weighted = [c2st(draws, exact) for _, draws, _, exact in found]
    return {
        "backend": backend,
        "task": task,
        "budget": budget,
        "seed": seed,
        "c2st": round(float(np.mean(plain)), 3),
        "published": NPE[task][BUDGETS[budget]],
        "weighted": round(float(np.mean(weighted)), 3),
        "published_sequential": SEQUENTIAL.get(task),
        "largest_khat": round(max(khat for *_, khat, _ in found), 2),
        "steps": steps,
        "seconds": round(seconds),
    }


HEADER = """\
| backend | task | simulations | seed | C2ST | published NPE | weighted | published sequential \
| largest k-hat | steps | seconds |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def line(row):
    """One row as Markdown."""
    sequential = row["published_sequential"]
    return (
        f"| {row['backend']} | {row['task']} | {row['budget']:,} | {row['seed']} "
        f"| {row['c2st']:.2f} | {row['published']:.2f} | {row['weighted']:.2f} "
        f"| {'' if sequential is None else f'{sequential:.2f}'} | {row['largest_khat']:.2f} "
        f"| {row['steps']:,} | {row['seconds']} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--task", choices=NPE, action="append")
    parser.add_argument("--budget", type=int, choices=BUDGETS, action="append")
    parser.add_argument("--seed", type=int, action="append")
    options = parser.parse_args()
    print(HEADER, flush=True)
    rows = []
    for backend in options.backend or BACKENDS:
        for budget in options.budget or BUDGETS:
            for task in options.task or NPE:
                for seed in options.seed or (0, 1):
                    rows.append(row(backend, task, budget, seed))
                    print(line(rows[-1]), flush=True)
    append_record("sbibm_tasks", rows, repeats=1, versions=VERSIONS)


if __name__ == "__main__":
    main()
