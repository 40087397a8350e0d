"""NPE with a term of its own beside the loss."""

from __future__ import annotations

from pyro_amortize.objectives.npe import NPE


class PenalisedNPE(NPE):
    """What adds a penalty to an `NPE` and keeps its simulations, arguments and what is missing.

    Args:
        npe: The `NPE`.

    Raises:
        TypeError: If it is none, or adds to one already.
    """

    def __init__(self, npe: NPE) -> None:
        if type(npe) is not NPE:
            raise TypeError(f"npe: expected an NPE such as NPE(128), got {type(npe).__name__}")
        super().__init__(
            npe.num_simulations,
            model_args=npe.model_args,
            simulations=npe.simulations,
            nonfinite=npe.nonfinite,
            missing=npe.missing,
        )
