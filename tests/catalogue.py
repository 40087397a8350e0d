"""Every public name of the two packages, with the problems that it must solve.

An entry brings a name into the contract tests and, with problems, into the statistical tests.
`tests/architecture/test_catalogue.py` compares this table with `__all__` and `METHODS.md`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "guide", "density", "embedding", "objective", "handler", "network", "function", "result"
]

# Nats per latent dimension, fixed before the run.
GAUSSIAN, OTHER = 0.02, 0.05


@dataclass(frozen=True)
class Entry:
    """One public name.

    Args:
        name: As in `__all__`.
        kind: Its slot, or what it is.
        problems: Names in `tests.problems.PROBLEMS` on which its gap is tested.
        tolerance: Largest expected gap plus three standard errors, in nats per latent dimension.
    """

    name: str
    kind: Kind
    problems: tuple[str, ...] = ()
    tolerance: float | None = None


_GAUSSIAN_PROBLEMS = ("conjugate_normal", "linear_gaussian_2", "linear_gaussian_10")

CATALOGUE = (
    Entry("AffineFlowDensity", "density", ("linear_gaussian_2", "parabola"), OTHER),
    Entry("AmortizedGuide", "guide", _GAUSSIAN_PROBLEMS, GAUSSIAN),
    Entry("AmortizedPosterior", "result"),
    Entry("DataEmphasizedELBO", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("DiffusionDensity", "density", ("two_mode_sign", "linear_gaussian_2"), OTHER),
    Entry("EnsembleGuide", "guide", ("conjugate_normal",), GAUSSIAN),
    Entry(
        "FlowMatchingDensity",
        "density",
        ("two_mode_sign", "linear_gaussian_2", "parabola"),
        OTHER,
    ),
    Entry("DistributionDensity", "density", ("conjugate_normal",), GAUSSIAN),
    Entry("ExternalFlowDensity", "density", ("parabola",), OTHER),
    Entry("GDNFlowDensity", "density", ("elliptical", "linear_gaussian_2"), OTHER),
    Entry("ImageEmbedding", "embedding", ("blob_image",), OTHER),
    Entry("CategoricalDensity", "density", ("mixture_assignments", "regimes", "switches"), OTHER),
    Entry("CircularSplineDensity", "density", ("compass",), OTHER),
    Entry("ConsistencyDensity", "density", ("two_mode_sign",), OTHER),
    Entry("ContinuousFlowDensity", "density", ("linear_gaussian_2", "conjugate_normal"), OTHER),
    Entry("CountDensity", "density", ("poisson_count",), OTHER),
    Entry("FisherRegularized", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("DIPELBO", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("InfoELBO", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("IWAE", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("ImportanceSamples", "result"),
    Entry("InverseLipschitzDecoder", "network"),
    Entry("LowRankNormalDensity", "density", ("linear_gaussian_2",), GAUSSIAN),
    Entry("MLPEmbedding", "embedding", ("ramp",), GAUSSIAN),
    Entry("MMDRegularizer", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("Mixed", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("MixtureDensity", "density", ("conjugate_normal", "two_mode_sign"), OTHER),
    Entry("ModelStructure", "result"),
    Entry(
        "MultivariateNormalDensity",
        "density",
        ("linear_gaussian_2", "linear_gaussian_10"),
        GAUSSIAN,
    ),
    Entry("NADEDensity", "density", ("switches", "parabola", "two_mode_sign"), OTHER),
    Entry("NPE", "objective", _GAUSSIAN_PROBLEMS, GAUSSIAN),
    Entry("NUTSSamples", "result"),
    Entry("NormalDensity", "density", ("conjugate_normal",), GAUSSIAN),
    Entry("PerceiverEmbedding", "embedding", ("contaminated_normal",), OTHER),
    Entry("PlanarFlowDensity", "density", ("conjugate_normal", "parabola"), OTHER),
    Entry("PlateEmbedding", "embedding", ("conjugate_normal",), GAUSSIAN),
    Entry("PointerDensity", "density", ("outlier",), OTHER),
    Entry("Posterior", "result"),
    Entry("RWS", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("RadialFlowDensity", "density", ("conjugate_normal",), OTHER),
    Entry("SelfConsistency", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("SequenceEmbedding", "embedding", ("autoregression",), OTHER),
    Entry("Simulations", "result"),
    Entry("SplineFlowDensity", "density", ("conjugate_normal",), GAUSSIAN),
    Entry("StudentTDensity", "density", ("conjugate_normal",), GAUSSIAN),
    Entry("TrainingHistory", "result"),
    Entry("TrajectoryBalance", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("TruncatedPrior", "result"),
    Entry("VIS", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("WakeSleep", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("VIBLoss", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("WeightedELBO", "objective", ("conjugate_normal",), GAUSSIAN),
    Entry("add_path", "handler"),
    Entry("fill_missing", "handler"),
    Entry("fit", "function"),
    Entry("fit_sequential", "function"),
    Entry("pretrain", "function"),
    Entry("refine", "function"),
    Entry("simulate", "function"),
    Entry("truncated_prior", "handler"),
)
