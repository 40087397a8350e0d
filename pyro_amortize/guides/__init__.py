"""Guides: one file for each guide of its own shape."""

from pyro_amortize.guides.amortized import AmortizedGuide
from pyro_amortize.guides.ensemble import AnyGuide, EnsembleGuide

__all__ = ["AmortizedGuide", "AnyGuide", "EnsembleGuide"]
