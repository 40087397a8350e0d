"""Checks of posteriors on NumPy arrays, shared by `pyro_amortize` and `numpyro_amortize`."""

from amortize_diagnostics.collapse import (
    ActiveUnits,
    LinearVAE,
    active_units,
    linear_vae_threshold,
)
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
from amortize_diagnostics.information import (
    MutualInformation,
    SiteRates,
    mutual_information,
    site_rates,
)

__all__ = [
    "ActiveUnits",
    "Gap",
    "ImportanceSummary",
    "LinearVAE",
    "MutualInformation",
    "SiteRates",
    "active_units",
    "choose_local_draws",
    "expected_gap",
    "importance_summary",
    "linear_vae_threshold",
    "marginalise_local_weights",
    "mutual_information",
    "psis",
    "resample",
    "site_rates",
    "to_datatree",
]
