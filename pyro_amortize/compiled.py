"""A function of a model's arguments, recorded at its first use and then run without its Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.measure import Call
from pyro_amortize.objectives.mixed import parts_of
from pyro_amortize.recorded_graph import RecordingError, tensors_in
from pyro_amortize.recording import DepartureError, Outputs, Recording, record
from pyro_amortize.tracing import random_state, seeded, set_random_state

Evaluation = Callable[[Call], Outputs]

_SEEDS, _NUM_COMPARED = range(2000, 2020), 3
_TOLERANCE = 1e-4  # of the norm; the same operations in the same order differ by rounding at most
_MOST_RECORDINGS, _MOST_DEPARTURES = 64, 0.75
_ADVICE = "Leave compile out for this model and objective"


def make_compiler(
    objective: Any, constants: Iterable[Tensor], *, draws_arguments: bool
) -> Compiler:
    """What turns the evaluations of an objective into compiled ones.

    Args:
        objective: The objective.
        constants: Tensors that do not change while a guide is trained.
        draws_arguments: Whether each step has other arguments.

    Raises:
        ValueError: If a part of the objective has no `differentiable_loss`.
    """
    for part, _ in parts_of(objective):
        if not hasattr(part, "differentiable_loss"):
            raise ValueError(
                f"compile: {type(part).__name__} has no differentiable_loss, so that its gradient "
                f"cannot be recorded. {_ADVICE}"
            )
    return partial(
        CompiledFunction, constants=list(constants), has_same_arguments=not draws_arguments
    )


class CompiledFunction:
    """Runs the recorded operations of a function of a model's arguments.

    It is recorded once for each shape of the arguments and compared with the function at three
    random states. Where a run finds that the function's Python would go another way than when it
    was recorded, the function itself is run, from the same random state.

    Args:
        function: Returns tensors.
        constants: Tensors that do not change between runs.
        has_same_arguments: Whether it is always called with the same arguments, which then do not
            change either.
    """

    def __init__(
        self,
        function: Evaluation,
        *,
        constants: Sequence[Tensor],
        has_same_arguments: bool,
    ) -> None:
        self._function = function
        self._constants = list(constants)
        self._has_same_arguments = has_same_arguments
        self._recordings: dict[Hashable, tuple[Recording, Call]] = {}
        self._num_runs, self._num_departures = 0, 0

    def __call__(self, call: Call) -> Outputs:
        """What the function returns, without a graph.

        Raises:
            ValueError: If the function cannot be recorded, or if a recording differs from it.
        """
        recording, state = self._find(call), random_state()
        self._num_runs += 1
        try:
            return recording(self._inputs(call))
        except DepartureError:
            self._num_departures += 1
            set_random_state(state)
            return self._function(call)

    def check(self, call: Call) -> None:
        """Compare a recording with the function as it is now.

        Raises:
            ValueError: If they differ.
        """
        self._compare(self._find(call), call, _SEEDS[0])

    def warn(self) -> None:
        """Say so if most runs could not use what was recorded."""
        if self._num_departures > _MOST_DEPARTURES * self._num_runs:
            warnings.warn(
                f"compile: {self._num_departures} of {self._num_runs} steps ran as Python, since "
                "model or guide decided by values that are drawn, otherwise than in what was "
                f"recorded. The result is right; without compile it takes less time. {_ADVICE}",
                stacklevel=4,
            )

    def _inputs(self, call: Call) -> list[Tensor]:
        """The tensors of a call that differ between runs."""
        return [] if self._has_same_arguments else tensors_in(call)

    def _find(self, call: Call) -> Recording:
        key = None if self._has_same_arguments else _kind(call)
        if key not in self._recordings:
            if len(self._recordings) == _MOST_RECORDINGS:
                raise ValueError(
                    f"compile: arguments of {_MOST_RECORDINGS} kinds were recorded, and still "
                    "others are drawn. Arrays and numbers that differ from step to step must be "
                    f"tensors, of few shapes. {_ADVICE}, or draw such"
                )
            self._recordings[key] = self._record(call), call  # alive, as kinds may have identities
        return self._recordings[key][0]

    def _record(self, call: Call) -> Recording:
        state = random_state()
        self._function(call)  # what is done at a first call alone is now done
        try:
            recording = record(
                lambda: self._function(call),
                inputs=self._inputs(call),
                constants=self._constants + (tensors_in(call) if self._has_same_arguments else []),
            )
        except RecordingError as error:
            raise ValueError(f"compile: the step cannot be recorded: {error}. {_ADVICE}") from error
        agreed = (seed for seed in _SEEDS if self._compare(recording, call, seed))
        if not list(islice(agreed, _NUM_COMPARED)):
            raise ValueError(
                "compile: model or guide decide by values that are drawn, and take another path "
                f"at each draw, so that nothing can be recorded. {_ADVICE}"
            )
        set_random_state(state)
        return recording

    def _compare(self, recording: Recording, call: Call, seed: int) -> bool:
        """Whether they agree at one random state; False if the recording departs there."""
        with seeded(seed):
            expected = [each if each is None else each.clone() for each in self._function(call)]
        with seeded(seed):
            try:
                found = recording(self._inputs(call))
            except DepartureError:
                return False
        if not all(map(_is_close, found, expected)):
            raise ValueError(
                "compile: the recorded step no longer gives what the model gives. Model, guide or "
                "objective use random numbers that are not torch's, or hold numbers that change "
                f"between steps, as a weight that is annealed; make these tensors. {_ADVICE}"
            )
        return True


def _kind(value: object) -> Hashable:
    """What a recording takes for granted of arguments."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, dict):
        return tuple((name, _kind(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_kind, value))
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return type(value), value if is_plain else id(value)


def _is_close(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    first, second = found.double(), expected.double()
    if not bool(second.isfinite().all()):
        return torch.equal(first.isfinite(), second.isfinite())
    error = torch.linalg.vector_norm(first - second)
    return bool(error <= _TOLERANCE * torch.linalg.vector_norm(second))


Compiler = Callable[[Evaluation], CompiledFunction]
