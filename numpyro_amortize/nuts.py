"""Markov chains in the space of the guide's noise: exact draws from an amortized answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import NUTS
from tqdm import tqdm

from amortize_diagnostics import ChainSummary, chain_summary
from numpyro_amortize.conditioned import ConditionedGuide, total
from numpyro_amortize.standard_space import Space, find_space, log_target

_ROWS_AT_ONCE = 1000  # draws mapped to the latents together
_TRANSITIONS_AT_ONCE = 50  # of all chains, in compiled code


@dataclass(frozen=True)
class NUTSSamples:
    """Draws of the exact posterior by NUTS, with what the chains say about themselves.

    Args:
        samples: Constrained values, `(num_chains * num_samples, *plates, *event)`, one chain
            after the other, deterministic sites included.
        log_joint: Log joint density of each, in nats, constrained space.
        num_chains: Number of chains.
        diverging: Which transitions diverged, `(num_chains, num_samples)`.
        num_steps: Gradient evaluations of each transition, `(num_chains, num_samples)`.
        num_warmup_steps: Gradient evaluations of each chain before, `(num_chains,)`.
        space: `"noise"` if the chains ran in the noise of the guide, `"draws"` if in coordinates
            standardised by its draws.
        summary: R-hat, effective sample sizes and divergences; `print` shows it.
        export: Makes a `DataTree` of samples and numbers for each of them.
    """

    samples: dict[str, np.ndarray]
    log_joint: np.ndarray
    num_chains: int
    diverging: np.ndarray
    num_steps: np.ndarray
    num_warmup_steps: np.ndarray
    space: str
    summary: ChainSummary
    export: Callable[..., Any] = field(repr=False, compare=False)

    def by_chain(self) -> dict[str, np.ndarray]:
        """The samples as `(num_chains, num_samples, *plates, *event)`."""
        return {
            name: value.reshape(self.num_chains, -1, *value.shape[1:])
            for name, value in self.samples.items()
        }

    def to_datatree(
        self,
        *,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The draws as an ArviZ `DataTree`, with the groups of `Posterior.to_datatree`.

        Its sample_stats have `lp` (log joint, constrained), `diverging` and `n_steps`.

        Args:
            coords: Labels along a dimension.
            dims: Names of the event axes of a site.

        Returns:
            The `xarray.DataTree`.
        """
        stats = {
            "lp": self.log_joint,
            "diverging": self.diverging.reshape(-1),
            "n_steps": self.num_steps.reshape(-1),
        }
        options = {"coords": coords, "dims": dims, "num_chains": self.num_chains}
        return self.export(self.samples, stats, **options)

    def __str__(self) -> str:
        return str(self.summary)


def nuts_samples(
    conditioned: ConditionedGuide,
    num_samples: int,
    num_warmup: int,
    num_chains: int,
    *,
    target_accept_prob: float,
    max_tree_depth: int,
    progress_bar: bool,
    replay: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    export: Callable[..., Any],
    rng_key: Array,
) -> NUTSSamples:
    """Chains of the host's NUTS in the standard space of a guide, started from its draws.

    Args:
        conditioned: The guide at one data set, with its model.
        num_samples: Number of draws of each chain.
        num_warmup: Number of transitions of each chain before, in which it adapts.
        num_chains: Number of chains.
        target_accept_prob: Acceptance probability that the step size is adapted to.
        max_tree_depth: Most doublings of a trajectory.
        progress_bar: Whether to show a bar.
        replay: Deterministic sites at given latents.
        export: Makes a `DataTree` of samples and numbers for each of them.
        rng_key: Key of the chains.

    Returns:
        The draws.

    Raises:
        ValueError: If a latent is discrete, or if the density is not finite where a chain starts.
    """
    check_continuous(conditioned)
    space_key, start_key, chain_key = jax.random.split(rng_key, 3)
    space = find_space(conditioned, rng_key=space_key)
    start = space.start(num_chains, start_key)
    log_density = log_target(conditioned, space)
    check_start(jax.jit(jax.vmap(log_density))(start))
    kernel = NUTS(
        potential_fn=lambda point: -log_density(point),
        target_accept_prob=target_accept_prob,
        max_tree_depth=max_tree_depth,
    )
    with tqdm(total=num_chains * (num_warmup + num_samples), disable=not progress_bar) as bar:
        points, diverging, all_steps = _run_chains(
            kernel, start, num_samples, num_warmup, bar, chain_key
        )
    num_steps, num_warmup_steps = all_steps[:, num_warmup:], all_steps[:, :num_warmup].sum(1)
    samples, log_joint = _latents(conditioned, space, points.reshape(-1, space.size), replay)
    names = [site.name for site in conditioned.guide.structure.latents]
    return NUTSSamples(
        samples,
        log_joint,
        num_chains,
        diverging,
        num_steps,
        num_warmup_steps,
        space.kind,
        chain_summary(
            {
                name: samples[name].reshape(num_chains, -1, *samples[name].shape[1:])
                for name in names
            },
            num_divergent=int(diverging.sum()),
            num_gradients=int(num_steps.sum() + num_warmup_steps.sum()),
        ),
        export,
    )


