"""Conditional densities: one family per file."""

from numpyro_amortize.densities.affine_flow import AffineFlowDensity
from numpyro_amortize.densities.base import AnyDensity, ConditionalDensity, Density, DiscreteDensity
from numpyro_amortize.densities.categorical import CategoricalDensity
from numpyro_amortize.densities.circular_spline import CircularSplineDensity
from numpyro_amortize.densities.consistency import ConsistencyDensity
from numpyro_amortize.densities.continuous_flow import ContinuousFlowDensity
from numpyro_amortize.densities.count import CountDensity
from numpyro_amortize.densities.diffusion import DiffusionDensity
from numpyro_amortize.densities.distribution import DistributionDensity
from numpyro_amortize.densities.external_flow import ExternalFlowDensity
from numpyro_amortize.densities.flow_matching import FlowMatchingDensity
from numpyro_amortize.densities.gdn_flow import GDNFlowDensity
from numpyro_amortize.densities.low_rank_normal import LowRankNormalDensity
from numpyro_amortize.densities.mixture import MixtureDensity
from numpyro_amortize.densities.multivariate_normal import MultivariateNormalDensity
from numpyro_amortize.densities.nade import NADEDensity
from numpyro_amortize.densities.normal import NormalDensity
from numpyro_amortize.densities.planar_flow import PlanarFlowDensity
from numpyro_amortize.densities.pointer import PointerDensity
from numpyro_amortize.densities.radial_flow import RadialFlowDensity
from numpyro_amortize.densities.spline_flow import SplineFlowDensity
from numpyro_amortize.densities.student_t import StudentTDensity

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
