"""Diffusion: a score learned from noised values, followed from noise to the coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.densities.base import FlowDistribution
from numpyro_amortize.densities.ode import OdeStep, Solver
from numpyro_amortize.densities.time_network import TimeNetwork, TimeNetworkFamily

_MOST_SIGNAL = 1e-2  # of the variance, at time 1


@dataclass(frozen=True)
class DiffusionDensity(TimeNetworkFamily):
    """A diffusion to normal noise, run backward along a learned score.

    With `B(t) = int_0^t b` and `b(t) = beta_min + t (beta_max - beta_min)`, values are noised to
    `z_t = exp(-B / 2) z_0 + sd_t e`, where `sd_t^2 = 1 - exp(-B)` for `sde="vp"` and
    `(1 - exp(-B))^2` for `"sub-vp"`. `NPE` trains the network by a loss of its own, whose minimum
    is not zero and depends on the settings:

        E || e_hat(z_t, t; c) - e ||^2,    score s = -e_hat / sd_t.

    Draws and densities follow the probability-flow equation `dz/dt = -(b z + g^2 s) / 2` between
    noise at 1 and values at `min_time`, with `g^2 = b`, or `b (1 - exp(-2 B))` for `"sub-vp"`, and
    `log q(z_0 | c) = log N(z_1; 0, I) + int div(dz/dt) dt` in nats, exact to the tolerance.
    It starts at the standard normal: the network adds to the noise that one would have.

    Use it as `FlowMatchingDensity`, for several modes, bent shapes and many coordinates under
    `NPE`; that one has straighter paths and needs fewer steps. The score of this one is
    there to be guided, tempered or composed: `density(context).score(time, value)`. What it
    describes is the posterior with noise of `sd_t` at `min_time` added, 0.01 in units of the
    standardised spread by default for `"vp"`; lower `min_time` for narrower posteriors.

    With `sampler="sde"`, draws follow the diffusion itself backward, `dz = -(b z / 2 + g^2 s) dt +
    g dW`, whose noise forgives errors of the score. They have no log density, and bounds,
    importance weights and `log_prob` refuse them.

    Args:
        hidden_dims: Widths of the hidden layers.
        sde: `"vp"`, which preserves unit variance, or `"sub-vp"`, whose variance is below it.
        beta_min: The rate `b` at time 0.
        beta_max: The rate `b` at time 1.
        min_time: Time of the values.
        num_times: Times and noises for each simulation, the times spread evenly.
        tolerance: Largest error of a step of the solver, which chooses its steps. In a batch, all
            draws take the steps of the most difficult one.
        num_steps: A fixed number of steps in place of the tolerance.
        sampler: `"ode"`, or `"sde"` for draws without a density.
        num_sde_steps: Number of steps of the latter, by Euler and Maruyama.

    Raises:
        ValueError: If an argument is out of range, or if the rates leave too much of the values at
            time 1.

    Example:
        >>> key = jax.random.key(0)
        >>> density = DiffusionDensity(hidden_dims=(8,)).build(1, 2, 3, key)
        >>> flow, value = density(jax.numpy.ones((1, 3))), jax.numpy.zeros((1, 2))
        >>> flow.log_prob(value).shape, flow.training_loss(value, key).shape
        ((1,), (1,))

    References:
        Sharrock, Simons, Liu and Beaumont (2024), arXiv:2210.04872; Song, Sohl-Dickstein, Kingma,
        Kumar, Ermon and Poole (2021), arXiv:2011.13456, for both diffusions. The network reads
        `sd_t` as its time; that, several times for each simulation and the start are ours.
    """

    hidden_dims: tuple[int, ...] = (64, 64)
    sde: Literal["vp", "sub-vp"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    min_time: float = 1e-3
    num_times: int = 8
    tolerance: float = 1e-5
    num_steps: int | None = None
    sampler: Literal["ode", "sde"] = "ode"
    num_sde_steps: int = 500

    def __post_init__(self) -> None:
        if self.sde not in ("vp", "sub-vp"):
            raise ValueError(f"sde: expected 'vp' or 'sub-vp', got {self.sde!r}")
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                "beta_min, beta_max: expected positive numbers, the second at least the first, got "
                f"{self.beta_min} and {self.beta_max}"
            )
        left = math.exp(-0.5 * (self.beta_min + self.beta_max))
        if left > _MOST_SIGNAL:
            raise ValueError(
                f"beta_max: {self.beta_max} leaves {left:.2g} of the variance of the values at "
                f"time 1, where there should be noise alone; expected at most {_MOST_SIGNAL}, "
                "raise it"
            )
        if not 0 < self.min_time < 1:
            raise ValueError(f"min_time: expected between 0 and 1, got {self.min_time}")
        for name in ("num_times", "num_sde_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.sampler not in ("ode", "sde"):
            raise ValueError(f"sampler: expected 'ode' or 'sde', got {self.sampler!r}")
        Solver(self.tolerance, self.num_steps)

    def made_of(
        self, network: TimeNetwork, batch_shape: tuple[int, ...], event_size: int
    ) -> Diffusion:
        """The distribution that a network stands for."""
        kind = Diffusion if self.sampler == "ode" else StochasticDiffusion
        return kind(network, batch_shape, event_size, self)


class Schedule:
    """How much of the values is left at a time, and how fast noise comes.

    Args:
        specification: The options.
    """

    def __init__(self, specification: DiffusionDensity) -> None:
        self.specification = specification

    def rate(self, time: Array) -> Array:
        """The rate `b`."""
        own = self.specification
        return own.beta_min + time * (own.beta_max - own.beta_min)

    def total(self, time: Array) -> Array:
        """Its integral `B` from 0."""
        own = self.specification
        return time * (own.beta_min + 0.5 * time * (own.beta_max - own.beta_min))

    def sd(self, time: Array) -> Array:
        """Standard deviation of the noise."""
        variance = -jnp.expm1(-self.total(time))
        return variance if self.specification.sde == "sub-vp" else jnp.sqrt(variance)

    def squared_diffusion(self, time: Array) -> Array:
        """The square of what the noise is multiplied by, `g^2`."""
        if self.specification.sde == "vp":
            return self.rate(time)
        return -self.rate(time) * jnp.expm1(-2 * self.total(time))


class NoiseNetwork:
    """The noise in values and what follows from it, as a field for the solver.

    The solver's time is the root of the diffusion's, in which the equation has no steep start.

    Args:
        network: What is added to the noise in values that were standard normal.
        schedule: Of the noise.
    """

    def __init__(self, network: TimeNetwork, schedule: Schedule) -> None:
        self.network, self.schedule = network, schedule

    def noise(self, time: Array, value: Array) -> Array:
        """The expected noise in values at a time, broadcastable to their batch."""
        sd, share = self._shares(time)
        return share[..., None] * value + self.network.velocity(sd, value)

    def velocity(self, time: Array, value: Array) -> Array:
        """The velocity of the probability-flow equation for the root of time."""
        drift, factor = self._factors(time)
        return drift * value + factor * self.noise(time**2, value)

    def with_divergence(self, time: Array, value: Array, directions: Array) -> tuple[Array, Array]:
        """The velocity, and its divergence along the directions."""
        sd, share = self._shares(time**2)
        own, change = self.network.with_divergence(sd, value, directions)
        (drift, factor), size = self._factors(time), value.shape[-1]
        velocity = drift * value + factor * (share * value + own)
        return velocity, (drift + factor * share) * size + factor * change

    def _shares(self, time: Array) -> tuple[Array, Array]:
        """The noise's standard deviation, and its part of a value of a standard normal."""
        sd = self.schedule.sd(time)
        return sd, sd / (jnp.exp(-self.schedule.total(time)) + sd**2)

    def _factors(self, time: Array) -> tuple[Array, Array]:
        """Of the value and of the noise in the velocity, `s = -noise / sd`; `dt = 2 r dr`."""
        drift, diffusion = self.schedule.rate(time**2), self.schedule.squared_diffusion(time**2)
        return -drift * time, diffusion * time / self.schedule.sd(time**2)


