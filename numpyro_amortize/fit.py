"""The one training loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax import Array
from numpyro.infer.elbo import ELBO
from tqdm import tqdm

from numpyro_amortize.arguments import drawn_call
from numpyro_amortize.early_stopping import early_stopping
from numpyro_amortize.fit_members import fit_members
from numpyro_amortize.guides import AmortizedGuide, AnyGuide, EnsembleGuide
from numpyro_amortize.history import TrainingHistory
from numpyro_amortize.measure import Call
from numpyro_amortize.objectives import NPE
from numpyro_amortize.objectives.bank import nonfinite_message
from numpyro_amortize.objectives.gradients import check_gradients
from numpyro_amortize.objectives.mixed import parts_of, simulating_part
from numpyro_amortize.padding import CallPadding, PaddedCall
from numpyro_amortize.posterior import AmortizedPosterior
from numpyro_amortize.simulate import simulate
from numpyro_amortize.training_step import TrainingStep

_NUM_REPORTS, _LEAST_BETWEEN_REPORTS = 20, 50  # steps: reports are a few per cent of the time
_STEPS_PER_HELD_OUT, _MOST_HELD_OUT = 75, 8
_ARGUMENT_DRAWS = 16  # calls over which the standardisation is measured
_CHECKED = 1000  # simulations before the first step, of a guide that was loaded


def fit(
    model: Callable[..., Any],
    guide: AnyGuide,
    objective: ELBO,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    model_args: Callable[[Array], tuple[Any, ...] | dict[str, Any]] | None = None,
    num_steps: int = 3000,
    learning_rate: float = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    patience: int | None = None,
    progress_bar: bool = True,
    rng_key: Array | None = None,
    params: Mapping[str, Any] | None = None,
    padding: Literal["auto", "always", "never"] = "auto",
) -> AmortizedPosterior:
    """Train a guide and return the posterior for every data set.

    Adam with a cosine-decayed rate and clipped gradients, in compiled scans.
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
            `model_args(rng_key)` returns a tuple of positional or a dict of keyword arguments
            and must derive everything from the key.
        num_steps: Number of optimiser steps.
        learning_rate: Initial rate of the default optimiser.
        optimizer: An optax optimiser in place of the default one; gradients are still clipped
            and the standardisation is left out of it.
        patience: For `NPE` on a fixed bank of simulations: stop after so many steps without a
            better loss on those that are held out, and keep the best parameters. The loss is
            measured at least five times in that many steps.
        progress_bar: Whether to show a bar with the loss and simulations per second.
        rng_key: Key of everything random; `jax.random.key(0)` if None.
        params: Parameters to start from, such as those of an earlier `fit`.
        padding: Where `model_args` draws other sizes of a plate, it is padded to 16, 64, 256,
            ... elements, so that JAX compiles once for each of these and not for each size.
            `"auto"` does so if the model's densities are the same at the padded size, and
            warns if not; `"always"` stops with an error instead, `"never"` does not pad.

    Returns:
        The trained posterior, with its history.

    Raises:
        ValueError: If simulations are not finite and NPE is not told to drop them, if the
            objective's gradient would be wrong at a discrete site, if `padding="always"` is
            asked for and the model's densities change with it, if arguments come from two
            places, or if `patience` is given without a bank.
        FloatingPointError: If the loss or its gradient is not finite, naming the step and the
            sites.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> def model(y=None):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> guide = AmortizedGuide(model, observed="y")
        >>> amortized = fit(model, guide, NPE(), num_steps=2, progress_bar=False)
        >>> amortized.at(y=jnp.array(0.5)).sample(3)["z"].shape
        (3,)
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    if padding not in ("auto", "always", "never"):
        raise ValueError(f"padding: expected 'auto', 'always' or 'never', got {padding!r}")
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
            progress_bar=progress_bar,
            padding=padding,
            rng_key=rng_key,
            params=params,
        )
    stopping = early_stopping(patience, objective)
    start = time.perf_counter()
    key = jax.random.key(0) if rng_key is None else rng_key
    key, held_out_key, argument_key = jax.random.split(key, 3)
    calls: list[Call] = [(tuple(args), dict(kwargs or {}))]
    npe = simulating_part(objective)
    draw_call = _sampler_of_calls(objective, calls[0], model_args)
    if draw_call:
        calls = [draw_call(each) for each in jax.random.split(argument_key, _ARGUMENT_DRAWS)]
    if npe is objective and draw_call:
        objective = npe = npe.for_call({})
    guide.setup_over(calls)
    structure = guide.structure
    pad = _padding(guide, npe, calls, padding if draw_call else "never")
    for part, _ in parts_of(objective):
        check_gradients(structure, part)
    if npe is not objective and any(info.has_positions for info in structure.missing):
        guide.find_observations(*calls[0])  # NaN in padding would be met inside the loop
    if npe and npe.simulations is None:
        _check_simulations(guide, npe, calls[0])
    step = TrainingStep(
        model,
        guide,
        objective,
        calls[0],
        optimizer=optimizer,
        learning_rate=learning_rate,
        num_steps=num_steps,
        params=params,
    )
    state = step.initial

    keys = jax.random.split(key, num_steps)
    report_every = max(num_steps // _NUM_REPORTS, min(_LEAST_BETWEEN_REPORTS, num_steps))
    if stopping:
        report_every = min(report_every, stopping.every)
    chunk = 1 if draw_call else report_every
    held_out_keys = jax.random.split(held_out_key, num_held_out(report_every))
    per_step = npe.num_simulations if npe else 0
    losses, num_nonfinite, held_out = [], 0, []
    seen: dict[str, set[int]] = {plate: set() for plate in structure.plates}
    first_call = pad(calls[0])
    last_done, last_time = 0, time.perf_counter()
    with tqdm(total=num_steps, disable=not progress_bar, unit="step") as bar:
        for first in range(0, num_steps, chunk):
            own_keys = keys[first : first + chunk]
            call = first_call
            if draw_call:
                call = pad(draw_call(jax.random.fold_in(own_keys[0], 1)))
            for plate, size in call.sizes.items():
                seen[plate].add(size)
            before = state
            state, results = step.advance(state, own_keys, call)
            if results.first_bad is not None:
                raise FloatingPointError(step.explain(before, own_keys, call, first, results))
            losses.append(results.losses)
            num_nonfinite += int(results.num_nonfinite.sum())
            done = first + len(own_keys)
            if done == num_steps or done // report_every > first // report_every:
                if stopping:
                    value = step.bank_loss(state, held_out_key, first_call)
                    stopping.see(done, value, state)
                else:
                    value = step.held_out_loss(state, held_out_keys, first_call)
                held_out.append((done, value))
                text = f"loss {results.losses[-1]:.3f}, held-out {value:.3f}"
                if per_step:
                    now = time.perf_counter()
                    rate = per_step * (done - last_done) / (now - last_time)
                    text += f", {rate:,.0f} simulations/s"
                    last_done, last_time = done, now
                bar.set_postfix_str(text, refresh=False)
            bar.update(len(own_keys))
            if stopping and stopping.is_over:
                break
    if stopping:
        state = stopping.best_state
    step.warn(state, held_out_key, first_call)
    history = TrainingHistory(
        losses=np.concatenate(losses),
        held_out_steps=np.array([done for done, _ in held_out]),
        held_out_losses=np.array([value for _, value in held_out]),
        num_simulations=per_step * done,
        num_nonfinite=num_nonfinite,
        seconds=time.perf_counter() - start,
        plate_sizes={plate: (min(sizes), max(sizes)) for plate, sizes in seen.items()},
        best_step=stopping.best_step if stopping else None,
    )
    return AmortizedPosterior(model, guide, params=step.params(state), history=history)


def num_held_out(report_every: int) -> int:
    """Over how many draws a held-out loss is a mean: each costs what a step does.

    Args:
        report_every: Steps between two of these losses.
    """
    return min(max(report_every // _STEPS_PER_HELD_OUT, 1), _MOST_HELD_OUT)


def _sampler_of_calls(
    objective: ELBO,
    call: Call,
    model_args: Callable[[Array], tuple[Any, ...] | dict[str, Any]] | None,
) -> Callable[[Array], Call] | None:
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
    return lambda rng_key: drawn_call(sampler(rng_key))


def _check_simulations(guide: AmortizedGuide, objective: NPE, call: Call) -> None:
    """Stop before training if some simulations are not finite and nobody said to drop them."""
    args, kwargs = call
    found = guide.measured_on  # compiling them once more takes seconds
    if found is None:
        found = simulate(guide.model, _CHECKED, args=args, kwargs=kwargs, method="vectorized")
    if found.nonfinite and objective.nonfinite == "raise":
        raise ValueError(nonfinite_message(found))


def _padding(
    guide: AmortizedGuide,
    objective: NPE | None,
    calls: Sequence[Call],
    padding: Literal["auto", "always", "never"],
) -> Callable[[Call], PaddedCall]:
    """How calls are padded: along the plates whose size differs between the first of them."""
    structure = guide.structure
    exact = CallPadding(guide.model, structure, guide.sizes, ())
    if padding == "never":
        return exact.pad
    sizes = [exact.own_sizes(call) for call in calls]
    varying = [
        plate
        for plate, info in structure.plates.items()
        if not info.is_event and len({each[plate] for each in sizes}) > 1
    ]
    if not varying:
        return exact.pad
    padded = CallPadding(guide.model, structure, guide.sizes, varying)
    drawn_from = [plate for plate in varying if plate in structure.subsampled]
    if drawn_from:
        problem: str | None = f"plate '{drawn_from[0]}': rows are drawn from the padded ones too"
    elif objective and callable(objective.missing):
        problem = "missing: a function of the shape would see the padded one"
    else:
        problem = padded.find_problem(calls)
    if problem is None:
        return padded.pad
    if padding == "always":
        raise ValueError(f"padding='always': {problem}")
    warnings.warn(
        f"{problem}. So every new size of plates {varying} is compiled by itself; "
        "fit(..., padding='never') says that this is meant",
        stacklevel=3,
    )
    return exact.pad
