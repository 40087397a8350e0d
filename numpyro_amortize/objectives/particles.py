"""Which plates have importance weights of their own, and which sites are drawn once for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from numpyro_amortize.tracing import Trace, elements_left_in, read_subsample_sizes


@dataclass(frozen=True)
class ParticlePlan:
    """How the particles of one call are weighted.

    Args:
        plates: The plates whose elements have weights of their own.
        dims: Dimension (negative) of each of them.
        global_sites: Sites with one draw for all particles; none if weights are joint.
        scale: Size of these plates over the number of rows of the call.
        common_scale: The scale that the user has given to all sites alike.
        factors: For each site the part of its scale that is no part of its weight: that, and the
            sizes of its own subsampled plates over their numbers of rows.
    """

    plates: tuple[str, ...]
    dims: tuple[int, ...]
    global_sites: tuple[str, ...]
    scale: float
    common_scale: float
    factors: Mapping[str, float]

    def split(self, trace: Trace) -> tuple[Array, Array]:
        """Log densities of one particle: of the global sites, and of each plate element.

        The scale of subsampled plates and of all sites alike is left out; others, and masks, count.

        Args:
            trace: A trace of the host.

        Returns:
            A scalar, and an array with one axis for each dimension up to the leftmost of `dims`.
        """
        shared, own = jnp.zeros(()), jnp.zeros((1,) * self.depth)
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            part = self._log_density(name, site)
            if name in self.global_sites:
                shared = shared + jnp.sum(part)
            else:
                own = own + self._reduce(part)
        return shared, own

    def element_means(self, weights: Array, trace: Trace) -> Array:
        """Weighted log densities, for each site the mean over its plate elements, summed.

        The scale of subsampled plates and of all sites alike is left out, as for `split`; what is
        masked does not count as an element.

        Args:
            weights: Of one particle, as `split` shapes them.
            trace: A trace of the host.
        """
        total = jnp.zeros(())
        for name, site in trace.items():
            if site["type"] == "sample":
                count = jnp.maximum(jnp.sum(elements_left_in(site["fn"])), 1)
                total = total + jnp.sum(weights * self._log_density(name, site)) / count
        return total

    def count(self, trace: Trace) -> Array:
        """Number of plate elements with weights of their own, without what is masked.

        Args:
            trace: A trace of the host.
        """
        found = jnp.zeros((1,) * self.depth)
        for site in trace.values():
            if site["type"] == "sample":
                found = found + self._reduce(elements_left_in(site["fn"]))
        return jnp.maximum(jnp.sum(found > 0), 1)

    def weigh(
        self, weights: Array, values: Mapping[str, Any], event_dims: Mapping[str, int]
    ) -> dict[str, Any]:
        """Values of the sites' draws times the weights of their particles.

        Args:
            weights: Shape `(num_particles, *dims)`.
            values: By site, a leading axis of particles; or None.
            event_dims: Number of event axes by site.
        """
        found: dict[str, Any] = {}
        for name, value in values.items():
            found[name] = None
            if value is not None:
                events = (1,) * event_dims[name]
                between = (1,) * (value.ndim - weights.ndim - len(events))
                shape = (len(weights), *between, *weights.shape[1:], *events)
                found[name] = value * weights.reshape(shape)
        return found

    def bound(self, shared: Array, own: Array) -> Array:
        """The bound from the log weights of the global sites and of the plate elements.

        Args:
            shared: Shape `(num_particles,)`.
            own: Shape `(num_particles, *dims)`.
        """
        elements = logsumexp(own, axis=0) - jnp.log(len(own))
        return self.common_scale * (jnp.mean(shared) + self.scale * jnp.sum(elements))

    def weighted(self, weights: Array, parts: tuple[Array, Array]) -> Array:
        """The mean of log densities as `split` gives them, under weights of the particles.

        Its gradient is that of the bound where the weights are those of its particles.
        """
        shared, own = parts
        return self.common_scale * (jnp.mean(shared) + self.scale * jnp.sum(weights * own))

    def check(self, own: Array) -> None:
        """Raise a ValueError if all particles of an element have density zero; not in `jit`."""
        if not isinstance(own, jax.core.Tracer):
            lost = np.isneginf(np.asarray(own)).all(0)
            if lost.any():
                raise _lost_element(self.plates, self.dims, np.argwhere(lost)[0].tolist())

    def check_every(self, own: Array) -> None:
        """Raise a ValueError if a particle of an element has no finite weight; not in `jit`."""
        if not isinstance(own, jax.core.Tracer) and not np.isfinite(np.asarray(own)).all():
            first = np.argwhere(~np.isfinite(np.asarray(own)))[0].tolist()
            raise _lost_draw(self.plates, self.dims, first, float(own[tuple(first)]))

    def _log_density(self, name: str, site: Mapping[str, Any]) -> Array:
        """Of one site, of each plate element, without what is not in its weight."""
        scale = 1.0 if site["scale"] is None else site["scale"]
        return _log_prob(site) * (scale / self.factors[name])

    @property
    def depth(self) -> int:
        """Number of plate axes of the weights."""
        return -min(self.dims, default=0)

    def _reduce(self, part: Array) -> Array:
        """The sum over all axes but those of `dims`, which keep their places."""
        part = part.reshape((1,) * (self.depth - part.ndim) + part.shape)
        summed = [axis for axis in range(-part.ndim, 0) if axis not in self.dims]
        part = jnp.sum(part, axis=summed, keepdims=True)
        return part.reshape(part.shape[part.ndim - self.depth :])


def plan_particles(guide_trace: Trace, model_trace: Trace, *, nested: bool | None) -> ParticlePlan:
    """Find the plates whose elements are independent of each other, given the global sites.

    Args:
        guide_trace: A trace of the guide.
        model_trace: A trace of the model with its draws.
        nested: Whether latents in no plate of an observed site are drawn once for all particles;
            None for only where a subsampled plate makes joint weights impossible.

    Raises:
        ValueError: If weights under these plates would give no bound, or if there is nothing
            to nest.
    """
    sites = {
        name: site
        for trace in (guide_trace, model_trace)
        for name, site in trace.items()
        if site["type"] == "sample"
    }
    plates = {name: {f.name: f for f in site["cond_indep_stack"]} for name, site in sites.items()}
    latents = [name for name, site in guide_trace.items() if name in sites]
    sizes = read_subsample_sizes(guide_trace) | read_subsample_sizes(model_trace)
    drawn = [plate for plate, (size, num_rows) in sizes.items() if num_rows < size]
    carried = {plate for name in set(sites) - set(latents) for plate in plates[name]}
    shared = [name for name in latents if not carried & set(plates[name])]
    if nested is None:
        nested = bool(drawn and shared and len(shared) < len(latents))
    outside = [name for name in sites if nested and not carried & set(plates[name])]
    if nested and not (shared and len(shared) < len(latents)):
        raise ValueError(
            "nested: needs latent sites in the plates of observed sites beside some that are in "
            f"none of them, got {latents}. Use IWAE(nested=False)"
        )
    inside = [set(plates[name]) for name in sites if name not in outside]
    common = sorted(set.intersection(*inside)) if inside else []
    if nested and not common:
        raise ValueError(
            f"nested: sites {[name for name in sites if name not in outside]} have no plate in "
            "common, so that their elements are not independent given the others. Use "
            "IWAE(nested=False)"
        )
    for plate in drawn:
        lacking = [name for name in sites if name not in outside and plate not in plates[name]]
        if lacking:
            raise ValueError(
                f"plate '{plate}': is subsampled, and sites {lacking} are not in it, so that "
                "weights would give no bound. Use IWAE(nested=True) if these are in no plate of "
                "an observed site; else call the model with the whole plate, or use Trace_ELBO"
            )
    dims = {frame.name: frame.dim for own in plates.values() for frame in own.values()}
    factors = {name: _factor(own, sizes) for name, own in plates.items()}
    common_scale = _common_scale(
        [
            (1.0 if site["scale"] is None else site["scale"], factors[name])
            for trace in (guide_trace, model_trace)
            for name, site in trace.items()
            if name in sites
        ]
    )
    return ParticlePlan(
        plates=tuple(common),
        dims=tuple(dims[plate] for plate in common),
        global_sites=tuple(outside),
        scale=_factor(common, sizes),
        common_scale=common_scale,
        factors={name: common_scale * factor for name, factor in factors.items()},
    )


def _common_scale(scales: Sequence[tuple[Any, float]]) -> float:
    """What the user multiplies all densities with, as in a loss per row; 1 if they differ.

    Args:
        scales: Scale of each site in each trace, and the part of it that is due to subsampling.
    """
    found = [scale / factor if isinstance(scale, int | float) else None for scale, factor in scales]
    first = found[0] if found else None
    is_common = first is not None and all(
        each is not None and math.isclose(each, first, rel_tol=1e-6) for each in found
    )
    return first if first is not None and is_common else 1.0


def _lost_element(plates: tuple[str, ...], dims: tuple[int, ...], index: list[int]) -> ValueError:
    return ValueError(
        f"{_place(plates, dims, index)}: all particles have density zero. Look for data "
        "that the model cannot produce, and for draws of the guide outside of a support"
    )


def _lost_draw(
    plates: tuple[str, ...], dims: tuple[int, ...], index: list[int], log_weight: float
) -> ValueError:
    return ValueError(
        f"{_place(plates, dims, index)}: draw {index[0]} of the guide has the log weight "
        f"{log_weight}, and a square needs a finite one. Let the model have a density wherever the "
        "guide draws: add a small floor to it, or move its hard bounds into the latents' supports"
    )


def _place(plates: tuple[str, ...], dims: tuple[int, ...], index: list[int]) -> str:
    places = [
        f"element {index[dim]} of plate '{plate}'" for plate, dim in zip(plates, dims, strict=True)
    ]
    return ", ".join(places) or "this data set"


def _factor(plates: Iterable[str], sizes: Mapping[str, tuple[int, int]]) -> float:
    """Sizes of plates over their numbers of rows, multiplied."""
    return math.prod(sizes[plate][0] / sizes[plate][1] for plate in plates)


def _log_prob(site: Mapping[str, Any]) -> Array:
    fn, value, intermediates = site["fn"], site["value"], site["intermediates"]
    return fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
