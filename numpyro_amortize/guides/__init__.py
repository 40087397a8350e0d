"""Guides: one file for each guide of its own shape."""

from numpyro_amortize.guides.amortized import AmortizedGuide
from numpyro_amortize.guides.ensemble import AnyGuide, EnsembleGuide

__all__ = ["AmortizedGuide", "AnyGuide", "EnsembleGuide"]
