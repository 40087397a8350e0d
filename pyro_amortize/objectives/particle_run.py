"""Model and guide run with all particles at once, and gradients at their draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_amortize.objectives.gradients import check_single
from pyro_amortize.objectives.objective import Objective
from pyro_amortize.tracing import Trace, drawn_rows, read_nodes

Values = dict[str, Tensor]
LogWeights = tuple[Tensor, Tensor]  # of what is drawn once for all, and of each plate element


class ParticleObjective(Objective):
    """An objective of several draws of the guide, made in one pass.

    Args:
        num_particles: Draws of the guide, K.
        least: The fewest that make sense.

    Raises:
        ValueError: If there are fewer.
    """

    def __init__(self, num_particles: int, *, least: int = 1) -> None:
        check_num_particles(num_particles, least=least)
        super().__init__(num_particles=num_particles)

    def start(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> ParticleRun:
        """Model and guide at the arguments of one call, in a plate of particles."""
        check_single(guide, self)
        if self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        dim = -int(self.max_plate_nesting) - 1
        plate = pyro.plate("num_particles_vectorized", self.num_particles, dim=dim)
        return ParticleRun(plate(model), plate(guide), args, kwargs, dim)


@dataclass(frozen=True)
class ParticleRun:
    """Model and guide at the arguments of one call, with all particles.

    Args:
        model: The model in the plate of particles.
        guide: The guide in it.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        particle_dim: Dimension (negative) of the plate, left of all others.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    particle_dim: int

    def guide_values(self, given: Values) -> tuple[Values, Trace]:
        """Values of the guide's sites and the rows of its plates, some given, and its trace."""
        trace = self._trace(self.guide, given)
        draws = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        return draws | drawn_rows(trace), trace

    def model_trace(self, values: Values) -> Trace:
        """The trace of the model at values of its latents and rows of its plates."""
        return self._trace(self.model, values)

    def _trace(self, fn: Callable[..., Any], given: Values) -> Trace:
        replayed = poutine.Trace()
        for name, value in given.items():
            replayed.add_node(
                name, name=name, type="sample", is_observed=False, value=value, infer={}
            )
        run = poutine.trace(poutine.replay(fn, trace=replayed))
        return read_nodes(run.get_trace(*self.args, **self.kwargs).nodes)


def difference(first: LogWeights, second: LogWeights) -> LogWeights:
    """Log weights from the log densities of two traces."""
    return first[0] - second[0], first[1] - second[1]


def leaves_of(values: Values) -> Values:
    """The same values, cut from what they were drawn from, to be differentiated by."""
    return {
        name: value.detach().requires_grad_() if value.is_floating_point() else value
        for name, value in values.items()
    }


def inner(first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
    """The inner product of two lists of tensors."""
    products = [(one * other).sum() for one, other in zip(first, second, strict=True)]
    return sum(products, torch.zeros(()))


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of a scalar, zero where it does not depend on an input."""
    if not (inputs and value.requires_grad):
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(each) if part is None else part
        for each, part in zip(inputs, found, strict=True)
    ]


def check_num_particles(num_particles: int, *, least: int = 1) -> None:
    """Raise a ValueError if there are fewer particles than make sense."""
    if not isinstance(num_particles, int) or num_particles < least:
        raise ValueError(
            f"num_particles: expected a whole number of at least {least}, got {num_particles!r}"
        )
