"""Markov chains in the space of the guide's noise: exact draws from an amortized answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from tqdm import tqdm

from amortize_diagnostics import ChainSummary, chain_summary
from pyro_amortize.conditioned import ConditionedGuide, total
from pyro_amortize.recorded_gradient import with_gradient
from pyro_amortize.recorded_graph import tensors_in
from pyro_amortize.standard_space import Space, find_space, log_target

_ROWS_AT_ONCE = 1000  # draws mapped to the latents together
_NUM_COMPARED = 4  # points at which recorded operations are compared with the model


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
    replay: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    export: Callable[..., Any],
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

    Returns:
        The draws.

    Raises:
        ValueError: If a latent is discrete, or if the density is not finite where a chain starts.
    """
    check_continuous(conditioned)
    space = find_space(conditioned)
    start = space.start(num_chains)
    options = {
        "target_accept_prob": target_accept_prob,
        "max_tree_depth": max_tree_depth,
    }
    log_density = log_target(conditioned, space)
    with torch.no_grad():
        check_start(log_density(start))
    at_point = with_gradient(log_density, space.start(_NUM_COMPARED), _constants(conditioned))
    chains = []
    num_draws = num_chains * (num_warmup + num_samples)
    with tqdm(total=num_draws, disable=not progress_bar, unit="draw") as bar:
        for point in start:
            chains.append(_run_chain(at_point, point, num_samples, num_warmup, options, bar))
    points, diverging, num_steps, num_warmup_steps = (
        np.stack(part) for part in zip(*chains, strict=True)
    )
    samples, log_joint = _latents(
        conditioned,
        space,
        torch.from_numpy(points.reshape(-1, space.size)).to(start.device),
        replay,
    )
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
    bad = ~np.isfinite(np.asarray(log_densities.detach().cpu()))
    if bad.any():
        raise ValueError(
            f"nuts: the log density is not finite at {bad.sum()} of {bad.size} starting points, "
            "draws of the guide. Look for a support that depends on other sites, or train longer"
        )


def _constants(conditioned: ConditionedGuide) -> list[Tensor]:
    """Tensors that stay as they are while chains run."""
    guide, given = conditioned.guide, [*conditioned.observations.values()]
    return [*guide.parameters(), *guide.buffers(), *given, *tensors_in(conditioned.call)]


def _run_chain(
    log_density: Callable[[Tensor], Tensor],
    point: Tensor,
    num_samples: int,
    num_warmup: int,
    options: Mapping[str, Any],
    bar: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of one chain, which of them diverged, and gradients of each and of the warm-up."""
    counts = [0]

    def potential(point: Mapping[str, Tensor]) -> Tensor:
        counts[-1] += 1
        return -log_density(point["noise"])

    def count(*_: Any) -> None:
        counts.append(0)
        bar.update()

    kernel = NUTS(potential_fn=potential, **options)
    chain = MCMC(
        kernel,
        num_samples,
        num_warmup,
        initial_params={"noise": point},
        hook_fn=count,
        disable_progbar=True,
    )
    chain.run()
    diverging = np.zeros(num_samples, bool)
    diverging[chain.diagnostics()["divergences"]["chain 0"]] = True
    num_steps = np.array(counts[num_warmup : num_warmup + num_samples])
    points = chain.get_samples()["noise"].cpu().numpy()
    return points, diverging, num_steps, np.array(sum(counts[:num_warmup]))


@torch.no_grad()
def _latents(
    conditioned: ConditionedGuide,
    space: Space,
    points: Tensor,
    replay: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Constrained values of latents and deterministic sites, and the log joint density."""
    parts, log_joint = [], []
    for block in torch.split(points, _ROWS_AT_ONCE):
        values, _ = space.latents(block)
        parts.append({**values, **replay(values)})
        log_joint.append(total(conditioned.site_densities(values).values(), 1))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    samples = {name: value.cpu().numpy() for name, value in joined.items()}
    return samples, torch.cat(log_joint).cpu().numpy()


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
