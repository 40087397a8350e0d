"""Conditional densities: one family per file."""

from pyro_amortize.densities.base import ConditionalDensity, Density
from pyro_amortize.densities.normal import NormalDensity
from pyro_amortize.densities.spline_flow import SplineFlowDensity

__all__ = ["ConditionalDensity", "Density", "NormalDensity", "SplineFlowDensity"]
