"""Order-agnostic NADE: any coordinate of a discrete vector given any others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_amortize.densities.base import ConditionalDensity, DiscreteDensity
from pyro_amortize.discrete import discrete_features, feature_width
from pyro_amortize.networks import StackedMLP
from pyro_amortize.pooling import join_features
from pyro_amortize.supports import Support


@dataclass(frozen=True)
class NADEDensity(DiscreteDensity):
    """One network for all coordinates of a discrete vector, in every order.

    It gives `q(u_j | u_known, c)` for each coordinate and any set of known ones. The density is
    the mean over a few fixed orders `o`, in nats

        log q(u | c) = log (1 / R) sum_r prod_d q(u_{o_d} | u_{o_1}..u_{o_(d-1)}, c),

    and a draw takes one order at random. `NPE` trains it by a loss of its own, one pass of the
    network for a random order and a random number `d - 1` of known coordinates of `D`,

        E (D / (D - d + 1)) sum_{j >= d} -log q(u_{o_j} | u_{o_1}..u_{o_(d-1)}, c),

    which is the mean over all orders of minus the log density in an order, in nats.

    Use it for long vectors of booleans or labels, inclusion indicators for one, where
    `CategoricalDensity` has a network for each coordinate. Draws take as many passes as there are
    coordinates and a log density `R` times as many, all at once. On one coordinate it is
    `CategoricalDensity` with more work.

    Args:
        num_orders: Number of orders of the density, R at most; there are `2 D` to choose from.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If `num_orders < 1`.

    Example:
        >>> support = Support("boolean", 0, 1)
        >>> density = NADEDensity(hidden_dims=(8,)).build(1, 2, 3, support)
        >>> density(torch.ones(1, 3)).log_prob(torch.zeros(1, 2)).exp()
        tensor([0.2500], grad_fn=<ExpBackward0>)

    References:
        Uria, Cote, Gregor, Murray and Larochelle (2016), *Neural autoregressive distribution
        estimation*, JMLR 17, for the loss and the mean over orders. Orders are turns of the
        coordinates, forward and backward, and not drawn.
    """

    num_orders: int = 4
    hidden_dims: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        if self.num_orders < 1:
            raise ValueError(f"num_orders: expected at least 1, got {self.num_orders}")

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a discrete support, in words, or None if it can."""
        return "its range has no upper bound" if support.num_values is None else None

    def build(
        self, num_sites: int, event_size: int, context_size: int, support: Support
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size and support."""
        num_values = support.num_values or 1
        in_size = event_size * (feature_width(support) + 1) + context_size
        network = StackedMLP(
            num_sites, in_size, self.hidden_dims, event_size * num_values, zero_output=True
        )
        return ConditionalNADE(network, support, orders_of(event_size, self.num_orders))


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

    def __init__(self, network: StackedMLP, support: Support, orders: np.ndarray) -> None:
        super().__init__()
        self.network, self.support, self.orders = network, support, orders

    def forward(self, context: Tensor, index: int | None = None) -> NADEDistribution:
        """The densities given contexts."""
        return NADEDistribution(self, context, index)

    def log_probs(self, context: Tensor, index: int | None, value: Tensor, known: Tensor) -> Tensor:
        """Log probabilities of every value of every coordinate given the known ones.

        Args:
            context: Shape `(*batch, context_size)`.
            index: The one site to evaluate, or None.
            value: Values numbered from 0, shape `(*batch, size)`.
            known: 1 where a coordinate is known and 0 elsewhere, broadcastable to them.

        Returns:
            Shape `(*batch, size, num_values)`, in nats.
        """
        width, zero = feature_width(self.support), value.new_zeros(value.shape[-1])
        features = discrete_features(self.support, value, zero, zero + 1)
        seen = features.reshape(*value.shape, width) * known[..., None]
        outputs = self.network(join_features([seen.flatten(-2), known, context]), index)
        shape = (*outputs.shape[:-1], value.shape[-1], -1)
        return torch.log_softmax(outputs.reshape(shape), -1)


class NADEDistribution(TorchDistribution):
    """Vectors of whole numbers from 0, the mean over some orders.

    Args:
        density: The networks.
        context: Features, `(*batch, context_size)`.
        index: The site, or None for all.
        batch_shape: Batch shape; that of the context if None.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
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
        """The same: values are labels here, which have no scale."""
        return self

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
                log_probs = self.density.log_probs(self.context, self.index, value, known)
                drawn = torch.distributions.Categorical(logits=log_probs).sample()
                value = value.scatter(-1, place, drawn.gather(-1, place).to(value.dtype))
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
        log_probs = self.density.log_probs(context, self.index, rows, mask)
        found = _chosen(log_probs, rows)
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
        found = _chosen(self.density.log_probs(self.context, self.index, value, known), value)
        share = size / (size - num_known[..., 0])
        return -share * ((1 - known) * found).sum(-1)


def _chosen(log_probs: Tensor, value: Tensor) -> Tensor:
    """Log probabilities of the values, `(*batch, size)`; minus infinity off the support."""
    label = value.round().clamp(0, log_probs.shape[-1] - 1)
    label = label.expand(log_probs.shape[:-1])
    found = log_probs.gather(-1, label.long()[..., None])[..., 0]
    return torch.where(label == value, found, -torch.inf)
