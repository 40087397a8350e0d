"""Time of a training step, against the same mathematics written by hand as a plain loop.

A VAE on binarised scikit-learn digits: 64 pixels, 16 latents, a decoder of 128 hidden units, a
batch of 128 rows and the guide's own encoder. The loops by hand have its networks, Adam and the
same estimator of the gradient in plain torch or JAX, and neither checks nor handlers; the density
of the pixels in JAX is the host's, which is finite at infinite logits and dearer than a softplus:

- ELBO, and IWAE with K = 10 and 50 particles, doubly reparameterised;
- NPE on 128 fresh simulations a step;
- in Pyro also the host's `SVI` with the same guide: its ELBO and its vectorised `RenyiELBO`.

Each figure is CPU time of the process, on one thread, of a run divided by its steps; runs of the
methods alternate. In Pyro a run is a call of `fit` with all that it does, with `compile=True` the
recording too; in NumPyro, where a call compiles, it is the loop inside `fit`, with its reports,
compiled before. Before any timing the losses by hand and of `fit` are compared at equal parameters.
Run it with `make bench`; it prints a table and appends a line to `benchmarks/results.jsonl`.
"""

import argparse
import os
import statistics
import time
from functools import partial

import numpy as np
from records import append_record
from sklearn.datasets import load_digits

NUM_PIXELS, NUM_LATENTS, NUM_HIDDEN, BATCH = 64, 16, 128, 128
LEARNING_RATE, NUM_REPORTS = 1e-3, 20
STEPS = {"ELBO": 3000, "IWAE 10": 3000, "IWAE 50": 1500, "NPE": 3000}
PARTICLES = {"ELBO": 1, "IWAE 10": 10, "IWAE 50": 50}
WARM_STEPS = {"Pyro": 100}  # NumPyro compiles for a number of steps
NUM_COMPARED, NUM_SDS = 200, 4
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
VERSIONS = ("numpy", "torch", "pyro-ppl", "jax", "numpyro", "optax")


def digits():
    """A batch of binarised digits, `(128, 64)`."""
    pixels = load_digits().images.reshape(-1, NUM_PIXELS)[:BATCH] / 16
    return (np.random.default_rng(0).uniform(size=pixels.shape) < pixels).astype(np.float32)


