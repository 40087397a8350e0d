"""Amortized guides for Pyro: one network that answers with a posterior for any data set."""

from pyro_amortize.at_data import Posterior
from pyro_amortize.decoders import InverseLipschitzDecoder
from pyro_amortize.densities import (
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
from pyro_amortize.embeddings import (
    ImageEmbedding,
    MLPEmbedding,
    PerceiverEmbedding,
    PlateEmbedding,
    SequenceEmbedding,
)
from pyro_amortize.fit import fit
from pyro_amortize.guides import AmortizedGuide, EnsembleGuide
from pyro_amortize.handlers import TruncatedPrior, add_path, fill_missing, truncated_prior
from pyro_amortize.history import TrainingHistory
from pyro_amortize.importance import ImportanceSamples
from pyro_amortize.nuts import NUTSSamples
from pyro_amortize.objectives import (
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
from pyro_amortize.posterior import AmortizedPosterior
from pyro_amortize.pretrain import pretrain
from pyro_amortize.refine import refine
from pyro_amortize.sequential import fit_sequential
from pyro_amortize.simulate import Simulations, simulate
from pyro_amortize.structure import ModelStructure

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
