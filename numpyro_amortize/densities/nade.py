"""Order-agnostic NADE: any coordinate of a vector given any others, of labels or real."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.base import ConditionalDensity, DiscreteDensity
from numpyro_amortize.densities.gaussian import floored
from numpyro_amortize.discrete import discrete_features, feature_width
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import join_features
from numpyro_amortize.supports import Support

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

    def features(self, value: Array) -> Array:
        """What the network reads of values, `(*batch, size, num_features)`."""

    def log_prob(self, parameters: Array, value: Array) -> Array:
        """Log probability or density in nats; `parameters` has one axis more than `value`."""

    def sample(self, parameters: Array, rng_key: Array) -> Array:
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
        >>> density = NADEDensity(hidden_dims=(8,)).build(1, 2, 3, support, jax.random.key(0))
        >>> jnp.exp(density(jnp.ones((1, 3))).log_prob(jnp.zeros((1, 2))))
        Array([0.25], dtype=float32)

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
        self,
        num_sites: int,
        event_size: int,
        context_size: int,
        support: Support,
        rng_key: Array,
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
            rng_key=rng_key,
        )
        return ConditionalNADE(network, coordinate, event_size, self.num_orders)


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

    def features(self, value: Array) -> Array:
        zero = jnp.zeros(value.shape[-1])
        features = discrete_features(self.values, value, zero, zero + 1)
        return features.reshape(*value.shape, self.num_features)

    def log_prob(self, parameters: Array, value: Array) -> Array:
        log_probs = jax.nn.log_softmax(parameters, axis=-1)
        label = jnp.clip(jnp.round(value), 0, parameters.shape[-1] - 1)
        label, value = (jnp.broadcast_to(each, log_probs.shape[:-1]) for each in (label, value))
        found = jnp.take_along_axis(log_probs, label.astype(int)[..., None], axis=-1)[..., 0]
        return jnp.where(label == value, found, -jnp.inf)

    def sample(self, parameters: Array, rng_key: Array) -> Array:
        return jax.random.categorical(rng_key, parameters).astype(parameters.dtype)


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

    def features(self, value: Array) -> Array:
        return jnp.arcsinh(value)[..., None]

    def log_prob(self, parameters: Array, value: Array) -> Array:
        logits, loc, scale = self._parts(parameters)
        terms = jax.scipy.stats.norm.logpdf(value[..., None], loc, scale)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + terms, axis=-1)

    def sample(self, parameters: Array, rng_key: Array) -> Array:
        logits, loc, scale = self._parts(parameters)
        first, second = jax.random.split(rng_key)
        chosen = jax.random.categorical(first, logits)[..., None]
        drawn = loc + scale * jax.random.normal(second, loc.shape, loc.dtype)
        return jnp.take_along_axis(drawn, chosen, axis=-1)[..., 0]

    def _parts(self, parameters: Array) -> tuple[Array, Array, Array]:
        logits, loc, scale = jnp.split(parameters, 3, axis=-1)
        start, width = first_components(self.num_components)
        return logits, loc + jnp.asarray(start, loc.dtype), width * floored(scale, _LEAST_SCALE)


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

    network: StackedMLP
    coordinate: Coordinate = eqx.field(static=True)
    event_size: int = eqx.field(static=True)
    num_orders: int = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> NADEDistribution:
        """The densities given contexts."""
        return NADEDistribution(self, context, index)

    def outputs(self, context: Array, index: int | None, value: Array, known: Array) -> Array:
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
        seen = seen.reshape(*seen.shape[:-2], -1)
        outputs = self.network(join_features([seen, known, context]), index)
        return outputs.reshape(*outputs.shape[:-1], value.shape[-1], -1)


class NADEDistribution(dist.Distribution):
    """Vectors of whole numbers from 0 or of real ones, the mean over some orders.

    Args:
        density: The networks.
        context: Features, `(*batch, context_size)`.
        index: The site, or None for all.
    """

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
        """The same: labels have no scale, and real values come standardised."""
        return self

    @property
    def support(self) -> Any:
        """The constraint of the vector."""
        return self.density.coordinate.support

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
            parameters = self.density.outputs(self.context, self.index, value, known)
            drawn = self.density.coordinate.sample(parameters, own_key)
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
        parameters = self.density.outputs(context, self.index, rows, mask)
        found = self.density.coordinate.log_prob(parameters, rows)
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
        parameters = self.density.outputs(self.context, self.index, value, known)
        found = self.density.coordinate.log_prob(parameters, value)
        share = size / (size - num_known[..., 0])
        return -share * jnp.sum((1 - known) * found, axis=-1)
