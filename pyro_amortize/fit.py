"""The one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pyro.infer.elbo import ELBO
from tqdm import tqdm

from pyro_amortize.arguments import drawn_call
from pyro_amortize.compiled import make_compiler
from pyro_amortize.early_stopping import early_stopping
from pyro_amortize.fit_members import fit_members
from pyro_amortize.guides import AnyGuide, EnsembleGuide
from pyro_amortize.history import TrainingHistory
from pyro_amortize.measure import Call
from pyro_amortize.objectives import NPE
from pyro_amortize.objectives.bank import nonfinite_message
from pyro_amortize.objectives.gradients import check_gradients
from pyro_amortize.objectives.mixed import parts_of, simulating_part
from pyro_amortize.posterior import AmortizedPosterior
from pyro_amortize.simulate import simulate
from pyro_amortize.tracing import plate_sizes
from pyro_amortize.training_step import MakeOptimizer, TrainingStep

_NUM_REPORTS, _LEAST_BETWEEN_REPORTS = 20, 50  # steps: reports are a few per cent of the time
_REPORTS_PER_CHECK = 5  # of what is recorded
_STEPS_PER_HELD_OUT, _MOST_HELD_OUT, _FIRST_HELD_OUT = 75, 8, 1000  # the last a seed
_ARGUMENT_DRAWS = 16  # calls over which the standardisation is measured
_CHECKED_STEPS, _MOST_CHECKED = 10, 1000  # simulations before the first step


def fit(
    model: Callable[..., Any],
    guide: AnyGuide,
    objective: ELBO,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    model_args: Callable[[], tuple[Any, ...] | dict[str, Any]] | None = None,
    num_steps: int = 3000,
    learning_rate: float = 1e-3,
    optimizer: MakeOptimizer | None = None,
    patience: int | None = None,
    compile: bool = False,
    progress_bar: bool = True,
) -> AmortizedPosterior:
    """Train a guide and return the posterior for every data set.

    Adam with a cosine-decayed rate and clipped gradients, in a lean loop.
    Use any objective: `NPE()` on simulations, or a bound of the host such as `Trace_ELBO()` on
    the data in `args`. Everything is drawn anew at each step, so more steps never overfit,
    except with a fixed bank of simulations.

    Args:
        model: The model that the guide was made for.
        guide: The guide; it is set up if it is not. Of an ensemble each member is trained by
            itself, on draws of its own, or on a bank in an order of its own.
        objective: `NPE` or any `ELBO` of the host.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        model_args: For a bound of the host over many data sets, of any size: draws the model's
            arguments, data among them, for each step in place of `args` and `kwargs`.
            `model_args()` returns a tuple of positional or a dict of keyword arguments.
        num_steps: Number of optimiser steps.
        learning_rate: Initial rate of the default optimiser.
        optimizer: Makes a torch optimiser from parameters, in place of the default one, such as
            `partial(torch.optim.AdamW, lr=1e-3)`; gradients are still clipped.
        patience: For `NPE` on a fixed bank of simulations: stop after so many steps without a
            better loss on those that are held out, and keep the best parameters. The loss is
            measured at least five times in that many steps.
        compile: Whether to record the operations of a step once, for each shape of its arguments,
            and to run these without the Python of model and guide: a step then takes about what
            it would take written by hand. Decisions by values, as `if (x > 0).any()`, are followed.
            Numbers that come from elsewhere are not seen: random ones that are not torch's, or a
            weight that changes between steps and is no tensor. Recordings are compared with the
            model at first, at every fifth report and at the end.
        progress_bar: Whether to show a bar with the loss and simulations per second.

    Returns:
        The trained posterior, with its history.

    Raises:
        ValueError: If simulations are not finite and NPE is not told to drop them, if the
            objective's gradient would be wrong at a discrete site, if arguments come from two
            places, if `patience` is given without a bank, or, with `compile`, if the step cannot
            be recorded or what it does changes between steps.
        FloatingPointError: If the loss or its gradient is not finite, naming the step and the
            sites.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_amortize import AmortizedGuide
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> amortized = fit(model, guide, NPE(), num_steps=2, progress_bar=False)
        >>> amortized.at(y=torch.tensor(0.5)).sample(3)["z"].shape
        torch.Size([3])
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    if isinstance(guide, EnsembleGuide):
        return fit_members(
            fit,
            model,
            guide,
            objective,
            args=args,
            kwargs=kwargs,
            model_args=model_args,
            num_steps=num_steps,
            learning_rate=learning_rate,
            optimizer=optimizer,
            patience=patience,
            compile=compile,
            progress_bar=progress_bar,
        )
    stopping = early_stopping(patience, objective)
    start = time.perf_counter()
    calls: list[Call] = [(tuple(args), dict(kwargs or {}))]
    npe = simulating_part(objective)
    draw_call = _sampler_of_calls(objective, calls[0], model_args)
    if draw_call:
        calls = [draw_call() for _ in range(_ARGUMENT_DRAWS)]
    if npe is objective and draw_call:
        objective = npe = npe.with_fixed_arguments()
    guide.setup_over(calls)
    structure = guide.structure
    for part, _ in parts_of(objective):
        check_gradients(structure, part)
    if npe is not objective and any(info.has_positions for info in structure.missing):
        guide.find_observations(*calls[0])  # NaN in padding would be met inside the loop
    if npe and npe.simulations is None and guide.is_vectorized:
        _check_simulations(guide.model, npe, calls[0])
    is_fixed = not (draw_call or npe is objective or structure.subsampled or structure.missing)
    data = guide.find_observations(*calls[0]) if is_fixed else {}  # read once
    compiler = None
    if compile:
        constants = [*guide.buffers(), *data.values()]
        compiler = make_compiler(objective, constants, draws_arguments=draw_call is not None)
    step = TrainingStep(
        model,
        guide.bind(data) if is_fixed else guide,
        objective,
        calls[0],
        optimizer=optimizer,
        learning_rate=learning_rate,
        num_steps=num_steps,
        compiler=compiler,
    )

    report_every = max(num_steps // _NUM_REPORTS, min(_LEAST_BETWEEN_REPORTS, num_steps))
    if stopping:
        report_every = min(report_every, stopping.every)
    held_out_seeds = range(_FIRST_HELD_OUT, _FIRST_HELD_OUT + num_held_out(report_every))
    per_step = npe.num_simulations if npe else 0
    losses, num_nonfinite = [], 0
    held_out: list[tuple[int, float]] = []
    seen: dict[tuple[Any, ...], dict[str, int]] = {}
    last_done, last_time = 0, time.perf_counter()
    with tqdm(total=num_steps, disable=not progress_bar, unit="step") as bar:
        for done in range(1, num_steps + 1):
            call = draw_call() if draw_call else calls[0]
            if _shapes(call) not in seen:
                seen[_shapes(call)] = plate_sizes(model, *call)
            result = step.advance(call)
            if not result.is_finite:
                raise FloatingPointError(step.explain(call, done))
            losses.append(result.loss)
            num_nonfinite += result.num_nonfinite
            if done == num_steps or done % report_every == 0:
                if done == num_steps or len(held_out) % _REPORTS_PER_CHECK == 0:
                    step.check_recordings(call)
                if stopping:
                    value = step.bank_loss(calls[0])
                    stopping.see(done, value, step.state())
                else:
                    value = step.held_out_loss(held_out_seeds, calls[0])
                held_out.append((done, value))
                text = f"loss {result.loss:.3f}, held-out {value:.3f}"
                if per_step:
                    now = time.perf_counter()
                    rate = per_step * (done - last_done) / (now - last_time)
                    text += f", {rate:,.0f} simulations/s"
                    last_done, last_time = done, now
                bar.set_postfix_str(text, refresh=False)
            bar.update()
            if stopping and stopping.is_over:
                break
    if stopping:
        step.restore(stopping.best_state)
    step.warn(calls[0])
    history = TrainingHistory(
        losses=np.array(losses),
        held_out_steps=np.array([done for done, _ in held_out]),
        held_out_losses=np.array([value for _, value in held_out]),
        num_simulations=per_step * done,
        num_nonfinite=num_nonfinite,
        seconds=time.perf_counter() - start,
        plate_sizes={
            plate: (
                min(each[plate] for each in seen.values()),
                max(each[plate] for each in seen.values()),
            )
            for plate in guide.structure.plates
        },
        best_step=stopping.best_step if stopping else None,
    )
    return AmortizedPosterior(model, guide, history=history)


def num_held_out(report_every: int) -> int:
    """Over how many draws a held-out loss is a mean: each costs what a step does.

    Args:
        report_every: Steps between two of these losses.
    """
    return min(max(report_every // _STEPS_PER_HELD_OUT, 1), _MOST_HELD_OUT)


def _sampler_of_calls(
    objective: ELBO,
    call: Call,
    model_args: Callable[[], tuple[Any, ...] | dict[str, Any]] | None,
) -> Callable[[], Call] | None:
    """Draws the arguments for each step; None if they are those of `call`."""
    if isinstance(objective, NPE):
        if model_args is not None:
            raise ValueError("model_args: NPE draws arguments itself; use NPE(model_args=...)")
        model_args = objective.model_args
    if model_args is None:
        return None
    if any(call):
        raise ValueError("args, kwargs: model_args draws the arguments; leave these out")
    sampler = model_args
    return lambda: drawn_call(sampler())


def _check_simulations(model: Callable[..., Any], objective: NPE, call: Call) -> None:
    """Stop before training if some simulations are not finite and nobody said to drop them."""
    args, kwargs = call
    num_checked = min(_CHECKED_STEPS * objective.num_simulations, _MOST_CHECKED)
    found = simulate(model, num_checked, args=args, kwargs=kwargs, method="vectorized")
    if found.nonfinite and objective.nonfinite == "raise":
        raise ValueError(nonfinite_message(found))


def _shapes(call: Call) -> tuple[Any, ...]:
    """What distinguishes calls of different sizes."""
    args, kwargs = call
    return tuple(
        tuple(value.shape) if hasattr(value, "shape") else value
        for value in (*args, *kwargs.values())
    )
