"""An auto-encoder of digits trained by the host's `SVI`, and by a loop written by hand."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from tests.problems import BinaryDigits

DIGITS = BinaryDigits()


def network(name, parameter, values):
    first, second = (
        (parameter(f"{name}_weight_{layer}"), parameter(f"{name}_bias_{layer}")) for layer in (0, 1)
    )
    return torch.tanh(values @ first[0] + first[1]) @ second[0] + second[1]


def model(x, batch_size=None):
    with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
        z = pyro.sample("z", dist.Normal(torch.zeros(DIGITS.num_latents), 1.0).to_event(1))
        pixels = dist.Bernoulli(logits=network("decoder", pyro.param, z)).to_event(1)
        pyro.sample("x", pixels, obs=x[rows])


def guide(x, batch_size=None):
    with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
        mean, log_sd = network("encoder", pyro.param, x[rows]).chunk(2, -1)
        pyro.sample("z", dist.Normal(mean, log_sd.exp()).to_event(1))


def by_library(objective, form, seeds, *, num_steps, batch_size, rate):
    """Parameters for each seed; `form` is "plain", "scaled" or "subsampled"."""
    return [_by_library(objective, form, seed, num_steps, batch_size, rate) for seed in seeds]


def _by_library(objective, form, seed, num_steps, batch_size, rate):
    images = torch.tensor(DIGITS.train)
    initial = DIGITS.initial_parameters(seed)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    for name, value in initial.items():
        pyro.param(name, torch.tensor(value))
    scale = len(images) / batch_size if form == "scaled" else 1.0
    optimizer = pyro.optim.CosineAnnealingLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}, "T_max": num_steps}
    )
    svi = pyro.infer.SVI(
        poutine.scale(model, scale=scale), poutine.scale(guide, scale=scale), optimizer, objective
    )
    for rows in torch.tensor(DIGITS.batches(seed, num_steps, batch_size)):
        if form == "subsampled":
            svi.step(images, batch_size)
        else:
            svi.step(images[rows])
        optimizer.step()
    return {name: pyro.param(name).detach().numpy().copy() for name in initial}


def by_hand(num_particles, seeds, *, num_steps, batch_size, rate):
    """The same training with doubly reparameterised gradients and no host."""
    return [_by_hand(num_particles, seed, num_steps, batch_size, rate) for seed in seeds]


def _by_hand(num_particles, seed, num_steps, batch_size, rate):
    images = torch.tensor(DIGITS.train)
    generator = torch.Generator().manual_seed(1000 + seed)
    parameters = {
        name: torch.tensor(value, requires_grad=True)
        for name, value in DIGITS.initial_parameters(seed).items()
    }
    optimizer = torch.optim.Adam(parameters.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for rows in torch.tensor(DIGITS.batches(seed, num_steps, batch_size)):
        x = images[rows]
        mean, log_sd = network("encoder", parameters.__getitem__, x).chunk(2, -1)
        noise = torch.randn(num_particles, *mean.shape, generator=generator)
        z = mean + log_sd.exp() * noise
        logits = network("decoder", parameters.__getitem__, z)
        log_p = (x * logits - torch.nn.functional.softplus(logits)).sum(-1) - 0.5 * (z**2).sum(-1)
        spread = log_sd.detach()
        log_q = (-0.5 * ((z - mean.detach()) / spread.exp()) ** 2 - spread).sum(-1)
        log_weights = log_p - log_q
        weights = log_weights.detach().softmax(0)
        # What comes back through z has the weight once; the guide gets it twice.
        z.register_hook(lambda gradient, weights=weights: weights[..., None] * gradient)
        optimizer.zero_grad()
        (-(weights * log_weights).sum()).backward()
        optimizer.step()
        schedule.step()
    return {name: value.detach().numpy() for name, value in parameters.items()}
