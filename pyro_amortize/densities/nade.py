"""Order-agnostic NADE: any coordinate of a vector given any others, of labels or real."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, DiscreteDensity
from pyro_amortize.densities.gaussian import floored
from pyro_amortize.discrete import discrete_features, feature_width
from pyro_amortize.networks import StackedMLP
from pyro_amortize.pooling import join_features
from pyro_amortize.supports import Support

_LEAST_SCALE = 1e-3  # of the normals, as a share of where they start


class Coordinate(Protocol):
    """What the network says of one coordinate, and how it reads it."""

    @property
    def num_features(self) -> int:
        """Number of features of a known one."""

    @property
    def num_parameters(self) -> int:
        """Number of outputs of the network for one."""

    @property
    def support(self) -> Any:
        """The constraint of the vector."""

    def features(self, value: Tensor) -> Tensor:
        """What the network reads of values, `(*batch, size, num_features)`."""

    def log_prob(self, parameters: Tensor, value: Tensor) -> Tensor:
        """Log probability or density in nats; `parameters` has one axis more than `value`."""

    def sample(self, parameters: Tensor) -> Tensor:
        """One draw for each row of `parameters`."""


@dataclass(frozen=True)
class NADEDensity(DiscreteDensity):
    """One network for all coordinates of a vector, discrete or real, in every order.

    It gives `q(u_j | u_known, c)` for each coordinate and any set of known ones. The density is
    the mean over a few fixed orders `o`, in nats

        log q(u | c) = log (1 / R) sum_r prod_d q(u_{o_d} | u_{o_1}..u_{o_(d-1)}, c),

    and a draw takes one order at random. `NPE` trains it by a loss of its own, one pass of the
    network for a random order and a random number `d - 1` of known coordinates of `D`,

        E (D / (D - d + 1)) sum_{j >= d} -log q(u_{o_j} | u_{o_1}..u_{o_(d-1)}, c),

    which is the mean over all orders of minus the log density in an order, in nats.

    A coordinate is a label of a discrete site; of a continuous one it is a mixture of normals.

    Use it for long vectors of booleans or labels, inclusion indicators for one, where
    `CategoricalDensity` has a network for each coordinate. Draws take as many passes as there are
    coordinates and a log density `R` times as many, all at once. On one coordinate it is
    `CategoricalDensity` with more work. Of real vectors it takes modes that lie apart better than
    flows do, but its draws are not reparameterised: train it by `NPE`, or by `RWS` and others
    whose gradient asks for none.

    Args:
        num_orders: Number of orders of the density, R at most; there are `2 D` to choose from.
        hidden_dims: Widths of the hidden layers.
        num_components: Number of normals of a real coordinate; labels have none.

    Raises:
        ValueError: If `num_orders < 1` or `num_components < 1`.

    Example:
        >>> support = Support("boolean", 0, 1)
        >>> density = NADEDensity(hidden_dims=(8,)).build(1, 2, 3, support)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).exp()
        tensor([0.2500], grad_fn=<ExpBackward0>)

    References:
        Uria, Cote, Gregor, Murray and Larochelle (2016), *Neural autoregressive distribution
        estimation*, JMLR 17, for the loss and the mean over orders; Uria, Murray and Larochelle
        (2013), arXiv:1306.0186, for real values. Orders are turns of the coordinates, forward and
        backward, and not drawn.
    """

    num_orders: int = 4
    hidden_dims: tuple[int, ...] = (64, 64)
    num_components: int = 10
    takes_real_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("num_orders", "num_components"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a support, in words, or None if it can."""
        is_endless = support.is_discrete and support.num_values is None
        return "its range has no upper bound" if is_endless else None

    def build(
        self, num_sites: int, event_size: int, context_size: int, support: Support
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size and support."""
        coordinate: Coordinate = (
            _Label(support) if support.is_discrete else _NormalMixture(self.num_components)
        )
        in_size = event_size * (coordinate.num_features + 1) + context_size
        network = StackedMLP(
            num_sites,
            in_size,
            self.hidden_dims,
            event_size * coordinate.num_parameters,
            zero_output=True,
        )
        return ConditionalNADE(network, coordinate, orders_of(event_size, self.num_orders))


@dataclass(frozen=True)
class _Label:
    """A label of a discrete support, numbered from 0: a softmax."""

    values: Support

    @property
    def num_features(self) -> int:
        return feature_width(self.values)

    @property
    def num_parameters(self) -> int:
        return self.values.num_values or 1

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.nonnegative_integer, 1)

    def features(self, value: Tensor) -> Tensor:
        zero = value.new_zeros(value.shape[-1])
        features = discrete_features(self.values, value, zero, zero + 1)
        return features.reshape(*value.shape, self.num_features)

    def log_prob(self, parameters: Tensor, value: Tensor) -> Tensor:
        label = value.round().clamp(0, parameters.shape[-1] - 1)
        label = label.expand(parameters.shape[:-1])
        found = torch.log_softmax(parameters, -1).gather(-1, label.long()[..., None])[..., 0]
        return torch.where(label == value, found, -torch.inf)

    def sample(self, parameters: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=parameters).sample().to(parameters.dtype)


@dataclass(frozen=True)
class _NormalMixture:
    """A real number: a mixture of normals, at the start a standard normal or so."""

    num_components: int
    num_features: ClassVar[int] = 1

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_components

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def features(self, value: Tensor) -> Tensor:
        return torch.asinh(value)[..., None]

    def log_prob(self, parameters: Tensor, value: Tensor) -> Tensor:
        logits, loc, scale = self._parts(parameters)
        noise = (value[..., None] - loc) / scale
        terms = -0.5 * (noise**2 + math.log(2 * math.pi)) - torch.log(scale)
        return torch.logsumexp(torch.log_softmax(logits, -1) + terms, -1)

    def sample(self, parameters: Tensor) -> Tensor:
        logits, loc, scale = self._parts(parameters)
        chosen = torch.distributions.Categorical(logits=logits).sample()[..., None]
        drawn = loc + scale * torch.randn_like(loc)
        return drawn.gather(-1, chosen)[..., 0]

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, loc, scale = parameters.chunk(3, -1)
        start, width = first_components(self.num_components)
        return logits, loc + parameters.new_tensor(start), width * floored(scale, _LEAST_SCALE)


def first_components(num_components: int) -> tuple[np.ndarray, float]:
    """Where the normals of a real coordinate start: together about a standard normal.

    Args:
        num_components: Number of normals.

    Returns:
        Locations, at quantiles of a normal, and the standard deviation of each.
    """
    middle = (np.arange(num_components) + 0.5) / num_components
    loc = np.array([NormalDist().inv_cdf(share) for share in middle])
    width = 1.0 if num_components == 1 else 0.5
    return loc * np.sqrt(1 - width**2), width


def orders_of(event_size: int, num_orders: int) -> np.ndarray:
    """Orders of the coordinates, `(num_orders, event_size)`: turns, forward and backward.

    Args:
        event_size: Number of coordinates.
        num_orders: Number of orders; fewer are given where there are no more.
    """
    places = np.arange(event_size)
    turns = [np.roll(places, -shift) for shift in places]
    both = [order for turn in turns for order in (turn, turn[::-1])]
    unique = list(dict.fromkeys(tuple(order.tolist()) for order in both))
    return np.array(unique[:num_orders])


class ConditionalNADE(ConditionalDensity):
    """The built form of `NADEDensity`."""

    def __init__(self, network: StackedMLP, coordinate: Coordinate, orders: np.ndarray) -> None:
        super().__init__()
        self.network, self.coordinate, self.orders = network, coordinate, orders

    def forward(self, context: Tensor, index: int | None = None) -> NADEDistribution:
        """The densities given contexts."""
        return NADEDistribution(self, context, index)

    def outputs(self, context: Tensor, index: int | None, value: Tensor, known: Tensor) -> Tensor:
        """What the network says of every coordinate given the known ones.

        Args:
            context: Shape `(*batch, context_size)`.
            index: The one site to evaluate, or None.
            value: Values, those of labels numbered from 0, shape `(*batch, size)`.
            known: 1 where a coordinate is known and 0 elsewhere, broadcastable to them.

        Returns:
            Shape `(*batch, size, num_parameters)`, as the coordinate reads them.
        """
        seen = self.coordinate.features(value) * known[..., None]
        outputs = self.network(join_features([seen.flatten(-2), known, context]), index)
        return outputs.reshape(*outputs.shape[:-1], value.shape[-1], -1)


class NADEDistribution(TorchDistribution):
    """Vectors of whole numbers from 0 or of real ones, the mean over some orders.

    Args:
        density: The networks.
        context: Features, `(*batch, context_size)`.
        index: The site, or None for all.
        batch_shape: Batch shape; that of the context if None.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(
        self,
        density: ConditionalNADE,
        context: Tensor,
        index: int | None,
        batch_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.density, self.context, self.index = density, context, index
        shape = context.shape[:-1] if batch_shape is None else batch_shape
        event_shape = torch.Size((density.orders.shape[1],))
        super().__init__(torch.Size(shape), event_shape, validate_args=False)

    def scaled(self, loc: Tensor, scale: Tensor) -> NADEDistribution:
        """The same: labels have no scale, and real values come standardised."""
        return self

    @constraints.dependent_property
    def support(self) -> Any:
        """The constraint of the vector."""
        return self.density.coordinate.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> NADEDistribution:
        """The same density with more batch axes; draws along them are independent."""
        return NADEDistribution(self.density, self.context, self.index, tuple(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        shape = self.shape(sample_shape)
        orders = torch.as_tensor(self.density.orders, device=self.context.device)
        chosen = orders[torch.randint(len(orders), shape[:-1], device=self.context.device)]
        value = self.context.new_zeros(shape)
        known = torch.zeros_like(value)
        with torch.no_grad():
            for number in range(shape[-1]):
                place = chosen[..., number, None]
                parameters = self.density.outputs(self.context, self.index, value, known)
                drawn = self.density.coordinate.sample(parameters)
                value = value.scatter(-1, place, drawn.gather(-1, place))
                known = known.scatter(-1, place, 1.0)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, shape `(*batch,)`."""
        num_orders = len(self.density.orders)
        return torch.logsumexp(self.log_prob_in(value), -1) - math.log(num_orders)

    def log_prob_in(self, value: Tensor, orders: np.ndarray | None = None) -> Tensor:
        """Log probability in each order, `(*batch, num_orders)`, in nats.

        Args:
            value: Shape `(*batch, size)`.
            orders: Orders of the coordinates, `(num_orders, size)`; those of the density if None.
        """
        orders = self.density.orders if orders is None else orders
        num_orders, size = orders.shape
        # One pass for all: in row (r, d) the first d coordinates of order r are known.
        known = np.argsort(orders)[:, None, :] < np.arange(size)[:, None]
        mask = value.new_tensor(known.reshape(num_orders * size, size))
        context, rows = self.context[..., None, :], value[..., None, :]
        parameters = self.density.outputs(context, self.index, rows, mask)
        found = self.density.coordinate.log_prob(parameters, rows)
        place = torch.as_tensor(orders.reshape(-1, 1), device=value.device)
        found = found.gather(-1, place.expand(*found.shape[:-1], 1))[..., 0]
        return found.reshape(*found.shape[:-1], num_orders, size).sum(-1)

    def training_loss(self, value: Tensor) -> Tensor:
        """The order-agnostic loss of values in nats, `(*batch,)`."""
        shape = torch.broadcast_shapes(value.shape, (*self.batch_shape, *self.event_shape))
        size, device = shape[-1], value.device
        value = value.expand(shape)
        rank = torch.rand(shape, device=device).argsort(-1)
        num_known = torch.randint(size, (*shape[:-1], 1), device=device)
        known = (rank < num_known).to(value.dtype)
        parameters = self.density.outputs(self.context, self.index, value, known)
        found = self.density.coordinate.log_prob(parameters, value)
        share = size / (size - num_known[..., 0])
        return -share * ((1 - known) * found).sum(-1)
