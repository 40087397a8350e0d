"""What the report of a trained guide shows."""

from __future__ import annotations

from collections.abc import Sequence

from amortize_diagnostics import Calibration
from amortize_diagnostics.charts import Site
from amortize_diagnostics.report import Report, TrainingCourse
from pyro_amortize.history import TrainingHistory
from pyro_amortize.structure import ModelStructure


def guide_report(
    title: str,
    structure: ModelStructure,
    histories: Sequence[TrainingHistory],
    calibration: Calibration | None,
    *,
    unchecked: str = "",
    answers: str = "",
) -> Report:
    """The report of a guide.

    Args:
        title: Its title.
        structure: The structure of the model.
        histories: Training of the guide, or of each member of an ensemble.
        calibration: What simulated data say of it, or None.
        unchecked: Why that is None.
        answers: What is known of the answers at data sets.
    """
    courses = [
        TrainingCourse(each.losses, each.held_out_steps, each.held_out_losses, str(each))
        for each in histories
    ]
    return Report(
        title,
        _sites(structure),
        str(structure),
        calibration=calibration,
        unchecked=unchecked,
        courses=courses,
        answers=answers,
    )


def _sites(structure: ModelStructure) -> list[Site]:
    """Data, covariates and latents, in the order in which the guide reads and draws them."""
    found = [Site(each.name, _where(each.plates), (), "observed") for each in structure.observed]
    found += [Site(each.name, _where(each.plates), (), "input") for each in structure.inputs]
    return found + [
        Site(each.name, _where(each.plates), each.parents) for each in structure.latents
    ]


def _where(plates: Sequence[str]) -> str:
    return f"in {', '.join(plates)}" if plates else ""
