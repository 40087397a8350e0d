"""One contender on one task, measured in a process of its own; writes its figures as JSON.

`peers_on_tasks.py` runs it. It keeps to one core; seconds are CPU time of the process.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers.contenders import CONTENDERS
from tasks.published import observations, reference
from tasks.two_samples import c2st

NUM_DRAWS = 1_000
NUM_WARM, WARM_CALLS = 10_000, 3
OBSERVED = 3  # observations that are judged


def peak_memory():
    """The most memory held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds_of(function, *args):
    """What a call returns, and its CPU seconds."""
    start = time.process_time()
    found = function(*args)
    return found, time.process_time() - start


def measured(name, task, seed, bank):
    """Figures of one contender.

    Args:
        name: Of the contender.
        task: Name of the task.
        seed: Of training and draws.
        bank: Arrays `theta` and `x` to train on, `fresh_theta` and `fresh_x` to judge by.
    """
    contender = CONTENDERS[name](task, seed)
    importing, memory = time.process_time(), peak_memory()
    passes, training = seconds_of(contender.train, bank["theta"], bank["x"])
    training_memory = peak_memory() - memory
    observed = observations(task)[:OBSERVED].astype(np.float32)
    _, first = seconds_of(contender.draws, observed[0], NUM_DRAWS)
    warm = [seconds_of(contender.draws, observed[0], NUM_WARM)[1] for _ in range(WARM_CALLS + 1)]
    fresh = bank["fresh_x"]
    contender.draws_each(fresh[:2], NUM_DRAWS)
    draws, many = seconds_of(contender.draws_each, fresh, NUM_DRAWS)
    accuracies = []
    for x, exact in zip(observed, reference(task), strict=False):
        accuracies.append(c2st(contender.draws(x, len(exact)), exact))
    return {
        "contender": name,
        "task": task,
        "seed": seed,
        "c2st": float(np.mean(accuracies)),
        "log_density": float(contender.log_densities(bank["fresh_theta"], fresh).mean()),
        "training_seconds": training,
        "passes": passes,
        "first_draw_seconds": importing + training + first,
        "draws_per_second": NUM_WARM / statistics.median(warm[1:]),
        "draws_per_second_many": draws.shape[0] * draws.shape[1] / many,
        "training_mib": training_memory,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("task")
    parser.add_argument("seed", type=int)
    parser.add_argument("bank", type=Path)
    parser.add_argument("figures", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with np.load(options.bank) as file:
        bank = dict(file)
    found = measured(options.contender, options.task, options.seed, bank)
    options.figures.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
