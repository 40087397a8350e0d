"""Checks of posteriors on NumPy arrays, shared by `pyro_amortize` and `numpyro_amortize`."""

from amortize_diagnostics.datatree import to_datatree
from amortize_diagnostics.gap import Gap, expected_gap
from amortize_diagnostics.importance import (
    ImportanceSummary,
    choose_local_draws,
    importance_summary,
    marginalise_local_weights,
    psis,
    resample,
)

__all__ = [
    "Gap",
    "ImportanceSummary",
    "choose_local_draws",
    "expected_gap",
    "importance_summary",
    "marginalise_local_weights",
    "psis",
    "resample",
    "to_datatree",
]
