"""What a conditional density is, and how it becomes the distribution of a site."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_amortize.discrete import value_dtype
from pyro_amortize.layout import pack, unpack
from pyro_amortize.structure import ModelStructure, SiteInfo
from pyro_amortize.supports import Support


class ConditionalDensity(nn.Module, ABC):
    """Networks that turn contexts into densities over standardised coordinates.

    One object serves all sites of equal plates and event size; it is evaluated for all of
    them at once, or for one.
    """

    # A plate whose elements it chooses from: their rows are an axis of contexts before the last.
    into: str | None = None

    @abstractmethod
    def forward(self, context: Tensor, index: int | None = None) -> dist.Distribution:
        """The densities given contexts.

        Args:
            context: Shape `(num_sites, *batch, context_size)`; `(*batch, context_size)` with an
                index.
            index: The one site to evaluate, or None.

        Returns:
            A distribution with the batch shape of `context` and event shape `(size,)`.
        """


@runtime_checkable
class OwnLoss(Protocol):
    """What a distribution adds that is not trained by its log density at given values.

    Objectives that learn from given values, such as `NPE`, then use its loss in place of minus
    the log density, through the guide. The density stays what bounds and weights use.
    """

    def training_loss(self, value: Tensor) -> Tensor:
        """A loss whose expectation is least where the density is that of the values.

        Args:
            value: Values, shape `(*batch, size)`.

        Returns:
            Shape `(*batch,)`, in units of its own; it may be random.
        """


@runtime_checkable
class Scaled(Protocol):
    """What a distribution adds that must know where its coordinates lie.

    Those of whole numbers count from 0, and those of angles know where the circle closes.
    """

    def scaled(self, loc: Tensor, scale: Tensor) -> Any:
        """The same density told the location and scale of its coordinates.

        Args:
            loc: Location, broadcastable to `(*batch, size)`.
            scale: Scale, likewise.
        """


class Density(ABC):
    """A specification of a density family for continuous sites; sizes come from the model.

    Subclasses are frozen dataclasses. Whatever they build has reparameterised draws and an exact
    log density, unless its distributions say `has_log_prob = False`.
    """

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a continuous support, in words, or None if it can."""
        return None

    @abstractmethod
    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the networks for sites of equal event size.

        Args:
            num_sites: Number of sites.
            event_size: Number of unconstrained coordinates of each.
            context_size: Number of context features.

        Returns:
            The conditional density.
        """


class DiscreteDensity(ABC):
    """A specification of a family of probabilities; sizes and ranges come from the model.

    Subclasses are frozen dataclasses. Whatever they build has exact log probabilities, which
    sum to one; draws are not reparameterised. Coordinates of one event are drawn one after
    the other, each given those before it. A family that `takes_real_values` builds densities
    of standardised coordinates for continuous supports.
    """

    takes_real_values: ClassVar[bool] = False

    @abstractmethod
    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a support, in words, or None if it can."""

    @abstractmethod
    def build(
        self, num_sites: int, event_size: int, context_size: int, support: Support
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size and support.

        Args:
            num_sites: Number of sites.
            event_size: Number of coordinates of each.
            context_size: Number of context features.
            support: Their discrete support.

        Returns:
            The conditional density, over values numbered from 0.
        """


AnyDensity = Density | DiscreteDensity


def check_has_log_prob(name: str, density: Any) -> None:
    """Raise a TypeError if the density of a site has draws alone.

    Args:
        name: Name of the site.
        density: What a conditional density gave.
    """
    if not getattr(density, "has_log_prob", True):
        family = type(getattr(density, "specification", density)).__name__
        raise TypeError(
            f"site '{name}': its density ({family}) has draws and no log density, "
            "which bounds, weights and log_prob need. Train it by NPE() and use its draws, or give "
            "the site a density that has one, as FlowMatchingDensity or SplineFlowDensity"
        )


class FlowStep(Protocol):
    """One invertible map from standardised coordinates towards standard normal noise."""

    def like(self, shape: torch.Size) -> Tensor:
        """Standard normal noise of the type and device of the step."""

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Image and log determinant, shapes `(*batch, size)` and `(*batch,)`."""

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Preimage and log determinant of `to_noise` there."""


class FlowDistribution(TorchDistribution):
    """A standard normal pushed through the inverses of some steps.

    `log q(u) = log N(f(u); 0, I) + log |det df/du|` in nats, with `f` the composition of the
    steps. A draw and its density need each step once.

    Args:
        steps: Maps towards the noise, the one next to the coordinates first.
        batch_shape: Batch shape.
        event_size: Number of coordinates.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, steps: Sequence[FlowStep], batch_shape: tuple[int, ...], event_size: int
    ) -> None:
        self.steps = tuple(steps)
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size((event_size,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same density with more batch axes; draws along them are independent."""
        return FlowDistribution(self.steps, tuple(batch_shape), self.event_shape[0])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, size)`, differentiable."""
        return self.from_noise(self.noise(sample_shape))

    def noise(self, sample_shape: Any = ()) -> Tensor:
        """Standard normal noise of shape `(*sample_shape, *batch, size)`."""
        return self.steps[0].like(self.shape(sample_shape))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Coordinates whose noise is given; their log density is kept for `log_prob`."""
        value, log_prob = noise, _standard_normal(noise)
        for step in reversed(self.steps):
            value, log_det = step.from_noise(value)
            log_prob = log_prob + log_det
        self._drawn = value, log_prob
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape `(*batch,)`."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        total = value.new_zeros(())
        for step in self.steps:
            value, log_det = step.to_noise(value)
            total = total + log_det
        return _standard_normal(value) + total


def as_flow(density: Any) -> FlowDistribution | None:
    """A density as a flow from standard normal noise, or None if its noise is another."""
    if isinstance(density, FlowDistribution):
        return density
    if isinstance(density, dist.Independent) and isinstance(density.base_dist, dist.Normal):
        step = _Standardise(density.base_dist.loc, density.base_dist.scale)
        return FlowDistribution([step], density.batch_shape, density.event_shape[0])
    return None


class _Standardise:
    """The step of a diagonal normal."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale

    def like(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        return (coordinates - self.loc) / self.scale, -torch.log(self.scale).sum(-1)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc + self.scale * noise, -torch.log(self.scale).sum(-1)


def _standard_normal(noise: Tensor) -> Tensor:
    return -0.5 * (noise**2 + math.log(2 * math.pi)).sum(-1)


class SiteDistribution(TorchDistribution):
    """The guide's distribution of one latent site, on the site's own support.

    Coordinates drawn from `base` are scaled, moved, unfolded and mapped to the support. A
    plate folded into the event stays a batch dimension of the host, so that model and guide
    agree; the joint log density is spread evenly over its elements.

    Args:
        base: Density of the standardised coordinates, batch shape aligned.
        loc: Location of the coordinates, broadcastable to `(*aligned, size)`.
        scale: Their scale.
        structure: The structure of the model.
        site: The latent site.
        batch_shape: Batch shape in the host's layout; the trimmed one of `base` if None.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        base: Any,
        loc: Tensor,
        scale: Tensor,
        structure: ModelStructure,
        site: SiteInfo,
        batch_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.loc, self.scale = loc, scale
        self.structure, self.site = structure, site
        if batch_shape is None:
            batch_shape = host_batch_shape(structure, site, base.batch_shape)
        aligned = [1] * (structure.max_plate_nesting - len(batch_shape)) + list(batch_shape)
        for plate in site.event_plates:
            aligned[structure.plates[plate].dim] = 1
        self.base = base.expand(torch.Size(aligned))
        self.has_rsample = bool(base.has_rsample)  # not of whole numbers
        self.has_log_prob = bool(getattr(base, "has_log_prob", True))
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size(site.event_shape), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """The constraint of the site."""
        constraint = self.site.support.constraint()
        extra = len(self.event_shape) - constraint.event_dim
        return constraints.independent(constraint, extra) if extra else constraint

    def expand(self, batch_shape: Any, _instance: Any = None) -> SiteDistribution:
        """The same density with more batch axes; draws along them are independent."""
        return SiteDistribution(
            self.base, self.loc, self.scale, self.structure, self.site, tuple(batch_shape)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, *event)`, constrained, differentiable."""
        return self.from_coordinates(self.base.rsample(sample_shape), sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, *event)`, constrained."""
        if self.has_rsample:
            return super().sample(sample_shape)
        return self.from_coordinates(self.base.sample(sample_shape), sample_shape)

    def from_coordinates(self, coordinates: Tensor, sample_shape: Any = ()) -> Tensor:
        """Values on the support, from coordinates; their log density is kept for `log_prob`."""
        value, log_det = unpack(self.structure, self.site, self.loc + self.scale * coordinates)
        value = value.reshape(self.shape(sample_shape))
        if self.site.support.is_discrete:
            value = value.to(value_dtype(self.site.support))
        if not self.has_log_prob:
            return value
        log_prob = self.base.log_prob(coordinates) - torch.log(self.scale).sum(-1) - log_det
        batch_dims = len(torch.Size(sample_shape)) + len(self.batch_shape)
        self._drawn = value, self.per_element(log_prob, batch_dims)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in the constrained space in nats, shape `(*batch,)`."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        check_has_log_prob(self.site.name, self.base)
        plate_dims = value.ndim - len(self.event_shape)
        batch_dims = max(plate_dims - self.structure.max_plate_nesting, 0)
        coordinates, log_det = pack(self.structure, self.site, value, batch_dims)
        log_prob = self.base.log_prob((coordinates - self.loc) / self.scale)
        log_prob = log_prob - torch.log(self.scale).sum(-1) - log_det
        return self.per_element(log_prob, max(plate_dims, len(self.batch_shape)))

    def per_element(self, log_prob: Tensor, num_dims: int) -> Tensor:
        """A term of the log density of one event, as the host lays it out in so many axes."""
        for plate in self.site.event_plates:
            info = self.structure.plates[plate]
            log_prob = torch.repeat_interleave(log_prob / info.size, info.size, dim=info.dim)
        return log_prob.reshape(log_prob.shape[max(log_prob.ndim - num_dims, 0) :])


def host_batch_shape(
    structure: ModelStructure, site: SiteInfo, aligned: Sequence[int]
) -> tuple[int, ...]:
    """The batch shape of a site as the host writes it: no leading axes of length 1.

    Args:
        structure: The structure of the model.
        site: The latent site.
        aligned: Batch shape with all plate axes, event plates at 1.

    Returns:
        The shape without leading ones to the left of all plates of the site; with batch axes,
        which may have length 1 too, the whole shape.
    """
    shape = list(aligned)
    for plate in site.event_plates:
        shape[structure.plates[plate].dim] = structure.plates[plate].size
    if len(shape) > structure.max_plate_nesting:
        return tuple(shape)
    own = (*site.plates, *site.event_plates)
    kept = max((-structure.plates[plate].dim for plate in own), default=0)
    while len(shape) > kept and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def site_distribution(
    base: Any,
    loc: Tensor,
    scale: Tensor,
    structure: ModelStructure,
    site: SiteInfo,
) -> Any:
    """The distribution of a latent site; the host's own Normal where it is exactly that.

    Args:
        base: Density of the standardised coordinates, batch shape aligned.
        loc: Location of the coordinates, broadcastable to `(*aligned, size)`.
        scale: Their scale.
        structure: The structure of the model.
        site: The latent site.

    Returns:
        A distribution over constrained values in the host's layout. A Normal on the real line
        is returned as such, so that hosts can use its closed-form Kullback-Leibler divergence.
    """
    is_normal = isinstance(base, dist.Independent) and isinstance(base.base_dist, dist.Normal)
    if not is_normal or site.support.kind != "real" or site.event_plates:
        return SiteDistribution(base, loc, scale, structure, site)
    event_dim = len(site.event_shape)
    parts = torch.broadcast_tensors(loc + scale * base.base_dist.loc, scale * base.base_dist.scale)
    shape = host_batch_shape(structure, site, parts[0].shape[:-1]) + site.event_shape
    mean, spread = (part.reshape(shape) for part in parts)
    return dist.Normal(mean, spread).to_event(event_dim)
