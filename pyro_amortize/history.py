"""What happened in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
    """

    losses: np.ndarray
    held_out_steps: np.ndarray
    held_out_losses: np.ndarray
    num_simulations: int = 0
    num_nonfinite: int = 0
    seconds: float = 0.0
    plate_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    best_step: int | None = None

    def __str__(self) -> str:
        text = (
            f"{len(self.losses)} steps in {self.seconds:.1f} s, held-out loss "
            f"{self.held_out_losses[0]:.3f} -> {self.held_out_losses[-1]:.3f} nats"
        )
        if self.best_step is not None:
            text += f", {self.held_out_losses.min():.3f} at step {self.best_step}, which is kept"
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
        )
