"""Conditional flows of another library, such as zuko, as densities of a guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_amortize.densities.base import ConditionalDensity, Density


@dataclass(frozen=True)
class ExternalFlowDensity(Density):
    """A conditional flow of another library as a density.

    Any flow of zuko is one, and any module with the same interface. Use it to try a family that
    this package lacks. Each site has a flow of its own, evaluated one after the other, where the
    families of this package evaluate all sites at once. Sites that share plates crosswise get no
    coupling.

    Args:
        make: From the numbers of coordinates and of context features to a module that maps
            contexts `(*batch, context_size)` to a torch distribution over vectors, such as
            `lambda size, context: zuko.flows.NSF(size, context)`. Coordinates are standardised and
            unconstrained.

    Raises:
        TypeError: If `make` gives no module or that no distribution, when the guide is built.
        ValueError: If the distribution has another shape, when the guide is built.

    Note:
        Importing zuko switches off the validation of torch's distributions everywhere. Call
        `torch.distributions.Distribution.set_default_validate_args(True)` after it.

    Example:
        >>> class Linear(torch.nn.Linear):
        ...     def forward(self, context):
        ...         normal = torch.distributions.Normal(super().forward(context), 1.0)
        ...         return torch.distributions.Independent(normal, 1)
        >>> spec = ExternalFlowDensity(lambda size, context: Linear(context, size))
        >>> spec.build(1, 2, 3)(torch.ones(1, 3)).event_shape
        torch.Size([2])
    """

    make: Callable[[int, int], Any]

    def build(self, num_sites: int, event_size: int, context_size: int) -> ConditionalDensity:
        """Build the flows of sites of equal event size."""
        flows = [self.make(event_size, context_size) for _ in range(num_sites)]
        _check(flows[0], event_size, context_size)
        return ConditionalExternalFlow(flows)


def _check(flow: Any, event_size: int, context_size: int) -> None:
    """Evaluate a flow at one context, to see that it gives distributions over vectors."""
    if not isinstance(flow, nn.Module):
        raise TypeError(f"make: expected a torch module, got {type(flow).__name__}")
    with torch.no_grad():
        found = flow(torch.zeros(2, context_size))
    if not isinstance(found, torch.distributions.Distribution):
        raise TypeError(
            f"make: expected a module that maps contexts to a torch distribution, got one that "
            f"maps them to {type(found).__name__}"
        )
    shapes = tuple(found.batch_shape), tuple(found.event_shape)
    if shapes != ((2,), (event_size,)):
        raise ValueError(
            f"make: at contexts of shape {(2, context_size)} expected batch shape (2,) and event "
            f"shape {(event_size,)}, got {shapes[0]} and {shapes[1]}"
        )


class ConditionalExternalFlow(ConditionalDensity):
    """The built form of `ExternalFlowDensity`."""

    def __init__(self, flows: Sequence[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, context: Tensor, index: int | None = None) -> Any:
        """The densities given contexts."""
        if index is not None:
            return ConditionedFlow(self.flows[index](context))
        pairs = zip(self.flows, context, strict=True)
        return FlowsOfSites([ConditionedFlow(flow(own)) for flow, own in pairs])


class ConditionedFlow(TorchDistribution):
    """A conditional flow at given contexts.

    Args:
        flow: The torch distribution.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.has_rsample = bool(flow.has_rsample)
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConditionedFlow:
        """The same density with more batch axes; draws along them are independent."""
        return ConditionedFlow(self.flow.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, size)`, differentiable."""
        return self.flow.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        return self.flow.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape `(*batch,)`."""
        return self.flow.log_prob(value)


class FlowsOfSites(TorchDistribution):
    """Distributions of several sites side by side, along the first batch axis.

    Args:
        flows: Those of the sites, of equal shapes.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, flows: Sequence[ConditionedFlow]) -> None:
        self.flows = tuple(flows)
        self.has_rsample = all(flow.has_rsample for flow in self.flows)
        batch_shape = torch.Size((len(self.flows), *self.flows[0].batch_shape))
        super().__init__(batch_shape, self.flows[0].event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowsOfSites:
        """The same densities with more axes after the first."""
        return FlowsOfSites([flow.expand(torch.Size(batch_shape)[1:]) for flow in self.flows])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, num_sites, *batch, size)`, differentiable."""
        sample_shape = torch.Size(sample_shape)
        return torch.stack([flow.rsample(sample_shape) for flow in self.flows], len(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities in nats, shape `(*sample_shape, num_sites, *batch)`."""
        axis = value.ndim - 1 - len(self.batch_shape)
        pairs = zip(self.flows, value.unbind(axis), strict=True)
        return torch.stack([flow.log_prob(own) for flow, own in pairs], axis)
