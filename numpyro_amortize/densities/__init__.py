"""Conditional densities: one family per file."""

from numpyro_amortize.densities.base import ConditionalDensity, Density
from numpyro_amortize.densities.normal import NormalDensity
from numpyro_amortize.densities.spline_flow import SplineFlowDensity

__all__ = ["ConditionalDensity", "Density", "NormalDensity", "SplineFlowDensity"]
