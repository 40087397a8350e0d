"""Time for each of many small data sets: amortized answers against NUTS, at known accuracy.

Logistic regressions of 20 rows on two covariates and an intercept, priors standard normal; each
data set has covariates of its own. Guides with the default density and with a full normal one are
trained by NPE on both hosts and answer by their own draws and by weighted ones. The baseline is
NumPyro's NUTS compiled once and mapped over data sets, which is the fastest way that its users
have: a call of `MCMC.run` for each data set would compile each time.

Times are CPU time of the process on one thread. Training has everything from making the guide to
its last step, compilation included, and is shared among 10,000 data sets; answers and NUTS are
timed on fewer, after a first call. Accuracy is on the data sets of the baseline: the error of
posterior means in posterior sds, root mean square, and the median ratio of sds, both against long
runs of NUTS.

Run `python benchmarks/amortized_against_nuts.py`; it prints a table and appends a line to
`benchmarks/results.jsonl`.
"""

import argparse
import os
import statistics
import time

import numpy as np
from records import append_record

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
NUM_ROWS, NUM_COVARIATES = 20, 2
NUM_DATASETS, NUM_TIMED, NUM_BY_NUTS = 10_000, 1_000, 200
NUM_DRAWS, NUM_LONG = 300, (500, 5_000)
NUM_STEPS = 3_000
DENSITIES = {"default": None, "normal": "MultivariateNormalDensity"}
VERSIONS = ("numpy", "torch", "pyro-ppl", "jax", "numpyro")


def data_sets():
    """Covariates and answers of the data sets, `(datasets, rows, covariates)` and without."""
    rng = np.random.default_rng(0)
    covariates = rng.normal(size=(NUM_TIMED, NUM_ROWS, NUM_COVARIATES))
    coefficients = rng.normal(size=(NUM_TIMED, 1, NUM_COVARIATES + 1))
    logits = coefficients[..., 0] + (coefficients[..., 1:] * covariates).sum(-1)
    answers = rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))
    return covariates.astype(np.float32), answers.astype(np.float32)


def pyro_parts():
    """Package, model, a function to arrays and the options of `fit`."""
    import pyro
    import pyro.distributions as dist
    import torch

    import pyro_amortize

    torch.set_num_threads(1)
    torch.manual_seed(0)

    def model(x=None, y=None):
        coefficients = pyro.sample("b", dist.Normal(torch.zeros(NUM_COVARIATES + 1), 1).to_event(1))
        with pyro.plate("rows", NUM_ROWS):
            standard = dist.Normal(torch.zeros(NUM_COVARIATES), 1).to_event(1)
            x = pyro.sample("x", standard, obs=x)
            logits = coefficients[..., 0] + (coefficients[..., 1:] * x).sum(-1)
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return pyro_amortize, model, torch.as_tensor, {"compile": True}


def numpyro_parts():
    """Package, model, a function to arrays and the options of `fit`."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    import numpyro_amortize

    def model(x=None, y=None):
        coefficients = numpyro.sample(
            "b", dist.Normal(jnp.zeros(NUM_COVARIATES + 1), 1).to_event(1)
        )
        with numpyro.plate("rows", NUM_ROWS):
            standard = dist.Normal(jnp.zeros(NUM_COVARIATES), 1).to_event(1)
            x = numpyro.sample("x", standard, obs=x)
            logits = coefficients[..., 0] + (coefficients[..., 1:] * x).sum(-1)
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return numpyro_amortize, model, jnp.asarray, {}


BACKENDS = {"Pyro": pyro_parts, "NumPyro": numpyro_parts}


def timed(function):
    """What a function returns and its CPU seconds."""
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


def repeated(function, num_repeats):
    """What a function returns at last, and its CPU seconds each time."""
    runs = [timed(function) for _ in range(num_repeats)]
    return runs[-1][0], [seconds for _, seconds in runs]


def nuts(covariates, answers):
    """A function from a number of warm-up steps and draws to draws at every data set."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer.hmc import hmc

    def potential(x, y):
        def energy(z):
            logits = z["b"][0] + x @ z["b"][1:]
            log_likelihood = y * logits - jnp.logaddexp(0.0, logits)
            return 0.5 * (z["b"] ** 2).sum() - log_likelihood.sum()

        return energy

    def run(num_warmup, num_samples, seed=0):
        start, step = hmc(potential_fn_gen=potential, algo="NUTS")

        @jax.jit
        @jax.vmap
        def chain(key, x, y):
            def advance(state, _):
                state = step(state, model_args=(x, y))
                return state, state.z["b"]

            initial = {"b": jnp.zeros(NUM_COVARIATES + 1)}
            state = start(initial, num_warmup, model_args=(x, y), rng_key=key)
            warm, _ = jax.lax.scan(advance, state, None, num_warmup)
            return jax.lax.scan(advance, warm, None, num_samples)[1]

        keys = jax.random.split(jax.random.key(seed), len(covariates))
        return lambda: np.asarray(chain(keys, covariates, answers)).swapaxes(0, 1)

    return run


