"""Gradient evaluations for each effective draw of NUTS on a funnel: plain, and from a guide.

    python benchmarks/nuts_on_a_funnel.py pyro
    python benchmarks/nuts_on_a_funnel.py numpyro

`v ~ Normal(0, 3)`, eight `z_j ~ Normal(0, exp(v / 2))`, `y_j ~ Normal(z_j, 2)`: as the model is
written, the posterior narrows to nothing in `z` where `v` is small. Plain NUTS is the host's on the
model; the other is `posterior.nuts()` after an amortized guide. Warm-up counts on both sides, what
training has cost is printed beside them: it is paid once for all data sets.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from amortize_diagnostics import ChainSummary, chain_summary

Y = np.array([0.5, -1.0, 2.0, 0.3, -0.2, 1.0, -2.5, 0.1], dtype=np.float32)
NUM_CHAINS, NUM_SAMPLES, NUM_WARMUP = 2, 500, 300
NUM_STEPS = 1000


def run_pyro() -> tuple[float, ChainSummary, ChainSummary]:
    """Seconds of training, plain NUTS and NUTS from the guide."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import MCMC, NUTS
    from pyro.infer.mcmc.util import initialize_model

    from pyro_amortize import NPE, AmortizedGuide, fit

    def funnel(y=None):
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(Y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), torch.exp(v / 2)))
            pyro.sample("y", dist.Normal(z, 2.0), obs=y)

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    y = torch.tensor(Y)
    draws, num_gradients, num_divergent = [], 0, 0
    for _ in range(NUM_CHAINS):
        start, potential, _, _ = initialize_model(funnel, model_kwargs={"y": y})
        count = [0]

        def counted(values, potential=potential, count=count):
            count[0] += 1
            return potential(values)

        kernel = NUTS(potential_fn=counted)
        chain = MCMC(kernel, NUM_SAMPLES, NUM_WARMUP, initial_params=start, disable_progbar=True)
        chain.run()
        draws.append(chain.get_samples())
        num_gradients += count[0]
        num_divergent += len(chain.diagnostics()["divergences"]["chain 0"])
    together = {name: np.stack([each[name] for each in draws]) for name in ("v", "z")}
    plain = chain_summary(together, num_divergent=num_divergent, num_gradients=num_gradients)

    guide = AmortizedGuide(funnel, observed="y")
    amortized = fit(funnel, guide, NPE(), num_steps=NUM_STEPS, progress_bar=False, compile=True)
    chains = amortized.at(y=y).nuts(NUM_SAMPLES, num_warmup=NUM_WARMUP, num_chains=NUM_CHAINS)
    return amortized.history.seconds, plain, chains.summary


def run_numpyro() -> tuple[float, ChainSummary, ChainSummary]:
    """Seconds of training, plain NUTS and NUTS from the guide."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    from numpyro_amortize import NPE, AmortizedGuide, fit

    def funnel(y=None):
        v = numpyro.sample("v", dist.Normal(0.0, 3.0))
        with numpyro.plate("rows", len(Y)):
            z = numpyro.sample("z", dist.Normal(0.0, jnp.exp(v / 2)))
            numpyro.sample("y", dist.Normal(z, 2.0), obs=y)

    y = jnp.asarray(Y)
    chain = MCMC(
        NUTS(funnel),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("num_steps", "diverging")
    chain.warmup(jax.random.key(0), y=y, extra_fields=fields, collect_warmup=True)
    num_gradients = int(np.sum(chain.get_extra_fields()["num_steps"]))
    chain.run(jax.random.key(1), y=y, extra_fields=fields)
    extra = chain.get_extra_fields()
    plain = chain_summary(
        {name: np.asarray(value) for name, value in chain.get_samples(group_by_chain=True).items()},
        num_divergent=int(np.sum(extra["diverging"])),
        num_gradients=num_gradients + int(np.sum(extra["num_steps"])),
    )
    guide = AmortizedGuide(funnel, observed="y")
    amortized = fit(funnel, guide, NPE(), num_steps=NUM_STEPS, progress_bar=False)
    chains = amortized.at(y=y).nuts(NUM_SAMPLES, num_warmup=NUM_WARMUP, num_chains=NUM_CHAINS)
    return amortized.history.seconds, plain, chains.summary


def main(backend: str) -> float:
    """Print both; return the cost of an effective draw from the guide over that of a plain one."""
    start = time.perf_counter()
    seconds, plain, warm = {"pyro": run_pyro, "numpyro": run_numpyro}[backend]()
    for name, summary in (("plain NUTS", plain), ("NUTS from the guide", warm)):
        print(f"\n{name}\n{summary}")
        print(f"{summary.gradients_per_ess:.1f} gradient evaluations for each effective draw")
    ratio = warm.gradients_per_ess / plain.gradients_per_ess
    print(
        f"\n{backend}: {ratio:.3f} of the gradient evaluations for each effective draw. "
        f"Training took {seconds:.0f} s, all of it {time.perf_counter() - start:.0f} s."
    )
    return ratio


if __name__ == "__main__":
    main(sys.argv[1])
