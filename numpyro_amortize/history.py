"""What happened in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from numpyro_amortize.structure import ModelStructure


@dataclass(frozen=True)
class TrainingHistory:
    """The course of one training run.

    Args:
        losses: Loss of every step, in nats.
        held_out_steps: Steps after which the held-out loss was measured.
        held_out_losses: Loss on simulations (or random draws) that training does not see.
        num_simulations: Simulations drawn in all, 0 for objectives that draw none.
        num_nonfinite: Simulations among them that were not finite and were left out.
        seconds: Wall time, compilation included.
        plate_sizes: Smallest and largest size of every plate seen in training.
        best_step: With early stopping the step whose parameters were kept, else None.
        acceptance_rates: For each round of `fit_sequential` the fraction of prior draws in the
            region from which it simulated.
    """

    losses: np.ndarray
    held_out_steps: np.ndarray
    held_out_losses: np.ndarray
    num_simulations: int = 0
    num_nonfinite: int = 0
    seconds: float = 0.0
    plate_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    best_step: int | None = None
    acceptance_rates: tuple[float, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{len(self.losses)} steps in {self.seconds:.1f} s, held-out loss "
            f"{self.held_out_losses[0]:.3f} -> {self.held_out_losses[-1]:.3f} nats"
        )
        if self.best_step is not None:
            best = self.held_out_losses[self.held_out_steps == self.best_step][0]
            text += f", {best:.3f} at step {self.best_step}, which is kept"
        if self.acceptance_rates:
            rates = ", ".join(f"{rate:.2g}" for rate in self.acceptance_rates)
            text += f"; acceptance rates by round {rates}"
        if self.num_nonfinite:
            text += (
                f"; {self.num_nonfinite} of {self.num_simulations} simulations were not finite "
                "and were left out"
            )
        return text

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "losses": np.asarray(self.losses, float).tolist(),
            "held_out_steps": np.asarray(self.held_out_steps, int).tolist(),
            "held_out_losses": np.asarray(self.held_out_losses, float).tolist(),
            "num_simulations": self.num_simulations,
            "num_nonfinite": self.num_nonfinite,
            "seconds": self.seconds,
            "plate_sizes": {name: list(sizes) for name, sizes in self.plate_sizes.items()},
            "best_step": self.best_step,
            "acceptance_rates": list(self.acceptance_rates),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> TrainingHistory:
        """The inverse of `to_dict`."""
        return cls(
            losses=np.asarray(state["losses"]),
            held_out_steps=np.asarray(state["held_out_steps"], int),
            held_out_losses=np.asarray(state["held_out_losses"]),
            num_simulations=state["num_simulations"],
            num_nonfinite=state["num_nonfinite"],
            seconds=state["seconds"],
            plate_sizes={name: tuple(sizes) for name, sizes in state["plate_sizes"].items()},
            best_step=state.get("best_step"),
            acceptance_rates=tuple(state.get("acceptance_rates", ())),
        )


def joined_histories(histories: Sequence[TrainingHistory]) -> TrainingHistory:
    """Training runs one after the other as one, with the best step of the last.

    Args:
        histories: The runs, at least one.
    """
    lengths = [len(each.losses) for each in histories]
    before = np.cumsum([0, *lengths[:-1]])
    last = histories[-1]
    steps = [each.held_out_steps + start for each, start in zip(histories, before, strict=True)]
    return replace(
        last,
        losses=np.concatenate([each.losses for each in histories]),
        held_out_steps=np.concatenate(steps),
        held_out_losses=np.concatenate([each.held_out_losses for each in histories]),
        num_simulations=sum(each.num_simulations for each in histories),
        num_nonfinite=sum(each.num_nonfinite for each in histories),
        seconds=sum(each.seconds for each in histories),
        best_step=None if last.best_step is None else int(before[-1]) + last.best_step,
    )


def warn_of_sizes(
    histories: Iterable[TrainingHistory], structure: ModelStructure, sizes: Mapping[str, int]
) -> None:
    """Say of which plates data are larger or smaller than any that a guide was trained on.

    Args:
        histories: Training of the guide, or of each member of an ensemble.
        structure: The structure of the model.
        sizes: Number of rows of each plate of the data.
    """
    for plate, size in sizes.items():
        if all(site.is_own_row and plate in site.plates for site in structure.latents):
            continue  # every row is answered by itself
        for history in histories:
            low, high = history.plate_sizes.get(plate, (size, size))
            if not low <= size <= high:
                warnings.warn(
                    f"plate '{plate}': size {size} is outside the trained range {low} to {high}; "
                    "check the ESS fraction, or train with NPE(model_args=...) over more sizes",
                    stacklevel=4,
                )
                break