class Diffusion(FlowDistribution):
    """A flow along the probability-flow equation, and the loss of its score.

    Args:
        network: As in `NoiseNetwork`.
        batch_shape: Batch shape.
        event_size: Number of coordinates.
        specification: The options.
    """

    def __init__(
        self,
        network: TimeNetwork,
        batch_shape: tuple[int, ...],
        event_size: int,
        specification: DiffusionDensity,
    ) -> None:
        self.network, self.specification = network, specification
        self.schedule = Schedule(specification)
        solver = Solver(specification.tolerance, specification.num_steps)
        axes = jnp.eye(event_size, dtype=network.context.dtype)
        roots = {"noise_time": 1.0, "data_time": math.sqrt(specification.min_time)}
        step = OdeStep(NoiseNetwork(network, self.schedule), axes, solver, **roots)
        super().__init__([step], batch_shape, event_size)

    def score(self, time: Array, value: Array) -> Array:
        """Gradient of the log density of noised values, shape `(*batch, size)`.

        Args:
            time: A time from `min_time` to 1, broadcastable to `(*batch,)`.
            value: Noised values, shape `(*batch, size)`.
        """
        noise = NoiseNetwork(self.network, self.schedule).noise(time, value)
        return -noise / self.schedule.sd(time)[..., None]

    def training_loss(self, value: Array, rng_key: Array) -> Array:
        """Squared error of the noise in noised values, `(*batch,)`."""
        own, (size,) = self.specification, self.event_shape
        batch = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        time_key, noise_key = jax.random.split(rng_key)
        place = jax.random.uniform(time_key, (*batch, own.num_times), value.dtype)
        place = (place + jnp.arange(own.num_times)) / own.num_times
        time = own.min_time + (1 - own.min_time) * place
        noise = jax.random.normal(noise_key, (*time.shape, size), value.dtype)
        left, sd = jnp.exp(-0.5 * self.schedule.total(time)), self.schedule.sd(time)
        noised = left[..., None] * value[..., None, :] + sd[..., None] * noise
        network = NoiseNetwork(self.network.per_draw(), self.schedule)
        error = network.noise(time, noised) - noise
        return jnp.mean(jnp.sum(error**2, axis=-1), axis=-1)