def check_continuous(conditioned: ConditionedGuide) -> None:
    """Raise a ValueError that names the discrete latents, if there are any."""
    discrete = [
        site.name for site in conditioned.guide.structure.latents if site.support.is_discrete
    ]
    if discrete:
        raise ValueError(
            f"nuts: expected continuous latents, got discrete ones: {', '.join(discrete)}. NUTS "
            "follows gradients; use importance_sample, or sum them out of the model"
        )


def check_start(log_densities: Any) -> None:
    """Raise a ValueError if chains would start where the posterior is not positive."""
    bad = ~np.isfinite(np.asarray(log_densities))
    if bad.any():
        raise ValueError(
            f"nuts: the log density is not finite at {bad.sum()} of {bad.size} starting points, "
            "draws of the guide. Look for a support that depends on other sites, or train longer"
        )


def _run_chains(
    kernel: Any,
    start: Array,
    num_samples: int,
    num_warmup: int,
    bar: Any,
    rng_key: Array,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of all chains, which of them diverged, and gradients of each and of the warm-up."""
    initialise = jax.vmap(lambda point, key: kernel.init(key, num_warmup, point, (), {}))
    states = jax.jit(initialise)(start, jax.random.split(rng_key, len(start)))

    @jax.jit
    def advance(states: Any) -> tuple[Any, tuple[Array, Array, Array]]:
        def step(states: Any, _: None) -> tuple[Any, tuple[Array, Array, Array]]:
            states = jax.vmap(lambda state: kernel.sample(state, (), {}))(states)
            return states, (states.z, states.diverging, states.num_steps)

        return jax.lax.scan(step, states, None, length=_TRANSITIONS_AT_ONCE)

    found, length = [], num_warmup + num_samples
    for done in range(0, length, _TRANSITIONS_AT_ONCE):
        states, results = advance(states)
        found.append([np.moveaxis(np.asarray(part), 0, 1) for part in results])
        bar.update(len(start) * min(_TRANSITIONS_AT_ONCE, length - done))
    points, diverging, num_steps = (
        np.concatenate(part, axis=1)[:, :length] for part in zip(*found, strict=True)
    )
    return points[:, num_warmup:], diverging[:, num_warmup:], num_steps


def _latents(
    conditioned: ConditionedGuide,
    space: Space,
    points: np.ndarray,
    replay: Callable[[Mapping[str, Array]], Mapping[str, Array]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Constrained values of latents and deterministic sites, and the log joint density."""

    def one(point: Array) -> dict[str, Array]:
        return space.latents(point)[0]

    values = jax.jit(
        lambda points: jax.lax.map(one, points, batch_size=min(_ROWS_AT_ONCE, len(points)))
    )(jnp.asarray(points))
    log_joint = total(conditioned.site_densities(values).values(), 1)
    samples = {name: np.asarray(value) for name, value in {**values, **replay(values)}.items()}
    return samples, np.asarray(log_joint)


def check_settings(
    num_samples: int,
    num_warmup: int,
    num_chains: int,
    target_accept_prob: float,
    max_tree_depth: int,
) -> None:
    """Raise a ValueError if a number is out of range.

    Args:
        num_samples: Number of draws of each chain.
        num_warmup: Number of transitions before.
        num_chains: Number of chains.
        target_accept_prob: Acceptance probability that the step size is adapted to.
        max_tree_depth: Most doublings of a trajectory.
    """
    for name, least, value in (
        ("num_samples", 4, num_samples),
        ("num_warmup", 1, num_warmup),
        ("num_chains", 1, num_chains),
        ("max_tree_depth", 1, max_tree_depth),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not 0 < target_accept_prob < 1:
        raise ValueError(
            f"target_accept_prob: expected above 0 and below 1, got {target_accept_prob}"
        )
