"""Flow matching: a velocity learned by regression, followed from noise to the coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_amortize.densities.base import FlowDistribution
from pyro_amortize.densities.ode import OdeStep, Solver
from pyro_amortize.densities.time_network import TimeNetwork, TimeNetworkFamily


@dataclass(frozen=True)
class FlowMatchingDensity(TimeNetworkFamily):
    """A flow along a velocity that is learned without following it.

    Draws follow `dz/dt = v(z, t; c)` from standard normal noise at 0 to the coordinates at 1, and
    `log q(z_1 | c) = log N(z_0; 0, I) - int_0^1 div v(z_t, t; c) dt` in nats. `NPE` trains it by a
    loss of its own, in squared units of the standardised coordinates, summed over them:

        E || v(z_t, t; c) - (z_1 - (1 - s) z_0) ||^2,    z_t = (1 - (1 - s) t) z_0 + t z_1,

    with `z_1` from the simulations, noise `z_0` and `s = sigma_min`. Its minimum is a variance
    that no network can explain and depends on the prior of `t`, so that losses of different
    settings do not compare; compare log densities.

    The velocity is any network: one step of training costs what a perceptron does, whatever the
    posterior looks like, and several modes, bent shapes and many coordinates need no other
    settings. What it costs is paid later: a draw or a density solves the equation, some 50 to 200
    passes of the network, and with densities each for every coordinate. Prefer `SplineFlowDensity`
    for one or two coordinates, or where draws must be quick. Bounds train it too, through the
    solver, which is slow: train by `NPE`. Its divergence is exact, so that importance weights are.
    Elements of crossed plates stay independent, as its loss would not train what couples them.

    Args:
        hidden_dims: Widths of the hidden layers.
        sigma_min: Standard deviation around `z_1` at the end of the paths, `s` above.
        time_exponent: Times have the density `(1 + a) t^a`; above zero there are more of them near
            the data, which helps where posteriors are narrow.
        num_times: Times and noises for each simulation, the times spread evenly. They cost little
            beside the embedding and calm the gradient.
        tolerance: Largest error of a step of the solver, which chooses its steps. In a batch, all
            draws take the steps of the most difficult one; numbers then depend on the batch
            within the tolerance. At double precision, 1e-10 brings draws and densities as close.
        num_steps: A fixed number of steps in place of the tolerance, for the same time whatever
            the values; nothing then says how exact it is.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> density = FlowMatchingDensity(hidden_dims=(8,)).build(1, 2, 3)
        >>> flow = density(torch.ones(1, 3))
        >>> flow.log_prob(torch.zeros(1, 2)).shape, flow.training_loss(torch.zeros(1, 2)).shape
        (torch.Size([1]), torch.Size([1]))

    References:
        Wildberger, Dax, Buchholz, Green, Macke and Schoelkopf (2023), arXiv:2305.17161. Several
        times for each simulation and the features of the time are ours. The prior of the times is
        that of the authors' code; the text writes its exponent otherwise.
    """

    hidden_dims: tuple[int, ...] = (64, 64)
    sigma_min: float = 1e-4
    time_exponent: float = 0.0
    num_times: int = 8
    tolerance: float = 1e-5
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min: expected from 0 to below 1, got {self.sigma_min}")
        if not self.time_exponent > -1:
            raise ValueError(f"time_exponent: expected above -1, got {self.time_exponent}")
        if self.num_times < 1:
            raise ValueError(f"num_times: expected at least 1, got {self.num_times}")
        Solver(self.tolerance, self.num_steps)

    def made_of(
        self, network: TimeNetwork, batch_shape: tuple[int, ...], event_size: int
    ) -> MatchedFlow:
        """The distribution that a network stands for."""
        return MatchedFlow(network, batch_shape, event_size, self)


class MatchedFlow(FlowDistribution):
    """A flow along a velocity, and the loss that the velocity is learned by.

    Args:
        network: The velocity.
        batch_shape: Batch shape.
        event_size: Number of coordinates.
        specification: The options.
    """

    def __init__(
        self,
        network: TimeNetwork,
        batch_shape: tuple[int, ...],
        event_size: int,
        specification: FlowMatchingDensity,
    ) -> None:
        self.network, self.specification = network, specification
        axes = torch.eye(event_size).to(network.context)
        solver = Solver(specification.tolerance, specification.num_steps)
        step = OdeStep(network, axes, solver, noise_time=0.0, data_time=1.0)
        super().__init__([step], batch_shape, event_size)

    def training_loss(self, value: Tensor) -> Tensor:
        """Squared error of the velocity on straight paths from noise to values, `(*batch,)`."""
        own, (size,) = self.specification, self.event_shape
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        place = torch.rand(*batch, own.num_times, dtype=value.dtype, device=value.device)
        place = (place + torch.arange(own.num_times, device=value.device)) / own.num_times
        time = place ** (1 / (1 + own.time_exponent))
        start = torch.randn(*time.shape, size, dtype=value.dtype, device=value.device)
        end, slope, share = value[..., None, :], 1 - own.sigma_min, time[..., None]
        path = (1 - slope * share) * start + share * end
        error = self.network.per_draw().velocity(time, path) - (end - slope * start)
        return (error**2).sum(-1).mean(-1)
