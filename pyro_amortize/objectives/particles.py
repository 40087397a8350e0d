"""Which plates have importance weights of their own, and which sites are drawn once for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_amortize.tracing import Trace, read_subsample_sizes


@dataclass(frozen=True)
class ParticlePlan:
    """How the particles of one call are weighted.

    Args:
        particle_dim: Dimension (negative) of the particles, left of all plates.
        plates: The plates whose elements have weights of their own.
        dims: Dimension (negative) of each of them.
        global_sites: Sites with one draw for all particles; none if weights are joint.
        scale: Size of these plates over the number of rows of the call.
        common_scale: The scale that the user has given to all sites alike.
        factors: For each site the part of its scale that is no part of its weight: that, and the
            sizes of its own subsampled plates over their numbers of rows.
    """

    particle_dim: int
    plates: tuple[str, ...]
    dims: tuple[int, ...]
    global_sites: tuple[str, ...]
    scale: float
    common_scale: float
    factors: Mapping[str, float]

    def split(self, trace: Trace) -> tuple[Tensor, Tensor]:
        """Log densities of the particles: of the global sites, and of each plate element.

        The scale of subsampled plates and of all sites alike is left out; others, and masks, count.

        Args:
            trace: A trace of the host with all particles.

        Returns:
            Shape `(num_particles,)`, and `(num_particles, *plates)` with size 1 at the plates that
            have no weights of their own.
        """
        shared, own = torch.zeros(()), torch.zeros(())
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            part = self._log_density(name, site)
            if name in self.global_sites:
                shared = shared + part.reshape(len(part), -1).sum(1)
            else:
                summed = [dim for dim in range(self.particle_dim + 1, 0) if dim not in self.dims]
                own = own + (part.sum(summed, keepdim=True) if summed else part)
        return shared, own

    def bound(self, shared: Tensor, own: Tensor) -> Tensor:
        """The bound from the log weights of the global sites and of the plate elements."""
        self._check(own.detach())
        elements = own.logsumexp(0) - math.log(len(own))
        return self.common_scale * (shared.mean() + self.scale * elements.sum())

    def weighted(self, weights: Tensor, parts: tuple[Tensor, Tensor]) -> Tensor:
        """The mean of log densities as `split` gives them, under weights of the particles.

        Its gradient is that of the bound where the weights are those of its particles.
        """
        shared, own = parts
        return self.common_scale * (shared.mean() + self.scale * (weights * own).sum())

    def element_means(self, weights: Tensor, trace: Trace) -> Tensor:
        """Weighted log densities, for each site the mean over its plate elements, summed.

        The scale of subsampled plates and of all sites alike is left out, as for `split`; what is
        masked does not count as an element.

        Args:
            weights: Of the particles, as `split` shapes them.
            trace: A trace of the host with all particles.
        """
        total = torch.zeros(())
        for name, site in trace.items():
            if site["type"] == "sample":
                part = self._log_density(name, site)
                weighted = (weights * part).sum()
                count = scale_and_mask(torch.ones_like(part), 1.0, site["mask"]).sum() / len(part)
                total = total + weighted / count.clamp(min=1.0)
        return total

    def _log_density(self, name: str, site: Mapping[str, Any]) -> Tensor:
        """Of one site, of each particle and plate element, without what is not in its weight."""
        scale = site["scale"] / self.factors[name]
        part = scale_and_mask(site["fn"].log_prob(site["value"]), scale, site["mask"])
        return part.reshape((1,) * (-self.particle_dim - part.ndim) + part.shape)

    def check_every(self, own: Tensor) -> None:
        """Raise a ValueError if a particle of an element has no finite weight."""
        if not bool(own.isfinite().all()):
            first = (~own.detach().isfinite()).nonzero()[0].tolist()
            raise _lost_draw(self.plates, self.dims, first, float(own[tuple(first)]))

    def _check(self, own: Tensor) -> None:
        """Raise a ValueError if all particles of an element have density zero."""
        lost = own.isneginf().all(0)
        if bool(lost.any()):
            raise _lost_element(self.plates, self.dims, lost.nonzero()[0].tolist())


def plan_particles(
    guide_trace: Trace, model_trace: Trace, particle_dim: int, *, nested: bool | None
) -> ParticlePlan:
    """Find the plates whose elements are independent of each other, given the global sites.

    Args:
        guide_trace: A trace of the guide.
        model_trace: A trace of the model with its draws.
        particle_dim: Dimension of the plate of particles.
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
    plates = {
        name: {frame.name: frame for frame in site["cond_indep_stack"] if frame.dim != particle_dim}
        for name, site in sites.items()
    }
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
            (site["scale"], factors[name])
            for trace in (guide_trace, model_trace)
            for name, site in trace.items()
            if name in sites
        ]
    )
    return ParticlePlan(
        particle_dim=particle_dim,
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
