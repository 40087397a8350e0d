"""Conditional densities: one family per file."""

from pyro_amortize.densities.affine_flow import AffineFlowDensity
from pyro_amortize.densities.base import AnyDensity, ConditionalDensity, Density, DiscreteDensity
from pyro_amortize.densities.categorical import CategoricalDensity
from pyro_amortize.densities.circular_spline import CircularSplineDensity
from pyro_amortize.densities.consistency import ConsistencyDensity
from pyro_amortize.densities.continuous_flow import ContinuousFlowDensity
from pyro_amortize.densities.count import CountDensity
from pyro_amortize.densities.diffusion import DiffusionDensity
from pyro_amortize.densities.distribution import DistributionDensity
from pyro_amortize.densities.external_flow import ExternalFlowDensity
from pyro_amortize.densities.flow_matching import FlowMatchingDensity
from pyro_amortize.densities.gdn_flow import GDNFlowDensity
from pyro_amortize.densities.low_rank_normal import LowRankNormalDensity
from pyro_amortize.densities.mixture import MixtureDensity
from pyro_amortize.densities.multivariate_normal import MultivariateNormalDensity
from pyro_amortize.densities.nade import NADEDensity
from pyro_amortize.densities.normal import NormalDensity
from pyro_amortize.densities.planar_flow import PlanarFlowDensity
from pyro_amortize.densities.pointer import PointerDensity
from pyro_amortize.densities.radial_flow import RadialFlowDensity
from pyro_amortize.densities.spline_flow import SplineFlowDensity
from pyro_amortize.densities.student_t import StudentTDensity

__all__ = [
    "AffineFlowDensity",
    "AnyDensity",
    "CategoricalDensity",
    "CircularSplineDensity",
    "ConditionalDensity",
    "ConsistencyDensity",
    "ContinuousFlowDensity",
    "CountDensity",
    "Density",
    "DiffusionDensity",
    "DiscreteDensity",
    "DistributionDensity",
    "ExternalFlowDensity",
    "FlowMatchingDensity",
    "GDNFlowDensity",
    "LowRankNormalDensity",
    "MixtureDensity",
    "MultivariateNormalDensity",
    "NADEDensity",
    "NormalDensity",
    "PlanarFlowDensity",
    "PointerDensity",
    "RadialFlowDensity",
    "SplineFlowDensity",
    "StudentTDensity",
]
