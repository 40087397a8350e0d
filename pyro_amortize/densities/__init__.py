"""Conditional densities: one family per file."""

from pyro_amortize.densities.affine_flow import AffineFlowDensity
from pyro_amortize.densities.base import AnyDensity, ConditionalDensity, Density, DiscreteDensity
from pyro_amortize.densities.categorical import CategoricalDensity
from pyro_amortize.densities.count import CountDensity
from pyro_amortize.densities.normal import NormalDensity
from pyro_amortize.densities.spline_flow import SplineFlowDensity

__all__ = [
    "AffineFlowDensity",
    "AnyDensity",
    "CategoricalDensity",
    "ConditionalDensity",
    "CountDensity",
    "Density",
    "DiscreteDensity",
    "NormalDensity",
    "SplineFlowDensity",
]