def moments(draws, weights=None):
    """Means and sds by data set of `(draws, datasets, size)`, perhaps under weights."""
    weights = np.full(draws.shape[:2], 1 / len(draws)) if weights is None else weights
    means = (weights[..., None] * draws).sum(0)
    return means, np.sqrt((weights[..., None] * (draws - means) ** 2).sum(0))


def accuracy(found, exact):
    """Error of means in exact sds, root mean square, and the median ratio of sds."""
    error = np.sqrt((((found[0] - exact[0]) / exact[1]) ** 2).mean())
    ratio = np.median(found[1] / exact[1])
    return {"error": round(float(error), 3), "sd_ratio": round(float(ratio), 3)}


def amortized_rows(backend, density, data, exact, num_repeats):
    """The own draws and the weighted draws of one guide."""
    package, model, array, options = BACKENDS[backend]()
    observations = dict(zip("xy", map(array, data), strict=True))
    densities = DENSITIES[density] and getattr(package, DENSITIES[density])()

    def train():
        guide = package.AmortizedGuide(model, observed=("x", "y"), densities=densities)
        return package.fit(
            model, guide, package.NPE(), num_steps=NUM_STEPS, progress_bar=False, **options
        )

    def own():
        draws = amortized.at_each(observations=observations).sample(NUM_DRAWS)
        return moments(np.asarray(draws["b"]))

    def weighted():
        found = amortized.at_each(observations=observations).importance_sample(NUM_DRAWS)
        weights = np.exp(found.log_weights - found.log_weights.max(0))
        return moments(np.asarray(found.samples["b"]), weights / weights.sum(0))

    amortized, training = timed(train)
    rows = []
    for method, answer in {density: own, f"{density}, weighted": weighted}.items():
        answer()
        found, seconds = repeated(answer, num_repeats)
        rows.append(
            {
                "backend": backend,
                "method": method,
                "training_s": round(training, 1),
                "all_ms": [round(1000 * each / NUM_TIMED, 4) for each in seconds],
                **accuracy([part[:NUM_BY_NUTS] for part in found], exact),
            }
        )
    return rows


def nuts_row(run, exact, num_repeats):
    """The baseline."""
    chains = run(NUM_DRAWS, NUM_DRAWS)
    chains()
    draws, seconds = repeated(chains, num_repeats)
    return {
        "backend": "NumPyro",
        "method": "NUTS",
        "training_s": 0.0,
        "all_ms": [round(1000 * each / NUM_BY_NUTS, 4) for each in seconds],
        **accuracy(moments(draws), exact),
    }


def compared(rows):
    """The rows with what they save against the first, which is the baseline."""
    baseline = statistics.median(rows[0]["all_ms"])
    for row in rows:
        row["ms"] = statistics.median(row["all_ms"])
        row["faster"] = round(baseline / row["ms"], 1)
        whole = row["ms"] + 1000 * row["training_s"] / NUM_DATASETS
        row["faster_with_training"] = round(baseline / whole, 1)
        saved = baseline - row["ms"]
        row["pays_after"] = f"{1000 * row['training_s'] / saved:,.0f}" if saved > 0 else ""
    return rows


HEADER = """\
| backend | method | training, s | ms a data set, median | lowest to highest | faster than NUTS \
| with training | pays after data sets | error of means, sd | ratio of sds |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def line(row):
    """One row as Markdown."""
    return (
        f"| {row['backend']} | {row['method']} | {row['training_s']:.1f} | {row['ms']:.3f} "
        f"| {min(row['all_ms']):.3f} to {max(row['all_ms']):.3f} | {row['faster']:.1f} "
        f"| {row['faster_with_training']:.1f} | {row['pays_after']} "
        f"| {row['error']:.3f} | {row['sd_ratio']:.2f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    data = data_sets()
    run = nuts(*(part[:NUM_BY_NUTS] for part in data))
    exact = moments(run(*NUM_LONG, seed=1)())
    rows = [nuts_row(run, exact, options.repeats)]
    for backend in options.backend or BACKENDS:
        for density in DENSITIES:
            rows += amortized_rows(backend, density, data, exact, options.repeats)
    print(HEADER)
    for row in compared(rows):
        print(line(row))
    append_record("amortized_against_nuts", rows, repeats=options.repeats, versions=VERSIONS)


if __name__ == "__main__":
    main()
