"""When to stop training on a fixed bank of simulations, and which parameters to keep."""

from __future__ import annotations

import math
from typing import Any

from pyro_amortize.objectives import NPE

_CHECKS = 5  # of the held-out loss at least, before patience ends


class EarlyStopping:
    """Keeps the parameters with the least held-out loss.

    Args:
        patience: Steps without a better held-out loss after which training is over.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.every = max(patience // _CHECKS, 1)
        self.best_step = 0
        self.best_loss = math.inf
        self.best_state: Any = None
        self.is_over = False

    def see(self, step: int, loss: float, state: Any) -> None:
        """Take note of the held-out loss after a step.

        Args:
            step: Number of steps done.
            loss: The held-out loss, in nats.
            state: What to keep of the parameters if it is the best.
        """
        if self.best_state is None or loss < self.best_loss:
            self.best_step, self.best_state = step, state
            self.best_loss = loss if math.isfinite(loss) else math.inf
        self.is_over = step - self.best_step >= self.patience


def early_stopping(patience: int | None, objective: Any) -> EarlyStopping | None:
    """Early stopping for an objective, or None if it is not asked for.

    Raises:
        ValueError: If patience is below 1, or the objective has no bank of simulations.
    """
    if patience is None:
        return None
    if patience < 1:
        raise ValueError(f"patience: expected at least 1 step, got {patience}")
    if not isinstance(objective, NPE) or objective.simulations is None:
        name = type(objective).__name__
        raise ValueError(
            f"patience: {name} has no fixed bank of simulations, a part of which would be held out "
            "to say when to stop. Use NPE(simulations=simulate(...)), or leave patience out: what "
            "is drawn anew at every step cannot be overfitted"
        )
    return EarlyStopping(patience)
