"""Decoders for the user's model that cannot make their latents collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

_BOUND = 3**0.5  # of uniform weights with variance 1
_INITIAL_SUM = 5.0  # of the last weights: the activation bends by 0.2 at most, this makes it 1
_TOLERANCE = 1e-3  # of slopes, above the rounding of single precision on the grid


def smooth_leaky_relu(inputs: Tensor) -> Tensor:
    """The leaky ReLU of slopes 0.2 and 1 without its kink, `0.2 x + 0.8 softplus(x)`.

    Args:
        inputs: Any shape.

    Returns:
        The same shape.
    """
    return 0.2 * inputs + 0.8 * softplus(inputs)


class ConvexPotential(nn.Module):
    """An input convex network plus a bowl: `G(x) = N(x) + a . x + (curvature / 2) |x|^2`.

    `N` is convex, because its hidden layers are joined by positive weights, `exp` of the
    parameters, and its activation is convex and does not fall; so `G` is strongly convex, and its
    gradient moves two points apart at least `curvature` times as far as they are.

    Args:
        in_dim: Number of inputs.
        hidden_dims: Widths of the hidden layers.
        curvature: Smallest curvature.
        activation: Convex and nowhere falling.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        *,
        curvature: float,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.curvature, self.activation = curvature, activation
        ends = [*hidden_dims[1:], 1]
        sums = [*[1.0] * (len(hidden_dims) - 1), _INITIAL_SUM]
        self.weights = nn.ParameterList(
            _BOUND * (2 * torch.rand(width, in_dim) - 1) for width in hidden_dims
        )
        self.biases = nn.ParameterList(
            _BOUND * (2 * torch.rand(width) - 1) for width in hidden_dims
        )
        # Positive weights do not cancel: divided by the number of inputs they sum to a constant.
        self.log_weights = nn.ParameterList(
            torch.rand(end, start) - 0.5 + math.log(total / start)
            for start, end, total in zip(hidden_dims, ends, sums, strict=True)
        )
        self.slope = nn.Parameter(torch.zeros(in_dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """The potential.

        Args:
            inputs: Shape `(*batch, in_dim)`.

        Returns:
            Shape `(*batch,)`.
        """
        below = inputs.new_zeros(())
        for weight, bias, log_weight in zip(
            self.weights, self.biases, self.log_weights, strict=True
        ):
            hidden = self.activation(inputs @ weight.T + bias + below)
            below = hidden @ torch.exp(log_weight).T
        bowl = 0.5 * self.curvature * (inputs**2).sum(-1)
        return below[..., 0] + inputs @ self.slope + bowl

    def gradient(self, inputs: Tensor) -> Tensor:
        """The gradient of the potential.

        Args:
            inputs: Shape `(*batch, in_dim)`.

        Returns:
            Shape `(*batch, in_dim)`.
        """
        # Unlike torch.autograd.grad, it also works where the caller has switched gradients off.
        return torch.func.grad(lambda points: self(points).sum())(inputs)


class InverseLipschitzDecoder(nn.Module):
    """A network that keeps points apart: `|f(z) - f(z')| >= L |z - z'|` for all z and z'.

    `f(z) = grad G2(B grad G1(z))`, with `G1` and `G2` input convex networks plus
    `(sqrt(L) / 2) |.|^2` and orthonormal columns `B`: each gradient moves points apart at least
    `sqrt(L)` times as far as they are, and `B` keeps their distance. `B` is learned with the rest.

    Use it in a model, for the mean of a likelihood whose latents would otherwise collapse to
    their prior, and raise `L` until enough of them are active (`Posterior.rates`,
    `amortize_diagnostics.active_units`). With noise `s` a linear decoder of this kind keeps
    `I(x; z) >= in_dim / 2 * log(1 + L^2 / s^2)` nats. What the bound forces on a latent that the
    data do not need is noise in the reconstruction; `L = 0` is free of it. A forward pass is
    a gradient, so that training takes second derivatives.

    It differs from the paper: the activation is smooth, because the gradient of a piecewise
    linear potential moves in jumps; `B` is learned; and the constant is that of the whole map.

    Args:
        in_dim: Size of the latent.
        out_dim: Size of the output, at least `in_dim`.
        inverse_lipschitz: The constant `L`, at least 0, in units of output per unit of latent.
        hidden_dims: Widths of the hidden layers of each convex network.
        activation: Of tensors of any shape, element by element; convex and nowhere falling.

    Raises:
        ValueError: If a size or the constant is out of range, or if the activation is not convex
            or falls somewhere, found on a grid from -20 to 20.

    Example:
        >>> decoder = InverseLipschitzDecoder(2, 5, inverse_lipschitz=0.5)
        >>> z = torch.randn(100, 2)
        >>> moved = decoder(z) - decoder(z.flip(0))
        >>> bool((moved.norm(dim=1) >= 0.4999 * (z - z.flip(0)).norm(dim=1)).all())
        True

    References:
        Kinoshita, Oono, Fukumizu, Yoshida and Maeda (2023), Controlling posterior collapse by an
        inverse Lipschitz constraint on the decoder network, arXiv:2304.12770; Amos, Xu and Kolter
        (2017), Input convex neural networks, arXiv:1609.07152.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        inverse_lipschitz: float,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Callable[[Tensor], Tensor] = smooth_leaky_relu,
    ) -> None:
        super().__init__()
        check_decoder(in_dim, out_dim, inverse_lipschitz, hidden_dims)
        check_activation(activation)
        curvature = math.sqrt(inverse_lipschitz)
        self.inner = ConvexPotential(
            in_dim, hidden_dims, curvature=curvature, activation=activation
        )
        self.outer = ConvexPotential(
            out_dim, hidden_dims, curvature=curvature, activation=activation
        )
        self.directions = nn.Parameter(torch.randn(out_dim, in_dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """The map.

        Args:
            inputs: Latents, shape `(*batch, in_dim)`.

        Returns:
            Shape `(*batch, out_dim)`.
        """
        basis, triangle = torch.linalg.qr(self.directions)
        basis = basis * torch.sign(torch.diagonal(triangle))  # QR leaves the signs open
        return self.outer.gradient(self.inner.gradient(inputs) @ basis.T)


def check_decoder(
    in_dim: int, out_dim: int, inverse_lipschitz: float, hidden_dims: Sequence[int]
) -> None:
    """Raise a ValueError if there is no such decoder.

    Args:
        in_dim: Size of the latent.
        out_dim: Size of the output.
        inverse_lipschitz: The constant.
        hidden_dims: Widths of the hidden layers.
    """
    if not 1 <= in_dim <= out_dim:
        raise ValueError(
            f"out_dim: expected at least in_dim, and in_dim at least 1, got in_dim={in_dim} and "
            f"out_dim={out_dim}. No smooth map to fewer dimensions keeps points apart; use fewer "
            "latents."
        )
    if not (math.isfinite(inverse_lipschitz) and inverse_lipschitz >= 0):
        raise ValueError(
            f"inverse_lipschitz: expected a number of at least 0, got {inverse_lipschitz}. Use 0 "
            "for no bound."
        )
    if not hidden_dims or min(hidden_dims) < 1:
        raise ValueError(
            f"hidden_dims: expected one positive width or more, got {tuple(hidden_dims)}. Use "
            "(64, 64) or the like."
        )


def check_activation(activation: Callable[[Tensor], Tensor]) -> None:
    """Raise a ValueError if an activation is seen not to be convex, or to fall.

    Args:
        activation: A function of tensors, element by element.
    """
    grid = torch.linspace(-20.0, 20.0, 161)
    slopes = torch.diff(activation(grid)) / torch.diff(grid)
    if not bool((slopes > -_TOLERANCE).all() and (torch.diff(slopes) > -_TOLERANCE).all()):
        raise ValueError(
            "activation: expected a convex function that falls nowhere, got one that bends "
            "downwards, falls or is not a number between -20 and 20. Use softplus or a leaky "
            "ReLU; tanh, GELU and SiLU are not convex."
        )
