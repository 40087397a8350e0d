"""One optimiser step, and what went wrong when its loss or gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_amortize.clipping import gradient_clipping
from pyro_amortize.compiled import CompiledFunction, Compiler, Evaluation
from pyro_amortize.guides import AmortizedGuide
from pyro_amortize.handlers import fill_missing
from pyro_amortize.measure import Call
from pyro_amortize.objectives import NPE, VIS
from pyro_amortize.objectives.mixed import parts_of
from pyro_amortize.objectives.over_data_sets import OverDataSets
from pyro_amortize.recording import Outputs
from pyro_amortize.tracing import is_rows, log_densities, random_state, seeded, set_random_state

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class StepResult(NamedTuple):
    """What one step found: its loss, the norm of its gradient, the simulations left out."""

    loss: float
    gradient_norm: float
    num_nonfinite: int

    @property
    def is_finite(self) -> bool:
        """Whether a step was made."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class TrainingStep:
    """The optimiser step of one guide, model and objective.

    Args:
        model: The model.
        guide: The guide, set up.
        objective: The objective.
        call: Arguments of the model.
        optimizer: Makes a torch optimiser from parameters; None for Adam with a cosine-decayed
            rate.
        learning_rate: Initial rate of the default optimiser.
        num_steps: Number of steps of the decay.
        compiler: Makes a function whose recorded operations are run; None to run its Python.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AmortizedGuide,
        objective: Any,
        call: Call,
        *,
        optimizer: MakeOptimizer | None,
        learning_rate: float,
        num_steps: int,
        compiler: Compiler | None = None,
    ) -> None:
        self.guide, structure = guide, guide.structure
        # Simulations have no data to be missing, and many data sets have them in turn.
        is_filled = structure.incomplete and not isinstance(objective, OverDataSets)
        filled = fill_missing(model, optional=structure.optional) if is_filled else model
        self._parts = [
            (part, weight, model if isinstance(part, NPE) else filled)
            for part, weight in parts_of(objective)
        ]
        self._clip = gradient_clipping([part for part, _, _ in self._parts])
        self._parameters = self._find_parameters(call)
        self._schedule = None
        if optimizer is None:
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam(
                self._parameters, lr=learning_rate, fused=True
            )
            self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, num_steps)
        else:
            self._optimizer = optimizer(self._parameters)
        self._random_state = random_state()
        self._gradients: Evaluation = self._loss_and_gradients
        self._held_out: Evaluation = self._held_out_loss
        if compiler is not None:
            self._gradients = compiler(self._gradients)
            self._held_out = compiler(self._held_out)

    def advance(self, call: Call) -> StepResult:
        """One step, which leaves the parameters alone if its loss or gradient is not finite."""
        self._random_state = random_state()
        loss, num_nonfinite, *gradients = self._gradients(call)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = self._clip(self._parameters)
        result = StepResult(float(loss), norm, int(num_nonfinite))
        if result.is_finite:
            self._optimizer.step()
            if self._schedule is not None:
                self._schedule.step()
        return result

    def held_out_loss(self, seeds: Iterable[int], call: Call) -> float:
        """Mean loss over fixed seeds, on simulations that training does not see."""
        values = []
        for seed in seeds:
            with torch.no_grad(), seeded(seed):
                values.append(float(self._held_out(call)[0]))
        return sum(values) / len(values)

    def bank_loss(self, call: Call) -> float:
        """The loss of NPE on all simulations held out of its bank, the same at every call."""
        args, kwargs = call
        objective, _, model = self._parts[0]
        with seeded(0):
            return float(objective.bank_loss(model, self.guide, *args, **kwargs))

    def check_recordings(self, call: Call) -> None:
        """Compare what is recorded with model, guide and objective as they are now.

        Raises:
            ValueError: If they differ.
        """
        if isinstance(self._gradients, CompiledFunction):
            self._gradients.check(call)

    def state(self) -> list[Tensor]:
        """Copies of the parameters, for `restore`."""
        return [value.detach().clone() for value in self._parameters]

    @torch.no_grad()
    def restore(self, state: Iterable[Tensor]) -> None:
        """Put the parameters back to what they were."""
        for value, kept in zip(self._parameters, state, strict=True):
            value.copy_(kept)

    def warn(self, call: Call) -> None:
        """Say what a user of the trained guide should know."""
        if isinstance(self._gradients, CompiledFunction):
            self._gradients.warn()
        args, kwargs = call
        for part, _, model in self._parts:
            if isinstance(part, VIS):
                part.warn_of_tails(model, self.guide, *args, **kwargs)

    def explain(self, call: Call, step: int) -> str:
        """Repeat the last step's loss site by site; name the step and the sites."""
        set_random_state(self._random_state)
        args, kwargs = call
        bad_losses: dict[str, None] = {}
        bad_gradients: dict[str, None] = {}
        for part, _, model in self._parts:
            if isinstance(part, NPE):
                terms = part.site_losses(model, self.guide, *args, **kwargs)
            else:
                terms = _site_densities(model, self.guide, call)
            bad_losses |= {name: None for name, term in terms.items() if not _is_finite(term)}
            if bad_losses:
                continue
            bad_gradients |= {
                name: None for name, term in terms.items() if not self._has_finite_gradient(term)
            }
        return not_finite_message(step, list(bad_losses), list(bad_gradients))

    def _has_finite_gradient(self, term: Tensor) -> bool:
        if not term.requires_grad:
            return True
        gradients = torch.autograd.grad(
            term.sum(), self._parameters, retain_graph=True, allow_unused=True
        )
        return all(_is_finite(each) for each in gradients if each is not None)

    def _loss_and_gradients(self, call: Call) -> Outputs:
        """The loss, the number of simulations that are not finite, and gradients."""
        args, kwargs = call
        for parameter in self._parameters:
            parameter.grad = None
        total, count = torch.zeros(()), torch.zeros((), dtype=torch.int)
        for part, weight, model in self._parts:
            if isinstance(part, NPE):
                loss, count = part.loss_and_count(model, self.guide, *args, **kwargs)
            elif hasattr(part, "differentiable_loss"):
                loss = part.differentiable_loss(model, self.guide, *args, **kwargs)
            else:  # TraceGraph_ELBO, which is no part of a mixture
                loss = torch.tensor(part.loss_and_grads(model, self.guide, *args, **kwargs))
            if bool(torch.isfinite(loss)) and loss.requires_grad:
                (weight * loss).backward()
            total = total + weight * loss.detach()
        return [total, count, *[parameter.grad for parameter in self._parameters]]

    def _held_out_loss(self, call: Call) -> Outputs:
        args, kwargs = call
        total = torch.zeros(())
        for part, weight, model in self._parts:
            if isinstance(part, NPE):
                loss = part.held_out_loss(model, self.guide, *args, **kwargs)
            elif hasattr(part, "differentiable_loss"):
                loss = part.differentiable_loss(model, self.guide, *args, **kwargs)
            else:
                loss = torch.tensor(part.loss(model, self.guide, *args, **kwargs))
            total = total + weight * loss.detach()
        return [total]

    def _find_parameters(self, call: Call) -> list[Tensor]:
        """The guide's parameters, and under a bound those of the model too."""
        args, kwargs = call
        found = {id(value): value for value in self.guide.parameters()}
        with poutine.trace(param_only=True) as capture:
            for part, _, model in self._parts:
                if not isinstance(part, NPE):
                    part.loss(model, self.guide, *args, **kwargs)
        for site in capture.trace.nodes.values():
            value: Any = site["value"]
            free = value.unconstrained()
            if free.requires_grad:
                found[id(free)] = free
        return list(found.values())


def not_finite_message(step: int, bad_losses: list[str], bad_gradients: list[str]) -> str:
    """Names the step and the sites where the loss or, if none, where its gradient is not finite."""
    if bad_losses:
        return (
            f"step {step}: the loss is not finite, at sites {bad_losses}. Look for draws or data "
            "at the edge of a support and for simulations that overflow; a lower learning_rate "
            "helps if the networks diverge"
        )
    where = f", at sites {bad_gradients}" if bad_gradients else ""
    return (
        f"step {step}: the gradient of the loss is not finite{where}. Look for roots, norms and "
        "quotients at zero and for values that a `where` leaves out; a lower learning_rate helps "
        "if the networks diverge"
    )


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def _site_densities(
    model: Callable[..., Any], guide: AmortizedGuide, call: Call
) -> dict[str, Tensor]:
    """Log densities of one guide draw by site, for the error message."""
    args, kwargs = call
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    found: dict[str, Tensor] = {}
    for trace in (guide_trace, model_trace):
        sites = {
            name: dict(node)
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and not is_rows(node)
        }
        for name, density in log_densities(sites).items():
            found[name] = density.sum() + found.get(name, 0.0)
    return found
