"""Checks of posteriors on NumPy arrays, shared by `pyro_amortize` and `numpyro_amortize`."""

from amortize_diagnostics.calibration import Calibration, CalibrationRow
from amortize_diagnostics.calibration_run import CalibrationRun
from amortize_diagnostics.chains import ChainSummary, chain_summary
from amortize_diagnostics.collapse import (
    ActiveUnits,
    LinearVAE,
    active_units,
    linear_vae_threshold,
)
from amortize_diagnostics.comparison import ModelComparison, compare_models
from amortize_diagnostics.coverage import (
    Coverage,
    Recovery,
    central_coverage,
    hpd_coverage,
    recovery,
)
from amortize_diagnostics.datatree import to_datatree
from amortize_diagnostics.diagnosis import Diagnosis, diagnosis
from amortize_diagnostics.distances import (
    SlicedWasserstein,
    TwoSampleTest,
    mmd_test,
    sliced_wasserstein,
    squared_mmd,
)
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
from amortize_diagnostics.local_errors import LocalErrors
from amortize_diagnostics.misspecification import Typicality, misspecification_test, typicality
from amortize_diagnostics.multiplicity import holm, pooled_uniformity
from amortize_diagnostics.ood_score import OODScore
from amortize_diagnostics.predictive import PredictiveChecks, predictive_checks
from amortize_diagnostics.ranks import EcdfTest, RankStatistics, ecdf_test, posterior_ranks
from amortize_diagnostics.sensitivity import Sensitivity
from amortize_diagnostics.tarp import Tarp, reference_points, tarp
from amortize_diagnostics.two_sample import ClassifierTest, LocalC2ST, c2st

__all__ = [
    "ActiveUnits",
    "Calibration",
    "CalibrationRow",
    "CalibrationRun",
    "ChainSummary",
    "ClassifierTest",
    "Coverage",
    "Diagnosis",
    "EcdfTest",
    "Gap",
    "ImportanceSummary",
    "LinearVAE",
    "LocalC2ST",
    "LocalErrors",
    "ModelComparison",
    "MutualInformation",
    "OODScore",
    "PredictiveChecks",
    "RankStatistics",
    "Recovery",
    "Sensitivity",
    "SiteRates",
    "SlicedWasserstein",
    "Tarp",
    "TwoSampleTest",
    "Typicality",
    "active_units",
    "c2st",
    "central_coverage",
    "chain_summary",
    "choose_local_draws",
    "compare_models",
    "diagnosis",
    "ecdf_test",
    "expected_gap",
    "holm",
    "hpd_coverage",
    "importance_summary",
    "linear_vae_threshold",
    "marginalise_local_weights",
    "misspecification_test",
    "mmd_test",
    "mutual_information",
    "pooled_uniformity",
    "posterior_ranks",
    "predictive_checks",
    "psis",
    "recovery",
    "reference_points",
    "resample",
    "site_rates",
    "sliced_wasserstein",
    "squared_mmd",
    "tarp",
    "to_datatree",
    "typicality",
]
