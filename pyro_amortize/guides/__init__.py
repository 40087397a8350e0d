"""Guides: one file for each guide of its own shape."""

from pyro_amortize.guides.amortized import AmortizedGuide

__all__ = ["AmortizedGuide"]