def pyro_methods():
    """Ways to run each objective, functions of a number of steps, after a check that they agree."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, RenyiELBO, Trace_ELBO
    from pyro.optim import ClippedAdam
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits, gelu, softplus

    from pyro_amortize import IWAE, NPE, AmortizedGuide, NormalDensity, fit
    from pyro_amortize.standardisation import Standardisation

    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoder = nn.Sequential(
        nn.Linear(NUM_LATENTS, NUM_HIDDEN), nn.GELU(), nn.Linear(NUM_HIDDEN, NUM_PIXELS)
    )
    data = torch.as_tensor(digits())

    def model(x=None):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", BATCH):
            prior = dist.Normal(torch.zeros(NUM_LATENTS), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    guide = AmortizedGuide(model, observed="x", densities=NormalDensity())
    guide.setup(x=data)
    constants = Standardisation.from_vector(guide.structure, guide.standardisation)
    (x_loc, x_scale), (z_loc, z_scale) = constants.data["x"], constants.draws["z"]
    own = dict(guide.named_parameters())

    def layers(name):
        weights = [own[f"chain.{name}.weights.{layer}"][0] for layer in range(3)]
        biases = [own[f"chain.{name}.biases.{layer}"][0] for layer in range(3)]
        pairs = zip(weights, biases, strict=True)
        return [(w.detach().clone(), b.detach().clone()) for w, b in pairs]

    features, head = layers("embeddings.0.features"), layers("heads.0.network")
    parameters = [each for pair in (*features, *head) for each in pair]
    for each in parameters:
        each.requires_grad_()
    shift = float(np.log(np.expm1(1.0)))

    def perceptron(network, hidden):
        for layer, (weight, bias) in enumerate(network):
            hidden = torch.addmm(bias, gelu(hidden) if layer else hidden, weight)
        return hidden

    def posterior(x):
        squashed = torch.asinh((x - x_loc) / x_scale)
        context = torch.cat([perceptron(features, squashed), squashed], -1)
        loc, raw = perceptron(head, context).chunk(2, -1)
        return z_loc + z_scale * loc, z_scale * softplus(raw + shift)

    def log_normal(z, loc, scale):
        return (-0.5 * ((z - loc) / scale) ** 2 - scale.log() - 0.5 * np.log(2 * np.pi)).sum(-1)

    def log_joint(z):
        log_likelihood = -binary_cross_entropy_with_logits(
            decoder(z), data.expand(*z.shape[:-1], NUM_PIXELS), reduction="none"
        ).sum(-1)
        return log_normal(z, torch.zeros(()), torch.ones(())) + log_likelihood

    def elbo():
        loc, scale = posterior(data)
        z = loc + scale * torch.randn(BATCH, NUM_LATENTS)
        return (log_normal(z, loc, scale) - log_joint(z)).sum()

    def iwae(num_particles):
        def loss():
            loc, scale = posterior(data)
            z = loc + scale * torch.randn(num_particles, BATCH, NUM_LATENTS)
            log_weights = log_joint(z) - log_normal(z, loc.detach(), scale.detach())
            shares = log_weights.detach().softmax(0)
            if z.requires_grad:
                z.register_hook(lambda gradient: shares[..., None] * gradient)
            bound = log_weights.detach().logsumexp(0).sum() - BATCH * np.log(num_particles)
            surrogate = (shares * log_weights).sum()
            return surrogate.detach() - surrogate - bound

        return loss

    def npe():
        with torch.no_grad():
            z = torch.randn(BATCH, NUM_LATENTS)
            x = torch.bernoulli(torch.sigmoid(decoder(z)))
        return -log_normal(z, *posterior(x)).mean()

    losses = {"ELBO": elbo, "IWAE 10": iwae(10), "IWAE 50": iwae(50), "NPE": npe}
    objectives = {
        "ELBO": Trace_ELBO(),
        "IWAE 10": IWAE(10),
        "IWAE 50": IWAE(50),
        "NPE": NPE(1),
    }

    def by_hand(name):
        trained = parameters if name == "NPE" else [*parameters, *decoder.parameters()]

        def run(num_steps):
            optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
            for _ in range(num_steps):
                optimizer.zero_grad()
                losses[name]().backward()
                torch.nn.utils.clip_grad_norm_(trained, 1000.0)
                optimizer.step()
                schedule.step()

        return run

    def ours(name, *, compile):
        kwargs = {} if name == "NPE" else {"x": data}

        def run(num_steps):
            fit(
                model,
                guide,
                objectives[name],
                kwargs=kwargs,
                num_steps=num_steps,
                learning_rate=LEARNING_RATE,
                compile=compile,
                progress_bar=False,
            )

        return run

    def svi(name):
        num_particles = PARTICLES[name]
        loss = Trace_ELBO()
        if num_particles > 1:
            options = {"vectorize_particles": True, "max_plate_nesting": 1}
            loss = RenyiELBO(alpha=0, num_particles=num_particles, **options)

        def run(num_steps):
            loop = SVI(model, guide, ClippedAdam({"lr": LEARNING_RATE}), loss)
            for _ in range(num_steps):
                loop.step(x=data)

        return run

    with torch.no_grad():
        for name, loss in losses.items():
            kwargs = {} if name == "NPE" else {"x": data}
            by_host = [objectives[name].loss(model, guide, **kwargs) for _ in range(NUM_COMPARED)]
            check_equal(name, by_host, [float(loss()) for _ in range(NUM_COMPARED)])
    methods = {
        name: {
            "by hand": by_hand(name),
            "fit, compile=True": ours(name, compile=True),
            "fit": ours(name, compile=False),
        }
        for name in losses
    }
    for name in PARTICLES:
        methods[name]["host's SVI"] = svi(name)
    return methods


def numpyro_methods():
    """Ways to run each objective, functions of a number of steps, after a check that they agree."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax
    from numpyro.infer import Trace_ELBO

    from numpyro_amortize import IWAE, NPE, AmortizedGuide, NormalDensity
    from numpyro_amortize.fit import num_held_out
    from numpyro_amortize.padding import CallPadding
    from numpyro_amortize.standardisation import Standardisation
    from numpyro_amortize.training_step import TrainingStep

    data, keys = jnp.asarray(digits()), jax.random.split(jax.random.key(0), 2)
    gelu = partial(jax.nn.gelu, approximate=False)
    initial = {
        "weight_1": jax.random.normal(keys[0], (NUM_LATENTS, NUM_HIDDEN)) * NUM_LATENTS**-0.5,
        "bias_1": jnp.zeros(NUM_HIDDEN),
        "weight_2": jax.random.normal(keys[1], (NUM_HIDDEN, NUM_PIXELS)) * NUM_HIDDEN**-0.5,
        "bias_2": jnp.zeros(NUM_PIXELS),
    }

    def decoder(p, z):
        return gelu(z @ p["weight_1"] + p["bias_1"]) @ p["weight_2"] + p["bias_2"]

    def model(x=None):
        p = {name: numpyro.param(name, value) for name, value in initial.items()}
        with numpyro.plate("rows", BATCH):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_LATENTS), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(p, z)).to_event(1), obs=x)

    guide = AmortizedGuide(model, observed="x", densities=NormalDensity())
    guide.setup(x=data)
    params = guide.init_params()
    constants = Standardisation.from_vector(guide.structure, params["amortized$standardisation"])
    (x_loc, x_scale), (z_loc, z_scale) = constants.data["x"], constants.draws["z"]
    own = params["amortized$params"]

    def layers(name):
        return [
            (own[f"{name}.weights.{layer}"][0], own[f"{name}.biases.{layer}"][0])
            for layer in range(3)
        ]

    start = {
        "features": layers("embeddings.0.features"),
        "head": layers("heads.0.network"),
        "decoder": initial,
    }
    shift = float(np.log(np.expm1(1.0)))

    def perceptron(network, hidden):
        for layer, (weight, bias) in enumerate(network):
            hidden = (gelu(hidden) if layer else hidden) @ weight + bias
        return hidden

    def posterior(p, x):
        squashed = jnp.arcsinh((x - x_loc) / x_scale)
        context = jnp.concatenate([perceptron(p["features"], squashed), squashed], -1)
        loc, raw = jnp.split(perceptron(p["head"], context), 2, -1)
        return z_loc + z_scale * loc, z_scale * jax.nn.softplus(raw + shift)

    def log_normal(z, loc, scale):
        terms = -0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)
        return terms.sum(-1)

    def log_joint(p, z):
        logits = decoder(p["decoder"], z)
        log_likelihood = dist.Bernoulli(logits=logits).log_prob(data).sum(-1)
        return log_normal(z, 0.0, 1.0) + log_likelihood

    def elbo(p, key):
        loc, scale = posterior(p, data)
        z = loc + scale * jax.random.normal(key, loc.shape)
        return (log_normal(z, loc, scale) - log_joint(p, z)).sum()

    def iwae(num_particles):
        @jax.custom_vjp
        def shared(z, shares):
            return z

        shared.defvjp(
            lambda z, shares: (z, shares),
            lambda shares, gradient: (shares[..., None] * gradient, jnp.zeros_like(shares)),
        )

        def loss(p, key):
            loc, scale = posterior(p, data)
            z = loc + scale * jax.random.normal(key, (num_particles, *loc.shape))
            fixed = jax.lax.stop_gradient((z, loc, scale, p))
            shares = jax.nn.softmax(log_joint(fixed[3], fixed[0]) - log_normal(*fixed[:3]), axis=0)
            log_weights = log_joint(p, shared(z, shares)) - log_normal(
                shared(z, shares), *fixed[1:3]
            )
            value = jax.nn.logsumexp(log_weights, axis=0).sum() - BATCH * np.log(num_particles)
            surrogate = (shares * log_weights).sum()
            return -surrogate + jax.lax.stop_gradient(surrogate - value)

        return loss

    def npe(p, key):
        latent_key, data_key = jax.random.split(key)
        z = jax.random.normal(latent_key, (BATCH, NUM_LATENTS))
        probability = jax.nn.sigmoid(decoder(initial, z))
        x = (jax.random.uniform(data_key, probability.shape) < probability).astype(jnp.float32)
        return -log_normal(z, *posterior(p, x)).mean()

    losses = {"ELBO": elbo, "IWAE 10": iwae(10), "IWAE 50": iwae(50), "NPE": npe}
    objectives = {
        "ELBO": Trace_ELBO(),
        "IWAE 10": IWAE(10),
        "IWAE 50": IWAE(50),
        "NPE": NPE(1),
    }

    def keys_of(num_steps):
        shape = NUM_REPORTS, num_steps // NUM_REPORTS
        return jax.random.split(jax.random.key(1), shape)

    def by_hand(name):
        num_steps = STEPS[name]
        optimizer = optax.chain(
            optax.clip_by_global_norm(1000.0),
            optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps)),
        )

        def one(state, key):
            p, optimizer_state = state
            value, gradient = jax.value_and_grad(losses[name])(p, key)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, p)
            return (optax.apply_updates(p, updates), optimizer_state), value

        scan = jax.jit(lambda state, keys: jax.lax.scan(one, state, keys))

        def run(num_steps):
            state = start, optimizer.init(start)
            for keys in jax.random.split(
                jax.random.key(1), (NUM_REPORTS, num_steps // NUM_REPORTS)
            ):
                state, values = scan(state, keys)
                np.asarray(values)

        return run

    def ours(name):
        step = TrainingStep(
            model,
            guide,
            objectives[name],
            ((), {} if name == "NPE" else {"x": data}),
            optimizer=None,
            learning_rate=LEARNING_RATE,
            num_steps=STEPS[name],
            params=None,
        )
        call = CallPadding(guide.model, guide.structure, guide.sizes, ()).pad(
            ((), {} if name == "NPE" else {"x": data})
        )
        every = STEPS[name] // NUM_REPORTS
        held_out = jax.random.split(jax.random.key(2), num_held_out(every))

        def run(num_steps):
            state = step.initial
            for keys in jax.random.split(
                jax.random.key(1), (NUM_REPORTS, num_steps // NUM_REPORTS)
            ):
                state, _ = step.advance(state, keys, call)
                step.held_out_loss(state, held_out, call)

        return run

    keys = jax.random.split(jax.random.key(3), NUM_COMPARED)
    for name, loss in losses.items():
        kwargs = {} if name == "NPE" else {"x": data}

        def by_host(key, objective=objectives[name], kwargs=kwargs):
            return objective.loss(key, params | initial, model, guide, **kwargs)

        check_equal(
            name, *(jax.jit(jax.vmap(each))(keys) for each in (by_host, partial(loss, start)))
        )
    return {name: {"by hand": by_hand(name), "fit": ours(name)} for name in losses}


BACKENDS = {"Pyro": pyro_methods, "NumPyro": numpyro_methods}


def check_equal(name, ours, by_hand):
    """Two samples of one random loss have the same mean, within their noise."""
    first, second = np.asarray(ours, float), np.asarray(by_hand, float)
    error = np.sqrt(first.var() / len(first) + second.var() / len(second))
    if abs(first.mean() - second.mean()) > NUM_SDS * error:
        raise ValueError(f"{name}: losses differ, {first.mean()} and {second.mean()} by hand")


def measure(backend, num_repeats):
    """One row for each objective and method."""
    rows = []
    for objective, methods in BACKENDS[backend]().items():
        num_steps = STEPS[objective]
        milliseconds = {name: [] for name in methods}
        for repeat in range(1 + num_repeats):
            for name, run in methods.items():
                if not repeat:
                    run(WARM_STEPS.get(backend, num_steps))
                    continue
                start = time.process_time()
                run(num_steps)
                milliseconds[name].append(1000 * (time.process_time() - start) / num_steps)
        for name, own in milliseconds.items():
            ratios = [one / other for one, other in zip(own, milliseconds["by hand"], strict=True)]
            rows.append(
                {
                    "backend": backend,
                    "objective": objective,
                    "method": name,
                    "steps": num_steps,
                    "median_ms": round(statistics.median(own), 3),
                    "median_ratio": round(statistics.median(ratios), 3),
                    "lowest_ratio": round(min(ratios), 3),
                    "highest_ratio": round(max(ratios), 3),
                }
            )
            print(table(rows[-1:], has_header=len(rows) == 1), flush=True)
    return rows


def table(rows, *, has_header=True):
    """The rows as Markdown."""
    header = [
        "| backend | objective | method | CPU ms a step, median | ratio to by hand, median "
        "| lowest to highest |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    lines = [
        f"| {row['backend']} | {row['objective']} | {row['method']} | {row['median_ms']:.2f} "
        f"| {row['median_ratio']:.2f} | {row['lowest_ratio']:.2f} to {row['highest_ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join([*(header if has_header else []), *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, help="only this one")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for backend in [options.backend] if options.backend else BACKENDS:
        rows += measure(backend, options.repeats)
    append_record("training_overhead", rows, repeats=options.repeats, versions=VERSIONS)


if __name__ == "__main__":
    main()
