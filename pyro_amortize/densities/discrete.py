"""Vectors of whole numbers, one coordinate after the other, and what a family says about one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_amortize.densities.base import (
    ConditionalDensity,
    SiteDistribution,
    host_batch_shape,
)
from pyro_amortize.discrete import discrete_features, feature_width
from pyro_amortize.networks import StackedMLP
from pyro_amortize.pooling import join_features
from pyro_amortize.structure import ModelStructure, SiteInfo
from pyro_amortize.supports import Support


class IntegerFamily(Protocol):
    """Probabilities of one whole number, counted from 0, as a function of some parameters.

    Location and scale are those of `log(1 + number)` over the prior predictive; a family that
    has no use for them leaves them alone.
    """

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one coordinate."""

    def log_prob(self, parameters: Tensor, number: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Log probability in nats; `parameters` has one axis more than `number`."""

    def sample(self, parameters: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """One draw for each row of `parameters`."""


class ConditionalIntegers(ConditionalDensity):
    """The built form of a `DiscreteDensity`: a perceptron for each coordinate of each site.

    Args:
        family: What a coordinate's parameters mean.
        support: The support of the sites.
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Number of context features.
        hidden_dims: Widths of the hidden layers.
    """

    def __init__(
        self,
        family: IntegerFamily,
        support: Support,
        num_sites: int,
        event_size: int,
        context_size: int,
        hidden_dims: Sequence[int],
    ) -> None:
        super().__init__()
        self.family, self.support, self.event_size = family, support, event_size
        self.network = StackedMLP(
            num_sites * event_size,
            context_size + (event_size - 1) * feature_width(support),
            hidden_dims,
            family.num_parameters,
            zero_output=True,
        )

    def forward(self, context: Tensor, index: int | None = None) -> IntegerDistribution:
        """The densities given contexts, of counts as yet with location 0 and scale 1."""
        zero = context.new_zeros(self.event_size)
        return IntegerDistribution(self, context, index, zero, zero + 1)

    def coordinate(
        self, number: int, context: Tensor, index: int | None, features: Tensor | None
    ) -> Tensor:
        """Parameters of one coordinate given the features of those before it.

        Args:
            number: Which coordinate.
            context: As for the density.
            index: The one site to evaluate, or None.
            features: Features of all coordinates, `(*batch, event_size, width)`; those from
                `number` on play no part. None if there is but one.

        Returns:
            Shape `(*batch, num_parameters)`.
        """
        if index is None:
            return self.all_coordinates(context, None, features)[..., number, :]
        inputs = self._inputs(number, context, features)
        return self.network(inputs, index * self.event_size + number)

    def all_coordinates(
        self, context: Tensor, index: int | None, features: Tensor | None
    ) -> Tensor:
        """Parameters of all coordinates, `(*batch, event_size, num_parameters)`."""
        numbers = range(self.event_size)
        if index is not None:
            parts = [self.coordinate(number, context, index, features) for number in numbers]
            return torch.stack(parts, -2)
        inputs = [self._inputs(number, context, features) for number in numbers]
        stacked = torch.stack(inputs, 1)
        outputs = self.network(stacked.reshape(-1, *stacked.shape[2:]))
        return torch.moveaxis(outputs.reshape(*stacked.shape[:-1], -1), 1, -2)

    def _inputs(self, number: int, context: Tensor, features: Tensor | None) -> Tensor:
        if features is None:
            return context
        before = torch.zeros_like(features[..., :-1, :])
        before[..., :number, :] = features[..., :number, :]
        return join_features([context, before.flatten(-2)])


class IntegerDistribution(TorchDistribution):
    """Vectors of whole numbers from 0: `log q(u) = sum_d log q(u_d | u_1..u_(d-1))` in nats.

    Args:
        density: The networks.
        context: Features, `(*batch, context_size)`.
        index: The site, or None for all.
        loc: Location of `log(1 + u)`, broadcastable to `(*batch, size)`.
        scale: Its scale.
        batch_shape: Batch shape; that of the context if None.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(
        self,
        density: ConditionalIntegers,
        context: Tensor,
        index: int | None,
        loc: Tensor,
        scale: Tensor,
        batch_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.density, self.context, self.index = density, context, index
        self.loc, self.scale = loc, scale
        self._drawn: tuple[Tensor, Tensor] | None = None
        shape = context.shape[:-1] if batch_shape is None else batch_shape
        event_shape = torch.Size((density.event_size,))
        super().__init__(torch.Size(shape), event_shape, validate_args=False)

    def scaled(self, loc: Tensor, scale: Tensor) -> IntegerDistribution:
        """The same networks with another location and scale of `log(1 + u)`."""
        return IntegerDistribution(
            self.density, self.context, self.index, loc, scale, tuple(self.batch_shape)
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> IntegerDistribution:
        """The same density with more batch axes; draws along them are independent."""
        return IntegerDistribution(
            self.density, self.context, self.index, self.loc, self.scale, tuple(batch_shape)
        )

    def first_parameters(self) -> Tensor:
        """Parameters of the first coordinate, which depend on the context alone."""
        features = None if self.density.event_size == 1 else self._blank(self.context.shape[:-1])
        return self.density.coordinate(0, self.context, self.index, features)

    def label_logits(self) -> Tensor | None:
        """Logits of a scalar label; None if the family is no softmax over all values."""
        is_softmax = self.density.family.num_parameters == self.density.support.num_values
        return self.first_parameters() if is_softmax else None

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        density, shape = self.density, self.shape(sample_shape)
        loc, scale = self.loc.expand(shape), self.scale.expand(shape)
        features = None if density.event_size == 1 else self._blank(shape[:-1])
        values, log_prob = [], self.context.new_zeros(())
        for number in range(density.event_size):
            if number == 0:
                parameters = self.first_parameters()
            else:
                parameters = density.coordinate(number, self.context, self.index, features)
            parameters = parameters.expand(*shape[:-1], parameters.shape[-1])
            moments = loc[..., number], scale[..., number]
            with torch.no_grad():
                values.append(density.family.sample(parameters, *moments))
            log_prob = log_prob + density.family.log_prob(parameters, values[-1], *moments)
            if features is not None:
                own = torch.zeros_like(loc)
                own[..., number] = values[-1]
                features = features.clone()  # the networks keep what they have seen
                features[..., number, :] = self._features(own)[..., number, :]
        value = torch.stack(values, -1)
        self._drawn = value, log_prob
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, shape `(*batch,)`."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        density = self.density
        features = None if density.event_size == 1 else self._features(value)
        parameters = density.all_coordinates(self.context, self.index, features)
        return density.family.log_prob(parameters, value, self.loc, self.scale).sum(-1)

    def _blank(self, batch_shape: Any) -> Tensor:
        width = feature_width(self.density.support)
        return self.context.new_zeros((*batch_shape, self.density.event_size, width))

    def _features(self, value: Tensor) -> Tensor:
        support = self.density.support
        found = discrete_features(support, value, self.loc, self.scale)
        return found.reshape((*value.shape, feature_width(support)))


@runtime_checkable
class Labels(Protocol):
    """What a distribution adds that may be one softmax over the values of a scalar site."""

    def label_logits(self) -> Tensor | None:
        """Logits of the values, `(*batch, num_values)`; None if it is something else."""


def discrete_site_distribution(base: Any, structure: ModelStructure, site: SiteInfo) -> Any:
    """The distribution of a discrete latent site; the host's own where it is exactly that.

    Args:
        base: Density of the values numbered from 0, batch shape aligned.
        structure: The structure of the model.
        site: The latent site.

    Returns:
        A distribution over the site's own values in the host's layout. A scalar boolean or
        label is the host's Bernoulli or Categorical, which hosts can enumerate.
    """
    is_scalar = not (site.event_shape or site.event_plates)
    is_label = is_scalar and site.support.kind in ("boolean", "categorical")
    logits = base.label_logits() if is_label and isinstance(base, Labels) else None
    if logits is None:
        zero = base.context.new_zeros(base.event_shape)
        return SiteDistribution(base, zero, zero + 1, structure, site)
    shape = host_batch_shape(structure, site, logits.shape[:-1])
    logits = logits.reshape(*shape, logits.shape[-1])
    if site.support.kind == "boolean":
        return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0])
    return dist.Categorical(logits=logits)
