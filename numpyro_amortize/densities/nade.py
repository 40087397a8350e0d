"""Order-agnostic NADE: any coordinate of a discrete vector given any others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.base import ConditionalDensity, DiscreteDensity
from numpyro_amortize.discrete import discrete_features, feature_width
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import join_features
from numpyro_amortize.supports import Support


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
        >>> density = NADEDensity(hidden_dims=(8,)).build(1, 2, 3, support, jax.random.key(0))
        >>> jnp.exp(density(jnp.ones((1, 3))).log_prob(jnp.zeros((1, 2))))
        Array([0.25], dtype=float32)

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
        self,
        num_sites: int,
        event_size: int,
        context_size: int,
        support: Support,
        rng_key: Array,
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size and support."""
        num_values = support.num_values or 1
        in_size = event_size * (feature_width(support) + 1) + context_size
        network = StackedMLP(
            num_sites,
            in_size,
            self.hidden_dims,
            event_size * num_values,
            zero_output=True,
            rng_key=rng_key,
        )
        return ConditionalNADE(network, support, event_size, self.num_orders)


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

    network: StackedMLP
    support: Support = eqx.field(static=True)
    event_size: int = eqx.field(static=True)
    num_orders: int = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> NADEDistribution:
        """The densities given contexts."""
        return NADEDistribution(self, context, index)

    def log_probs(self, context: Array, index: int | None, value: Array, known: Array) -> Array:
        """Log probabilities of every value of every coordinate given the known ones.

        Args:
            context: Shape `(*batch, context_size)`.
            index: The one site to evaluate, or None.
            value: Values numbered from 0, shape `(*batch, size)`.
            known: 1 where a coordinate is known and 0 elsewhere, broadcastable to them.

        Returns:
            Shape `(*batch, size, num_values)`, in nats.
        """
        width, zero = feature_width(self.support), jnp.zeros(value.shape[-1])
        features = discrete_features(self.support, value, zero, zero + 1)
        seen = features.reshape(*value.shape, width) * known[..., None]
        seen = seen.reshape(*seen.shape[:-2], -1)
        outputs = self.network(join_features([seen, known, context]), index)
        shape = (*outputs.shape[:-1], value.shape[-1], -1)
        return jax.nn.log_softmax(outputs.reshape(shape), axis=-1)


class NADEDistribution(dist.Distribution):
    """Vectors of whole numbers from 0, the mean over some orders.

    Args:
        density: The networks.
        context: Features, `(*batch, context_size)`.
        index: The site, or None for all.
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, density: ConditionalNADE, context: Array, index: int | None) -> None:
        self.density, self.context, self.index = density, context, index
        self.orders = orders_of(density.event_size, density.num_orders)
        super().__init__(
            batch_shape=context.shape[:-1],
            event_shape=(density.event_size,),
            validate_args=False,
        )

    def scaled(self, loc: Array, scale: Array) -> NADEDistribution:
        """The same: values are labels here, which have no scale."""
        return self

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        shape = self.shape(sample_shape)
        order_key, key = jax.random.split(key)
        chosen = jax.random.randint(order_key, shape[:-1], 0, len(self.orders))
        chosen = jnp.asarray(self.orders)[chosen]
        value = jnp.zeros(shape, self.context.dtype)
        known = jnp.zeros_like(value)
        for number, own_key in enumerate(jax.random.split(key, shape[-1])):
            is_next = chosen[..., number, None] == jnp.arange(shape[-1])
            log_probs = self.density.log_probs(self.context, self.index, value, known)
            drawn = jax.random.categorical(own_key, log_probs).astype(value.dtype)
            value = jnp.where(is_next, drawn, value)
            known = jnp.where(is_next, 1.0, known)
        return jax.lax.stop_gradient(value)

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws, and nothing else: their log probability is that of all orders."""
        return self.sample(key, sample_shape), []

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log probability in nats, shape `(*batch,)`."""
        return jax.nn.logsumexp(self.log_prob_in(value), axis=-1) - math.log(len(self.orders))

    def log_prob_in(self, value: Array, orders: np.ndarray | None = None) -> Array:
        """Log probability in each order, `(*batch, num_orders)`, in nats.

        Args:
            value: Shape `(*batch, size)`.
            orders: Orders of the coordinates, `(num_orders, size)`; those of the density if None.
        """
        orders = self.orders if orders is None else orders
        num_orders, size = orders.shape
        # One pass for all: in row (r, d) the first d coordinates of order r are known.
        known = np.argsort(orders)[:, None, :] < np.arange(size)[:, None]
        mask = jnp.asarray(known.reshape(num_orders * size, size), value.dtype)
        context, rows = self.context[..., None, :], value[..., None, :]
        log_probs = self.density.log_probs(context, self.index, rows, mask)
        found = _chosen(log_probs, rows)
        place = np.broadcast_to(orders.reshape(-1, 1), (*found.shape[:-1], 1))
        found = jnp.take_along_axis(found, place, axis=-1)[..., 0]
        return jnp.sum(found.reshape(*found.shape[:-1], num_orders, size), axis=-1)

    def training_loss(self, value: Array, rng_key: Array) -> Array:
        """The order-agnostic loss of values in nats, `(*batch,)`."""
        shape = jnp.broadcast_shapes(value.shape, (*self.batch_shape, *self.event_shape))
        size, (rank_key, key) = shape[-1], jax.random.split(rng_key)
        value = jnp.broadcast_to(value, shape)
        rank = jnp.argsort(jax.random.uniform(rank_key, shape), axis=-1)
        num_known = jax.random.randint(key, (*shape[:-1], 1), 0, size)
        known = (rank < num_known).astype(self.context.dtype)
        found = _chosen(self.density.log_probs(self.context, self.index, value, known), value)
        share = size / (size - num_known[..., 0])
        return -share * jnp.sum((1 - known) * found, axis=-1)


def _chosen(log_probs: Array, value: Array) -> Array:
    """Log probabilities of the values, `(*batch, size)`; minus infinity off the support."""
    label = jnp.clip(jnp.round(value), 0, log_probs.shape[-1] - 1)
    label, value = (jnp.broadcast_to(each, log_probs.shape[:-1]) for each in (label, value))
    found = jnp.take_along_axis(log_probs, label.astype(int)[..., None], axis=-1)[..., 0]
    return jnp.where(label == value, found, -jnp.inf)
