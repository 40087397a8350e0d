"""An auto-encoder of digits trained by the host's `SVI`, and by a loop written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro import handlers
from numpyro.infer import SVI

from tests.problems import BinaryDigits

DIGITS = BinaryDigits()


def network(name, parameter, values):
    first, second = (
        (parameter(f"{name}_weight_{layer}"), parameter(f"{name}_bias_{layer}")) for layer in (0, 1)
    )
    return jnp.tanh(values @ first[0] + first[1]) @ second[0] + second[1]


def model(x, batch_size=None):
    with numpyro.plate("data", len(x), subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(DIGITS.num_latents), 1.0).to_event(1))
        pixels = dist.Bernoulli(logits=network("decoder", numpyro.param, z)).to_event(1)
        numpyro.sample("x", pixels, obs=x[rows])


def guide(x, batch_size=None):
    with numpyro.plate("data", len(x), subsample_size=batch_size) as rows:
        mean, log_sd = jnp.split(network("encoder", numpyro.param, x[rows]), 2, -1)
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_sd)).to_event(1))


def by_library(objective, form, seeds, *, num_steps, batch_size, rate):
    """Parameters for each seed; `form` is "plain", "scaled" or "subsampled"."""
    images = jnp.asarray(DIGITS.train)
    scale = len(images) / batch_size if form == "scaled" else 1.0
    svi = SVI(
        handlers.scale(model, scale=scale),
        handlers.scale(guide, scale=scale),
        optax.adam(optax.cosine_decay_schedule(rate, num_steps)),
        objective,
    )

    def arguments(rows):
        return (images, batch_size) if form == "subsampled" else (images[rows],)

    def train(key, parameters, batches):
        def step(state, rows):
            return svi.update(state, *arguments(rows))[0], None

        first = svi.init(key, *arguments(batches[0]), init_params=parameters)
        return svi.get_params(jax.lax.scan(step, first, batches)[0])

    return _of_seeds(train, seeds, num_steps, batch_size)


def by_hand(num_particles, seeds, *, num_steps, batch_size, rate):
    """The same training with doubly reparameterised gradients and no host."""
    images = jnp.asarray(DIGITS.train)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    stop = jax.lax.stop_gradient

    def loss(parameters, key, x):
        mean, log_sd = jnp.split(network("encoder", parameters.__getitem__, x), 2, -1)
        noise = jax.random.normal(key, (num_particles, *mean.shape))
        z = mean + jnp.exp(log_sd) * noise

        def log_joint(parameters, z):
            logits = network("decoder", parameters.__getitem__, z)
            return (x * logits - jax.nn.softplus(logits)).sum(-1) - 0.5 * (z**2).sum(-1)

        deviation = (z - stop(mean)) / jnp.exp(stop(log_sd))
        log_q = (-0.5 * deviation**2 - stop(log_sd)).sum(-1)
        of_guide = log_joint(stop(parameters), z) - log_q
        weights = stop(jax.nn.softmax(of_guide, axis=0))
        of_model = log_joint(parameters, stop(z))
        return -(weights * of_model + weights**2 * of_guide).sum()

    def train(key, parameters, batches):
        def step(state, xs):
            parameters, moments = state
            key, rows = xs
            gradient = jax.grad(loss)(parameters, key, images[rows])
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, updates), moments), None

        first = parameters, optimizer.init(parameters)
        keys = jax.random.split(jax.random.fold_in(key, 1), num_steps)
        return jax.lax.scan(step, first, (keys, batches))[0][0]

    return _of_seeds(train, seeds, num_steps, batch_size)


def _of_seeds(train, seeds, num_steps, batch_size):
    """All trainings at once, compiled."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    parameters = jax.tree.map(
        lambda *values: jnp.stack(values), *(DIGITS.initial_parameters(seed) for seed in seeds)
    )
    batches = jnp.stack([DIGITS.batches(seed, num_steps, batch_size) for seed in seeds])
    found = jax.jit(jax.vmap(train))(keys, parameters, batches)
    return [{name: np.asarray(value[i]) for name, value in found.items()} for i in range(len(keys))]
