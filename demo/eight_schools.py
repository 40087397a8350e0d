"""The main job on real data: one amortized guide per backend answers for any set of schools.

Trains once on simulations, conditions on the eight schools of Rubin (1981), compares with the
published reference posterior, certifies the answer, and then answers for 1,000 other sets of
schools in one call. Run it with `make demo`.
"""

from __future__ import annotations

import time
from pathlib import Path

import arviz_stats
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent
DATA = ROOT.parent / "data" / "posteriordb" / "eight_schools.npz"
FIGURE = ROOT / "eight_schools.png"
SCHOOLS = list("ABCDEFGH")
NUM_STEPS = 4000
LEARNING_RATE = 2e-3
NUM_DRAWS = 10_000
NUM_DATASETS = 1000
SITES = ("mu", "tau", "theta")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # those of the published quantiles


def run_numpyro(sigma: np.ndarray, y: np.ndarray):
    """Train with NumPyro; return the posterior, and seconds of two calls for many data sets."""
    import jax
    import jax.numpy as jnp
    from model_numpyro import eight_schools

    from numpyro_amortize import NPE, AmortizedGuide, fit, simulate

    sigma, y = jnp.asarray(sigma), jnp.asarray(y)
    guide = AmortizedGuide(eight_schools, observed="y", inputs={"sigma": "schools"})
    amortized = fit(
        eight_schools,
        guide,
        NPE(),
        args=(sigma,),
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
    )
    others = simulate(eight_schools, NUM_DATASETS, args=(sigma,), rng_key=jax.random.key(1))["y"]
    many = amortized.at_each(sigma, observations={"y": others})
    seconds = [timed(lambda: jax.block_until_ready(many.sample(100))) for _ in range(2)]
    return amortized, amortized.at(sigma, y=y), seconds


def run_pyro(sigma: np.ndarray, y: np.ndarray):
    """Train with Pyro; return the posterior, and seconds of two calls for many data sets."""
    import pyro
    import torch
    from model_pyro import eight_schools

    from pyro_amortize import NPE, AmortizedGuide, fit, simulate

    torch.set_num_threads(1)  # networks this small are slower on two threads
    pyro.set_rng_seed(0)
    sigma, y = torch.tensor(sigma, dtype=torch.float), torch.tensor(y, dtype=torch.float)
    guide = AmortizedGuide(eight_schools, observed="y", inputs={"sigma": "schools"})
    amortized = fit(
        eight_schools,
        guide,
        NPE(),
        args=(sigma,),
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        compile=True,
    )
    others = simulate(eight_schools, NUM_DATASETS, args=(sigma,))["y"]
    many = amortized.at_each(sigma, observations={"y": others})
    seconds = [timed(lambda: many.sample(100)) for _ in range(2)]
    return amortized, amortized.at(sigma, y=y), seconds


def timed(call) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, posterior, reference) -> dict[str, np.ndarray]:
    """Print the ArviZ summary beside the published moments; return quantiles by site."""
    tree = posterior.to_datatree(NUM_DRAWS, coords={"schools": SCHOOLS})
    summary = arviz_stats.summary(tree, var_names=list(SITES), round_to="none")
    means = np.concatenate([np.atleast_1d(reference[f"mean_{site}"]) for site in SITES])
    sds = np.concatenate([np.atleast_1d(reference[f"sd_{site}"]) for site in SITES])
    table = summary[["mean", "sd"]].astype(float)
    table["reference mean"], table["reference sd"] = means, sds
    table["mean error / sd"] = (table["mean"] - means) / sds
    table["sd ratio"] = table["sd"] / sds
    print(f"\n{name}: {NUM_DRAWS:,} draws of the guide beside the published reference")
    print(table.round(2).to_string())
    print(posterior.importance_sample(NUM_DRAWS))
    draws = tree["posterior"]
    return {site: np.quantile(np.asarray(draws[site])[0], LEVELS, axis=0) for site in SITES}


def draw_figure(answers: dict[str, dict[str, np.ndarray]]) -> None:
    """A forest of medians, 50 % and 90 % intervals, one colour for each answer."""
    labels = [*(f"school {letter}" for letter in SCHOOLS), "mu", "tau"]
    colours = {"reference": "0.25", "NumPyro guide": "#1f77b4", "Pyro guide": "#e07b39"}
    figure, axes = plt.subplots(figsize=(7.5, 6.0), layout="constrained")
    for offset, (name, quantiles) in zip((0.22, 0.0, -0.22), answers.items(), strict=True):
        columns = [quantiles["theta"], quantiles["mu"], quantiles["tau"]]
        low, left, middle, right, high = np.column_stack(columns)
        rows = np.arange(len(labels))[::-1] + offset
        colour = colours[name]
        axes.hlines(rows, low, high, color=colour, linewidth=1.2)
        axes.hlines(rows, left, right, color=colour, linewidth=4)
        axes.plot(
            middle, rows, "o", color=colour, markersize=5, markerfacecolor="white", label=name
        )
    axes.set_yticks(np.arange(len(labels))[::-1], labels)
    axes.axvline(0.0, color="0.85", linewidth=1, zorder=0)
    axes.set_xlabel("effect of coaching, points (median, 50 % and 90 % intervals)")
    axes.set_title("Eight schools: one pass of an amortized guide and the reference", loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, dpi=150)


def main() -> None:
    """Run both backends and write the figure."""
    reference = np.load(DATA)
    sigma, y = reference["data_sigma"].astype(float), reference["data_y"].astype(float)
    # Over all 10,000 draws of the reference, of which the file keeps every tenth.
    answers = {"reference": {site: reference[f"quantiles_{site}"] for site in SITES}}
    for name, run in (("NumPyro", run_numpyro), ("Pyro", run_pyro)):
        print(f"\n{name}: training on simulations")
        amortized, posterior, seconds = run(sigma, y)
        print(amortized.history)
        answers[f"{name} guide"] = compare(name, posterior, reference)
        print(
            f"100 draws for each of {NUM_DATASETS:,} other sets of schools in one call: "
            f"{1e3 * seconds[1] / NUM_DATASETS:.2f} ms a set "
            f"(first call: {1e3 * seconds[0] / NUM_DATASETS:.2f} ms)"
        )
    draw_figure(answers)
    print(f"\nFigure: {FIGURE}")


if __name__ == "__main__":
    main()
