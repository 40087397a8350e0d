"""Amortized guides for NumPyro: one network that answers with a posterior for any data set."""

from numpyro_amortize.at_data import Posterior
from numpyro_amortize.decoders import InverseLipschitzDecoder
from numpyro_amortize.densities import (
    AffineFlowDensity,
    CategoricalDensity,
    CircularSplineDensity,
    ConsistencyDensity,
    ContinuousFlowDensity,
    CountDensity,
    DiffusionDensity,
    DistributionDensity,
    ExternalFlowDensity,
    FlowMatchingDensity,
    GDNFlowDensity,
    LowRankNormalDensity,
    MixtureDensity,
    MultivariateNormalDensity,
    NADEDensity,
    NormalDensity,
    PlanarFlowDensity,
    PointerDensity,
    RadialFlowDensity,
    SplineFlowDensity,
    StudentTDensity,
)
from numpyro_amortize.embeddings import (
    ImageEmbedding,
    MLPEmbedding,
    PerceiverEmbedding,
    PlateEmbedding,
    SequenceEmbedding,
)
from numpyro_amortize.fit import fit
from numpyro_amortize.guides import AmortizedGuide, EnsembleGuide
from numpyro_amortize.handlers import TruncatedPrior, add_path, fill_missing, truncated_prior
from numpyro_amortize.history import TrainingHistory
from numpyro_amortize.importance import ImportanceSamples
from numpyro_amortize.nuts import NUTSSamples
from numpyro_amortize.objectives import (
    DIPELBO,
    IWAE,
    NPE,
    RWS,
    VIS,
    DataEmphasizedELBO,
    FisherRegularized,
    InfoELBO,
    Mixed,
    MMDRegularizer,
    SelfConsistency,
    TrajectoryBalance,
    VIBLoss,
    WakeSleep,
    WeightedELBO,
)
from numpyro_amortize.posterior import AmortizedPosterior
from numpyro_amortize.pretrain import pretrain
from numpyro_amortize.refine import refine
from numpyro_amortize.sequential import fit_sequential
from numpyro_amortize.simulate import Simulations, simulate
from numpyro_amortize.structure import ModelStructure

__all__ = [
    "DIPELBO",
    "IWAE",
    "NPE",
    "RWS",
    "VIS",
    "AffineFlowDensity",
    "AmortizedGuide",
    "AmortizedPosterior",
    "CategoricalDensity",
    "CircularSplineDensity",
    "ConsistencyDensity",
    "ContinuousFlowDensity",
    "CountDensity",
    "DataEmphasizedELBO",
    "DiffusionDensity",
    "DistributionDensity",
    "EnsembleGuide",
    "ExternalFlowDensity",
    "FisherRegularized",
    "FlowMatchingDensity",
    "GDNFlowDensity",
    "ImageEmbedding",
    "ImportanceSamples",
    "InfoELBO",
    "InverseLipschitzDecoder",
    "LowRankNormalDensity",
    "MLPEmbedding",
    "MMDRegularizer",
    "Mixed",
    "MixtureDensity",
    "ModelStructure",
    "MultivariateNormalDensity",
    "NADEDensity",
    "NUTSSamples",
    "NormalDensity",
    "PerceiverEmbedding",
    "PlanarFlowDensity",
    "PlateEmbedding",
    "PointerDensity",
    "Posterior",
    "RadialFlowDensity",
    "SelfConsistency",
    "SequenceEmbedding",
    "Simulations",
    "SplineFlowDensity",
    "StudentTDensity",
    "TrainingHistory",
    "TrajectoryBalance",
    "TruncatedPrior",
    "VIBLoss",
    "WakeSleep",
    "WeightedELBO",
    "add_path",
    "fill_missing",
    "fit",
    "fit_sequential",
    "pretrain",
    "refine",
    "simulate",
    "truncated_prior",
]