class StochasticDiffusion(Diffusion):
    """Draws by the diffusion itself, run backward; no log density.

    Arguments are those of `Diffusion`.
    """

    has_log_prob = False

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws of shape `(*sample_shape, *batch, size)`, differentiable; no intermediates."""
        own, (start_key, key) = self.specification, jax.random.split(key)
        start = jax.random.normal(start_key, self.shape(sample_shape))
        roots = jnp.linspace(1.0, math.sqrt(own.min_time), own.num_sde_steps + 1)
        times = roots**2
        keys = jax.random.split(key, own.num_sde_steps)

        def body(value: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
            time, length, own_key = step
            noise = jax.random.normal(own_key, value.shape, value.dtype)
            return self.step_back(value, noise, time, length), None

        return jax.lax.scan(body, start, (times[:-1], times[:-1] - times[1:], keys))[0], []

    def step_back(self, value: Array, noise: Array, time: Array, length: Array) -> Array:
        """One step of the diffusion from a time to an earlier one.

        Args:
            value: Where it is, shape `(*batch, size)`.
            noise: Standard normal numbers of this shape.
            time: The time there.
            length: How much earlier the other is.
        """
        squared = self.schedule.squared_diffusion(time)
        change = 0.5 * self.schedule.rate(time) * value + squared * self.score(time, value)
        return value + length * change + jnp.sqrt(length * squared) * noise

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Refused.

        Raises:
            TypeError: Always.
        """
        raise TypeError("DiffusionDensity(sampler='sde') has no log density; sampler='ode' has one")
